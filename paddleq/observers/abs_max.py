"""Largest magnitude: of this tensor, of all tensors, of a window, on average."""

import paddle

from .._checks import check_int
from .base import Observer, register_observer


class CurrentAbsMaxObserver(Observer):
    """max|x| of the tensor at hand, per tensor or per channel: what weights use.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import CurrentAbsMaxObserver
        >>> observer = CurrentAbsMaxObserver()
        >>> threshold, zero_point = observer.update_qparams(paddle.to_tensor([0.5, -2.0]))
        >>> threshold.tolist(), zero_point
        ([2.0], None)
    """

    dynamic = True

    def __init__(self, spec=None, channels=None):
        super().__init__(spec, channels)
        self._float_buffer("current")

    def _update(self, x):
        self._assign("current", self._abs_max(x))

    def update_qparams(self, x):
        with paddle.no_grad():
            return self._measured(self._abs_max(x.detach()))

    def _merge(self, other):
        self._assign("current", other.current)

    def threshold(self):
        return self._floored(self.current)


@register_observer("abs_max")
class AbsMaxObserver(Observer):
    """Running maximum of max|x|.

    Args:
        spec, channels: as for :class:`Observer`.
        track_batch: while training, quantize each batch with its own maximum (PaddleSlim's
            ``abs_max`` activations) and keep the running maximum for evaluation and export.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import AbsMaxObserver
        >>> observer = AbsMaxObserver()
        >>> for batch in ([1.0, -3.0], [2.0, 0.0]):
        ...     observer.update(paddle.to_tensor(batch))
        >>> observer.threshold().tolist()
        [3.0]
    """

    abs_max_only = True

    def __init__(self, spec=None, channels=None, track_batch=False):
        super().__init__(spec, channels)
        self.track_batch = track_batch
        self._float_buffer("max")

    def _update(self, x):
        self._take(self._abs_max(x))

    def _take(self, current):
        self._assign("max", paddle.maximum(self.max, current))

    def update_qparams(self, x):
        if not self.track_batch:
            return super().update_qparams(x)
        with paddle.no_grad():
            current = self._abs_max(x.detach())
            self._take(current)
            self._assign("batches", self.batches + 1)
            return self._measured(current)

    def _merge(self, other):
        self._assign("max", paddle.maximum(self.max, other.max))

    def threshold(self):
        return self._floored(self.max)


class RangeAbsMaxObserver(Observer):
    """Maximum of max|x| over the last ``window_size`` batches.

    Args:
        window_size: number of batches that count. Default 10000.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import RangeAbsMaxObserver
        >>> observer = RangeAbsMaxObserver(window_size=2)
        >>> for value in (5.0, 1.0, 2.0):
        ...     observer.update(paddle.to_tensor([value]))
        >>> observer.threshold().tolist()
        [2.0]
    """

    abs_max_only = True

    def __init__(self, spec=None, channels=None, window_size=10000):
        super().__init__(spec, channels)
        self.window_size = check_int("window_size", window_size, 1)
        self._float_buffer("window", [self.window_size, self.channels])

    def _update(self, x):
        current = self._abs_max(x).reshape([1, -1])
        # (Not a slice of the buffer: to_static assigns to none that has a view.)
        older = paddle.roll(self.window, -1, axis=0)[:-1]
        self._assign("window", paddle.concat([older, current]))

    def _merge(self, other):
        # The two streams have no common order: the windows are taken to have run side by side.
        self._assign("window", paddle.maximum(self.window, other.window))

    def threshold(self):
        return self._floored(self.window.max(axis=0))


@register_observer("avg")
class AverageObserver(Observer):
    """Mean of max|x| over the batches.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import AverageObserver
        >>> observer = AverageObserver()
        >>> for value in (1.0, 3.0):
        ...     observer.update(paddle.to_tensor([value]))
        >>> observer.threshold().tolist()
        [2.0]
    """

    abs_max_only = True

    def __init__(self, spec=None, channels=None):
        super().__init__(spec, channels)
        self._float_buffer("total", dtype="float64")

    def _update(self, x):
        self._assign("total", self.total + self._abs_max(x).astype("float64"))

    def _merge(self, other):
        self._assign("total", self.total + other.total)

    def threshold(self):
        return self._floored(self.total / self.batches.astype("float64").clip(min=1.0))
