"""A scale that is known beforehand."""

import paddle

from .._checks import check_float, check_int
from .base import Observer


class FixedScaleObserver(Observer):
    """Looks at nothing: the step and the zero point are given.

    Args:
        spec, channels: as for :class:`Observer`; the step holds for each channel.
        scale: the step between two integers, positive. Default 1.
        zero_point: the integer that 0 is stored as. Default 0; only a spec that is not symmetric
            takes another one.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import FixedScaleObserver
        >>> FixedScaleObserver(scale=0.5).threshold().tolist()  # 127 steps
        [63.5]
    """

    fixed = True

    def __init__(self, spec=None, channels=None, scale=1.0, zero_point=0):
        super().__init__(spec, channels)
        self.scale = check_float("scale", scale, 0.0, float("inf"), open_low=True, open_high=True)
        low, high = (0, 0) if self.spec.symmetric else (self.spec.quant_min, self.spec.quant_max)
        self.zero_point = check_int("zero_point", zero_point, low, high)

    def _update(self, x):
        pass

    def _merge(self, other):
        pass

    def threshold(self):
        return paddle.full([self.channels], self.scale) * float(self.spec.quant_max)

    def range(self):
        return (paddle.full([self.channels], self.scale * (limit - self.zero_point))
                for limit in (self.spec.quant_min, self.spec.quant_max))

    def qparams(self):
        zero = paddle.full([self.channels], self.zero_point, dtype="int64")
        return self.threshold(), None if self.spec.symmetric else zero
