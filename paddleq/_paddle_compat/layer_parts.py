"""Parts of any layer: parameters, buffers, sublayers, hooks, operation counters, states."""

import inspect
from typing import Any, Callable, Dict, Optional, Tuple, Type

import paddle
from paddle import nn

from .lookup import callers, private

# Attributes in which a Layer keeps its parts: dicts, and one set of names.
LAYER_CONTAINERS = ("_parameters", "_buffers", "_sub_layers", "_non_persistable_buffer_names_set",
                    "_loaddict_holder", "_forward_pre_hooks", "_forward_post_hooks")
FORWARD_HOOKS = ("_forward_pre_hooks", "_forward_post_hooks")


def unwrapped(model: nn.Layer) -> nn.Layer:
    """Return the model inside ``paddle.DataParallel`` or its like, or ``model`` itself."""
    inner = getattr(model, "_layers", None)
    return inner if isinstance(inner, nn.Layer) else model


def flops_counters() -> Dict[Type[nn.Layer], Callable]:
    """Return class -> function (layer, inputs, output) that ``paddle.flops`` calls."""
    return private("paddle.hapi.dynamic_flops.register_hooks", "count operations")


def copy_flops_counter(cls: Type[nn.Layer], base: Type[nn.Layer]) -> None:
    """Let ``paddle.flops`` count layers of ``cls`` as it counts those of ``base``."""
    counters = flops_counters()
    counter = next((counters[parent] for parent in base.__mro__ if parent in counters), None)
    if counter is not None:
        counters[cls] = counter


def own_parameters(layer: nn.Layer) -> Dict[str, Any]:
    """Return the dict in which ``layer`` keeps its own parameters; values may be None."""
    return layer._parameters


def own_buffers(layer: nn.Layer) -> Dict[str, Any]:
    """Return the dict in which ``layer`` keeps its own buffers; values may be None."""
    return layer._buffers


def own_sublayers(layer: nn.Layer) -> Dict[str, nn.Layer]:
    """Return the dict in which ``layer`` keeps its direct sublayers."""
    return layer._sub_layers


def remove_hooks(layer: nn.Layer, chosen: Callable[[Callable], bool]) -> None:
    """Remove the forward hooks of ``layer`` for which ``chosen(hook)`` is true."""
    for hooks in (layer._forward_pre_hooks, layer._forward_post_hooks):
        for key in [key for key, hook in hooks.items() if chosen(hook)]:
            del hooks[key]


class _CallHook:
    """Forward pre-hook that passes the keyword arguments of a call as well.

    Paddle 2.6 does not pass them to hooks, and Paddle 3 mistakes a hook for one that takes them
    after unpickling, when it gets a number that another hook had.
    """

    def __init__(self, hook: Callable) -> None:
        self.hook = hook

    def __call__(self, layer: nn.Layer, args: Any) -> Any:
        frame: Any = inspect.currentframe()
        self.hook(layer, args, frame.f_back.f_locals.get("kwargs", {}))


def register_call_hook(layer: nn.Layer, hook: Callable) -> None:
    """Call ``hook(layer, args, kwargs)`` before each forward pass of ``layer``."""
    layer.register_forward_pre_hook(_CallHook(hook))


def remove_call_hook(layer: nn.Layer, hook: Callable) -> None:
    """Remove the ``hook`` that :func:`register_call_hook` registered."""
    remove_hooks(layer, lambda each: getattr(each, "hook", None) is hook)


class BuffersKeepDtype(nn.Layer):
    """Mixin of layers of which ``Layer.to`` casts the parameters but not the buffers."""

    def _apply(self, func, device, dtype, blocking, include_sublayers=True):
        buffers = {id(held) for held in self._buffers.values()}

        def keep(held, device, dtype, blocking):
            return func(held, device, held.dtype if id(held) in buffers else dtype, blocking)

        super()._apply(keep, device, dtype, blocking, include_sublayers)


class LoadNotice(nn.Layer):
    """Mixin of layers that notice when a state is about to be loaded.

    ``_before_load(prefix, root, state)`` runs before ``root.set_state_dict(state)`` sets the
    tensors of the layer, whose names in ``state`` begin with ``prefix``.
    """

    def _before_load(self, prefix, root, state):
        pass

    def _state_dict_impl(self, destination=None, include_sublayers=True,
                         structured_name_prefix="", *args, **kwargs):
        loading = state_being_loaded()
        if loading is not None:
            self._before_load(structured_name_prefix, *loading)
        return super()._state_dict_impl(destination, include_sublayers, structured_name_prefix,
                                        *args, **kwargs)


class StateDictNotice(nn.Layer):
    """Mixin of layers that notice when a state_dict is read or loaded.

    ``_before_state_dict()`` runs before both, ``_after_load(layer, name)`` after ``set_state_dict``
    has set a tensor of the layer or of a sublayer. Values of another data type are cast:
    averages of states are float32, where Paddle accepts equal types only.
    """

    def _before_state_dict(self):
        pass

    def _after_load(self, layer, name):
        pass

    def _state_dict_impl(self, *args, **kwargs):
        self._before_state_dict()
        found = super()._state_dict_impl(*args, **kwargs)
        if state_being_loaded() is None:
            return found
        own = {id(held): (layer, name) for layer in self.sublayers(include_self=True)
               for name, held in [*layer._parameters.items(), *layer._buffers.items()]}
        loaded: Any = found
        for key, value in found.items():  # in place: Paddle 3 ignores what sublayers return
            if id(value) in own:
                loaded[key] = _LoadedTensor(value, self._after_load, own[id(value)])
        return found


class _LoadedTensor:
    """Tensor of which ``set_state_dict`` reads the shape and sets the value."""

    def __init__(self, tensor, after, place):
        self._tensor, self._after, self._place = tensor, after, place

    def __getattr__(self, name):
        return getattr(self._tensor, name)

    def set_value(self, value):
        value = value if isinstance(value, paddle.Tensor) else paddle.to_tensor(value)
        dtype = self._tensor.dtype
        if value.dtype != dtype:
            if dtype == paddle.int64 and paddle.is_floating_point(value):
                # A count whose average is between 0 and 1 is not 0; an average of equal integers
                # may differ by rounding.
                value = paddle.ceil(value - 1e-3)
            value = value.astype(dtype)
        self._tensor.set_value(value)
        self._after(*self._place)


def state_being_loaded() -> Optional[Tuple[nn.Layer, Any]]:
    """Return (layer, state) of the ``set_state_dict`` that runs now in dynamic mode, or None."""
    if paddle.in_dynamic_mode():
        for frame in callers("paddle.nn.layer.layers"):
            if frame.f_code.co_name == "set_state_dict":
                return frame.f_locals["self"], frame.f_locals["state_dict"]
    return None
