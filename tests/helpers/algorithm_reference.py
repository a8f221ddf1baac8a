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
        scale = np.maximum(np.maximum(-low, high) / spec.quant_max, 1e-8 / spec.quant_max)
        return scale, np.zeros_like(scale), rows_of
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scale = np.where(high == low, 1.0, (high - low) / (spec.quant_max - spec.quant_min))
    scale = np.maximum(scale, 1e-8 / spec.quant_max)
    zero = np.rint(np.clip(spec.quant_min - low / scale, spec.quant_min, spec.quant_max))
    return scale, zero, rows_of


def numpy_levels(steps, spec, zero):
    """Rounded and clipped, counting from the zero point (ties to even)."""
    return np.clip(np.rint(steps), spec.quant_min - zero, spec.quant_max - zero)


def numpy_gptq(weight, hessian, spec, damping=0.01, act_order=False, static_groups=False, clip=1.0,
               given=None):
    """GPTQ as algorithm 1 of arXiv:2210.17323 states it, by the inverse of the Hessian.

    Args:
        given: integers of another implementation, rows in the order of quantization. Each row is
            then made up for with these, so that one value on a border of rounding does not send
            all that follows another way.

    Returns:
        dict: integers, scale and zero point [groups, N], order, steps (what was rounded; counted
        from the zero point), all rows in the order of quantization.
    """
    weight, hessian = np.array(weight, np.float64), np.array(hessian, np.float64)
    rows = len(weight)
    dead = np.diag(hessian) == 0
    mean = np.diag(hessian)[~dead].mean() if not dead.all() else 1.0
    hessian[dead, dead] = mean
    order = np.argsort(-np.where(dead, 0, np.diag(hessian))) if act_order else np.arange(rows)
    grouped = isinstance(spec.granularity, PerGroup)
    moving = grouped and not static_groups
    scale, zero, group_of = numpy_grid(weight, spec, clip)
    factor = np.broadcast_to(clip, scale.shape)
    if moving:
        scale, zero = scale.copy(), zero.copy()
    else:
        group_of = group_of[order]
    weight = weight[order]
    inverse = np.linalg.inv(hessian[np.ix_(order, order)] + damping * mean * np.eye(rows))
    upper = np.linalg.cholesky(inverse).T
    updated = weight.copy()
    steps, integers = np.zeros_like(weight), np.zeros_like(weight)
    for i in range(rows):
        group = group_of[i]
        if moving and i % spec.granularity.size == 0:
            part = updated[i:i + spec.granularity.size]
            found, zero_found, _ = numpy_grid(part, spec, factor[group])
            scale[group], zero[group] = found[0], zero_found[0]
        steps[i] = updated[i] / scale[group]
        integers[i] = numpy_levels(steps[i], spec, zero[group]) + zero[group]
        used = integers[i] if given is None else given[i]
        error = (updated[i] - (used - zero[group]) * scale[group]) / upper[i, i]
        updated[i:] -= np.outer(upper[i, i:], error)
    return {"integers": integers, "scale": scale, "zero": zero, "order": order, "steps": steps,
            "group_of": group_of}


def numpy_rounded(weight, spec, clip=1.0):
    """The weight that is left of ``weight`` after rounding to nearest."""
    scale, zero, group_of = numpy_grid(weight, spec, clip)
    scale, zero = scale[group_of], zero[group_of]
    return numpy_levels(np.asarray(weight, np.float64) / scale, spec, zero) * scale


def numpy_awq_losses(weights, x, spec, grids_num=20):
    """[(factor s, mean squared change of the outputs)] of each ratio, from the samples."""
    x = np.asarray(x, np.float64)
    magnitude = np.abs(x).mean(axis=0)
    magnitude = np.maximum(magnitude / magnitude.mean(), 1e-4)
    found = []
    for i in range(grids_num):
        s = magnitude ** (i / grids_num)
        s = s / np.sqrt(s.max() * s.min())
        found.append((s, sum(
            ((x / s @ numpy_rounded(weight * s[:, None], spec) - x @ weight) ** 2).sum()
            for weight in weights) / len(x)))
    return found


def numpy_clip_losses(weight, x, spec, grids_num=20):
    """[(factor, loss of each group, [groups, N] or [1, 1])], from the samples."""
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    rows = len(weight)
    size = spec.granularity.size if isinstance(spec.granularity, PerGroup) else rows
    found = []
    for i in range(max(1, grids_num // 2)):
        change = numpy_rounded(weight, spec, 1 - i / grids_num) - weight
        losses = np.stack([((x[:, start:start + size] @ change[start:start + size]) ** 2).mean(0)
                           for start in range(0, rows, size)])
        if isinstance(spec.granularity, PerTensor):
            losses = losses.sum().reshape(1, 1)
        found.append((1 - i / grids_num, losses))
    return found
