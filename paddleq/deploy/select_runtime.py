"""Which runtime runs a model: the one that is named, or the fastest."""

import logging

import numpy as np

from .._checks import check_choice
from ..errors import ConfigError, DependencyError, InferenceError
from .latency import latencies
from .runtimes import RUNTIMES

_logger = logging.getLogger("paddleq")

_SECONDS = 0.2  # that each runtime is given


def named(name, files):
    """(runtime, file) for the runtime that a user asked for.

    Raises:
        ConfigError: there is no such runtime, or it reads none of the files.
        DependencyError: it is not installed.
    """
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
    """(runtime, session, why) of the runtime that runs one of ``files`` fastest here.

    Each one that is installed runs a batch of one, of random numbers, for a moment. Where an
    input has other open dimensions than its first, nothing is measured and the order counts.

    Raises:
        DependencyError: none is installed that reads these files.
        FormatError: a file is damaged.
        InferenceError: none runs the model.
    """
    sessions, refused = {}, []
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
                sessions[name] = runtime.load(file, threads)
            except InferenceError as error:
                refused.append(f"{name}: {error}")
    if not sessions:
        error = InferenceError if any(": " in each for each in refused) else DependencyError
        raise error(f"no runtime runs {', '.join(map(str, files))}: {'; '.join(refused)}")
    name, why = _choose(sessions)
    for each in set(sessions) - {name}:
        sessions[each].close()
    _logger.info("%s: %s, %s", files[0], name, why)
    return RUNTIMES[name], sessions[name], why


def _choose(sessions):
    if len(sessions) == 1:
        (name,) = sessions
        return name, "the only one that is installed and runs this model"
    inputs = sample(next(iter(sessions.values())).ports)
    if inputs is None:
        return next(iter(sessions)), ("the first of " + ", ".join(sessions) + ": sizes of inputs "
                                      "are open, so that nothing could be measured")
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
    return min(times, key=times.get), f"the fastest on a batch of one: {listed}"


def sample(ports):
    """Random arrays for the ports, a batch of one; None where other sizes are open."""
    random, arrays = np.random.RandomState(0), []
    for port in ports:
        if port.shape is None or None in port.shape[1:]:
            return None
        shape = [1 if size is None else size for size in port.shape]
        kind = np.dtype(port.dtype).kind
        # Integers may be indices: zero is always one.
        arrays.append(random.randn(*shape).astype(port.dtype) if kind == "f"
                      else np.zeros(shape, port.dtype))
    return arrays

