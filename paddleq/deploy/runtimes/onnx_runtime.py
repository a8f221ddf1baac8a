"""ONNX Runtime."""

from ...export.onnx.products_of_blocks import FLOAT_PRODUCTS
from ..model_file import TensorInfo
from ..saturation import has_vnni
from .base import Runtime, Session, convert_errors, register_runtime

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

    def load(self, file, threads, as_is=False):
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
        with convert_errors(self.title, file, *_errors()):
            return _Session(ort.InferenceSession(file.path, options,
                                                 providers=["CPUExecutionProvider"]), file)


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
