"""Attaching functions and collectors to the calls of layers.

The forward method of a layer is patched on the instance and restored on exit. Paddle's forward
hooks do not receive keyword arguments.
"""

import weakref
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import (
    Any,
    Callable,
    ContextManager,
    Dict,
    Hashable,
    Iterator,
    List,
    Mapping,
    Sequence,
    Tuple,
)

import paddle
from paddle import nn

from .._paddle_compat import is_to_static_enabled
from ..errors import NonFiniteError
from ..nn.quantized_layer import argument_names
from .state import evaluation


@contextmanager
def eager_evaluation(*models: nn.Layer) -> Iterator[None]:
    """Run models in evaluation mode, without gradients and without ``to_static`` while open.

    Patched forward methods have no effect in a program that ``to_static`` compiled.
    """
    enabled = is_to_static_enabled()
    with ExitStack() as stack:
        stack.callback(paddle.jit.enable_to_static, enabled)
        paddle.jit.enable_to_static(False)
        for model in models:
            stack.enter_context(evaluation(model))
        stack.enter_context(paddle.no_grad())
        yield


@contextmanager
def patched_forwards(layers: Mapping[Any, nn.Layer], forward: Callable) -> Iterator[None]:
    """Call ``forward(name, original, *args, **kwargs)`` instead of each layer's forward."""
    previous = []
    try:
        for name, layer in layers.items():
            previous.append((layer, layer.__dict__.get("forward")))
            layer.__dict__["forward"] = partial(forward, name, layer.forward)
        yield
    finally:
        for layer, own in reversed(previous):
            del layer.__dict__["forward"]
            if own is not None:
                layer.__dict__["forward"] = own


def capture_calls(layers: Mapping[Any, nn.Layer],
                  on_call: Callable[[Any, tuple, dict, Any], None]) -> ContextManager[None]:
    """Call ``on_call(name, args, kwargs, output)`` after each call of a layer while open.

    Args:
        layers: name -> layer.
        on_call: must not modify its arguments.
    """
    def forward(name, original, *args, **kwargs):
        output = original(*args, **kwargs)
        on_call(name, args, kwargs, output)
        return output

    return patched_forwards(layers, forward)


def capture_inputs(layers: Mapping[Any, nn.Layer],
                   on_input: Callable[..., None], count: int = 1) -> ContextManager[None]:
    """Call ``on_input(name, x, ...)`` with the first ``count`` arguments before each call.

    Keyword arguments have the order of the parameters of the layer's ``forward``.
    """
    def forward(name, original, *args, **kwargs):
        order = argument_names(layers[name])
        named = sorted(kwargs, key=lambda key: order.index(key) if key in order else len(order))
        on_input(name, *[*args, *(kwargs[key] for key in named)][:count])
        return original(*args, **kwargs)

    return patched_forwards(layers, forward)


def update_collector(collector: Any, inputs: Sequence[Any], name: str) -> None:
    """Update a collector; a NonFiniteError that it raises names the layer."""
    try:
        collector.update(*inputs)
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}; layer: {name}") from None


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
def collect_inputs(layers: Mapping[str, nn.Layer],
                   collectors: Mapping[str, Any]) -> Iterator[Dict[str, List[Hashable]]]:
    """Update collectors with the inputs of layers while open.

    If one collector is given for several layers, a tensor that several of them read is collected
    once.

    Args:
        layers: name -> layer.
        collectors: name -> :class:`~paddleq.observers.Collector`, for the same names.

    Yields:
        name -> list of the keys of the first argument of each call, filled while open.

    Raises:
        NonFiniteError: NaN or infinity reached a layer; names the layer.
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
        update_collector(collector, inputs, name)

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(
                capture_inputs({name: layer}, collect, collectors[name].num_inputs))
        yield read
