"""Paddle Inference."""

import contextlib
import logging
import os
import tempfile

import numpy as np

from ..._checks import wrong_type
from ...errors import ConfigError
from ...export.pir_to_program import load_program
from ..model_file import Port, model_files
from .base import Runtime, Session, reported
from .paddle_int8_fixes import tell_steps

_logger = logging.getLogger("paddleq")


class PaddleInference(Runtime):
    """Runs ``.pdmodel``, and ``.json`` as the ``.pdmodel`` that it stands for."""

    name, title, module = "paddle", "Paddle Inference", "paddle"
    kinds = (".pdmodel", ".json")
    remedy = "pip install 'paddleq[cpu]'"

    def version(self):
        import paddle

        return paddle.__version__

    def load(self, file, threads, as_is=False):
        program = file.check()
        if file.kind == ".pdmodel":
            return self._load(file, file.path, file.params or "", threads, as_is)
        with tempfile.TemporaryDirectory(prefix="paddleq-") as folder:
            model, params = (os.path.join(folder, name) for name in ("m.pdmodel", "m.pdiparams"))
            program.save(model, params, workarounds=False)
            return self._load(file, model, params, threads, as_is)

    def _load(self, file, model, params, threads, as_is):
        from paddle import inference

        def config(int8, model=model, params=params):
            made = inference.Config(model, params)
            made.disable_gpu()
            made.disable_glog_info()
            made.set_cpu_math_library_num_threads(threads)
            if as_is:
                made.switch_ir_optim(False)
                made.disable_mkldnn()
                return made
            made.enable_mkldnn()
            if int8:
                made.enable_mkldnn_int8()
            return made

        with reported(self.title, file):
            int8 = file.quantized and not as_is
            try:
                with _told(model, params) if int8 else contextlib.nullcontext(()) as files:
                    made = inference.create_predictor(config(int8, *files))
            except RuntimeError as error:
                if not int8:
                    raise
                _logger.warning("%s: Paddle Inference refuses to compute it in int8 and does so "
                                "in float: %s", file, str(error).strip().splitlines()[-1])
                made = inference.create_predictor(config(int8=False))
            return _Session(made, file)


@contextlib.contextmanager
def _told(model, params):
    """Paths of files that int8 kernels compute right; none where these are such files."""
    program = load_program(model, params or None)
    if not tell_steps(program):
        yield ()
        return
    with tempfile.TemporaryDirectory(prefix="paddleq-") as folder:
        files = [os.path.join(folder, name) for name in ("told.pdmodel", "told.pdiparams")]
        program.save(*files, workarounds=False)
        yield files


def to_paddle_int8(path, out):
    """A copy of a ``.pdmodel`` for Paddle Inference with ``enable_mkldnn_int8()``, and for it only.

    :class:`Predictor` makes such a copy by itself; for a program of your own, in C++ say, make it
    once. Paddle Inference's int8 kernels give each column of a Linear's weight the step of another:
    in a transformer a third of an output may be lost. The copy has the steps behind the products
    (:mod:`~paddleq.deploy.runtimes.paddle_int8_fixes`), and the float weights of transposed
    convolutions, which that mode fails on. Without the int8 switch it cannot run.

    Args:
        path: prefix of the ``.pdmodel`` and ``.pdiparams``.
        out: prefix of the copies; another than ``path``.

    Returns:
        How many layers were changed. 0: the copy is equal to the model.

    Raises:
        FormatError: the model is missing or damaged.
        ConfigError: ``out`` is ``path``.
        ExportError: the copy cannot be written.

    Examples:
        >>> import tempfile, paddle, paddleq
        >>> net, x = paddle.nn.Sequential(paddle.nn.Linear(16, 4)), paddle.rand([8, 16])
        >>> ptq = paddleq.PTQ()
        >>> quantized = ptq.quantize(net)
        >>> _ = ptq.calibrate(quantized, [x])
        >>> path = tempfile.mkdtemp() + "/net"
        >>> ptq.save_quantized_model(quantized, path)
        >>> paddleq.deploy.to_paddle_int8(path, path + "_int8")
        1
    """
    paths = []
    for name, value in (("path", path), ("out", out)):
        if not isinstance(value, (str, os.PathLike)) or not str(value):
            raise wrong_type(name, value, "the prefix of a saved model such as 'out/model'")
        prefix = os.fspath(value)
        paths.append(prefix[:-len(".pdmodel")] if prefix.endswith(".pdmodel") else prefix)
    source, target = paths
    if os.path.abspath(source) == os.path.abspath(target):
        raise ConfigError(f"out must be another prefix than path, but both are {source!r}: the "
                          "copy runs nowhere but in Paddle Inference's int8 mode")
    (file,) = model_files(source + ".pdmodel")
    program = load_program(file.path, file.params)
    count = tell_steps(program)
    program.save(target + ".pdmodel", target + ".pdiparams", workarounds=False)
    return count


class _Session(Session):
    def __init__(self, predictor, file):
        self._predictor, self._file = predictor, file
        known = {port.name: port for port in file.ports}
        names = predictor.get_input_names()
        self.ports = [known.get(name, Port(name, "float32", None)) for name in names]
        self.results = file.results

    def run(self, arrays):
        predictor = self._predictor
        with reported("Paddle Inference", self._file):
            for port, array in zip(self.ports, arrays):
                handle = predictor.get_input_handle(port.name)
                handle.reshape(list(array.shape))
                handle.copy_from_cpu(np.ascontiguousarray(array))
            predictor.run()
            return [predictor.get_output_handle(name).copy_to_cpu()
                    for name in predictor.get_output_names()]

    def clone(self):
        return _Session(self._predictor.clone(), self._file)
