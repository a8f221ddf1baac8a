"""``Predictor``: run a saved model in any of the installed runtimes."""

import contextlib
import logging
import math
import os
import queue
import threading
from typing import Any, List, Optional, Union

import numpy as np

from .._checks import check_choice, check_int
from ..errors import ConfigError, DependencyError, InferenceError
from ..saved_model.inputs import check_inputs
from .agreement import agreeing, in_order
from .metrics import latencies
from .model_file import model_files
from .runtimes import RUNTIMES

_logger = logging.getLogger("paddleq")

_SECONDS = 0.2  # of measurement for each runtime
_SHAPES = 4  # of dynamic inputs for which runtimes are compared
_MOST_VALUES = 2 ** 26  # of an input that is measured


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
            ``paddleq.export.to_onnx`` wrote, or one of them: ``.xml`` (with its ``.bin``),
            ``.onnx``, ``.pdmodel`` (with its ``.pdiparams``), ``.json``. Each runtime has a
            preferred file.
        runtime: "auto" (default), "openvino" (``.xml``, ``.onnx``, ``.pdmodel``, ``.json``),
            "onnxruntime" (``.onnx``), "paddle" (``.pdmodel``, ``.json``) or "paddlelite"
            (``.pdmodel``, in the interpreter that the environment variable
            ``PADDLEQ_LITE_PYTHON`` names; x86). "auto" measures a batch of one in each of the
            first three that is installed and takes the fastest; if other dimensions than the batch
            are dynamic, the first in this order. Outputs of the runtimes are compared, with
            dynamic dimensions on the first inputs: one that differs from the operators of the
            file, computed one by one, is not used. Names of runtimes that were registered are
            accepted as well.
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
        InferenceError: the runtime refuses the model; none computes it correctly.

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
        # Sessions and files by runtime, until they are compared; sets of shapes compared.
        self._candidates, self._files, self._compared = {}, {}, set()
        self._lock, self._sessions, self._original = threading.Lock(), [], None
        if runtime == "auto":
            sessions, self._files = _loaded(files, threads)
            name, self.reason, self._candidates = _choose(sessions, self._files)
            session = sessions[name]
            if self._candidates:  # the comparison needs its own session of the chosen runtime
                self._candidates[name] = session.clone()
            for other in set(sessions) - {name, *self._candidates}:
                sessions[other].close()
            _logger.info("%s: %s, %s", files[0], name, self.reason)
        else:
            chosen, file = _named(runtime, files)
            name, self._files = chosen.name, {chosen.name: file}
            session, self.reason = chosen.load(file, threads), "requested"
        self._use(name, session)

    def _use(self, name, session):
        self.runtime, self.file = name, self._files[name].path
        if session.fallback:
            self.reason += f"; {session.fallback}"
            _logger.warning("%s: %s", self.file, session.fallback)
        self.inputs, self.outputs = session.inputs, session.outputs
        self._original, self._idle = session, queue.LifoQueue()
        self._sessions.append(session)
        self._idle.put(session)

    def _compare(self, arrays):
        """Compare the candidates on the first inputs of new shapes; return the arrays in order."""
        names, shapes = [info.name for info in self.inputs], tuple(map(np.shape, arrays))
        with self._lock:
            if self._candidates and shapes not in self._compared:
                self._compared.add(shapes)
                right, chosen = agreeing(
                    self._candidates, self._files, names, arrays), self.runtime
                if chosen not in right:
                    name = next(iter(right))
                    self.reason = (f"the first that computes the model correctly, which "
                                   f"{chosen} does not")
                    self._use(name, self._candidates.pop(name))
                done = self.runtime != chosen or (
                    len(right) == 1 or len(self._compared) == _SHAPES)
                for name in list(self._candidates):
                    if done or name not in right:
                        self._candidates.pop(name).close()
        return in_order(self._original, names, arrays)

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
            InferenceError: the predictor is closed, the runtime failed, or no runtime computes the
                model correctly.
        """
        arrays = check_inputs(inputs, self.inputs)
        if self._candidates:
            arrays = self._compare(arrays)
        with self._session() as session:
            return session.run(arrays)

    @contextlib.contextmanager
    def _session(self):
        """Context of a session for the exclusive use of this thread."""
        if self._original is None:
            raise InferenceError(f"the predictor of {self.file} is closed")
        idle = self._idle
        try:
            session = idle.get_nowait()
        except queue.Empty:
            session = self._original.clone()
            self._sessions.append(session)
        try:
            yield session
        finally:
            idle.put(session)

    def close(self) -> None:
        """Release the resources of the runtime. A second call has no effect."""
        made = [*self._sessions, *self._candidates.values()]
        self._sessions, self._candidates, self._original = [], {}, None
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


def _loaded(files, threads):
    """Return (sessions, files) of the candidates: runtimes by name in their order."""
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
    return sessions, chosen


def _choose(sessions, files):
    """Return (name, reason, candidates to compare later) of the fastest runtime that is right.

    Measured on a batch of one of random numbers. If an input has other dynamic dimensions, the
    first registered one is taken, and compared with the others on the first inputs.
    """
    if len(sessions) == 1:
        (name,) = sessions
        return name, "the only installed runtime that runs this model", {}
    first = next(iter(sessions.values()))
    inputs, names = _sample(first.inputs), [info.name for info in first.inputs]
    if inputs is None:
        reason = (f"the first of {', '.join(sessions)}: dimensions of inputs are dynamic or too "
                  "large, so nothing was measured")
        return next(iter(sessions)), reason, dict(sessions)
    able = agreeing(sessions, files, names, inputs)
    times = latencies(able, {name: in_order(session, names, inputs)
                             for name, session in able.items()}, _SECONDS)
    listed = ", ".join(f"{name} {ms:.2f} ms" for name, ms in times.items())
    return (min(times, key=lambda name: times[name]),
            f"the fastest on a batch of one: {listed}", {})


def _sample(inputs):
    """Return random arrays, a batch of one; None if other dimensions are dynamic or too large."""
    random, arrays = np.random.RandomState(0), []
    for info in inputs:
        if info.shape is None or None in info.shape[1:]:
            return None
        shape = [1 if size is None else size for size in info.shape]
        if math.prod(shape) > _MOST_VALUES:
            return None
        kind = np.dtype(info.dtype).kind
        # Integers may be indices; zero is always valid.
        arrays.append(random.randn(*shape).astype(info.dtype) if kind == "f"
                      else np.zeros(shape, info.dtype))
    return arrays

