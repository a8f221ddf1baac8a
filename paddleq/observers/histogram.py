"""Observers that search a clipping limit in a streaming histogram of |x|."""

from typing import Optional

import paddle
from paddle.distributed import ReduceOp

from .._checks import check_float, check_int, wrong_value
from .._distributed import all_reduce
from .._paddle_compat import scalar
from ..functional import histogram, kl
from ..functional.qparams import as_dtype
from ..spec import PerTensor, QuantSpec
from .base import Observer, register_observer

HIST_PERCENT = 0.99999


@register_observer("hist")
class HistogramObserver(Observer):
    """Percentile of a streaming histogram of |x| (PaddleSlim's HistQuantizer).

    The first batch sets the range. A later batch with a larger maximum widens it: each bin is
    split into ``upsample_bins`` parts, which are regrouped. Activations are not stored.

    Args:
        bins: number of bins. Default 1024.
        upsample_bins: parts into which a bin is split when the range grows. Default 64.
        hist_percent: share of the magnitudes below abs_max, in (0, 1). Default 0.99999.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import HistogramObserver
        >>> observer = HistogramObserver(bins=100, hist_percent=0.9)
        >>> observer.update(paddle.arange(1, 101, dtype="float32"))
        >>> [round(t, 1) for t in observer.abs_max().tolist()]
        [89.5]
    """

    online = False
    reducible = True
    counts_levels = False  # the threshold depends on the number of evenly spaced levels

    def __init__(self, spec: Optional[QuantSpec] = None, channels: Optional[int] = None,
                 bins: int = 1024, upsample_bins: int = 64, hist_percent: float = HIST_PERCENT):
        super().__init__(spec, channels)
        if not isinstance(self.spec.granularity, PerTensor):
            raise wrong_value("granularity", self.spec.granularity,
                              "PerTensor() for a histogram observer")
        if self.counts_levels:
            self.spec.require_integers(type(self).__name__)
        self.bins = check_int("bins", bins, 2)
        self.upsample_bins = check_int("upsample_bins", upsample_bins, 1)
        self.hist_percent = check_float("hist_percent", hist_percent, 0.0, 1.0,
                                        open_low=True, open_high=True)
        self._float_buffer("top", [1], dtype="float64")
        self._float_buffer("hist", [self.bins], dtype="float64")

    def _update(self, x):
        x = as_dtype(x, paddle.float32)
        largest = [] if 0 in x.shape else [paddle.maximum(x.max(), -x.min()).reshape([1])]
        if self._batch_reduction is not None:
            largest = self._all_reduced(self._batch_reduction.extremes, largest, [1.0], [1], "max")
        if not largest or scalar(largest[0]) <= 0.0:
            return
        self._extend_range(scalar(largest[0]))
        for name, values in self._counted(x).items():
            counts = histogram.count(values, self.top.item(), self.bins) if values.size else (
                paddle.zeros([self.bins], dtype="float64"))
            if self._batch_reduction is not None:
                counts = all_reduce(counts, ReduceOp.SUM)
            self._assign(name, getattr(self, name) + counts)

    def _counted(self, x):
        """Return name of a buffer -> values whose magnitudes it counts."""
        return {"hist": x}

    def _extend_range(self, largest):
        top = self.top.item()
        if top == 0.0:
            new_top = largest
        elif largest > top:
            new_top = self._move(top, largest)
        else:
            return
        self._assign("top", paddle.full([1], new_top, dtype="float64"))

    def _move(self, top, largest):
        """Widen the range to contain ``largest`` and return its end."""
        hist, new_top = histogram.respread(self.hist, top, largest, self.upsample_bins)
        self._assign("hist", hist)
        return new_top

    def _stretched(self, hist, top):
        """Return a histogram over [0, top] as one over the range of this observer."""
        # Rounding to upsample_bins may give the two ranges different ends: stretch the other
        # histogram to exactly this range.
        own = self.top.item()
        return histogram.stretch(hist, own / top) if own > top else hist

    def _merge(self, other):
        top = other.top.item()
        if top == 0.0:
            return
        self._extend_range(top)
        self._assign("hist", self.hist + self._stretched(other.hist, top))

    def abs_max(self):
        top = self.top.item()
        found = self._search(self.hist.numpy(), top) if top > 0.0 else 0.0
        return self._at_least_eps(paddle.full([1], found, dtype="float32"))

    def _search(self, hist, top):
        return histogram.percentile_threshold(hist, top, self.hist_percent)


@register_observer("KL")
class KLObserver(HistogramObserver):
    """abs_max with the smallest KL divergence (PaddleSlim's KLQuantizer, TensorRT's entropy).

    Args:
        bins, upsample_bins: as for :class:`HistogramObserver`.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import KLObserver
        >>> _ = paddle.seed(0)
        >>> observer = KLObserver()
        >>> observer.update(paddle.concat([paddle.randn([10000]), paddle.to_tensor([50.0])]))
        >>> observer.abs_max().item() < 26  # the outlier is clipped
        True
    """

    counts_levels = True

    def __init__(self, spec: Optional[QuantSpec] = None, channels: Optional[int] = None,
                 bins: int = 1024, upsample_bins: int = 64):
        super().__init__(spec, channels, bins, upsample_bins)

    def _search(self, hist, top):
        return kl.kl_threshold(hist, top, self.spec.quant_max)


@register_observer("mse")
class MSEObserver(HistogramObserver):
    """abs_max with the smallest mean squared error of rounding and clipping.

    Args:
        bins, upsample_bins: as for :class:`HistogramObserver`.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import MSEObserver
        >>> from paddleq import QuantSpec
        >>> _ = paddle.seed(0)
        >>> observer = MSEObserver(QuantSpec(bits=4))
        >>> x = paddle.randn([10000])
        >>> observer.update(x)
        >>> bool(observer.abs_max() < x.abs().max())
        True
    """

    counts_levels = True

    def __init__(self, spec: Optional[QuantSpec] = None, channels: Optional[int] = None,
                 bins: int = 2048, upsample_bins: int = 64):
        super().__init__(spec, channels, bins, upsample_bins)

    def _search(self, hist, top):
        return histogram.mse_threshold(hist, top, self.spec.quant_max)


@register_observer("ptf")
class PTFObserver(HistogramObserver):
    """Power-of-two factor (FQ-ViT, arXiv:2111.13824): 1, 1/2, 1/4 or 1/8 of max|x|.

    The one with the smallest mean squared error over all batches. PaddleSlim's takes that of the
    last batch.

    Args:
        bins, upsample_bins: as for :class:`HistogramObserver`.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import PTFObserver
        >>> observer = PTFObserver()
        >>> observer.update(paddle.concat([paddle.full([99999], 0.3), paddle.to_tensor([8.0])]))
        >>> observer.abs_max().tolist()
        [8.0]
    """

    counts_levels = True

    def __init__(self, spec: Optional[QuantSpec] = None, channels: Optional[int] = None,
                 bins: int = 2048, upsample_bins: int = 64):
        super().__init__(spec, channels, bins, upsample_bins)

    def _search(self, hist, top):
        return histogram.mse_threshold(hist, top, self.spec.quant_max,
                                       histogram.POWER_OF_TWO_SHARES)


@register_observer("emd")
class EMDObserver(HistogramObserver):
    """Share of max|x| that changes mean and standard deviation least by quantization.

    PaddleSlim's "emd": shares from 0.3 to 1 in steps of 0.02. Here the statistics are those of all
    batches; PaddleSlim's takes the best share of any one batch.

    Args:
        bins, upsample_bins: as for :class:`HistogramObserver`.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.observers import EMDObserver
        >>> _ = paddle.seed(0)
        >>> observer = EMDObserver(QuantSpec(bits=3))
        >>> x = paddle.randn([10000])
        >>> observer.update(x)
        >>> bool(observer.abs_max() < x.abs().max())
        True
    """

    counts_levels = True

    def __init__(self, spec: Optional[QuantSpec] = None, channels: Optional[int] = None,
                 bins: int = 2048, upsample_bins: int = 64):
        super().__init__(spec, channels, bins, upsample_bins)
        self._float_buffer("negative", [self.bins], dtype="float64")

    def _counted(self, x):
        return {**super()._counted(x), "negative": x.masked_select(x < 0.0)}

    def _move(self, top, largest):
        negative, _ = histogram.respread(self.negative, top, largest, self.upsample_bins)
        self._assign("negative", negative)
        return super()._move(top, largest)

    def _merge(self, other):
        super()._merge(other)
        top = other.top.item()
        if top > 0.0:
            self._assign("negative", self.negative + self._stretched(other.negative, top))

    def abs_max(self):
        top = self.top.item()
        found = histogram.emd_threshold(
            self.hist.numpy(), self.negative.numpy(), top,
            self.spec.quant_max) if top > 0.0 else 0.0
        return self._at_least_eps(paddle.full([1], found, dtype="float32"))
