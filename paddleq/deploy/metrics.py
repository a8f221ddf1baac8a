"""Metrics of runtimes: distance of outputs, and latency."""

import time

import numpy as np

_ROUNDS, _MIN_RUNS = 5, 2


def relative_error(found, expected):
    """Return the relative L2 distance over all outputs of all batches; infinity for NaN."""
    difference = total = 0.0
    for outputs, references in zip(found, expected):
        for a, b in zip(outputs, references):
            b = np.asarray(b, np.float64)
            difference += np.square(np.asarray(a, np.float64) - b).sum()
            total += np.square(b).sum()
    error = np.sqrt(difference / total) if total else np.sqrt(difference)
    return float(error) if np.isfinite(error) else float("inf")


def top1_agreement(found, expected):
    """Return the share of samples with the same top-1 class; None without scores.

    Scores are the first output: [..., classes], or [batch, classes, height, width].
    """
    same = total = 0
    for outputs, references in zip(found, expected):
        a, b = np.asarray(outputs[0]), np.asarray(references[0])
        axis = 1 if b.ndim == 4 else -1
        if b.ndim < 2 or b.shape[axis] < 2 or b.dtype.kind != "f":
            return None
        places = (a.argmax(axis) == b.argmax(axis)) & np.isfinite(a).all(axis)  # NaN never agrees
        same, total = same + int(places.sum()), total + places.size
    return same / total


def latencies(sessions, inputs, seconds):
    """Return the latency of each session in milliseconds: the median of its best round.

    ``inputs``: those of all sessions, or a dict with those of each. Sessions alternate, so that
    other load on the machine affects all of them. Each round begins with a run that is not measured
    and brings the weights back into the caches.
    """
    best = dict.fromkeys(sessions, float("inf"))
    for _ in range(_ROUNDS):
        for name, session in sessions.items():
            arrays = inputs[name] if isinstance(inputs, dict) else inputs
            session.run(arrays)
            end, times = time.perf_counter() + seconds / _ROUNDS, []
            while len(times) < _MIN_RUNS or time.perf_counter() < end:
                start = time.perf_counter()
                session.run(arrays)
                times.append(time.perf_counter() - start)
            best[name] = min(best[name], 1e3 * float(np.median(times)))
    return best


def output_shapes(outputs):
    """Return the shapes of the outputs of each batch."""
    return [[list(np.shape(array)) for array in batch] for batch in outputs]
