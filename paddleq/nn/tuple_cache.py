"""KV caches for attentions that keep the past themselves, as a tuple of keys and values.

Such an attention (of a decoder of PaddleNLP, for example) joins the keys and values of the past and
of the new tokens in its ``forward`` and returns both. Its class is swapped for one that dequantizes
the past before and quantizes the new keys and values afterwards.
"""

import inspect
from typing import Any, Optional, Type

import paddle
from paddle import nn

from .._checks import check_choice, check_layer, wrong_type, wrong_value
from ..errors import ModelError
from .class_swap import float_class, swapped_class
from .input_slots import is_float_tensor
from .kv_cache import KVCache


def adapt_tuple_cache(attention: nn.Layer, past: str = "past_key_value",
                      use_cache: Optional[str] = "use_cache", token_axis: int = 1) -> None:
    """Give an attention that keeps the past as a tuple a :class:`KVCache`, in place.

    The tuple is (keys, values), the attention joins it with those of the new tokens and returns the
    whole as an element of its output. Afterwards the past passes through the sublayer
    ``kv_cache``, which quantization replaces by an :class:`Int8KVCache`. The past is then int8, and
    the attention reads its dequantized values; keys and values of the tokens of the current call
    are not rounded in that call. Parameters keep their names, and the results do not change before
    the cache is quantized.

    Args:
        attention: a ``paddle.nn.Layer``.
        past: name of the argument of its ``forward`` with the past. Default "past_key_value".
        use_cache: name of the argument that requests the past in the output. Default "use_cache".
            None: it is always returned.
        token_axis: axis of the tokens: 1 (default) for [batch, tokens, kv_heads, head_dim], 2 for
            [batch, kv_heads, tokens, head_dim].

    Raises:
        ConfigError, ConfigTypeError: an invalid argument; ``forward`` has no argument of that name.
        ModelError: (when it is called) the output holds no tuple of keys and values.

    Examples:
        >>> import paddle
        >>> from paddleq.nn import adapt_tuple_cache
        >>> class Attention(paddle.nn.Layer):
        ...     def forward(self, x, past=None):
        ...         k = v = x if past is None else paddle.concat([past[0], x], axis=1)
        ...         return k.sum(axis=1), (k, v)
        >>> attention = Attention()
        >>> adapt_tuple_cache(attention, past="past", use_cache=None)
        >>> y, past = attention(paddle.ones([1, 3, 2, 4]))
        >>> [list(each.shape) for each in attention(paddle.ones([1, 1, 2, 4]), past)[1]]
        [[1, 4, 2, 4], [1, 4, 2, 4]]
    """
    check_layer("attention", attention)
    check_choice("token_axis", token_axis, (1, 2))
    if isinstance(attention, TupleCachedAttention) or hasattr(attention, "kv_cache"):
        raise wrong_value("attention", type(attention).__name__,
                          "a layer that has no kv_cache yet")
    names = list(inspect.signature(type(attention).forward).parameters)[1:]
    for argument, name in (("past", past), ("use_cache", use_cache)):
        if name is None and argument == "use_cache":
            continue
        if not isinstance(name, str):
            raise wrong_type(argument, name, "a str")
        check_choice(argument, name, names)
    attention.__class__ = swapped_class(TupleCachedAttention, type(attention))
    attention.tuple_cache = past, use_cache
    attention.kv_cache = KVCache(token_axis)
    attention.kv_cache.training = attention.training


class TupleCachedAttention(nn.Layer):
    """Mixin of attentions whose tuple of past keys and values passes through ``kv_cache``."""

    prefix = "TupleCached"
    kv_cache: KVCache
    tuple_cache: Any  # names of the arguments for the past and for requesting it
    _float_class: Type[nn.Layer]

    def swapped_forward(self, args, kwargs):
        past_name, request = self.tuple_cache
        forward = self._float_class.forward
        bound = inspect.signature(forward).bind(self, *args, **kwargs)
        bound.apply_defaults()
        given, kept = bound.arguments, None
        if given[past_name] is not None:
            kept, given[past_name] = self._read_past(given[past_name])
        if request is not None and not given[request]:
            if self._calibrates:
                given[request] = True
                self._store_new(forward(*bound.args, **bound.kwargs), given[past_name], kept)
                given[request] = False
            return forward(*bound.args, **bound.kwargs)
        outputs = forward(*bound.args, **bound.kwargs)
        position, kept = self._store_new(outputs, given[past_name], kept)
        items = [*outputs[:position], kept, *outputs[position + 1:]]
        cls: Any = type(outputs)
        return cls(*items) if hasattr(outputs, "_fields") else cls(items)

    @property
    def _calibrates(self):
        """True if a collector of calibration data replaces the forward of the cache."""
        return "forward" in self.kv_cache.__dict__

    def _read_past(self, past):
        """Return (stored form of the past, its float keys and values)."""
        kept = self.kv_cache.store(*past) if is_float_tensor(past[0]) else tuple(past)
        return kept, tuple(self.kv_cache.read(kept, self._past_dtype(past)))

    def _past_dtype(self, past) -> Any:
        if is_float_tensor(past[0]):
            return past[0].dtype
        return next((each.dtype for each in self.parameters() if is_float_tensor(each)), "float32")

    def _store_new(self, outputs, past, kept):
        """Return (position of the keys and values in the outputs, stored form of all of them)."""
        position = _find_past(outputs)
        if position is None:
            raise ModelError(f"{float_class(self).__name__} returned no tuple of keys and values "
                             "of 4 axes; adapt_tuple_cache() is for attentions that return the "
                             "past as (keys, values)")
        new = outputs[position]
        if past is not None:
            new = [self._new_tokens(whole, old) for whole, old in zip(new, past)]
        stored = self.kv_cache(*new)[2]
        return position, stored if kept is None else self.kv_cache.joined(kept, stored)

    def _new_tokens(self, whole, old):
        """Return the tokens of ``whole`` behind those of ``old``."""
        axis = self.kv_cache.token_axis
        if paddle.in_dynamic_mode():
            return whole[:, old.shape[1]:] if axis == 1 else whole[:, :, old.shape[2]:]
        start, end = paddle.shape(old)[axis], paddle.shape(whole)[axis]
        return paddle.slice(whole, [axis], [start], [end])


def _find_past(outputs):
    if not isinstance(outputs, (list, tuple)):
        return None
    return next((position for position, each in enumerate(outputs)
                 if isinstance(each, (list, tuple)) and len(each) == 2
                 and all(len(getattr(part, "shape", ())) == 4 for part in each)), None)
