"""Caches for keys and values of past tokens, in float, int8 or fp8, also of Paddle's attention.

A ``paddle.nn.MultiHeadAttention`` gets a cache as sublayer. It stays the same object with the same
parameters. Layers that contain attentions (TransformerDecoder, user-defined ones) do not change.
"""

import collections
from typing import Any, Type

import paddle
from paddle import nn

from .._checks import check_choice, check_int
from .._paddle_compat import (
    KeyValueAttention,
    skip_bytecode_translation,
    uses_paddle_keys_and_values,
)
from ..errors import CalibrationError, ConfigError
from ..functional import dequantize_by_scale, quantize_by_scale, token_scales
from ..functional.float_formats import from_storage, to_storage
from ..functional.qparams import EPS, as_dtype, scale_of
from ..spec import QuantSpec
from . import tracing
from .class_swap import swapped_class
from .deployable import DeployableLayer
from .input_slots import is_float_tensor
from .layer_types import frozen_form

PER_CHANNEL, PER_TOKEN = "per_channel", "per_token"
FLOAT_DTYPES = ("float8_e4m3fn", "float8_e5m2", "hifloat8")
"""Float data types of keys and values."""
_NO_SCALES = ("this KV cache has no scales yet: calibrate the model, or load a checkpoint of a "
              "calibrated one")


@skip_bytecode_translation
class KVCache(nn.Layer):
    """Float cache of the keys and values in a user-defined attention.

    The attention has the cache as a sublayer and calls it after the heads are split and the
    positional rotation is applied::

        k, v, past = self.kv_cache(k, v, past)

    The attention then uses the returned ``k`` and ``v``, which begin with those of the past.
    Quantizing the model replaces the cache by an :class:`Int8KVCache` with the same interface.

    Args:
        token_axis: axis of the tokens: 1 (default) for [batch, tokens, kv_heads, head_dim], 2 for
            [batch, kv_heads, tokens, head_dim].

    ``forward(k, v, past=None)`` takes keys and values of the new tokens and the ``past`` that the
    last call returned, a tuple. It returns all keys, all values and the ``past`` for the next call.
    The first entries of ``past`` are the stored keys and values: ``past[0].shape[token_axis]`` is
    the number of past tokens. The first axis of all entries is the batch.

    Examples:
        >>> import paddle
        >>> from paddleq.nn import KVCache
        >>> cache = KVCache()
        >>> k = v = paddle.ones([1, 3, 2, 4])  # three tokens
        >>> _, _, past = cache(k, v)
        >>> k, v, past = cache(k[:, :1], v[:, :1], past)  # and one more
        >>> list(k.shape), list(past[0].shape)
        ([1, 4, 2, 4], [1, 4, 2, 4])
    """

    def __init__(self, token_axis=1):
        super().__init__()
        self.token_axis = check_choice("token_axis", token_axis, (1, 2))

    @paddle.jit.not_to_static
    def forward(self, k, v, past=None):
        past = self.store(k, v) if past is None else self.joined(past, self.store(k, v))
        return (*past, past)

    def store(self, k, v):
        """Return the stored form of keys and values, a tuple that begins with them."""
        return k, v

    def read(self, past, dtype="float32"):
        """Return the keys and values that ``past`` stores."""
        return past[0], past[1]

    def joined(self, past, new):
        """Append the tokens of ``new`` to ``past``."""
        return tuple(paddle.concat([old, late], axis=self.token_axis)
                     for old, late in zip(past, new))


@frozen_form(KVCache)
@skip_bytecode_translation
class Int8KVCache(KVCache, DeployableLayer):
    """Cache of keys and values in int8, symmetric: q = clip(round(x / scale), -128, 127).

    The attention uses the dequantized values of new tokens too. So the outputs with and without a
    ``past`` are the same.

    To reorder beams, index each entry, ``x[order]``: Paddle's ``index_select`` has no kernel for
    int8, and neither has ``gather`` in Paddle 2.6.

    Args:
        granularity: "per_channel": one scale for each of kv_heads x head_dim, for keys and for
            values, fixed by calibration; ``past`` is (k, v), both int8. "per_token": one scale for
            each token and head, computed from the token; ``past`` is (k, v, k_scale, v_scale), the
            scales float32 with 1 in place of head_dim. (Scales of heads are independent, so heads
            can be split over devices.)
        kv_heads, head_dim: sizes, for "per_channel". Default None: taken from a checkpoint.
        token_axis: see :class:`KVCache`.

    Attributes:
        k_scale, v_scale: per channel, buffers float32 [kv_heads, head_dim]; NaN until they are
            set or loaded.

    Raises:
        ConfigError, ConfigTypeError: an argument is invalid.
        CalibrationError: the cache is called before its scales are set.

    :class:`Float8KVCache` stores fp8 in the same way.

    Examples:
        >>> import paddle
        >>> from paddleq.nn import Int8KVCache
        >>> cache = Int8KVCache("per_token")
        >>> k = v = paddle.to_tensor([0.5, -1.0, 0.25, 2.0]).reshape([1, 1, 2, 2])
        >>> k, v, past = cache(k, v)
        >>> past[0].flatten().tolist(), list(past[2].shape)
        ([64, -127, 16, 127], [1, 1, 2, 1])
    """

    spec = QuantSpec(bits=8)

    def __init__(self, granularity, kv_heads=None, head_dim=None, token_axis=1):
        super().__init__(token_axis)
        self.granularity = check_choice("granularity", granularity, (PER_CHANNEL, PER_TOKEN))
        self.kv_heads, self.head_dim = kv_heads, head_dim
        self._has_scales = False
        if granularity == PER_CHANNEL and (kv_heads, head_dim) != (None, None):
            sizes = [check_int("kv_heads", kv_heads, 1), check_int("head_dim", head_dim, 1)]
            for name in ("k_scale", "v_scale"):
                self.register_buffer(name, paddle.full(sizes, float("nan"), "float32"))

    @classmethod
    def from_abs_max(cls, k_max, v_max, token_axis=1, **arguments):
        """Return a per-channel cache for maximum magnitudes [kv_heads, head_dim]."""
        cache = cls(PER_CHANNEL, *k_max.shape, token_axis=token_axis, **arguments)
        for scale, most in ((cache.k_scale, k_max), (cache.v_scale, v_max)):
            scale.set_value(scale_of(as_dtype(most, paddle.float32).clip(min=EPS), cache.spec))
        return cache

    @property
    def quant_type(self):
        """Scheme: ``C8-per_channel`` or ``C8-per_token``."""
        return f"C8-{self.granularity}"

    @property
    def initialized(self):
        if self.granularity == PER_TOKEN:
            return True
        return self.kv_heads is not None and bool(
            paddle.isfinite(self.k_scale.sum() + self.v_scale.sum()))

    @property
    def data_dependent(self):
        return ("kv_heads", "head_dim") if self.kv_heads is None else ()

    def description(self):
        return {"granularity": self.granularity, "kv_heads": self.kv_heads,
                "head_dim": self.head_dim, "token_axis": self.token_axis}

    @classmethod
    def prepare_model(cls, model, name):
        attention, _, last = name.rpartition(".")
        layer = dict(model.named_sublayers(include_self=True)).get(attention)
        if last == "kv_cache" and layer is not None and supports_cache(layer):
            insert_cache(layer)

    @paddle.jit.not_to_static
    def forward(self, k, v, past=None):
        if self.granularity == PER_TOKEN:
            steps = token_scales(k, self.spec), token_scales(v, self.spec)
        else:
            self._check(k, v)
            steps = self._channel_steps()
        integers = [self._integers(k, steps[0], 0), self._integers(v, steps[1], 1)]
        if tracing.recorder() is None:
            new = tuple(to_storage(each, self.spec) for each in integers)
        else:  # it refuses a cache of floats
            new = tuple(each.astype(self.spec.storage) for each in integers)
        if self.granularity == PER_TOKEN:
            new += steps
        if past is None:
            # Not read back from int8, so a graph without a past has no casts.
            return (*_dequantized(integers, steps, k.dtype), new)
        past = self.joined(past, new)
        return (*self.read(past, k.dtype), past)

    def _integers(self, x, steps, slot):
        recorder = tracing.recorder()
        if recorder is None:
            return quantize_by_scale(x, steps, self.spec)
        # The operators that replace the marker quantize with scale 1.
        return recorder.activation(as_dtype(x, paddle.float32) / steps, self, slot)

    def store(self, k, v):
        """Return the stored form of keys and values, and per token the scales."""
        return self.forward(k, v)[2]

    def read(self, past, dtype="float32"):
        """Return the dequantized keys and values of ``past``."""
        stored = [from_storage(each, self.spec) for each in past[:2]]
        return _dequantized(stored, past[2:] or self._channel_steps(), dtype)

    def _channel_steps(self):
        shape = [1, 1, self.kv_heads, self.head_dim]
        if self.token_axis == 2:
            shape[1:3] = shape[2], shape[1]
        return self.k_scale.reshape(shape), self.v_scale.reshape(shape)

    def _check(self, k, v):
        if self.kv_heads is None:
            raise CalibrationError(_NO_SCALES)
        for name, x in (("k", k), ("v", v)):
            sizes = (x.shape[3 - self.token_axis], x.shape[-1])
            # -1: unknown while tracing.
            if any(size not in (-1, known)
                   for size, known in zip(sizes, (self.kv_heads, self.head_dim))):
                raise ConfigError(
                    f"{name} must have {self.kv_heads} kv_heads of {self.head_dim} features, for "
                    f"which this cache has scales, but has the shape {list(x.shape)}")
        if not self._has_scales and paddle.in_dynamic_mode():
            if not self.initialized:
                raise CalibrationError(_NO_SCALES)
            self._has_scales = True

    def extra_repr(self):
        return self.granularity


@frozen_form(KVCache)
@skip_bytecode_translation
class Float8KVCache(Int8KVCache):
    """Cache of keys and values in a float data type of 8 bits: the nearest number to x / scale.

    Its codes are stored as uint8. Exports refuse it, because no runtime has operators for it.

    Args:
        granularity, kv_heads, head_dim, token_axis: see :class:`Int8KVCache`.
        dtype: "float8_e4m3fn" (default), "float8_e5m2" or "hifloat8"; see
            :class:`~paddleq.QuantSpec`.

    Raises:
        ConfigError, ConfigTypeError: an argument is invalid.
        CalibrationError: the cache is called before its scales are set.

    Examples:
        >>> import paddle
        >>> from paddleq.nn import Float8KVCache
        >>> cache = Float8KVCache("per_token")
        >>> k = v = paddle.to_tensor([0.5, -1.0, 0.25, 2.0]).reshape([1, 1, 2, 2])
        >>> k, v, past = cache(k, v)
        >>> k.flatten().tolist(), past[0].dtype == paddle.uint8
        ([0.5, -1.0, 0.25, 2.0], True)
    """

    def __init__(self, granularity, kv_heads=None, head_dim=None, token_axis=1,
                 dtype="float8_e4m3fn"):
        super().__init__(granularity, kv_heads, head_dim, token_axis)
        self.spec = QuantSpec(dtype=check_choice("dtype", dtype, FLOAT_DTYPES))

    @property
    def quant_type(self):
        """Scheme: ``C(float8_e4m3fn)-per_channel`` or ``...-per_token``."""
        return f"C({self.spec.dtype})-{self.granularity}"

    def description(self):
        return {**super().description(), "dtype": self.spec.dtype}

    def extra_repr(self):
        return f"{self.spec.dtype}, {self.granularity}"


def quantized_cache_class(dtype):
    """Return (class, arguments) of a cache for a ``LayerConfig.kv_cache_dtype``."""
    return (Int8KVCache, {}) if dtype == "int8" else (Float8KVCache, {"dtype": dtype})


def _dequantized(integers, steps, dtype):
    return tuple(as_dtype(dequantize_by_scale(each, step), dtype)
                 for each, step in zip(integers, steps))


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
