"""Subclasses that layers get in place of their own class, and replacement of layers and weights.

The layer stays the same object with the same parameters; to Paddle's tools it looks as before.
"""

import abc
import copyreg
import functools
import inspect
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterable, Iterator, Tuple, Type, cast

import paddle
from paddle import nn

from .._paddle_compat import (
    FORWARD_HOOKS,
    LAYER_CONTAINERS,
    copy_flops_counter,
    drop_programs,
    drop_programs_with,
    make_tensors_picklable,
    may_be_in_programs,
    skip_bytecode_translation,
)


class SwappedClass(abc.ABCMeta):
    """Metaclass of the classes that :func:`swapped_class` makes."""

    _mixin: type
    _float_class: Type[nn.Layer]


@functools.lru_cache(maxsize=None)
def swapped_class(mixin: Any, base: Type[nn.Layer]) -> Type[nn.Layer]:
    """Return the subclass of ``base`` with ``mixin`` before it; one for each pair.

    Args:
        mixin: a class with ``prefix``, which the name of the subclass begins with, and
            ``swapped_forward(args, kwargs)``, which the ``forward`` of the subclass calls. That
            ``forward`` has the signature of ``base.forward``: Paddle's tracers read it.
    """
    @paddle.jit.not_to_static
    def forward(self, *args, **kwargs):
        return self.swapped_forward(args, kwargs)

    forward.__signature__ = inspect.signature(base.forward)
    forward.__doc__ = base.forward.__doc__
    cls: Any = SwappedClass(mixin.prefix + base.__name__, (mixin, base),
                       {"_mixin": mixin, "_float_class": base, "forward": forward,
                        "__doc__": f"{mixin.prefix} {base.__name__}.",
                        "__module__": mixin.__module__})
    copy_flops_counter(cls, base)
    skip_bytecode_translation(cls)
    return cls


# No module has such a class under its name: pickle makes it again where it loads.
copyreg.pickle(SwappedClass,
               cast(Any, lambda cls: (swapped_class, (cls._mixin, cls._float_class))))
make_tensors_picklable()


def float_class(layer: nn.Layer) -> Type[nn.Layer]:
    """Return the class that ``layer`` had before its class was swapped."""
    return getattr(type(layer), "_float_class", type(layer))


def replace_layers(model: nn.Layer,
                   replacements: Iterable[Tuple[nn.Layer, nn.Layer]]) -> Callable[[], None]:
    """Replace layers of ``model``, in place and wherever they are referenced.

    The old layer object gets the class and the attributes of the new one, which must not be used
    afterwards. So it is replaced for two parents, a plain list or a hook that refer to it. Its own
    hooks stay. Returns a function that restores the old layers.
    """
    before = []
    for old, new in replacements:
        before.append((old, type(old), old.__dict__))
        hooks = {name: old.__dict__[name] for name in FORWARD_HOOKS}
        _become(old, type(new), {**new.__dict__, **hooks})

    def restore():
        for old, cls, attributes in reversed(before):
            _become(old, cls, attributes)

    return restore


def _become(layer, cls, attributes):
    layer.__class__ = cls
    # Not layer.__dict__ = ...: Layer.__setattr__ handles that as any attribute.
    object.__setattr__(layer, "__dict__", attributes)


@contextmanager
def rollback_on_error(model: nn.Layer, tensors: Iterable[paddle.Tensor] = (),
                      only_interrupts: bool = False) -> Iterator[None]:
    """Roll back changes of ``model`` on any exception, ``KeyboardInterrupt`` too.

    Classes, attributes and hooks of the layers are restored, of tensor values those of ``tensors``.
    Otherwise the programs that ``to_static`` compiled from the model are dropped on exit, and those
    of functions and parents that call it if the class of a layer has changed.

    Args:
        only_interrupts: nothing is restored for errors other than ``MemoryError``.
    """
    compiled = may_be_in_programs(model)
    with paddle.no_grad():
        values = [(tensor, tensor.clone()) for tensor in tensors]
    before = [(layer, type(layer), dict(layer.__dict__), copied_attributes(layer))
              for layer in model.sublayers(include_self=True)]
    try:
        yield
        for layer in model.sublayers(include_self=True):
            drop_programs(layer)
        if compiled and any(type(layer) is not cls for layer, cls, _, _ in before):
            drop_programs_with(model.parameters())
    except BaseException as error:
        if (only_interrupts and isinstance(error, Exception)
                and not isinstance(error, MemoryError)):
            raise
        for layer, cls, attributes, copied in before:
            for name in set(LAYER_CONTAINERS) & set(copied):
                # Not replaced, because the handle of a hook refers to its container.
                attributes[name].clear()
                attributes[name].update(copied[name])
                copied[name] = attributes[name]
            _become(layer, cls, copied)
        with paddle.no_grad():
            for tensor, value in values:
                paddle.assign(value, tensor)
        raise


def copied_attributes(layer: nn.Layer) -> Dict[str, Any]:
    """Return a copy of ``layer.__dict__`` with copies of Paddle's containers and our state."""
    return {name: value.copy() if name in LAYER_CONTAINERS or name == "_paddleq" else value
            for name, value in layer.__dict__.items()}


@contextmanager
def substituted(layer: nn.Layer, weights: Dict[str, Any]) -> Iterator[None]:
    """While open, ``layer.<name>`` is ``weights[name]``; ``parameters()`` are not affected."""
    # An instance attribute hides the parameter of that name from the layer's own forward. A bias
    # of None is one already.
    own = {name: layer.__dict__[name] for name in weights if name in layer.__dict__}
    try:
        layer.__dict__.update(weights)
        yield
    finally:
        for name in weights:
            layer.__dict__.pop(name, None)
        layer.__dict__.update(own)
