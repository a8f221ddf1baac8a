"""How near two sets of outputs are."""

import numpy as np


def relative_error(found, expected):
    """Relative L2 distance over all outputs of all batches; NaN counts as infinitely far."""
    difference = total = 0.0
    for outputs, references in zip(found, expected):
        for a, b in zip(outputs, references):
            b = np.asarray(b, np.float64)
            difference += np.square(np.asarray(a, np.float64) - b).sum()
            total += np.square(b).sum()
    error = np.sqrt(difference / total) if total else np.sqrt(difference)
    return float(error) if np.isfinite(error) else float("inf")


def top1_agreement(found, expected):
    """Share of the samples whose largest score is in the same place; None without scores.

    The first output counts: [..., classes], or [batch, classes, height, width].
    """
    same = total = 0
    for outputs, references in zip(found, expected):
        a, b = np.asarray(outputs[0]), np.asarray(references[0])
        axis = 1 if b.ndim == 4 else -1
        if b.ndim < 2 or b.shape[axis] < 2 or b.dtype.kind != "f":
            return None
        places = a.argmax(axis) == b.argmax(axis)
        # Equal scores have no largest one; NaN is never right.
        places &= np.isfinite(a).all(axis)
        same, total = same + int(places.sum()), total + places.size
    return same / total


def same_shapes(found, expected):
    """Whether both have the same outputs."""
    return all(len(a) == len(b) and all(np.shape(x) == np.shape(y) for x, y in zip(a, b))
               for a, b in zip(found, expected))
