"""Observers of max|x|: current, running, windowed, average and moving average."""

from typing import Optional

import paddle

from .._checks import check_float, check_int
from ..functional import abs_max
from ..spec import QuantSpec
from .base import Accumulator, latest, register_observer


class _AbsMaxBase(Accumulator):
    """Base of the observers of max|x| of each tensor."""

    abs_max_only = True

    def _measure(self, x):
        return [abs_max(x, self.spec)]


@register_observer("current_abs_max")
class CurrentAbsMaxObserver(_AbsMaxBase):
    """max|x| of the current tensor, per tensor or per channel, for weights.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import CurrentAbsMaxObserver
        >>> observer = CurrentAbsMaxObserver()
        >>> abs_max, zero_point = observer.update_qparams(paddle.to_tensor([0.5, -2.0]))
        >>> abs_max.tolist(), zero_point
        ([2.0], None)
    """

    dynamic = True
    statistics = {"current": latest}

    def abs_max(self):
        return self._at_least_eps(self.current)


@register_observer("abs_max")
class AbsMaxObserver(_AbsMaxBase):
    """Running maximum of max|x|.

    Args:
        spec, channels: as for :class:`Observer`.
        track_batch: in training, quantize each batch with its own maximum (PaddleSlim's
            ``abs_max`` activations); evaluation and export use the running maximum.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import AbsMaxObserver
        >>> observer = AbsMaxObserver()
        >>> for batch in ([1.0, -3.0], [2.0, 0.0]):
        ...     observer.update(paddle.to_tensor(batch))
        >>> observer.abs_max().tolist()
        [3.0]
    """

    statistics = {"max": paddle.maximum}

    def __init__(self, spec: Optional[QuantSpec] = None, channels: Optional[int] = None,
                 track_batch: bool = False):
        super().__init__(spec, channels)
        self.track_batch = track_batch

    def abs_max(self):
        return self._at_least_eps(self.max)


@register_observer("range_abs_max")
class RangeAbsMaxObserver(_AbsMaxBase):
    """Maximum of max|x| over the last ``window_size`` batches.

    Args:
        window_size: number of batches in the window. Default 10000.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import RangeAbsMaxObserver
        >>> observer = RangeAbsMaxObserver(window_size=2)
        >>> for value in (5.0, 1.0, 2.0):
        ...     observer.update(paddle.to_tensor([value]))
        >>> observer.abs_max().tolist()
        [2.0]
    """

    def __init__(self, spec: Optional[QuantSpec] = None, channels: Optional[int] = None,
                 window_size: int = 10000):
        super().__init__(spec, channels)
        self.window_size = check_int("window_size", window_size, 1)
        self._float_buffer("window", [self.window_size, self.channels])

    def _update(self, x):
        (current,) = self._measure(x)
        # Not a slice of the buffer: to_static cannot assign to a buffer that has a view.
        older = paddle.roll(self.window, -1, axis=0)[:-1]
        self._assign("window", paddle.concat([older, current.reshape([1, -1])]))

    def _merge(self, other):
        # The two streams have no common order: treat the windows as parallel.
        self._assign("window", paddle.maximum(self.window, other.window))

    def abs_max(self):
        return self._at_least_eps(self.window.max(axis=0))


@register_observer("avg")
class AverageObserver(_AbsMaxBase):
    """Mean of max|x| over the batches.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import AverageObserver
        >>> observer = AverageObserver()
        >>> for value in (1.0, 3.0):
        ...     observer.update(paddle.to_tensor([value]))
        >>> observer.abs_max().tolist()
        [2.0]
    """

    statistics = {"total": paddle.add}

    def abs_max(self):
        return self._at_least_eps(self._mean("total"))


@register_observer("moving_average_abs_max")
class MovingAverageAbsMaxObserver(_AbsMaxBase):
    """Moving average of max|x| with bias correction.

    state = rate * state + 1, accum = rate * accum + max|x|, abs_max = accum / state. Both
    start at 1, as in PaddleSlim, which biases the first results towards 1.

    Args:
        moving_rate: weight of the past, in [0, 1). Default 0.9.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import MovingAverageAbsMaxObserver
        >>> observer = MovingAverageAbsMaxObserver(moving_rate=0.5)
        >>> observer.update(paddle.to_tensor([2.5]))
        >>> observer.abs_max().tolist()  # (0.5 * 1 + 2.5) / (0.5 * 1 + 1)
        [2.0]
    """

    def __init__(self, spec: Optional[QuantSpec] = None, channels: Optional[int] = None,
                 moving_rate: float = 0.9):
        super().__init__(spec, channels)
        self.moving_rate = check_float("moving_rate", moving_rate, 0.0, 1.0, open_high=True)
        self._float_buffer("state", [1], 1.0)
        self._float_buffer("accum", value=1.0)

    def _update(self, x):
        (current,) = self._measure(x)
        self._assign("state", self.state * self.moving_rate + 1.0)
        self._assign("accum", self.accum * self.moving_rate + current)

    def _merge(self, other):
        # Weight each average by its number of batches.
        mine, theirs = self.num_batches, other.num_batches
        share = theirs / (mine + theirs)
        merged = self.abs_max() * (1 - share) + other.abs_max() * share
        self._assign("accum", merged * self.state)

    def abs_max(self):
        return self._at_least_eps(self.accum / self.state)
