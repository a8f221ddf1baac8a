"""Quantization of saved models by the engine; shared by the front ends that read them."""

import os
from dataclasses import replace
from itertools import chain
from typing import Any, Iterable, List, Set, Tuple

from ... import engine
from ..._checks import check_choice, hint, wrong_type
from ...config import LayerConfig, QuantConfig, Scope
from ...errors import ConfigError, ModelError
from ...export.markers import simulated_weight
from ...export.paddle.lower import lower_markers
from ...export.program.program import Program
from ...export.provenance_file import Provenance
from ...export.trace import trace
from ...nn.layer_types import kind_of
from ...saved_model import SavedModel
from .quantizers import AbsmaxQuantizer, PerChannelAbsmaxQuantizer

LINEAR_OPS = ("mul", "matmul", "matmul_v2")
OP_TYPES = ("conv2d", "depthwise_conv2d", "conv3d", "conv2d_transpose",
            "depthwise_conv2d_transpose", *LINEAR_OPS, "lookup_table_v2")
DEFAULT_OPS = ("conv2d", "depthwise_conv2d", "conv2d_transpose", "mul")
# weight_quantize_type -> quantizer of the weights
WEIGHT_QUANTIZERS = {"channel_wise_abs_max": PerChannelAbsmaxQuantizer,
                     "abs_max": AbsmaxQuantizer}


def check_op_types(given: Any) -> Set[str]:
    """Return the operator types of a ``quantizable_op_type``: "mul" means Linear in any form."""
    if isinstance(given, str) or not isinstance(given, (list, tuple)):
        raise wrong_type("quantizable_op_type", given, "a list of op types")
    return set(chain.from_iterable(
        LINEAR_OPS if check_choice("quantizable_op_type", entry, OP_TYPES) == "mul" else (entry,)
        for entry in given))


def operator_rules(model: SavedModel, op_types: Iterable[str], config: LayerConfig,
                   skip_tensors: Iterable[str] = ()) -> QuantConfig:
    """Return the rules for the operators of a saved model of these types.

    Those whose weight, input or output is in ``skip_tensors`` stay float.
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
    for tensor in sorted(set(skip_tensors) - known):
        raise ConfigError(f"skip_tensor_list has {tensor!r}{hint(tensor, known)}, which is no "
                          "weight, input or output of an operator that would be quantized")
    rules = QuantConfig()
    rules.add(Scope(names=list(tensors)), config)
    rules.add(Scope(names=[name for name, each in tensors.items() if each & set(skip_tensors)],
                    label="skip_tensor_list"), None)
    return rules


def quantized_program(model: SavedModel, as_float: bool = False) -> Tuple[Program, List[str]]:
    """Return the program of a quantized model, and the names of its quantized weights.

    With ``as_float`` it holds the dequantized weights.
    """
    weights = sorted({model.weight_names[name] for name, _ in engine.quantized_layers(model)})
    program, marks = trace(model, None)
    if as_float:
        marks = [replace(mark, value=simulated_weight(mark), integers=None) for mark in marks]
    lower_markers(program, marks)
    return program, weights


def save_program(program: Program, folder: str, model_filename: str, params_filename: str,
                 **made_by: Any) -> None:
    """Write a program with its parameters and provenance to ``folder``."""
    program.save(os.path.join(folder, model_filename), os.path.join(folder, params_filename),
                 Provenance("pdmodel", program, **made_by))
