"""Observer of the moving average of max|x|, as in PaddleSlim's QAT."""

from typing import Optional

from .._checks import check_float
from ..spec import QuantSpec
from .base import Observer, register_observer


@register_observer("moving_average_abs_max")
class MovingAverageAbsMaxObserver(Observer):
    """Moving average of max|x| with bias correction.

    state = rate * state + 1, accum = rate * accum + max|x|, threshold = accum / state. Both
    start at 1, as in PaddleSlim, which biases the first thresholds towards 1.

    Args:
        moving_rate: weight of the past, in [0, 1). Default 0.9.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import MovingAverageAbsMaxObserver
        >>> observer = MovingAverageAbsMaxObserver(moving_rate=0.5)
        >>> observer.update(paddle.to_tensor([2.5]))
        >>> observer.threshold().tolist()  # (0.5 * 1 + 2.5) / (0.5 * 1 + 1)
        [2.0]
    """

    abs_max_only = True

    def __init__(self, spec: Optional[QuantSpec] = None, channels: Optional[int] = None,
                 moving_rate: float = 0.9):
        super().__init__(spec, channels)
        self.moving_rate = check_float("moving_rate", moving_rate, 0.0, 1.0, open_high=True)
        self._float_buffer("state", [1], 1.0)
        self._float_buffer("accum", value=1.0)

    def _update(self, x):
        current = self._abs_max(x)
        self._assign("state", self.state * self.moving_rate + 1.0)
        self._assign("accum", self.accum * self.moving_rate + current)

    def _merge(self, other):
        # Weight each average by its number of batches.
        mine, theirs = self.num_batches, other.num_batches
        share = theirs / (mine + theirs)
        merged = self.threshold() * (1 - share) + other.threshold() * share
        self._assign("accum", merged * self.state)

    def threshold(self):
        return self._at_least_eps(self.accum / self.state)
