"""Observers for the initial scale of learned scale quantization (LSQ and LSQ+)."""

import paddle

from ..functional.qparams import as_dtype, reduce_channels
from .base import Accumulator, register_observer


@register_observer("mean_magnitude")
class MeanMagnitudeObserver(Accumulator):
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

    statistics = {"total": paddle.add}

    def _measure(self, x):
        if 0 in x.shape:
            return []
        magnitude = as_dtype(x, paddle.float32).abs()
        return [reduce_channels(paddle.mean, magnitude, self.spec.channel_axis)]

    def abs_max(self):
        mean = self._mean("total")
        return self._at_least_eps(mean * (2.0 * self.spec.quant_max / self.spec.quant_max ** 0.5))


@register_observer("deviation")
class DeviationObserver(Accumulator):
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

    statistics = {"total": paddle.add, "squares": paddle.add}

    def _measure(self, x):
        if 0 in x.shape:
            return []
        x = x.astype("float64")  # squares of up to 1e30, and differences of nearly equal numbers
        return [reduce_channels(paddle.mean, each, self.spec.channel_axis)
                for each in (x, x.square())]

    def abs_max(self):
        mean, squares = self._mean("total"), self._mean("squares")
        std = (squares - mean.square()).clip(min=0.0).sqrt()
        spec = self.spec
        factor = spec.quant_max / (spec.quant_max + 1)
        return self._at_least_eps((mean.abs() + 3.0 * std) * factor)
