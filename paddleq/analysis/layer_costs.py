"""Costs of quantized layers: their number, multiplications or bytes."""

from typing import Dict, Iterable

from paddle import nn

from .._layer_state import read_state
from ..engine import eager_evaluation, iter_batches, quantized_layers, run_batches
from ..graph.calls import capture_calls
from .sqnr import float_tensors

COSTS = ("layers", "macs", "bytes")
_FLOAT_BYTES = 4
_TRANSPOSED = (nn.Conv1DTranspose, nn.Conv2DTranspose, nn.Conv3DTranspose)


def layer_costs(model: nn.Layer, data: Iterable, cost: str) -> Dict[str, float]:
    """Return the costs of the quantized layers of ``model`` by name.

    Args:
        model: a quantized model.
        data: batches, which run for "macs" only.
        cost: "layers": 1 for each; "bytes": bytes of the float weights; "macs": multiplications
            and additions of convolutions and Linear layers, and the elements of the outputs of
            others.
    """
    layers = dict(quantized_layers(model))
    if cost == "layers":
        return dict.fromkeys(layers, 1.0)
    if cost == "bytes":
        return {name: float(_FLOAT_BYTES * sum(weight.size for weight, _ in _weights(layer)))
                for name, layer in layers.items()}
    found = dict.fromkeys(layers, 0.0)

    def on_call(name, args, _kwargs, output):
        for tensor in float_tensors(output)[:1]:
            found[name] += _multiplications(layers[name], args, tensor)

    def run(inputs):
        args, kwargs = inputs
        model(*args, **kwargs)

    with eager_evaluation(model), capture_calls(layers, on_call):
        run_batches(run, iter_batches(model, data, None, "counting multiplications"), "data")
    return found


def _weights(layer):
    """Return (weight, axis of its output channels) pairs."""
    return [(getattr(layer, name), axis) for name, axis in read_state(layer).kind.weights.items()]


def _multiplications(layer, args, output):
    weights = _weights(layer)
    if not weights or isinstance(layer, nn.Embedding):
        return output.size
    if isinstance(layer, _TRANSPOSED):  # each input value is multiplied by the weights of a channel
        return layer.weight.size * (args[0].size // layer.weight.shape[0])
    return sum(weight.size * (output.size // weight.shape[axis]) for weight, axis in weights)
