"""Options and methods of Paddle's batch norms, convolutions and attentions."""

from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

import paddle
from paddle import nn

# Attributes of a batch norm with its running mean and variance.
RUNNING_STATISTICS = ("_mean", "_variance")


class BatchNormState(NamedTuple):
    """Running statistics and options of a batch norm."""

    mean: paddle.Tensor
    variance: paddle.Tensor
    epsilon: float
    momentum: float
    use_global_stats: bool
    trainable_statistics: bool
    activation: Optional[str]


def batch_norm_state(norm: nn.Layer) -> BatchNormState:
    """Return the running statistics and options of ``norm``, of any class of batch norms."""
    return BatchNormState(
        norm._mean, norm._variance, norm._epsilon, norm._momentum, bool(norm._use_global_stats),
        getattr(norm, "_trainable_statistics", False), getattr(norm, "_act", None))


def data_format(layer: nn.Layer) -> str:
    """Return the layout of the data of a convolution or a batch norm, such as "NCHW"."""
    return getattr(layer, "_data_format", None) or layer._data_layout


def convolution_groups(layer: nn.Layer) -> int:
    """Return the number of groups of a convolution."""
    return layer._groups


class ConvolutionGeometry(NamedTuple):
    """Strides, dilations and padding of a convolution or transposed convolution."""

    stride: List[int]
    dilation: List[int]
    padding: Any  # as the layer was created with
    padding_mode: str
    channel_last: bool

    def padding_of(self, sizes: Sequence[int], kernel: Sequence[int]) -> List[Tuple[int, int]]:
        """Return (before, after) for each spatial axis of an input with these ``sizes``."""
        padding, rank = self.padding, len(sizes)
        if isinstance(padding, str):
            if padding.upper() == "VALID":
                return [(0, 0)] * rank
            totals = [max((-(-size // step) - 1) * step + length - size, 0)
                      for size, step, length in zip(sizes, self.stride, kernel)]
            return [(total // 2, total - total // 2) for total in totals]
        if isinstance(padding, int):
            return [(padding, padding)] * rank
        pairs = list(padding)
        if pairs and isinstance(pairs[0], (list, tuple)):
            if len(pairs) == rank + 2:
                pairs = pairs[1:-1] if self.channel_last else pairs[2:]
            return [(before, after) for before, after in pairs]
        if len(pairs) == 2 * rank:
            return list(zip(pairs[::2], pairs[1::2]))
        return [(each, each) for each in (pairs * rank if len(pairs) == 1 else pairs)]


def convolution_geometry(layer: nn.Layer) -> ConvolutionGeometry:
    """Return the :class:`ConvolutionGeometry` of a convolution layer."""
    inner: Any = layer
    rank = len(inner.weight.shape) - 2
    stride, dilation = ([each] * rank if isinstance(each, int) else list(each)
                        for each in (inner._stride, inner._dilation))
    if isinstance(inner._padding, str) and inner._padding.upper() == "SAME":
        dilation = [1] * rank  # Paddle ignores it then
    return ConvolutionGeometry(stride, dilation, inner._padding, inner._padding_mode,
                               data_format(layer).endswith("C"))


class KeyValueAttention(nn.MultiHeadAttention):
    """Mixin of attentions that compute, cache and read keys and values in ``keys_and_values``.

    The method returns the keys, the values and the cache to return.
    """

    def _prepare_qkv(self, query, key, value, cache=None):
        k, v, new_cache = self.keys_and_values(query, key, value, cache)
        # Paddle's method computes the query; the keys and values are passed as a static cache.
        q, k, v, _ = super()._prepare_qkv(query, key, value, self.StaticCache(k, v))
        return (q, k, v) if cache is None else (q, k, v, new_cache)


def uses_paddle_keys_and_values(attention: nn.MultiHeadAttention) -> bool:
    """Return True if no subclass replaces Paddle's computation of keys and values."""
    return all(getattr(type(attention), name) is getattr(nn.MultiHeadAttention, name)
               for name in ("_prepare_qkv", "compute_kv", "gen_cache"))
