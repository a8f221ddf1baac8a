"""Numbers of the calls of layers within a forward pass, which the outermost layer begins.

A layer without weights, such as a :class:`~paddleq.QuantizableFunction`, has quantizers for each
call, because nothing else ties its calls together.
"""

import threading
import weakref
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional

from paddle import nn

from .._paddle_compat import remove_hooks


class _Pass:
    """Forward pass that the layer ``owner`` began."""

    def __init__(self, owner: nn.Layer) -> None:
        self.owner = weakref.ref(owner)
        self.members = {id(layer) for layer in owner.sublayers(include_self=True)}
        self.counts: Any = weakref.WeakKeyDictionary()  # layer -> number of calls so far

    def contains(self, layer: nn.Layer) -> bool:
        return self.owner() is not None and id(layer) in self.members


class _Passes(threading.local):
    """Forward passes of the current thread."""

    def __init__(self) -> None:
        # The innermost is last. One that an exception ended stays until its owner is called again.
        self.open: List[_Pass] = []
        self.ended: Optional[_Pass] = None
        self.fixed: Any = weakref.WeakKeyDictionary()  # layer -> number of a repeated call

    def of(self, layer: nn.Layer) -> Optional[_Pass]:
        """Return the innermost forward pass of a model that contains ``layer``."""
        return next((each for each in reversed(self.open) if each.contains(layer)), None)


_passes = _Passes()


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
    passes = [each for each in _passes.open if each.owner() is not None]
    owners = [each.owner() for each in passes]
    if layer in owners:  # its last forward pass failed
        del passes[owners.index(layer):]
    _passes.open = passes
    if _passes.of(layer) is None:
        passes.append(_Pass(layer))


def _end(layer: nn.Layer, args: Any, outputs: Any) -> Any:
    for number, each in enumerate(_passes.open):
        if each.owner() is layer:
            _passes.ended = each
            del _passes.open[number:]
            return


def next_call(layer: nn.Layer) -> int:
    """Count a call of ``layer`` and return its number in the forward pass, from 0."""
    if layer in _passes.fixed:
        return _passes.fixed[layer]
    current = _passes.of(layer)
    if current is None:
        return 0
    number = current.counts.get(layer, 0)
    current.counts[layer] = number + 1
    return number


def last_call(layer: nn.Layer) -> int:
    """Return the number of the last call of ``layer``, in this forward pass or the one before."""
    current = _passes.of(layer) or _passes.ended
    return 0 if current is None else max(current.counts.get(layer, 0) - 1, 0)


@contextmanager
def repeated_call(layer: nn.Layer, number: int) -> Iterator[None]:
    """While open, calls of ``layer`` have this number and are not counted."""
    _passes.fixed[layer] = number
    try:
        yield
    finally:
        del _passes.fixed[layer]
