"""Preprocess and quantizer of the weights of quantized layers, also those of a loaded state."""

import numpy as np
import paddle

from .._layer_state import Note, NoteKind, read_state, state_of
from ..errors import ModelError
from ..fake_quant.fake_quantize import FakeQuantize
from ..fake_quant.learned_rounding import LearnedRounding, fixed_observer, fixed_quantizer


def quantizer_name(weight):
    """Return the attribute name of the quantizer of the parameter ``weight``."""
    return f"{weight}_quantizer"


def preprocess_name(weight):
    """Return the attribute name of the preprocess of the parameter ``weight``."""
    return f"{weight}_preprocess"


def replace_weight_parts(model, layer, weight, preprocess, quantizer):
    """Replace preprocess and quantizer of a parameter, in all layers of ``model`` that share it."""
    parameter = getattr(layer, weight)
    for other in model.sublayers(include_self=True):
        if not hasattr(other, "weight_parts"):
            continue
        for name in other._paddleq.kind.weights:
            if getattr(other, name) is parameter and other.weight_parts(name)[1] is not None:
                for attribute, part in ((preprocess_name(name), preprocess),
                                        (quantizer_name(name), quantizer)):
                    setattr(other, attribute, part)
                    if attribute not in other._paddleq.parts:
                        other._paddleq.parts += (attribute,)


def adopt_roundings(layer, prefix, model, state):
    """Give a quantized layer the learned roundings of a state that is to be loaded.

    Their tensors are those of the state's; loading sets them again.

    Args:
        layer: a quantized layer of ``model``, whose keys in ``state`` begin with ``prefix``.
        state: key -> tensor or array.

    Raises:
        ModelError: a rounding is that of a weight with other bits or another granularity.
    """
    for weight in read_state(layer).kind.weights:
        preprocess, quantizer = layer.weight_parts(weight)
        rounding = f"{prefix}{preprocess_name(weight)}."
        if f"{rounding}up" not in state or not (
                type(quantizer) is FakeQuantize
                and (preprocess is None or isinstance(preprocess, LearnedRounding))):
            continue
        up, limits, abs_max, zero_point = (
            np.array(state[rounding + name]) for name in ("up", "limits", "abs_max", "zero_point"))
        spec, shape = quantizer.spec, getattr(layer, weight).shape
        if (list(up.shape) != list(shape) or limits.tolist() != [spec.quant_min, spec.quant_max]
                or abs_max.size != quantizer.observer.channels):
            raise ModelError(
                f"the state has a learned rounding of {prefix}{weight} {list(up.shape)} to the "
                f"integers {limits.tolist()} with {abs_max.size} scales, but the weight "
                f"{list(shape)} is quantized to {[spec.quant_min, spec.quant_max]} with "
                f"{quantizer.observer.channels}; quantize the model with the configuration of the "
                "saved one")
        abs_max = paddle.to_tensor(abs_max.astype("float32"))
        zero = None if spec.symmetric else paddle.to_tensor(zero_point.astype("int64"))
        if preprocess is not None:
            quantizer.observer = fixed_observer(abs_max, spec, zero)
            continue
        parts = (LearnedRounding(paddle.to_tensor(up.astype("int8")), abs_max, spec, zero),
                 fixed_quantizer(abs_max, spec, zero, quantizer.label))
        replace_weight_parts(model, layer, weight, *parts)
        state_of(layer).add_note(Note(NoteKind.ROUNDING_LOADED))


def adopt_all_roundings(model, state):
    """:func:`adopt_roundings` for all quantized layers of ``model``."""
    for name, layer in model.named_sublayers(include_self=True):
        if hasattr(layer, "weight_parts"):
            adopt_roundings(layer, f"{name}." if name else "", model, state)
