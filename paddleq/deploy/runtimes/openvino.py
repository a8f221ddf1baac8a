"""OpenVINO."""

import importlib.util

import numpy as np

from ..model_file import TensorInfo
from ..saturation import explain, has_vnni, saturating_onnx_layers
from .base import Runtime, Session, convert_errors, register_runtime

_GROUPS = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
_LOW_PRECISION = "LP_TRANSFORMS_MODE"


@register_runtime("openvino")
class OpenVino(Runtime):
    """OpenVINO on the CPU, for ``.onnx`` and ``.pdmodel``."""

    title, module = "OpenVINO", "openvino"
    kinds = (".onnx", ".pdmodel")
    remedy = "pip install 'paddleq[openvino]' (or openvino)"
    automatic = True

    def version(self):
        import openvino

        return openvino.__version__.partition("-")[0]

    def load(self, file, threads, as_is=False):
        import openvino as ov

        # Otherwise float layers are computed in bfloat16 on processors that support it.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads,
                    "PERFORMANCE_HINT": "LATENCY"}
        if as_is:
            settings["EXECUTION_MODE_HINT"] = "ACCURACY"
        file.check()
        core = ov.Core()
        layers = [] if has_vnni() else _saturating_layers(file)
        if layers:
            # Float kernels with the quantization of the file, bit for bit.
            settings[_LOW_PRECISION] = "NO"
        # Otherwise float inputs of products with integer weights are quantized dynamically.
        settings[_GROUPS] = 0
        # Older versions refuse properties that they do not have. (The list omits internal ones.)
        supported = core.get_property("CPU", "SUPPORTED_PROPERTIES")
        settings = {name: value for name, value in settings.items()
                    if name in supported or name == _LOW_PRECISION}
        with convert_errors(self.title, file):
            model = core.read_model(file.path)
            return _Session(core.compile_model(model, "CPU", settings), file,
                            explain(self.title, layers))


class _Session(Session):
    def __init__(self, compiled, file, fallback):
        self._compiled, self._file, self.fallback = compiled, file, fallback
        self._request = compiled.create_infer_request()
        self.inputs = [TensorInfo(_name(each), np.dtype(each.element_type.to_dtype()).name,
                           _shape(each.partial_shape)) for each in compiled.inputs]
        self.outputs = [_name(each) for each in compiled.outputs]

    def run(self, arrays):
        with convert_errors("OpenVINO", self._file):
            found = self._request.infer(list(arrays))
        return [np.array(found[port]) for port in self._compiled.outputs]

    def clone(self):
        return _Session(self._compiled, self._file, self.fallback)


def _saturating_layers(file):
    if file.kind != ".onnx":
        return []  # layers of a .pdmodel have no int8 kernels with int8 inputs
    if importlib.util.find_spec("onnx") is None:
        return ["unknown without the package onnx"]
    return saturating_onnx_layers(file.onnx_model())


def _name(port):
    return min(port.names, key=len) if port.names else ""


def _shape(dims):
    return None if dims.rank.is_dynamic else tuple(
        dim.get_length() if dim.is_static else None for dim in dims)
