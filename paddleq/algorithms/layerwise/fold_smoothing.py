"""Smoothing factors that disappear into the norm before the layers.

A layer that computes (x / s) @ (W * s) costs a division. Where x is the output of a norm that
multiplies by a weight of its own, and nobody else reads it, the norm gives x / s itself.
"""

from contextlib import ExitStack

import paddle

from ..._paddle_compat import own_parameters, own_sublayers
from ...engine import capture_inputs, patched_forward
from ...functional.qparams import as_dtype
from ...graph.dataflow import only_read_by
from .network_helper import is_linear
from .shared_inputs import Marks


def norm_before(network, candidates, linears, run):
    """The norm whose output goes into all of ``linears`` and nowhere else, if there is one.

    Nothing is concluded from names or classes: ``run`` shows which layer gives the tensor, with
    its weight multiplied by powers of two the norm must give the product exactly, and with its
    output spoiled for everybody else the result must be the same.

    Args:
        network: all that may hold the norm or its weight.
        candidates: layers among which to look for it.
        linears: layers that read one tensor, each called once in a run.
        run: called without arguments; a deterministic forward pass that returns its output.

    Returns:
        The norm, or None.
    """
    norms = [layer for layer in candidates if _may_be_norm(layer, linears[0].weight.shape[0])]
    if not norms:
        return None
    norm, args = _producer(norms, linears, run)
    if norm is None or not _is_only_place(network, norm) or not _is_scaled_by_weight(norm, args):
        return None
    return norm if only_read_by(run, norm, linears) else None


def divide(norm, s):
    """Let the norm give what it gave, divided by ``s`` [K]."""
    with paddle.no_grad():
        for parameter in norm.parameters(include_sublayers=False):
            parameter.set_value((as_dtype(parameter, paddle.float32) / s).astype(parameter.dtype))


def _may_be_norm(layer, features):
    if is_linear(layer) or layer.sublayers():
        return False
    held = [p for p in own_parameters(layer).values() if p is not None]
    return 1 <= len(held) <= 2 and all(list(p.shape) == [features] for p in held)


def _producer(norms, linears, run):
    """(the norm that gives what the Linears read, its arguments), each called once; or Nones."""
    marks, gave, calls, read = Marks(), {}, [], []

    def giving(norm):
        def forward(original, *args, **kwargs):
            output = original(*args, **kwargs)
            calls.append(norm)
            if isinstance(output, paddle.Tensor):
                gave[marks.of(output)] = norm, (args, kwargs)
            return output
        return forward

    def saw(_, x):
        read.append(marks.of(x))

    with ExitStack() as stack:
        for norm in norms:
            stack.enter_context(patched_forward(norm, giving(norm)))
        stack.enter_context(capture_inputs(dict(enumerate(linears)), saw))
        run()
    if len(read) != len(linears) or len(set(read)) != 1 or read[0] not in gave:
        return None, None
    norm, args = gave[read[0]]
    return (norm, args) if sum(each is norm for each in calls) == 1 else (None, None)


def _is_only_place(network, norm):
    """Whether nobody else holds the norm, or a parameter of it."""
    layers = network.sublayers(include_self=True)
    places = sum(child is norm for layer in layers for child in own_sublayers(layer).values())
    mine = {id(p) for p in own_parameters(norm).values() if p is not None}
    return places <= 1 and not any(id(p) in mine for layer in layers if layer is not norm
                                   for p in own_parameters(layer).values() if p is not None)


def _is_scaled_by_weight(norm, args):
    """Whether its output is a multiple of its weight (and bias), feature by feature."""
    args, kwargs = args
    with paddle.no_grad():
        held = [(p, p.clone()) for p in own_parameters(norm).values() if p is not None]
        # Powers of two: in binary numbers nothing is rounded.
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
