"""Quantization of saved models: rules for operators, written programs and sensitivities."""

import logging
import os
from dataclasses import replace
from itertools import chain, islice
from typing import Any, Collection, Iterable, List, Optional, Set, Tuple

from .. import engine
from .._checks import check_choice, check_int, hint, wrong_type
from ..analysis import Sensitivities, sensitivity
from ..config import LayerConfig, QuantConfig, Scope
from ..errors import ConfigError, ModelError
from ..export.markers import simulated_weight
from ..export.paddle.lower import ProgramLowering, save_for
from ..export.program.program import Program
from ..export.provenance_file import Provenance
from ..export.trace import trace
from ..nn.layer_types import QuantizableFunction, kind_of
from ..saved_model import SavedModel
from ..saved_model.full_scope import SCOPES
from ..saved_model.operator_layers import OPERATOR_RULES
from .plan import PostTrainingPlan, run

_logger = logging.getLogger("paddleq")
LINEAR_OPS = ("mul", "matmul", "matmul_v2")
OP_TYPES = ("conv2d", "depthwise_conv2d", "conv3d", "conv2d_transpose",
            "depthwise_conv2d_transpose", *LINEAR_OPS, "lookup_table_v2")
DEFAULT_OPS = ("conv2d", "depthwise_conv2d", "conv2d_transpose", "mul")


def check_op_types(given: Any) -> Set[str]:
    """Return the operator types of a ``quantizable_op_type``: "mul" means Linear in any form."""
    if isinstance(given, str) or not isinstance(given, (list, tuple)):
        raise wrong_type("quantizable_op_type", given, "a list of op types")
    return set(chain.from_iterable(
        LINEAR_OPS if check_choice("quantizable_op_type", entry, OP_TYPES) == "mul" else (entry,)
        for entry in given))


def warn_unmatched(model, quantizable_op_type):
    """Warn of operator types that a user gave and of which a saved model has no weight."""
    known = {binding.operator.type for binding in model.bindings.values()}
    if quantizable_op_type is OP_TYPES:
        return
    for op in set(quantizable_op_type) - set(DEFAULT_OPS):
        if known.isdisjoint(check_op_types([op])):
            _logger.warning("quantizable_op_type has %r, but the model has no such operator with a "
                            "weight", op)


def calibrated_rules(model: SavedModel, config: LayerConfig,
                     quantizable_op_type: Any = DEFAULT_OPS, skip_tensors: Collection[str] = (),
                     scope: str = SCOPES[0]) -> QuantConfig:
    """Return :func:`operator_rules` for calibration, which Embeddings do not need."""
    for name, spec in (("weight_bits", config.weight_spec),
                       ("activation_bits", config.activation_spec)):
        check_int(name, spec and spec.bits, 2, 8)
    op_types = check_op_types(quantizable_op_type) - {"lookup_table_v2"}
    warn_unmatched(model, quantizable_op_type)
    return operator_rules(model, op_types, config, skip_tensors, scope)


def operator_rules(model: SavedModel, op_types: Iterable[str], config: LayerConfig,
                   skip_tensors: Iterable[str] = (), scope: str = SCOPES[0]) -> QuantConfig:
    """Return the rules for the operators of a saved model of these types.

    Those whose weight, input or output is in ``skip_tensors`` stay float. With the scope "full"
    they include operators without weights.
    """
    tensors = {name: {binding.weight, binding.operator.input(binding.source), binding.target,
                      *chain.from_iterable(binding.operator.outputs.values())}
               for name, binding in model.bindings.items()
               if binding.operator.type in set(op_types)
               and kind_of(getattr(model, name)) is not None}
    if not tensors:
        raise ModelError("the model has no weight of the op types "
                         f"{', '.join(sorted(op_types))} to quantize")
    known = set().union(*tensors.values())
    if scope != SCOPES[0]:
        known.update(*([*op.all_inputs(), *op.all_outputs()] for op in model.operators
                       if op.type in OPERATOR_RULES))
    for tensor in sorted(set(skip_tensors) - known):
        raise ConfigError(f"skip_tensor_list has {tensor!r}{hint(tensor, known)}, which is no "
                          "weight, input or output of an operator that would be quantized")
    rules = QuantConfig()
    rules.add(Scope(names=list(tensors)), config)
    if scope != SCOPES[0]:
        rules.add_type(QuantizableFunction, config)
    rules.add(Scope(names=[name for name, each in tensors.items() if each & set(skip_tensors)],
                    label="skip_tensor_list"), None)
    return rules


def weight_only_model(program: Program, config: LayerConfig,
                      quantizable_op_type: Any = DEFAULT_OPS) -> SavedModel:
    """Return a :class:`paddleq.SavedModel` of ``program`` with quantized weights."""
    model = SavedModel.from_program(program)
    warn_unmatched(model, quantizable_op_type)
    engine.prepare(model, operator_rules(model, check_op_types(quantizable_op_type), config))
    return model


def operator_sensitivities(model: SavedModel, rules: QuantConfig, plan: PostTrainingPlan,
                           data: Iterable, num_batches: Optional[int] = None) -> Sensitivities:
    """Measure the loss of the output when each operator of a saved model is quantized alone.

    The model is quantized in place by :func:`~paddleq.post_training.run`. The result has the names
    of the weights, or of the outputs of operators without weights.
    """
    batches = list(islice(data, num_batches))  # iterated twice
    run(model, rules, plan, batches)

    def named(row):
        binding = model.bindings.get(row.name)
        if binding is None:
            return replace(row, type=getattr(model, row.name).function.operator.type)
        return replace(row, name=binding.weight, type=binding.operator.type)

    return Sensitivities(map(named, sensitivity(model, batches)))


def quantized_program(model: SavedModel, as_float: bool = False,
                      onnx_format: bool = True) -> Tuple[Program, List[str]]:
    """Return the program of a quantized model, and the names of its quantized weights.

    With ``as_float`` it holds the dequantized weights. ``onnx_format`` is that of
    :func:`paddleq.export.save`.
    """
    weights = sorted({model.weight_names[name] for name, _ in engine.quantized_layers(model)
                      if name in model.weight_names})
    program, marks = trace(model, None)
    if as_float:
        marks = [replace(mark, value=simulated_weight(mark), integers=None) for mark in marks]
    ProgramLowering(program, marks, onnx_format).run()
    return program, weights


def save_program(program: Program, folder: str, model_filename: str, params_filename: str,
                 **made_by: Any) -> None:
    """Write a program with its parameters and provenance to ``folder``."""
    save_for(made_by.get("target", "any"), program, os.path.join(folder, model_filename),
             os.path.join(folder, params_filename), Provenance("pdmodel", program, **made_by))
