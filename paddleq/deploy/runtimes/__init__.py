"""The runtimes that are known, by what users call them."""

from .onnx_runtime import OnnxRuntime
from .openvino import OpenVino
from .paddle_inference import PaddleInference
from .paddle_lite import PaddleLite

RUNTIMES = {runtime.name: runtime
            for runtime in (OpenVino(), OnnxRuntime(), PaddleInference(), PaddleLite())}

__all__ = ["RUNTIMES"]
