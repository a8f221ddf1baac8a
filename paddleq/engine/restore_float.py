"""Conversion of single quantized layers back to float layers."""

from .._checks import hint
from .._layer_state import state_of
from ..errors import ConfigError, ModelError
from ..nn.quantized_layer import make_float
from .state import check_quantized, quantized_layers


def restore_float(model, reasons):
    """Convert quantized layers of ``model`` back to float layers, in place.

    Args:
        reasons: layer name -> reason, which :func:`paddleq.summary` shows.

    Raises:
        ConfigError, ModelError: as :func:`check_restorable`. Nothing is changed.
    """
    check_restorable(model, reasons)
    layers = dict(quantized_layers(model))
    for name, reason in reasons.items():
        make_float(layers[name])
        state_of(layers[name]).note = reason


def check_restorable(model, names):
    """Raise unless the layers ``names`` of ``model`` can be made float.

    Raises:
        ConfigError: a name is not that of a quantized layer.
        ModelError: a layer begins a block of layers, or another layer relies on its quantized
            output.
    """
    check_quantized(model)
    layers = dict(quantized_layers(model))
    for name in names:
        if name not in layers:
            raise ConfigError(f"the model has no quantized layer {name!r}{hint(name, layers)}")
        layer = layers[name]
        if layer._paddleq.block is not None or {"output_quantizer", "norm_folding"} & set(
                layer._paddleq.parts):
            raise ModelError(f"{name!r} is quantized as one with the layers after it, which "
                             "cannot be taken back; quantize a fresh model without it")
