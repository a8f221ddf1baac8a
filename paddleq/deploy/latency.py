"""How long a run takes."""

import time

import numpy as np

_ROUNDS, _LEAST = 5, 2


def latencies(sessions, inputs, seconds):
    """Milliseconds of a run of each session: the median of its best turn.

    They take turns, so that what else the machine does meanwhile hits all of them. A turn begins
    with a run that is not counted, which brings the weights back into the caches.
    """
    best = dict.fromkeys(sessions, float("inf"))
    for _ in range(_ROUNDS):
        for name, session in sessions.items():
            session.run(inputs)
            end, times = time.perf_counter() + seconds / _ROUNDS, []
            while len(times) < _LEAST or time.perf_counter() < end:
                start = time.perf_counter()
                session.run(inputs)
                times.append(time.perf_counter() - start)
            best[name] = min(best[name], 1e3 * float(np.median(times)))
    return best
