"""``Predictor``: run a saved model in any of the installed runtimes."""

import contextlib
import logging
import os
import queue
from typing import Any, List, Optional, Union

import numpy as np

from .._checks import check_choice, check_int
from ..errors import ConfigError, DependencyError, InferenceError
from ..saved_model.inputs import check_inputs
from .metrics import latencies
from .model_file import model_files
from .runtimes import RUNTIMES

_logger = logging.getLogger("paddleq")

_SECONDS = 0.2  # of measurement for each runtime


class Predictor:
    """Saved model in one of the installed runtimes.

    Int8 kernels are enabled where the runtime needs an option for them: Paddle Inference without
    ``enable_mkldnn_int8()`` computes a quantized ``.pdmodel`` several times slower than a float
    model. On x86 processors without VNNI, models whose int8 kernels may saturate are
    computed exactly, by other kernels (see :mod:`~paddleq.deploy.saturation`).

    Calls from several threads run in parallel, each with its own session and shared weights
    (Paddle-Lite: sequentially).

    Args:
        path: prefix of the files that ``save_quantized_model``, ``paddle.jit.save`` or
            ``paddleq.export.to_onnx`` wrote, or one of them: ``.onnx``, ``.pdmodel`` (with its
            ``.pdiparams``), ``.json``. Each runtime has a preferred file.
        runtime: "auto" (default), "openvino" (``.onnx``, ``.pdmodel``), "onnxruntime"
            (``.onnx``), "paddle" (``.pdmodel``, ``.json``) or "paddlelite" (``.pdmodel``, in the
            interpreter that the environment variable ``PADDLEQ_LITE_PYTHON`` names; x86). "auto"
            measures a batch of one in each of the first three that is installed and takes the
            fastest; if other dimensions than the batch are dynamic, the first in this order. Names
            of runtimes that were registered are accepted as well.
        threads: number of threads of one run. Default: the processors of this process.

    Attributes:
        runtime: name of the runtime in use.
        reason: reason for this runtime, and for float kernels where int8 kernels are not used.
        file: path of the file in use.
        inputs: list of :class:`~paddleq.deploy.model_file.TensorInfo` with ``name``, ``dtype`` and
            ``shape`` (None for dynamic dimensions).
        outputs: names of the outputs.

    Raises:
        FormatError: a file is missing or damaged.
        DependencyError: the runtime is not installed; says how to.
        ConfigError, ConfigTypeError: a wrong argument, or a file that the runtime does not read.
        InferenceError: the runtime refuses the model.

    Examples:
        >>> import tempfile, numpy, paddle, paddleq
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(16, 4))
        >>> ptq = paddleq.PTQ()
        >>> quantized = ptq.quantize(net)
        >>> _ = ptq.calibrate(quantized, [paddle.rand([8, 16])])
        >>> path = tempfile.mkdtemp() + "/net"
        >>> ptq.save_quantized_model(quantized, path)
        >>> with paddleq.deploy.Predictor(path, "paddle", threads=1) as predictor:
        ...     print([x.shape for x in predictor.run(numpy.ones([2, 16], "float32"))])
        ...     predictor.inputs[0].dtype, predictor.inputs[0].shape
        [(2, 4)]
        ('float32', (None, 16))
    """

    def __init__(self, path: Union[str, "os.PathLike[str]"], runtime: str = "auto",
                 threads: Optional[int] = None):
        files = model_files(path)
        threads = _processors() if threads is None else check_int("threads", threads, 1)
        if runtime == "auto":
            chosen, file, session, self.reason = _fastest(files, threads)
        else:
            chosen, file = _named(runtime, files)
            session, self.reason = chosen.load(file, threads), "requested"
        self.runtime, self.file = chosen.name, file.path
        if session.fallback:
            self.reason += f"; {session.fallback}"
            _logger.warning("%s: %s", file, session.fallback)
        self.inputs, self.outputs = session.inputs, session.outputs
        self._original, self._sessions = session, [session]
        self._idle = queue.LifoQueue()
        self._idle.put(session)

    def run(self, inputs: Any) -> List[np.ndarray]:
        """Compute the outputs for ``inputs``.

        Args:
            inputs: an array for a model of one input; else a list or tuple of arrays in order, or
                a dict by name. Paddle tensors count as arrays. dtypes are not converted.

        Returns:
            A list of numpy arrays.

        Raises:
            ConfigError, ConfigTypeError: wrong number of inputs, unknown name, wrong shape or
                dtype; the message lists the inputs of the model.
            InferenceError: the predictor is closed, or the runtime failed.
        """
        arrays = check_inputs(inputs, self.inputs)
        with self._session() as session:
            return session.run(arrays)

    @contextlib.contextmanager
    def _session(self):
        """Context of a session for the exclusive use of this thread."""
        if self._original is None:
            raise InferenceError(f"the predictor of {self.file} is closed")
        try:
            session = self._idle.get_nowait()
        except queue.Empty:
            session = self._original.clone()
            self._sessions.append(session)
        try:
            yield session
        finally:
            self._idle.put(session)

    def close(self) -> None:
        """Release the resources of the runtime. A second call has no effect."""
        made, self._sessions, self._original = self._sessions, [], None
        for session in {id(each): each for each in made}.values():
            session.close()
        self._idle = queue.LifoQueue()

    def __enter__(self) -> "Predictor":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        takes = "; ".join(map(str, self.inputs))
        return f"Predictor({self.file!r}, runtime={self.runtime!r}: takes {takes})"


def _processors():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _named(name, files):
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


def _fastest(files, threads):
    """Return (runtime, file, session, reason) of the runtime that is fastest on this machine.

    Measured on a batch of one of random numbers, or the first registered one if an input has
    dynamic dimensions other than the first.
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
    inputs = _sample(next(iter(sessions.values())).inputs)
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


def _sample(inputs):
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

