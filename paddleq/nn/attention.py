"""``paddle.nn.MultiHeadAttention`` with a KV cache as sublayer.

The attention stays the same object with the same parameters. Layers that contain attentions
(TransformerDecoder, TransformerEncoder, user-defined ones) are not changed.
"""

import collections
from typing import Any, Type

from paddle import nn

from .._paddle_compat import KeyValueAttention, uses_paddle_keys_and_values
from .class_swap import swapped_class
from .kv_cache import KVCache
from .quantized_layer import is_float_tensor

_Paddle = nn.MultiHeadAttention


# TransformerDecoder passes the caches, which derive from Paddle's classes for isinstance checks.
_Fields: Any = collections.namedtuple("ScaledCache", "k v k_scale v_scale")


class ScaledCache(_Fields, _Paddle.Cache):
    """A ``MultiHeadAttention.Cache`` of integers, with the scale of each token and head."""


class ScaledStaticCache(_Fields, _Paddle.StaticCache):
    """A ``MultiHeadAttention.StaticCache`` of integers, with the scale of each token and head."""


class CachedAttention(KeyValueAttention):
    """Mixin of attentions whose keys and values pass through the sublayer ``kv_cache``.

    A returned cache holds the stored form of ``kv_cache``: int8 for an :class:`Int8KVCache`. A
    float cache that the caller passes is quantized when it is read.
    """

    prefix = "Cached"
    kv_cache: KVCache
    _float_class: Type[nn.Layer]

    def swapped_forward(self, args, kwargs):
        return self._float_class.forward(self, *args, **kwargs)

    def keys_and_values(self, query, key, value, cache):
        if isinstance(cache, self.StaticCache):
            kept = self._stored(cache)
            k, v = self.kv_cache.read(kept, query.dtype)
        else:
            past = self._stored(cache) if isinstance(cache, self.Cache) else None
            k, v, kept = self.kv_cache(*self.compute_kv(key, value), past)
        return k, v, None if cache is None else _as_cache(kept, type(cache))

    def gen_cache(self, key, value=None, type=_Paddle.Cache):
        cache = super().gen_cache(key, value, type)
        return _as_cache(self._stored(cache), cache.__class__)

    def _stored(self, cache):
        return self.kv_cache.store(cache.k, cache.v) if is_float_tensor(cache.k) else tuple(cache)


def _as_cache(kept, cls):
    float_cache, scaled_cache = ((_Paddle.StaticCache, ScaledStaticCache)
                                 if issubclass(cls, _Paddle.StaticCache)
                                 else (_Paddle.Cache, ScaledCache))
    return (float_cache if len(kept) == 2 else scaled_cache)(*kept)


def supports_cache(layer):
    """Return True if ``layer`` is an attention with Paddle's computation of keys and values."""
    return isinstance(layer, CachedAttention) or (
        isinstance(layer, _Paddle) and uses_paddle_keys_and_values(layer))


def insert_cache(attention):
    """Insert a float ``kv_cache`` into a ``MultiHeadAttention``, in place."""
    if isinstance(attention, CachedAttention):
        return
    attention.__class__ = swapped_class(CachedAttention, type(attention))
    attention.kv_cache = KVCache(token_axis=2)
    attention.kv_cache.training = attention.training
