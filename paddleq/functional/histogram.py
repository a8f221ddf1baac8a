"""Streaming histograms of magnitudes, and thresholds computed from them.

A histogram has ``bins`` equal bins over [0, top], as in PaddleSlim. Spreading it over a wider range
needs memory for ``bins`` numbers; PaddleSlim allocates
``bins * top_new / top_old * upsample_bins``.
"""

import math

import numpy as np
import paddle


def count(x, top, bins):
    """Compute the histogram of |x|, float64 on the device of ``x``; ``top`` is at least max|x|."""
    # Values are scaled to bin numbers: paddle.histogram of Paddle 2.6 accepts only integer ends.
    # Rounding may move max|x| above the last edge, where it would not be counted.
    scaled = paddle.scale(x, bins / top).abs_().clip_(0.0, float(bins))
    return paddle.histogram(scaled, bins=bins, min=0, max=bins).astype("float64")


def respread(hist, top, new_top, upsample_bins):
    """Move a histogram to a wider range; return it with its new upper end.

    Each bin is split into ``upsample_bins`` equal parts, which are regrouped. The new range is
    rounded up so that a new bin holds a whole number of parts.

    Examples:
        >>> import paddle
        >>> from paddleq.functional import histogram
        >>> h, top = histogram.respread(paddle.to_tensor([4.0, 2.0], dtype="float64"), 1.0, 1.5, 4)
        >>> top, h.tolist()
        (1.5, [5.0, 1.0])
    """
    bins = hist.shape[0]
    part = top / (bins * upsample_bins)
    group = math.ceil(new_top / (bins * part))
    return stretch(hist, group / upsample_bins), bins * part * group


def stretch(hist, factor):
    """Widen the bins by ``factor`` >= 1, assuming that counts are uniform within a bin."""
    bins = hist.shape[0]
    cumulative = np.concatenate([[0.0], np.cumsum(hist.numpy())])
    # The cumulative count is linear within an old bin: interpolate it at the new borders.
    borders = np.arange(bins + 1, dtype=np.float64)
    at_borders = np.interp(np.minimum(borders * factor, bins), borders, cumulative)
    return paddle.to_tensor(np.diff(at_borders), dtype="float64")


def percentile_threshold(hist, top, percent):
    """Return the threshold below which a share ``percent`` of the magnitudes lies.

    It is (k - 0.5) * bin width, at least half a bin, for the first bin k whose cumulative share
    reaches ``percent``.
    """
    hist = np.asarray(hist, dtype=np.float64)
    cumulative = np.cumsum(hist / hist.sum())
    # Rounding errors may leave the last entry below 1.
    k = min(int(np.searchsorted(cumulative, percent)), len(hist) - 1)
    return max(k - 0.5, 0.5) * top / len(hist)


ALL_SHARES = np.arange(1, 201) / 200
POWER_OF_TWO_SHARES = np.array([0.125, 0.25, 0.5, 1.0])
EMD_SHARES = np.arange(15, 51) / 50


def mse_threshold(hist, top, levels, shares=ALL_SHARES):
    """Return the threshold with the smallest squared error of rounding and clipping.

    Every value is assumed to lie at the centre of its bin. The threshold maps to the integer
    ``levels``; the thresholds top * ``shares`` are compared.
    """
    hist = np.asarray(hist, dtype=np.float64)
    used = hist > 0
    thresholds, centres, rounded = _rounded(used, top, levels, shares)
    error = ((rounded - centres) ** 2 * hist[used][None, :]).sum(axis=1)
    return float(thresholds[int(np.argmin(error))])


def emd_threshold(hist, negative, top, levels, shares=EMD_SHARES):
    """Return the threshold that changes mean and standard deviation least.

    Args:
        hist: counts of the magnitudes.
        negative: counts of those of the negative values.
        top, levels, shares: as for :func:`mse_threshold`.

    Examples:
        >>> import numpy as np
        >>> from paddleq.functional.histogram import emd_threshold
        >>> emd_threshold(np.array([1000.0, 0.0, 0.0, 0.0, 1.0]), np.zeros(5), 5.0, 3)
        1.5
    """
    hist, negative = (np.asarray(each, dtype=np.float64) for each in (hist, negative))
    used = hist > 0
    thresholds, centres, rounded = _rounded(used, top, levels, shares)
    count, signed = hist[used], (hist - 2.0 * negative)[used]

    def moments(values):
        mean = (values * signed).sum(axis=1) / count.sum()
        squares = (values ** 2 * count).sum(axis=1) / count.sum()
        return mean, np.sqrt(np.maximum(squares - mean ** 2, 0.0))

    distance = sum(np.abs(before - after)
                   for before, after in zip(moments(centres), moments(rounded)))
    return float(thresholds[int(np.argmin(distance))])


def _rounded(used, top, levels, shares):
    """Return thresholds, centres of the bins [1, N], and these quantized [thresholds, N]."""
    centres = ((np.arange(len(used)) + 0.5) * (top / len(used)))[used][None, :]
    thresholds = top * np.asarray(shares)
    step = (thresholds / levels)[:, None]
    return thresholds, centres, np.minimum(np.rint(centres / step), levels) * step
