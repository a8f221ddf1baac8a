"""Observer with a given scale."""

from typing import Optional

import paddle

from .._checks import check_float, check_int
from ..spec import QuantSpec
from .base import Accumulator, register_observer


@register_observer("fixed_scale")
class FixedScaleObserver(Accumulator):
    """Use a given scale and zero point, whatever the data.

    Args:
        spec, channels: as for :class:`Observer`; all channels use the same scale.
        scale: the step between two integers, positive. Default 1.
        zero_point: the integer that represents 0. Default 0, the only value that a symmetric spec
            accepts.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import FixedScaleObserver
        >>> FixedScaleObserver(scale=0.5).abs_max().tolist()  # 127 steps
        [63.5]
    """

    fixed = True

    def __init__(self, spec: Optional[QuantSpec] = None, channels: Optional[int] = None,
                 scale: float = 1.0, zero_point: int = 0):
        super().__init__(spec, channels)
        self.scale = check_float("scale", scale, 0.0, float("inf"), open_low=True, open_high=True)
        low, high = (0, 0) if self.spec.symmetric else (self.spec.quant_min, self.spec.quant_max)
        self.zero_point = check_int("zero_point", zero_point, low, high)

    def _measure(self, x):
        return []

    def abs_max(self):
        return paddle.full([self.channels], self.scale) * float(self.spec.quant_max)

    def range(self):
        return (paddle.full([self.channels], self.scale * (limit - self.zero_point))
                for limit in (self.spec.quant_min, self.spec.quant_max))

    def qparams(self):
        zero = paddle.full([self.channels], self.zero_point, dtype="int64")
        return self.abs_max(), None if self.spec.symmetric else zero
