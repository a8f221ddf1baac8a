"""Models whose Linears are IntegerLinear, rounded to nearest, for tests."""

from types import SimpleNamespace

import paddle
from paddle import nn

from paddleq import PerChannel, PerGroup, PerToken, QuantSpec
from paddleq.functional import affine_qparams, compute_weight_qparams
from paddleq.nn import IntegerLinear
from paddleq.nn.class_swap import replace_layers

AFFINE = {"signed": False, "symmetric": False}
WEIGHTS = {
    "W8 tensor": QuantSpec(8),
    "W8 channel": QuantSpec(8, granularity=PerChannel(1)),
    "W8 channel affine": QuantSpec(8, granularity=PerChannel(1), **AFFINE),
    "W8 g32": QuantSpec(8, granularity=PerGroup(32)),
    "W5 channel": QuantSpec(5, granularity=PerChannel(1)),
    "W4 tensor": QuantSpec(4),
    "W4 channel": QuantSpec(4, granularity=PerChannel(1)),
    "W4 g32": QuantSpec(4, granularity=PerGroup(32)),
    "W4 g32 affine": QuantSpec(4, granularity=PerGroup(32), **AFFINE),
    "W3 g32": QuantSpec(3, granularity=PerGroup(32)),
    "W2 g32 affine": QuantSpec(2, granularity=PerGroup(32), **AFFINE),
}
ACTIVATIONS = {
    "A16": None,
    "A8 tensor": QuantSpec(8),
    "A8 tensor affine": QuantSpec(8, **AFFINE),
    "A8 token": QuantSpec(8, granularity=PerToken()),
    "A4 token": QuantSpec(4, granularity=PerToken()),
}


def rounded(weight, spec, permutation=None):
    """Return a weight [K, N] rounded to nearest, in the form of an algorithm's result."""
    if permutation is not None:
        weight = paddle.index_select(weight, permutation, axis=0)
    grid = compute_weight_qparams(weight, spec)
    return SimpleNamespace(integers=grid.quantize(weight).astype(spec.storage), qparams=grid,
                           permutation=permutation)


def static_qparams(spec, low, high):
    """(scale, zero point or None) of a static activation in [low, high]."""
    low, high = paddle.to_tensor([float(low)]), paddle.to_tensor([float(high)])
    if spec.symmetric:
        return paddle.maximum(high, -low) / float(spec.quant_max), None
    abs_max, zero_point = affine_qparams(low, high, spec)
    return abs_max / float(spec.quant_max), zero_point


def deploy(model, weight, activation=None, inputs=(), smoothed=False, permuted=False):
    """Replace every Linear of ``model`` by an IntegerLinear, in place; returns the model.

    Static activations get the range that ``inputs`` show.
    """
    model.eval()
    linears = [layer for layer in model.sublayers(include_self=True)
               if isinstance(layer, nn.Linear)]
    ranges = _ranges(model, linears, inputs) if activation is not None else {}
    replacements = []
    for layer in linears:
        qparams, factor, order, held = None, None, None, layer.weight
        if smoothed:
            factor = paddle.rand([layer.weight.shape[0]]) + 0.5
            held = held * factor.unsqueeze(1)
        if permuted:
            order = paddle.randperm(layer.weight.shape[0])
        if activation is not None and not isinstance(activation.granularity, PerToken):
            low, high = ranges[id(layer)]
            reach = 1.0 if factor is None else (1.0 / factor).max().item()
            qparams = static_qparams(activation, low * reach, high * reach)
        replacements.append((layer, IntegerLinear.from_linear(
            layer, rounded(held, weight, order), activation, qparams, factor)))
    replace_layers(model, replacements)
    return model


def _ranges(model, linears, inputs):
    found, hooks = {}, []
    for layer in linears:
        def observe(layer, args):
            low, high = found.get(id(layer), (0.0, 0.0))
            found[id(layer)] = (min(low, args[0].min().item()), max(high, args[0].max().item()))
        hooks.append(layer.register_forward_pre_hook(observe))
    with paddle.no_grad():
        for batch in inputs:
            model(*batch)
    for hook in hooks:
        hook.remove()
    return found
