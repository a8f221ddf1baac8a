"""Observe and replace the calls of layers in forward passes.

The forward method of a layer is patched on the instance and restored on exit. Paddle's forward
hooks do not receive keyword arguments.
"""

import inspect
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import (
    Any,
    Callable,
    ContextManager,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Set,
    Tuple,
)

import paddle
from paddle import nn

from .._layer_state import read_state


class _Patch(partial):
    """Function in the place of a forward method."""

    @property
    def __func__(self):
        # A model that Paddle 2.6 has compiled calls its layers through a converter also in dynamic
        # mode. It converts bound methods, and calls a layer as it is after a TypeError.
        raise TypeError("not a method")


@contextmanager
def patched_forwards(layers: Mapping[Any, nn.Layer], forward: Callable) -> Iterator[None]:
    """Call ``forward(name, original, *args, **kwargs)`` instead of each layer's forward."""
    previous = []
    try:
        for name, layer in layers.items():
            previous.append((layer, layer.__dict__.get("forward")))
            layer.__dict__["forward"] = _Patch(forward, name, layer.forward)
        yield
    finally:
        for layer, own in reversed(previous):
            layer.__dict__.pop("forward", None)  # not there yet if an interrupt came before it
            if own is not None:
                layer.__dict__["forward"] = own


def capture_calls(layers: Mapping[Any, nn.Layer],
                  on_call: Callable[[Any, tuple, dict, Any], None]) -> ContextManager[None]:
    """Call ``on_call(name, args, kwargs, output)`` after each call of a layer while open."""
    def forward(name, original, *args, **kwargs):
        output = original(*args, **kwargs)
        on_call(name, args, kwargs, output)
        return output

    return patched_forwards(layers, forward)


def capture_inputs(layers: Mapping[Any, nn.Layer],
                   on_input: Callable[..., None], count: int = 1) -> ContextManager[None]:
    """Call ``on_input(name, x, ...)`` with the first ``count`` arguments before each call."""
    def forward(name, original, *args, **kwargs):
        on_input(name, *_by_position(layers[name], args, kwargs)[:count])
        return original(*args, **kwargs)

    return patched_forwards(layers, forward)


def find_uses(layers: Mapping[Any, nn.Layer],
              runs: Iterable[Callable[[], Any]]) -> Tuple[List[Any], List[Any]]:
    """Return names of layers whose ``weight`` is read outside of their forward, and of unused ones.

    A call with an empty tensor does not count. The runs end when each layer was called or read.
    """
    inside: Set[int] = set()
    called: Set[Any] = set()
    read: Dict[Any, None] = {}
    names = {id(layer): name for name, layer in layers.items()}
    classes = {name: type(layer) for name, layer in layers.items()}

    def forward(name, original, *args, **kwargs):
        (x, *_) = [*_by_position(layers[name], args, kwargs), None]
        if not isinstance(x, paddle.Tensor) or 0 not in x.shape:
            called.add(name)
        inside.add(id(layers[name]))
        try:
            return original(*args, **kwargs)
        finally:
            inside.discard(id(layers[name]))

    def on_read(layer):
        if id(layer) not in inside:
            read[names[id(layer)]] = None

    watched = {cls: _watched_class(cls, on_read) for cls in set(classes.values())}
    try:
        for name, layer in layers.items():
            layer.__class__ = watched[classes[name]]
        with patched_forwards(layers, forward):
            for run in runs:
                run()
                if len(called.union(read)) == len(layers):
                    break
    finally:
        for name, layer in layers.items():
            layer.__class__ = classes[name]
    return list(read), [name for name in layers if name not in called and name not in read]


def _watched_class(cls, on_read):
    """Return a subclass that calls ``on_read(layer)`` when its ``weight`` is read."""
    def read(self, name):
        if name == "weight":
            on_read(self)
        return cls.__getattr__(self, name)  # which finds parameters

    return type(cls)(cls.__name__, (cls,), {"__getattr__": read, "__module__": cls.__module__})


def argument_names(layer: nn.Layer) -> Tuple[str, ...]:
    """Return the names of the arguments of the layer's ``forward`` that positions refer to."""
    parameters = list(inspect.signature(type(layer).forward).parameters.values())[1:]
    return tuple(p.name for p in parameters
                 if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def _by_position(layer, args, kwargs):
    """Return the arguments of a call by position, None for those that are missing."""
    names = (read_state(layer).arguments or argument_names(layer))[len(args):]
    return [*args, *map(kwargs.get, names), *(kwargs[key] for key in kwargs if key not in names)]


def tensors_in(value: Any) -> List[paddle.Tensor]:
    """Return the tensors in nested lists, tuples and dicts, in a fixed order."""
    if isinstance(value, paddle.Tensor):
        return [value]
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value, key=str)]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


@dataclass(eq=False)
class Call:
    """Call of a layer in a forward pass."""

    name: Any  # of the layer
    args: tuple
    kwargs: Dict[str, Any]
    # For each argument: (call of a producer that returned it or None, True if changed in place).
    reads: List[Tuple[Optional["Call"], bool]] = field(default_factory=list)
    output: Any = None  # of a producer; it stays in memory, so that its id is not reused


def trace_calls(run: Callable[[], Any], producers: Mapping[Any, nn.Layer],
                consumers: Mapping[Any, nn.Layer]) -> Tuple[List[Call], Any]:
    """Return the calls of layers in ``run()``, in the order in which they began, and its result.

    Tensors are followed by identity from the outputs of ``producers`` to the arguments of
    ``consumers``; both map names to layers.
    """
    layers = {**producers, **consumers}
    calls: List[Call] = []
    returned: Dict[int, Tuple[Call, int]] = {}  # id(tensor) -> (call, its inplace version)

    def source_of(x):
        call, version = returned.get(id(x), (None, 0))
        return call, call is not None and x.inplace_version != version

    def forward(name, original, *args, **kwargs):
        call = Call(name, args, kwargs)
        calls.append(call)
        if name in consumers:
            call.reads = [source_of(x) for x in _by_position(layers[name], args, kwargs)]
        output = original(*args, **kwargs)
        if name in producers and isinstance(output, paddle.Tensor):
            call.output = output
            returned[id(output)] = call, output.inplace_version
        return output

    with patched_forwards(layers, forward):
        return calls, run()
