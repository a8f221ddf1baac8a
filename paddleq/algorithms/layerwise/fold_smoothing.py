"""Fold smoothing factors into the preceding norm.

A layer that computes (x / s) @ (W * s) needs a division. If x is the output of a norm with a
weight, and nothing else reads it, the weight of the norm can be divided by s instead.
"""

from typing import Any, Callable, List, Optional

import paddle
from paddle import nn

from ..._paddle_compat import own_parameters, own_sublayers
from ...functional.qparams import as_dtype
from ...graph.calls import trace_calls
from ...graph.dataflow import only_read_by
from .network_helper import is_linear


def find_norm(model: nn.Layer, candidates: List[nn.Layer], linears: List[nn.Layer],
              run: Callable[[], Any]) -> Optional[nn.Layer]:
    """Find the norm whose output is read by all of ``linears`` and by nothing else.

    Names and classes are not considered. A run shows which layer produces the tensor. If its weight
    is multiplied by powers of two, the output must be multiplied exactly. If its output is
    changed for all other layers, the result of the run must not change.
    """
    norms = [layer for layer in candidates if _may_be_norm(layer, linears[0].weight.shape[0])]
    if not norms:
        return None
    norm, args = _producer(norms, linears, run)
    if norm is None or not _is_referenced_once(model, norm) or not _is_scaled_by_weight(norm, args):
        return None
    return norm if only_read_by(run, norm, linears) else None


def divide_output(norm: nn.Layer, s: paddle.Tensor) -> None:
    """Divide the parameters of a norm, and thereby its output, by ``s`` [K], in place."""
    with paddle.no_grad():
        for parameter in _parameters(norm):
            parameter.set_value((as_dtype(parameter, paddle.float32) / s).astype(parameter.dtype))


def _may_be_norm(layer, features):
    if is_linear(layer) or layer.sublayers():
        return False
    held = _parameters(layer)
    return 1 <= len(held) <= 2 and all(list(p.shape) == [features] for p in held)


def _parameters(layer):
    return [p for p in own_parameters(layer).values() if p is not None]


def _producer(norms, linears, run):
    """Return (norm that produces the input of ``linears``, its arguments), or (None, None)."""
    producers = dict(enumerate(norms))
    calls, _ = trace_calls(run, producers, dict(enumerate(linears, len(norms))))
    read = [call.reads[0] for call in calls if call.reads]
    norm_call, changed = read[0] if read else (None, False)
    if len(read) != len(linears) or set(read) != {(norm_call, False)} or norm_call is None:
        return None, None
    if sum(call.name == norm_call.name for call in calls) > 1:
        return None, None
    return producers[norm_call.name], (norm_call.args, norm_call.kwargs)


def _is_referenced_once(model, norm):
    """Return True if no other layer contains the norm or one of its parameters."""
    layers = model.sublayers(include_self=True)
    places = sum(child is norm for layer in layers for child in own_sublayers(layer).values())
    mine = {id(p) for p in _parameters(norm)}
    return places <= 1 and not any(id(p) in mine for layer in layers if layer is not norm
                                   for p in _parameters(layer))


def _is_scaled_by_weight(norm, args):
    """Return True if each output feature is proportional to the weight (and bias) of the norm."""
    args, kwargs = args
    with paddle.no_grad():
        held = [(p, p.clone()) for p in _parameters(norm)]
        # Powers of two, which multiply without rounding.
        features = held[0][0].shape[0]
        powers = (paddle.arange(features) % 3 - 1).astype("float32")
        powers = paddle.pow(paddle.full([features], 2.0), powers)
        before = norm(*args, **kwargs)
        try:
            for parameter, value in held:
                parameter.set_value((as_dtype(value, paddle.float32) * powers)
                                    .astype(value.dtype))
            after = norm(*args, **kwargs)
        finally:
            for parameter, value in held:
                parameter.set_value(value)
        expected = as_dtype(before, paddle.float32) * powers
        off = (as_dtype(after, paddle.float32) - expected).abs().max()
        return bool(off <= 1e-6 * expected.abs().max())
