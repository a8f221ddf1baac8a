"""Rules of quantization for the operators of saved models."""

import logging
from itertools import chain
from typing import Any, Iterable, Set

from ..._checks import check_choice, hint, wrong_type
from ...config import LayerConfig, QuantConfig, Scope
from ...errors import ConfigError, ModelError
from ...nn.layer_types import QuantizableFunction, kind_of
from ...saved_model import SavedModel
from ...saved_model.operator_layers import OPERATOR_RULES
from .shared import SCOPES

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
