"""Runtimes by name, in the order in which ``Predictor`` prefers them where it cannot measure."""

# Registration order: OpenVINO computes most kinds of layers in integers.
from . import openvino  # noqa: F401  isort: skip
from . import onnx_runtime  # noqa: F401  isort: skip
from . import paddle_inference  # noqa: F401  isort: skip
from . import paddle_lite  # noqa: F401  isort: skip
from .base import RUNTIMES, Runtime, Session, register_runtime

__all__ = ["RUNTIMES", "Runtime", "Session", "register_runtime"]
