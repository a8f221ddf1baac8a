"""Taking quantization back from single layers of a quantized model."""

from .._checks import hint
from .._layer_state import state_of
from ..errors import ConfigError, ModelError
from ..nn.quantized_layer import make_float
from .state import check_quantized, quantized_layers


def leave_float(model, reasons):
    """Make quantized layers of ``model`` float ones again, in place.

    Args:
        reasons: layer name -> why, which :func:`paddleq.summary` shows.

    Raises:
        ConfigError, ModelError: as :func:`check_can_leave`. Nothing is changed.
    """
    check_can_leave(model, reasons)
    layers = dict(quantized_layers(model))
    for name, why in reasons.items():
        make_float(layers[name])
        state_of(layers[name]).note = why


def check_can_leave(model, names):
    """Raise unless the layers ``names`` of ``model`` can be made float.

    Raises:
        ConfigError: a name is none of a quantized layer.
        ModelError: a layer begins a block of layers, or another one relies on its output being
            quantized.
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
