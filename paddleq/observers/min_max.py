"""Observers of the minimum and maximum: current, running and moving average."""

from typing import Optional

import paddle

from .._checks import check_float
from ..functional import EPS
from ..functional.qparams import as_dtype, reduce_channels
from ..spec import QuantSpec
from .base import Accumulator, register_observer


class _MinMaxBase(Accumulator):
    """Base of the observers of minimum and maximum."""

    statistics = {"min": paddle.minimum, "max": paddle.maximum}
    extremes = (-1.0, 1.0)
    proportional = ("min", "max")

    def _measure(self, x):
        if 0 in x.shape:
            return []
        x, axis = as_dtype(x, paddle.float32), self.spec.channel_axis
        return [reduce_channels(reduce, x, axis) for reduce in (paddle.min, paddle.max)]

    def _range_of(self, *values):
        low, high = values
        spec = self.spec
        # A symmetric spec uses all of its integers, as in Horizon's plugin and Golden Stick:
        # scale = max(-min, max) / ((quant_max - quant_min) / 2).
        share = spec.quant_max / ((spec.quant_max - spec.quant_min) / 2)
        return (paddle.maximum(-low, high) * share).clip(min=EPS), (low, high)

    def range(self):
        return self.min.clip(max=0.0), self.max.clip(min=0.0)

    def abs_max(self):
        return self._range_of(*self.range())[0]


@register_observer("min_max")
class MinMaxObserver(_MinMaxBase):
    """Running minimum and maximum; the range always contains 0.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.observers import MinMaxObserver
        >>> observer = MinMaxObserver(QuantSpec(narrow_range=True))
        >>> observer.update(paddle.to_tensor([1.0, 4.0]))
        >>> [t.tolist() for t in observer.range()], observer.abs_max().tolist()
        ([[0.0], [4.0]], [4.0])
    """


@register_observer("moving_average_min_max")
class MovingAverageMinMaxObserver(_MinMaxBase):
    """Moving averages of minimum and maximum.

    The first batch initializes them; then m = m + averaging_constant * (current - m).

    Args:
        spec, channels: as for :class:`Observer`.
        averaging_constant: weight of a new batch, in (0, 1]. Default 0.01.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import MovingAverageMinMaxObserver
        >>> observer = MovingAverageMinMaxObserver(averaging_constant=0.5)
        >>> for batch in ([-1.0, 4.0], [-3.0, 2.0]):
        ...     observer.update(paddle.to_tensor(batch))
        >>> [t.tolist() for t in observer.range()]
        [[-2.0], [3.0]]
    """

    def __init__(self, spec: Optional[QuantSpec] = None, channels: Optional[int] = None,
                 averaging_constant: float = 0.01):
        super().__init__(spec, channels)
        self.averaging_constant = check_float("averaging_constant", averaging_constant, 0.0, 1.0,
                                              open_low=True)

    def _combine(self, values):
        # A tensor condition: to_static traces one program for the first batch and all others.
        share = paddle.where(self.batches == 0, paddle.ones([1]),
                             paddle.full([1], self.averaging_constant))
        for name, current in zip(self.statistics, values):
            old = getattr(self, name)
            self._assign(name, old + share * (current - old))

    def _merge(self, other):
        share = self._share_of(other)
        for name in self.statistics:
            self._assign(name, getattr(self, name) * (1 - share) + getattr(other, name) * share)


@register_observer("current_min_max")
class CurrentMinMaxObserver(_MinMaxBase):
    """Minimum and maximum of the current tensor, per tensor or per channel, for weights.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.observers import CurrentMinMaxObserver
        >>> observer = CurrentMinMaxObserver(QuantSpec(signed=False, symmetric=False))
        >>> abs_max, zero_point = observer.update_qparams(paddle.to_tensor([-1.0, 3.0]))
        >>> abs_max.tolist(), zero_point.tolist()
        ([4.0], [64])
    """

    dynamic = True
    statistics = {"min": None, "max": None}


@register_observer("per_channel_min_max")
class PerChannelMinMaxObserver(MinMaxObserver):
    """:class:`MinMaxObserver` with one range per channel, by default along axis 0.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import PerChannelMinMaxObserver
        >>> observer = PerChannelMinMaxObserver(channels=2)
        >>> observer.update(paddle.to_tensor([[-1.0, 2.0], [-4.0, -3.0]]))
        >>> [t.tolist() for t in observer.range()]
        [[-1.0, -4.0], [2.0, 0.0]]
    """

    per_channel = True


@register_observer("moving_average_per_channel_min_max")
class MovingAveragePerChannelMinMaxObserver(MovingAverageMinMaxObserver):
    """:class:`MovingAverageMinMaxObserver` with one range per channel, by default along axis 0.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import MovingAveragePerChannelMinMaxObserver
        >>> observer = MovingAveragePerChannelMinMaxObserver(channels=2)
        >>> observer.update(paddle.to_tensor([[1.0], [2.0]]))
        >>> observer.range()[1].tolist()
        [1.0, 2.0]
    """

    per_channel = True
