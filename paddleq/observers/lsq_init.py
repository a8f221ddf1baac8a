"""Where steps that training learns start from."""

import paddle

from ..functional.qparams import as_dtype
from .base import Observer


def _mean(x, spec):
    axis = spec.channel_axis
    if axis is None:
        return x.mean().reshape([1])
    others = [i for i in range(len(x.shape)) if i != axis % len(x.shape)]
    return x.mean(axis=others) if others else x


class MeanMagnitudeObserver(Observer):
    """LSQ's first step, 2 * mean|x| / sqrt(qmax) (arXiv:1902.08153).

    Over several batches, the mean of what each says.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.observers import MeanMagnitudeObserver
        >>> observer = MeanMagnitudeObserver(QuantSpec(limits=(-16, 16)))
        >>> observer.update(paddle.to_tensor([-1.0, 3.0]))
        >>> observer.threshold().tolist()  # 16 steps of 2 * 2 / 4
        [16.0]
    """

    def __init__(self, spec=None, channels=None):
        super().__init__(spec, channels)
        self._float_buffer("total", dtype="float64")

    def _update(self, x):
        if 0 not in x.shape:
            mean = _mean(as_dtype(x, paddle.float32).abs(), self.spec)
            self._assign("total", self.total + mean.astype("float64"))

    def _merge(self, other):
        self._assign("total", self.total + other.total)

    def threshold(self):
        mean = self.total / self.batches.astype("float64").clip(min=1.0)
        return self._floored(mean * (2.0 * self.spec.quant_max / self.spec.quant_max ** 0.5))


class DeviationObserver(Observer):
    """LSQ+'s first step for weights, (|mean| + 3 deviations) / (qmax + 1) (arXiv:2004.09576).

    That is its max(|mean - 3 dev|, |mean + 3 dev|) / 2^(b-1). Over several batches, of all values.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.observers import DeviationObserver
        >>> observer = DeviationObserver(QuantSpec(bits=2))
        >>> observer.update(paddle.to_tensor([-3.0, 1.0]))
        >>> observer.threshold().tolist()  # (1 + 3 * 2) / 2
        [3.5]
    """

    def __init__(self, spec=None, channels=None):
        super().__init__(spec, channels)
        self._float_buffer("total", dtype="float64")
        self._float_buffer("squares", dtype="float64")

    def _update(self, x):
        if 0 in x.shape:
            return
        x = x.astype("float64")  # squares of 1e30, and differences of near numbers
        self._assign("total", self.total + _mean(x, self.spec))
        self._assign("squares", self.squares + _mean(x.square(), self.spec))

    def _merge(self, other):
        for name in "total", "squares":
            self._assign(name, getattr(self, name) + getattr(other, name))

    def threshold(self):
        batches = self.batches.astype("float64").clip(min=1.0)
        mean, squares = self.total / batches, self.squares / batches
        deviation = (squares - mean.square()).clip(min=0.0).sqrt()
        spec = self.spec
        return self._floored((mean.abs() + 3.0 * deviation) * (spec.quant_max / (spec.quant_max + 1)))
