"""OpenVINO."""

import importlib.util

import numpy as np

from ..model_file import Port
from ..saturation import explain, has_vnni, saturating_onnx_layers
from .base import Runtime, Session, register_runtime, reported

_GROUPS = "DYNAMIC_QUANTIZATION_GROUP_SIZE"


@register_runtime("openvino")
class OpenVino(Runtime):
    """Runs ``.onnx`` and ``.pdmodel`` on the processor."""

    title, module = "OpenVINO", "openvino"
    kinds = (".onnx", ".pdmodel")
    remedy = "pip install 'paddleq[openvino]' (or openvino)"
    automatic = True

    def version(self):
        import openvino

        return openvino.__version__.partition("-")[0]

    def load(self, file, threads, as_is=False):
        import openvino as ov

        # Without it, what is not quantized is computed in bfloat16 where a processor has it.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads,
                    "PERFORMANCE_HINT": "LATENCY"}
        if as_is:
            settings["EXECUTION_MODE_HINT"] = "ACCURACY"
        file.check()
        core = ov.Core()
        layers = [] if has_vnni() else _saturating_layers(file)
        if layers:
            # The quantization of the file is then computed in float, to the bit.
            settings["LP_TRANSFORMS_MODE"] = "NO"
        # Left to itself it rounds float inputs of products with integers, in groups of its own.
        if _GROUPS in core.get_property("CPU", "SUPPORTED_PROPERTIES"):
            settings[_GROUPS] = 0
        with reported(self.title, file):
            model = core.read_model(file.path)
            return _Session(core.compile_model(model, "CPU", settings), file,
                            explain(self.title, layers))


class _Session(Session):
    def __init__(self, compiled, file, fallback):
        self._compiled, self._file, self.fallback = compiled, file, fallback
        self._request = compiled.create_infer_request()
        self.ports = [Port(_name(each), np.dtype(each.element_type.to_dtype()).name,
                           _shape(each.partial_shape)) for each in compiled.inputs]
        self.results = [_name(each) for each in compiled.outputs]

    def run(self, arrays):
        with reported("OpenVINO", self._file):
            found = self._request.infer(list(arrays))
        return [np.array(found[port]) for port in self._compiled.outputs]

    def clone(self):
        return _Session(self._compiled, self._file, self.fallback)


def _saturating_layers(file):
    if file.kind != ".onnx":
        return []  # of a .pdmodel it computes no layer with both inputs in int8
    if importlib.util.find_spec("onnx") is None:
        return ["unknown without the package onnx"]
    return saturating_onnx_layers(file.onnx_model())


def _name(port):
    return min(port.names, key=len) if port.names else ""


def _shape(dims):
    return None if dims.rank.is_dynamic else tuple(
        dim.get_length() if dim.is_static else None for dim in dims)
