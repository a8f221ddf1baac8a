"""``paddle.nn.MultiHeadAttention`` whose keys and values pass a sublayer ``kv_cache``.

The attention stays the same object with the same parameters; it gets a subclass of its own class.
What holds attentions (TransformerDecoder, TransformerEncoder, a user's own) is not touched.
"""

import collections

import paddle
from paddle import nn

from .class_swap import swapped_class
from .kv_cache import KVCache

_Paddle = nn.MultiHeadAttention


# What TransformerDecoder passes along, with the scales of each token as well. These are Paddle's
# classes too, for a caller that asks.
class ScaledCache(collections.namedtuple("ScaledCache", "k v k_scale v_scale"), _Paddle.Cache):
    """A ``MultiHeadAttention.Cache`` of integers, with the scale of each token and head."""

    __slots__ = ()


class ScaledStaticCache(collections.namedtuple("ScaledStaticCache", "k v k_scale v_scale"),
                        _Paddle.StaticCache):
    """A ``MultiHeadAttention.StaticCache`` of integers, with the scale of each token and head."""

    __slots__ = ()


class CachedAttention:
    """Mixin of attentions whose keys and values go through the sublayer ``kv_cache``.

    With a cache passed in, what is kept in it is what ``kv_cache`` keeps: int8 where that is an
    :class:`Int8KVCache`. A cache of floats that the caller brings is quantized when it is read.
    """

    prefix = "Cached"

    def swapped_forward(self, args, kwargs):
        return self._float_class.forward(self, *args, **kwargs)

    def _prepare_qkv(self, query, key, value, cache=None):
        if isinstance(cache, self.StaticCache):
            kept = self._stored(cache)
            k, v = self.kv_cache.read(kept, query.dtype)
        else:
            past = self._stored(cache) if isinstance(cache, self.Cache) else None
            k, v, kept = self.kv_cache(*self.compute_kv(key, value), past)
        # The query is Paddle's own matter: to its method the keys and values are there already.
        q, k, v, _ = super()._prepare_qkv(query, key, value, self.StaticCache(k, v))
        return (q, k, v) if cache is None else (q, k, v, _as_cache(kept, type(cache)))

    def gen_cache(self, key, value=None, type=_Paddle.Cache):
        cache = super().gen_cache(key, value, type)
        return _as_cache(self._stored(cache), cache.__class__)

    def _stored(self, cache):
        is_float = cache.k.dtype in (paddle.float32, paddle.float16, paddle.bfloat16,
                                     paddle.float64)
        return self.kv_cache.store(cache.k, cache.v) if is_float else tuple(cache)


def _as_cache(kept, cls):
    static = issubclass(cls, _Paddle.StaticCache)
    if len(kept) == 2:
        return (_Paddle.StaticCache if static else _Paddle.Cache)(*kept)
    return (ScaledStaticCache if static else ScaledCache)(*kept)


def takes_cache(layer):
    """Whether :func:`hold_cache` can be used: an attention of Paddle's way with keys and values."""
    return isinstance(layer, CachedAttention) or isinstance(layer, _Paddle) and all(
        getattr(type(layer), name) is getattr(_Paddle, name)
        for name in ("_prepare_qkv", "compute_kv", "gen_cache"))


def hold_cache(attention):
    """Give a ``MultiHeadAttention``, in place, the sublayer ``kv_cache``.

    Nothing that it computes changes until another cache takes the place of that one.

    Examples:
        >>> import paddle
        >>> from paddleq.nn import Int8KVCache
        >>> from paddleq.nn.attention import hold_cache
        >>> attention = paddle.nn.MultiHeadAttention(8, 2)
        >>> hold_cache(attention)
        >>> attention.kv_cache = Int8KVCache("per_token", token_axis=2)
        >>> x = paddle.rand([1, 3, 8])
        >>> y, cache = attention(x, cache=attention.gen_cache(x))
        >>> cache.k.dtype == paddle.int8
        True
    """
    if isinstance(attention, CachedAttention):
        return
    attention.__class__ = swapped_class(CachedAttention, type(attention))
    attention.kv_cache = KVCache(token_axis=2)
    attention.kv_cache.training = attention.training
