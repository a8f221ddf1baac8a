"""OpenVINO."""

import importlib
import os

import numpy as np

from ..._atomic_write import temporary_folder
from ...errors import ExportError, InferenceError
from ...export.openvino import openvino_model
from ...export.openvino.reader import has_node_functions, refusal_of
from ...export.paddle.markers_from_program import raise_to_markers
from ..model_file import TensorInfo
from ..saturation import can_saturate, fallback_reason, has_vnni
from .base import CompiledOperator, Runtime, Session, convert_errors, register_runtime

_GROUPS = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
_LOW_PRECISION = "LP_TRANSFORMS_MODE"
_LAYERS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData",
           "GroupConvolutionBackpropData", "MatMul")
# Operators between the integers of a tensor and the layer that takes it.
_DEQUANTIZING = ("Convert", "Subtract", "Multiply", "Reshape", "Transpose", "Unsqueeze", "Squeeze")


@register_runtime("openvino")
class OpenVino(Runtime):
    """OpenVINO on the CPU, for ``.xml``, ``.onnx``, ``.pdmodel`` and ``.json``.

    A ``.pdmodel`` or ``.json`` is converted as for the format "openvino" when it is loaded.
    """

    title, module = "OpenVINO", "openvino"
    kinds = (".xml", ".onnx", ".pdmodel", ".json")
    remedy = "pip install 'paddleq[openvino]' (or openvino)"
    automatic = True
    references = (".xml",)

    int8_types = frozenset((
        "Concatenation", "Convolution", "Deconvolution", "Eltwise", "FullyConnected", "Interpolate",
        "MatMul", "Pooling", "Reshape", "Split", "Transpose"))

    def version(self):
        return _api().get_version().partition("-")[0]

    def load(self, file, threads, as_is=False):
        compiled, layers, _ = self._compile(file, threads, as_is)
        return _Session(compiled, file, fallback_reason(self.title, layers))

    def compiled_operators(self, file, threads):
        compiled, layers, types = self._compile(file, threads, False)
        return _operators(compiled.get_runtime_model(), types), fallback_reason(self.title, layers)

    def _compile(self, file, threads, as_is):
        """Return (compiled model, layers that would saturate, {name: type of an operator})."""
        # Otherwise float layers are computed in bfloat16 on processors that support it.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads,
                    "PERFORMANCE_HINT": "LATENCY"}
        if as_is:
            settings["EXECUTION_MODE_HINT"] = "ACCURACY"
        file.check()
        core = _api().Core()
        with convert_errors(self.title, file):
            model = _read(core, file)
        layers = [] if has_vnni() else saturating_layers(model)
        if layers or as_is:
            # Float kernels with the quantization of the file, bit for bit.
            settings[_LOW_PRECISION] = "NO"
        # Otherwise float inputs of products with integer weights are quantized dynamically.
        settings[_GROUPS] = 0
        # Older versions refuse properties that they do not have. (The list omits internal ones.)
        supported = core.get_property("CPU", "SUPPORTED_PROPERTIES")
        settings = {name: value for name, value in settings.items()
                    if name in supported or name == _LOW_PRECISION}
        types = {node.get_friendly_name(): node.get_type_name() for node in model.get_ops()}
        with convert_errors(self.title, file):
            return core.compile_model(model, "CPU", settings), layers, types


_CONVERSIONS = ("Reorder", "Convert", "FakeQuantize")
_INT8 = ("i8", "u8")
_OF_QUANTIZERS = {"FakeQuantize", "Convert", "Subtract", "Multiply", "Constant", None}


def _operators(model, types):
    """Return the :class:`CompiledOperator` of each node that depends on the values of inputs.

    Args:
        model: the runtime's graph.
        types: the type of each operator before compilation, by its name.
    """
    found, names = [], set()
    for node in model.get_ordered_ops():
        info = {key: _text(value) for key, value in node.get_rt_info().items()}
        kind, precision = info.get("layerType", ""), info.get("runtimePrecision", "")
        # The precision of a product with integer weights and float inputs is that of the weights.
        int8 = info.get("primitiveType", "").lower().endswith(_INT8)
        name = node.get_friendly_name()
        sources = [source for source in (each.get_node().get_friendly_name()
                                         for each in node.input_values()) if source in names]
        if sources or kind == "Input":
            names.add(name)
        if not sources or kind == "Output" or precision.startswith(("i32", "i64", "boolean")):
            continue
        origins = {types.get(each) for each in info.get("originalLayersNames", "").split(",")}
        quantizes = info.get("outputPrecisions") in _INT8 and origins <= _OF_QUANTIZERS
        found.append(CompiledOperator(
            name, kind, "int8" if int8 else "float",
            kind in _CONVERSIONS or quantizes and not int8, tuple(sources)))
    return found


def _text(value):
    return value.astype(str) if hasattr(value, "astype") else str(value)


def _read(core, file):
    """Read a file; a program of Paddle gets the form of quantization that int8 kernels need.

    OpenVINO before 2024.4 reads a ``.pdmodel`` unchanged, and computes its layers in float.
    """
    try:
        if file.kind not in (".pdmodel", ".json"):
            return core.read_model(file.path)
        if has_node_functions():
            program = file.program.copy()
            return openvino_model(program, raise_to_markers(program, partly=True))
        if file.kind == ".pdmodel":
            return core.read_model(file.path)
        with temporary_folder() as folder:
            model, params = (os.path.join(folder, name) for name in ("m.pdmodel", "m.pdiparams"))
            file.program.save(model, params)
            return core.read_model(model)
    except RuntimeError as error:
        refusal = error if isinstance(error, ExportError) else refusal_of(error)
        other = "" if file.kind == ".onnx" else (
            "write format='onnx' (paddleq.export.to_onnx), which may have another form of it, or ")
        raise InferenceError(f"OpenVINO refuses {file}: {refusal}; {other}use "
                             "runtime='paddle'") from error


def _api():
    """Return the module of OpenVINO's Python API: ``openvino.runtime`` in version 2023.0."""
    module = importlib.import_module("openvino")
    return module if hasattr(module, "Core") else importlib.import_module("openvino.runtime")


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


def saturating_layers(model):
    """Return names of the weights with which int8 kernels may saturate.

    Layers have int8 kernels where OpenVINO reads quantized activations as FakeQuantize: in
    ``.onnx``, and until 2025.3 also in ``.pdmodel``.
    """
    nodes, found = model.get_ops(), []
    if not any(node.get_type_name() == "FakeQuantize" for node in nodes):
        return []
    for node in nodes:
        if node.get_type_name() not in _LAYERS:
            continue
        (data, _), (weight, subtract) = _source(node, 0), _source(node, 1)
        if weight.get_type_name() == "Constant":
            saturates = weight.get_element_type().get_type_name() in ("i8", "u8") and can_saturate(
                _without_zero_point(weight, subtract))
        else:  # a product of two activations
            saturates = weight.get_type_name() == data.get_type_name() == "FakeQuantize"
        if saturates:
            found.append(weight.get_friendly_name())
    return found


def _source(node, index):
    """Return the node before dequantization of an input, and its Subtract of a zero point."""
    subtract = None
    while True:
        node = node.input_value(index).get_node()
        if node.get_type_name() not in _DEQUANTIZING:
            return node, subtract
        if node.get_type_name() == "Subtract":
            subtract = node
        index = 0


def _without_zero_point(weight, subtract):
    values = weight.data.astype(np.int32)
    if subtract is None:
        return values
    zero, _ = _source(subtract, 1)
    # Nodes of 2023.0 have no get_input_shape().
    return (values.reshape(subtract.input(0).get_shape())
            - zero.data.reshape(subtract.input(1).get_shape()))


def _name(port):
    return min(port.names, key=len) if port.names else ""


def _shape(dims):
    return None if dims.rank.is_dynamic else tuple(
        dim.get_length() if dim.is_static else None for dim in dims)
