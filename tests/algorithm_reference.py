"""The weight algorithms in float64 numpy, written from their papers' formulas, one line at a time.

Nothing is blocked, nothing is updated in place that need not be, no Paddle: slow and plain.
"""

import numpy as np

from paddleq import PerChannel, PerGroup, PerTensor

GRANULARITIES = [PerTensor(), PerChannel(1), PerGroup(32)]


def numpy_grid(weight, spec, clip=1.0):
    """(scale, zero point, index of each row's scale) of a weight [K, N]."""
    weight = np.asarray(weight, np.float64)
    rows = len(weight)
    size = spec.granularity.size if isinstance(spec.granularity, PerGroup) else rows
    low, high = [], []
    for start in range(0, rows, size):
        group = weight[start:start + size]
        axis = None if isinstance(spec.granularity, PerTensor) else 0
        low.append(np.min(group, axis=axis, keepdims=True).reshape(1, -1))
        high.append(np.max(group, axis=axis, keepdims=True).reshape(1, -1))
    low, high = np.concatenate(low) * clip, np.concatenate(high) * clip
    rows_of = np.arange(rows) // size
    if spec.symmetric:
        scale = np.maximum(np.maximum(-low, high) / spec.levels, 1e-8 / spec.levels)
        return scale, np.zeros_like(scale), rows_of
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scale = np.where(high == low, 1.0, (high - low) / (spec.qmax - spec.qmin))
    scale = np.maximum(scale, 1e-8 / spec.levels)
    return scale, np.rint(np.clip(spec.qmin - low / scale, spec.qmin, spec.qmax)), rows_of
