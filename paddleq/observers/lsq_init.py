"""Observers for the initial scale of learned scale quantization (LSQ and LSQ+)."""

from typing import Optional

import paddle

from ..functional.qparams import as_dtype
from ..spec import QuantSpec
from .base import Observer, register_observer


def _mean(x, spec):
    axis = spec.channel_axis
    if axis is None:
        return x.mean().reshape([1])
    others = [i for i in range(len(x.shape)) if i != axis % len(x.shape)]
    return x.mean(axis=others) if others else x


@register_observer("mean_magnitude")
class MeanMagnitudeObserver(Observer):
    """Initial scale of LSQ, 2 * mean|x| / sqrt(quant_max) (arXiv:1902.08153).

    Over several batches, the mean of the scales of the batches.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.observers import MeanMagnitudeObserver
        >>> observer = MeanMagnitudeObserver(QuantSpec(limits=(-16, 16)))
        >>> observer.update(paddle.to_tensor([-1.0, 3.0]))
        >>> observer.abs_max().tolist()  # 16 times the scale 2 * 2 / 4
        [16.0]
    """

    def __init__(self, spec: Optional[QuantSpec] = None, channels: Optional[int] = None):
        super().__init__(spec, channels)
        self._float_buffer("total", dtype="float64")

    def _update(self, x):
        if 0 not in x.shape:
            mean = _mean(as_dtype(x, paddle.float32).abs(), self.spec)
            self._assign("total", self.total + mean.astype("float64"))

    def _merge(self, other):
        self._assign("total", self.total + other.total)

    def abs_max(self):
        mean = self.total / self.batches.astype("float64").clip(min=1.0)
        return self._at_least_eps(mean * (2.0 * self.spec.quant_max / self.spec.quant_max ** 0.5))


@register_observer("deviation")
class DeviationObserver(Observer):
    """Initial scale of LSQ+ for weights, (|mean| + 3 std) / (quant_max + 1) (arXiv:2004.09576).

    This equals the paper's max(|mean - 3 std|, |mean + 3 std|) / 2^(b-1). Over several batches,
    mean and standard deviation are those of all values.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.observers import DeviationObserver
        >>> observer = DeviationObserver(QuantSpec(bits=2))
        >>> observer.update(paddle.to_tensor([-3.0, 1.0]))
        >>> observer.abs_max().tolist()  # (1 + 3 * 2) / 2
        [3.5]
    """

    def __init__(self, spec: Optional[QuantSpec] = None, channels: Optional[int] = None):
        super().__init__(spec, channels)
        self._float_buffer("total", dtype="float64")
        self._float_buffer("squares", dtype="float64")

    def _update(self, x):
        if 0 in x.shape:
            return
        x = x.astype("float64")  # squares of up to 1e30, and differences of nearly equal numbers
        self._assign("total", self.total + _mean(x, self.spec))
        self._assign("squares", self.squares + _mean(x.square(), self.spec))

    def _merge(self, other):
        for name in "total", "squares":
            self._assign(name, getattr(self, name) + getattr(other, name))

    def abs_max(self):
        batches = self.batches.astype("float64").clip(min=1.0)
        mean, squares = self.total / batches, self.squares / batches
        std = (squares - mean.square()).clip(min=0.0).sqrt()
        spec = self.spec
        factor = spec.quant_max / (spec.quant_max + 1)
        return self._at_least_eps((mean.abs() + 3.0 * std) * factor)
