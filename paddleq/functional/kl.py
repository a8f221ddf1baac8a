"""Clipping threshold of the smallest Kullback-Leibler divergence.

The search of TensorRT's "8-bit inference" talk as implemented by PaddleSlim, vectorized: a sum over
a range of bins is a difference of two prefix sums, and all cuts that merge the same number of bins
are computed at once.
"""

import numpy as np


def _log(p):
    """Return log(p), and 0 at p = 0."""
    return np.log(p, out=np.zeros_like(p), where=p > 0)


def kl_divergences(hist, levels):
    """Compute the divergence of the quantized from the clipped distribution for every cut.

    The bins below a cut are merged into ``levels`` groups. Returns the cuts, numbers of bins that
    are kept, from (bins - 1) // 2 to bins - 1, and their divergences, float64, inf where the last
    kept bin is empty.
    """
    hist = np.asarray(hist, dtype=np.float64)
    bins = len(hist)
    total = hist.sum()
    # A cut at 0, possible with one or two bins only, would keep nothing.
    cuts = np.arange(max((bins - 1) // 2, 1), bins)
    divergences = np.full(len(cuts), np.inf)

    def prefix(a):
        return np.concatenate([[0.0], np.cumsum(a)])

    count, filled, entropy = prefix(hist), prefix(hist > 0), prefix(_log(hist) * hist)
    for merged in np.unique(np.maximum(cuts // levels, 1)):
        rows = np.nonzero((np.maximum(cuts // levels, 1) == merged) & (hist[cuts - 1] > 0))[0]
        if not len(rows):
            continue
        cut = cuts[rows]
        outliers = total - count[cut]
        # With fewer bins than levels, every group is one bin.
        groups = np.minimum(levels, cut)
        last_start = (groups - 1) * merged
        # Whole groups do not depend on the cut: all rows share one table of prefix sums.
        borders = np.arange(0, bins + 1, merged)
        p_group, n_group = np.diff(count[borders]), np.diff(filled[borders])
        spread = np.divide(p_group, n_group, out=np.zeros_like(p_group), where=n_group > 0)
        cross_full = prefix(p_group * _log(spread))
        # The last group ends at the cut; in P its last bin also contains the outliers.
        p_last = count[cut] - count[last_start]
        log_last = np.log(p_last / (filled[cut] - filled[last_start]))
        cross = cross_full[groups - 1] + (p_last + outliers) * log_last
        end = hist[cut - 1]
        with_outliers = end + outliers
        self_entropy = entropy[cut - 1] + with_outliers * np.log(with_outliers)
        # sum p log(Q_sum p) - sum p log(P_sum q), over P_sum, where P_sum = total.
        divergences[rows] = (
            (self_entropy - cross) / total + np.log(count[cut]) - np.log(total))
    return cuts, divergences


def kl_threshold(hist, top, levels):
    """Return the threshold (cut + 0.5) * bin width of the lowest cut with the least divergence.

    The threshold maps to the integer ``levels``, 127 for int8.

    Examples:
        >>> import numpy as np
        >>> from paddleq.functional import kl
        >>> h = np.zeros(1024); h[:512] = 100.0; h[1023] = 1.0
        >>> round(kl.kl_threshold(h, 1.0, levels=127), 3)
        0.5
    """
    hist = np.asarray(hist, dtype=np.float64)
    cuts, divergences = kl_divergences(hist, levels)
    if len(cuts) and np.isfinite(divergences).any():
        cut = int(cuts[int(np.argmin(divergences))])
    else:
        # All counts lie below the first cut: cut at the last bin that is not empty.
        filled = np.nonzero(hist[: (len(hist) - 1) // 2 + 1])[0]
        cut = int(filled[-1]) if len(filled) else 0
    return (cut + 0.5) * top / len(hist)
