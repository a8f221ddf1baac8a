"""Quantization of saved models by the engine; shared by the front ends that read them."""

from dataclasses import replace
from typing import Any, Callable, Iterable, List, Optional, Set, Tuple

from ... import engine
from ..._checks import hint, wrong_type
from ...config import LayerConfig, QuantConfig, QuantizerConfig
from ...errors import ConfigError, ModelError
from ...export.markers import simulated_weight
from ...export.paddle.lower import lower_markers
from ...export.program.program import Program
from ...export.trace import trace
from ...nn.layer_types import kind_of
from ...observers import CurrentAbsMaxObserver
from ...saved_model import SavedModel
from ...spec import PerChannel, PerTensor, QuantSpec

LINEAR_OPS = ("mul", "matmul", "matmul_v2")
OP_TYPES = ("conv2d", "depthwise_conv2d", "conv3d", "conv2d_transpose",
            "depthwise_conv2d_transpose", *LINEAR_OPS, "lookup_table_v2")


def check_op_types(given: Any) -> Set[str]:
    """Return the operator types of a ``quantizable_op_type``: "mul" means Linear in any form."""
    if isinstance(given, str) or not isinstance(given, (list, tuple)):
        raise wrong_type("quantizable_op_type", given, "a list of op types")
    types = set()
    for entry in given:
        if entry not in OP_TYPES:
            raise ConfigError(f"quantizable_op_type does not know {entry!r}"
                              f"{hint(entry, OP_TYPES)}; valid: {', '.join(OP_TYPES)}")
        types.update(LINEAR_OPS if entry == "mul" else (entry,))
    return types


def weight_config(bits: int, per_channel: bool) -> QuantizerConfig:
    """Return the configuration of weights with the absolute maximum as the range."""
    granularity = PerChannel() if per_channel else PerTensor()
    return QuantizerConfig(CurrentAbsMaxObserver, QuantSpec(bits, granularity=granularity))


def select_operators(model: SavedModel, op_types: Iterable[str],
                     skip: Iterable[str] = ()) -> List[str]:
    """Return the sublayers to quantize.

    Args:
        op_types: types of their operators.
        skip: names of weights, inputs and outputs in the program whose operators stay float.

    Raises:
        ConfigError: a name in ``skip`` belongs to no such operator.
        ModelError: there is no such operator with a weight.
    """
    chosen, known, op_types, skip = [], set(), set(op_types), set(skip)
    for name, binding in model.bindings().items():
        layer = getattr(model, name)
        if binding.operator.type not in op_types or kind_of(layer) is None:
            continue
        tensors = {binding.weight, binding.operator.input(binding.source), binding.target,
                   *(each for names in binding.operator.outputs.values() for each in names)}
        known |= tensors
        if not tensors & skip:
            chosen.append(name)
    for name in sorted(skip - known):
        raise ConfigError(f"skip_tensor_list has {name!r}{hint(name, known)}, which is no "
                          "weight, input or output of an operator that would be quantized")
    if not chosen:
        raise ModelError("the model has no weight of the op types "
                         f"{', '.join(sorted(op_types))} to quantize")
    return chosen


def prepare_operators(model: SavedModel, names: Iterable[str], config: LayerConfig,
                      before: Optional[Callable] = None) -> None:
    """Quantize sublayers of a saved model, in place."""
    rules = QuantConfig()
    for name in names:
        rules.add_name(name, config)
    engine.prepare(model, rules, before)


def quantized_program(model: SavedModel, as_float: bool = False) -> Tuple[Program, List[str]]:
    """Return the program of a quantized model, and the names of its quantized weights.

    Args:
        as_float: store the dequantized weights in float32.
    """
    weights = sorted({model.weight_names[name] for name, _ in engine.quantized_layers(model)})
    program, marks = trace(model, None)
    if as_float:
        marks = [replace(mark, value=simulated_weight(mark), integers=None) for mark in marks]
    lower_markers(program, marks)
    return program, weights
