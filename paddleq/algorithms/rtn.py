"""Round to nearest."""

from dataclasses import dataclass

from ..functional import compute_weight_qparams
from .base import QuantizedWeight, Rounder, checked_weight, register_algorithm


@register_algorithm("rtn")
@dataclass(frozen=True)
class RoundToNearest(Rounder):
    """Round each weight to the nearest integer.

    Examples:
        >>> import paddle
        >>> from paddleq import PerGroup, QuantSpec
        >>> from paddleq.algorithms import RoundToNearest
        >>> spec = QuantSpec(bits=4, granularity=PerGroup(64))
        >>> quantized = RoundToNearest().quantize(paddle.randn([128, 8]), spec)
        >>> list(quantized.integers.shape), list(quantized.qparams.scale.shape)
        ([128, 8], [2, 8])
    """

    def quantize_all(self, weights, spec, stats=None, clips=None):
        weights = [checked_weight(weight, spec) for weight in weights]
        qparams = [compute_weight_qparams(weight, spec, clip)
                   for weight, clip in zip(weights, clips or [None] * len(weights))]
        return [QuantizedWeight(each.quantize(weight).astype(spec.storage), each)
                for each, weight in zip(qparams, weights)]
