"""``Predictor``: one way to run a saved model, whichever runtime does it."""

import contextlib
import logging
import os
import queue

from .._checks import check_int, wrong_type
from ..errors import InferenceError
from .inputs import arranged
from .model_file import model_files
from .select_runtime import fastest, named

_logger = logging.getLogger("paddleq")


class Predictor:
    """Runs a saved model in one of the runtimes that are installed.

    A quantized ``.pdmodel`` is computed in int8 by Paddle Inference too, which needs a switch that
    is easily missed: without it the same file takes several times as long as a float model.

    Calls from several threads run side by side, each on a session of its own over shared weights
    (Paddle-Lite: one after the other).

    Args:
        path: prefix of the files that ``save_quantized_model``, ``paddle.jit.save`` or
            ``paddleq.export.to_onnx`` wrote, or one of them: ``.onnx``, ``.pdmodel`` (with its
            ``.pdiparams``), ``.json``. A runtime takes the file that it runs best.
        runtime: "auto" (default), "openvino" (``.onnx``, ``.pdmodel``), "onnxruntime"
            (``.onnx``), "paddle" (``.pdmodel``, ``.json``) or "paddlelite" (``.pdmodel``, in the
            interpreter that the environment variable ``PADDLEQ_LITE_PYTHON`` names; x86). "auto"
            runs a batch of one for a moment in each of the first three that is installed and
            takes the fastest; where the model leaves other sizes open than the batch, the first
            of this order.
        threads: of one run. Default: as many as this process has processors.

    Attributes:
        runtime: name of the runtime in use.
        reason: why it is this one.
        file: path of the file in use.
        inputs: list of what the model takes, each with ``name``, ``dtype`` and ``shape`` (None
            for sizes that are open).
        outputs: names of what it returns.

    Raises:
        FormatError: a file is missing or damaged.
        DependencyError: the runtime is not installed; says how to.
        ConfigError, ConfigTypeError: a wrong argument, or the runtime reads another kind of file.
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

    def __init__(self, path, runtime="auto", threads=None):
        if not isinstance(path, (str, os.PathLike)) or not str(path):
            raise wrong_type("path", path, "the prefix of a saved model such as 'out/model'")
        threads = _processors() if threads is None else check_int("threads", threads, 1)
        files = model_files(path)
        if runtime == "auto":
            chosen, session, self.reason = fastest(files, threads)
            file = chosen.choose(files)
        else:
            chosen, file = named(runtime, files)
            session, self.reason = chosen.load(file, threads), "it was asked for"
        self.runtime, self.file = chosen.name, file.path
        if session.fallback:
            self.reason += f"; {session.fallback}"
            _logger.warning("%s: %s", file, session.fallback)
        self.inputs, self.outputs = session.ports, session.results
        self._original, self._made = session, [session]
        self._idle = queue.LifoQueue()
        self._idle.put(session)

    def run(self, inputs):
        """What the model returns for ``inputs``.

        Args:
            inputs: an array for a model of one input; else a list or tuple of arrays in order, or
                a dict by name. Paddle tensors count as arrays. dtypes are not converted.

        Returns:
            A list of numpy arrays.

        Raises:
            ConfigError, ConfigTypeError: another number of inputs, an unknown name, a wrong shape
                or dtype; says what the model takes.
            InferenceError: the predictor is closed, or the runtime failed.
        """
        arrays = arranged(inputs, self.inputs)
        with self._session() as session:
            return session.run(arrays)

    @contextlib.contextmanager
    def _session(self):
        """A session that nobody else uses meanwhile."""
        if self._original is None:
            raise InferenceError(f"the predictor of {self.file} is closed")
        try:
            session = self._idle.get_nowait()
        except queue.Empty:
            session = self._original.clone()
            self._made.append(session)
        try:
            yield session
        finally:
            self._idle.put(session)

    def close(self):
        """Give back what the runtime holds. A second call does nothing."""
        made, self._made, self._original = self._made, [], None
        for session in {id(each): each for each in made}.values():
            session.close()
        self._idle = queue.LifoQueue()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        takes = "; ".join(map(str, self.inputs))
        return f"Predictor({self.file!r}, runtime={self.runtime!r}: takes {takes})"


def _processors():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
