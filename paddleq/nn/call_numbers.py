"""Numbers of the calls of layers within a forward pass, which the outermost layer begins.

A layer without weights, such as a :class:`~paddleq.QuantizableFunction`, has quantizers for each
call, because nothing else ties its calls together.
"""

import threading
import weakref
from contextlib import contextmanager
from typing import Any, Iterator

from paddle import nn

from .._paddle_compat import remove_hooks


class _Forward(threading.local):
    """Forward pass of the current thread."""

    def __init__(self) -> None:
        self.owner: Any = lambda: None  # weak reference to the layer that began it
        self.counts: Any = weakref.WeakKeyDictionary()  # layer -> number of calls so far
        self.fixed: Any = weakref.WeakKeyDictionary()  # layer -> number of a repeated call


_forward = _Forward()


def count_calls(model: nn.Layer, layers: Any) -> None:
    """Count the calls of ``layers`` from the begin of ``model`` or of a part of it that is called.

    A part that ``model`` calls does not begin a forward pass, but one that a user calls does.
    """
    members = {id(layer) for layer in layers}
    for each in model.sublayers(include_self=True):
        if each is model or members.intersection(map(id, each.sublayers())):
            each.register_forward_pre_hook(_begin)
            each.register_forward_post_hook(_end)


def stop_counting(model: nn.Layer) -> None:
    """Remove the hooks of :func:`count_calls`."""
    for layer in model.sublayers(include_self=True):
        remove_hooks(layer, lambda hook: hook in (_begin, _end))


# The hooks are functions of a module, so that models with them can be pickled.
def _begin(layer: nn.Layer, args: Any) -> Any:
    if _forward.owner() in (None, layer):  # layer: its last forward pass failed
        _forward.owner = weakref.ref(layer)
        _forward.counts.clear()


def _end(layer: nn.Layer, args: Any, outputs: Any) -> Any:
    if _forward.owner() is layer:
        _forward.owner = lambda: None


def next_call(layer: nn.Layer) -> int:
    """Count a call of ``layer`` and return its number in the forward pass, from 0."""
    if layer in _forward.fixed:
        return _forward.fixed[layer]
    if _forward.owner() is None:
        return 0
    number = _forward.counts.get(layer, 0)
    _forward.counts[layer] = number + 1
    return number


def last_call(layer: nn.Layer) -> int:
    """Return the number of the last call of ``layer``."""
    return max(_forward.counts.get(layer, 0) - 1, 0)


@contextmanager
def repeated_call(layer: nn.Layer, number: int) -> Iterator[None]:
    """While open, calls of ``layer`` have this number and are not counted."""
    _forward.fixed[layer] = number
    try:
        yield
    finally:
        del _forward.fixed[layer]
