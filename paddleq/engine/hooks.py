"""Collection of the inputs of layers in forward passes."""

import weakref
from contextlib import ExitStack, contextmanager
from typing import Any, Dict, Hashable, Iterator, List, Mapping, Optional, Sequence, Tuple

import paddle
from paddle import nn

from .._paddle_compat import is_to_static_enabled
from ..errors import NonFiniteError
from ..graph.calls import capture_inputs
from .state import evaluation


@contextmanager
def to_static_enabled(enabled: bool) -> Iterator[None]:
    """Set ``paddle.jit.enable_to_static`` while open; tracing needs it."""
    before = is_to_static_enabled()
    paddle.jit.enable_to_static(enabled)
    try:
        yield
    finally:
        paddle.jit.enable_to_static(before)


@contextmanager
def eager_evaluation(*models: nn.Layer) -> Iterator[None]:
    """Run models in evaluation mode, without gradients and without ``to_static`` while open.

    Patched forward methods have no effect in a program that ``to_static`` compiled.
    """
    with ExitStack() as stack:
        stack.enter_context(to_static_enabled(False))
        for model in models:
            stack.enter_context(evaluation(model))
        stack.enter_context(paddle.no_grad())
        yield


def update_collector(collector: Any, inputs: Sequence[Any], name: str) -> None:
    """Update a collector; a NonFiniteError that it raises names the layer."""
    try:
        collector.update(*inputs)
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}; layer: {name}") from None


def without_padding(x: paddle.Tensor, mask: paddle.Tensor,
                    token_axis: Optional[int] = None) -> paddle.Tensor:
    """Remove the padding of an input [batch, tokens, ...] or [batch * tokens, ...].

    Keys and values have four axes: with their ``token_axis``, padding becomes zero instead. An
    input of another shape is returned as it is.
    """
    sizes = list(mask.shape)
    if token_axis is not None:
        shape = [sizes[0], 1, 1, 1]
        shape[token_axis] = sizes[1]
        known = [x.shape[0], x.shape[token_axis]] == sizes
        return x * mask.reshape(shape).astype(x.dtype) if known else x
    if len(x.shape) > 2 and list(x.shape[:2]) == sizes:
        x = x.flatten(0, 1)
    elif len(x.shape) != 2 or x.shape[0] != sizes[0] * sizes[1]:
        return x
    kept = paddle.nonzero(mask.flatten()).flatten()
    return x[:0] if 0 in kept.shape else paddle.gather(x, kept)


class TensorKeys:
    """Keys that identify tensors while they exist, without keeping them in memory."""

    def __init__(self) -> None:
        self._known: Dict[int, Tuple[weakref.ref, int]] = {}  # id -> (weak reference, number)
        self._count = 0

    def key(self, x: paddle.Tensor) -> Hashable:
        """Return a key that no other tensor has. It changes if ``x`` is changed in place."""
        reference, number = self._known.get(id(x), (None, None))
        if reference is None or reference() is not x:  # the id belonged to a deleted tensor
            self._count += 1
            number = self._count
            self._known[id(x)] = (weakref.ref(x), number)
        return number, x.inplace_version


@contextmanager
def collect_inputs(layers: Mapping[str, nn.Layer], collectors: Mapping[str, Any],
                   mask: Optional[paddle.Tensor] = None
                   ) -> Iterator[Dict[str, List[Hashable]]]:
    """Update collectors with the inputs of layers while open.

    A tensor that several layers with one collector read is collected once. The yielded dict, name
    -> list of the keys of the first argument of each call, is filled while open. ``mask``, bool
    [batch, tokens], is False for padding, which is not collected.
    """
    keys = TensorKeys()
    read: Dict[str, List[Hashable]] = {}
    collected = set()

    def collect(name, *inputs):
        collector = collectors[name]
        key = keys.key(inputs[0])
        read.setdefault(name, []).append(key)
        if (id(collector), key) in collected:
            return
        collected.add((id(collector), key))
        if mask is not None:
            inputs = [without_padding(x, mask, getattr(collector, "token_axis", None))
                      for x in inputs]
        update_collector(collector, inputs, name)

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(
                capture_inputs({name: layer}, collect, collectors[name].num_inputs))
        yield read
