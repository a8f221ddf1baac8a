"""``Predictor``: run a saved model in any of the installed runtimes."""

import contextlib
import logging
import os
import queue
from typing import Any, List, Optional, Union

import numpy as np

from .._checks import check_int
from ..errors import InferenceError
from ..saved_model.inputs import check_inputs
from .model_file import model_files
from .select_runtime import fastest, named

_logger = logging.getLogger("paddleq")


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
            chosen, file, session, self.reason = fastest(files, threads)
        else:
            chosen, file = named(runtime, files)
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
