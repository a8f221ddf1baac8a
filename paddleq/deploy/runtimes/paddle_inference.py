"""Paddle Inference."""

import logging
import os
import tempfile

import numpy as np

from ..files import Port
from .base import Runtime, Session, reported

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
            program.save(model, params)
            return self._load(file, model, params, threads, as_is)

    def _load(self, file, model, params, threads, as_is):
        from paddle import inference

        def config(int8):
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
                made = inference.create_predictor(config(int8))
            except RuntimeError as error:
                if not int8:
                    raise
                _logger.warning("%s: Paddle Inference refuses to compute it in int8 and does so "
                                "in float: %s", file, str(error).strip().splitlines()[-1])
                made = inference.create_predictor(config(int8=False))
            return _Session(made, file)


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
