"""ONNX Runtime."""

import os

from ..._atomic_write import temporary_folder
from ...export.onnx.float_graph import require_onnx
from ...export.onnx.products_of_blocks import FLOAT_PRODUCTS
from ..model_file import TensorInfo
from ..saturation import has_vnni
from .base import CompiledOperator, Runtime, Session, convert_errors, register_runtime

_DTYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16",
           "tensor(bool)": "bool"}


@register_runtime("onnxruntime")
class OnnxRuntime(Runtime):
    """ONNX Runtime on the CPU, for ``.onnx``."""

    title, module = "ONNX Runtime", "onnxruntime"
    kinds = (".onnx",)
    remedy = "pip install 'paddleq[onnx]' (or onnxruntime)"
    automatic = True
    references = (".onnx",)

    int8_types = frozenset((
        "Add", "AveragePool", "Concat", "Conv", "ConvTranspose", "Gather", "Gemm",
        "GlobalAveragePool", "LeakyRelu", "MatMul", "MaxPool", "Mul", "Reshape", "Resize",
        "Sigmoid", "Softmax", "Split", "Squeeze", "Transpose", "Unsqueeze", "Where"))
    int8_condition = "it also needs a QuantizeLinear behind the operator, other than for MatMul"

    def load(self, file, threads, as_is=False):
        return _Session(self._session(file, threads, as_is), file)

    def compiled_operators(self, file, threads):
        onnx = require_onnx()
        with temporary_folder() as folder:
            path = os.path.join(folder, "optimized.onnx")
            self._session(file, threads, False, path)
            return _operators(onnx.load(path).graph), ""

    def _session(self, file, threads, as_is, optimized=None):
        import onnxruntime as ort
        file.check()
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3  # errors only
        if not has_vnni():
            # Kernels without saturation, about a quarter slower.
            options.add_session_config_entry("session.x64quantprecision", "1")
        # Otherwise products with grouped weights round their other factor to 8 bits.
        options.add_session_config_entry(*FLOAT_PRODUCTS.split("="))
        if as_is:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if optimized is not None:
            options.optimized_model_filepath = optimized
        with convert_errors(self.title, file, *_errors()):
            return ort.InferenceSession(file.path, options, providers=["CPUExecutionProvider"])


_CONVERSIONS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ReorderInput",
                "ReorderOutput", "Cast"}


def _operators(graph):
    """Return the :class:`CompiledOperator` of each node that depends on the values of inputs."""
    values = {each.name for each in graph.input}
    integers, producers, found = set(), {}, []
    for node in graph.node:
        if values.isdisjoint(node.input) or node.op_type in ("Shape", "Size"):
            continue
        name = node.name or node.output[0]
        int8 = not integers.isdisjoint(node.input) or node.op_type == "DynamicQuantizeLinear"
        if node.op_type == "QuantizeLinear" or node.op_type.startswith("QLinear") or (
                int8 and not node.op_type.endswith(("DequantizeLinear", "ToFloat"))
                and node.op_type not in ("ConvInteger", "MatMulInteger")):
            integers.update(node.output)
        found.append(CompiledOperator(
            name, node.op_type, "int8" if int8 else "float", node.op_type in _CONVERSIONS,
            tuple(producers[each] for each in node.input if each in producers)))
        producers.update(dict.fromkeys(node.output, name))
        values.update(node.output)
    return found


class _Session(Session):
    def __init__(self, session, file):
        self._session, self._file = session, file
        self.inputs = [TensorInfo(
            each.name, _DTYPES.get(each.type, each.type[len("tensor("):-1]),
            tuple(size if isinstance(size, int) and size >= 0 else None for size in each.shape))
            for each in session.get_inputs()]
        self.outputs = [each.name for each in session.get_outputs()]

    def run(self, arrays):
        names = [info.name for info in self.inputs]
        with convert_errors("ONNX Runtime", self._file, *_errors()):
            return self._session.run(None, dict(zip(names, arrays)))

    def clone(self):
        return self  # sessions of ONNX Runtime are thread-safe


def _errors():
    """Return (exception types for damaged files, other types); none is a RuntimeError."""
    import onnxruntime.capi.onnxruntime_pybind11_state as states

    return ((states.InvalidProtobuf, states.InvalidGraph, states.NoSuchFile),
            (states.Fail, states.InvalidArgument, states.NotImplemented, states.RuntimeException,
             states.NoModel, states.EPFail))
