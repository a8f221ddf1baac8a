"""Selection of the runtime: by name, or the fastest."""

import logging

import numpy as np

from .._checks import check_choice
from ..errors import ConfigError, DependencyError, InferenceError
from .metrics import latencies
from .runtimes import RUNTIMES

_logger = logging.getLogger("paddleq")

_SECONDS = 0.2  # for each runtime


def named(name, files):
    """Return (runtime, file) for the name of a runtime."""
    runtime = RUNTIMES[check_choice("runtime", name, ["auto", *RUNTIMES])]
    runtime.require()
    file = runtime.choose(files)
    if file is None:
        wanted = " or ".join(runtime.kinds)
        write = ("paddleq.export.to_onnx(path, path) makes one" if wanted == ".onnx" else
                 "save_quantized_model writes one")
        raise ConfigError(f"runtime {name!r} reads {wanted}, but there is only "
                          f"{', '.join(map(str, files))}; {write}")
    return runtime, file


def fastest(files, threads):
    """Return (runtime, file, session, reason) of the runtime that is fastest on this machine.

    Each installed runtime is measured on a batch of one of random numbers. If an input has dynamic
    dimensions other than the first, nothing is measured and the first registered runtime is taken.
    """
    sessions, chosen, refused = {}, {}, []
    for name, runtime in RUNTIMES.items():
        if not runtime.automatic:
            continue
        file = runtime.choose(files)
        if file is None:
            refused.append(f"{name} reads {' and '.join(runtime.kinds)}")
        elif not runtime.installed():
            refused.append(f"{name} is not installed ({runtime.remedy})")
        else:
            try:
                sessions[name], chosen[name] = runtime.load(file, threads), file
            except InferenceError as error:
                refused.append(f"{name}: {error}")
    if not sessions:
        error = InferenceError if any(": " in each for each in refused) else DependencyError
        raise error(f"no runtime runs {', '.join(map(str, files))}: {'; '.join(refused)}")
    name, reason = _choose(sessions)
    for each in set(sessions) - {name}:
        sessions[each].close()
    _logger.info("%s: %s, %s", files[0], name, reason)
    return RUNTIMES[name], chosen[name], sessions[name], reason


def _choose(sessions):
    if len(sessions) == 1:
        (name,) = sessions
        return name, "the only installed runtime that runs this model"
    inputs = sample(next(iter(sessions.values())).inputs)
    if inputs is None:
        return next(iter(sessions)), ("the first of " + ", ".join(sessions) + ": dimensions of "
                                      "inputs are dynamic, so nothing was measured")
    able = {}
    for name, session in sessions.items():
        try:
            session.run(inputs)
            able[name] = session
        except InferenceError as error:
            _logger.warning("%s", error)
    if not able:
        raise InferenceError(f"none of {', '.join(sessions)} runs the model on random numbers")
    times = latencies(able, inputs, _SECONDS)
    listed = ", ".join(f"{name} {ms:.2f} ms" for name, ms in times.items())
    return min(times, key=lambda name: times[name]), f"the fastest on a batch of one: {listed}"


def sample(inputs):
    """Return random arrays, a batch of one; None if other dimensions are dynamic."""
    random, arrays = np.random.RandomState(0), []
    for info in inputs:
        if info.shape is None or None in info.shape[1:]:
            return None
        shape = [1 if size is None else size for size in info.shape]
        kind = np.dtype(info.dtype).kind
        # Integers may be indices; zero is always valid.
        arrays.append(random.randn(*shape).astype(info.dtype) if kind == "f"
                      else np.zeros(shape, info.dtype))
    return arrays

