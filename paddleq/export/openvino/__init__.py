"""Export to OpenVINO's own files, with FakeQuantize, which its int8 kernels need."""

from .export import OpenVinoFormat, openvino_model, to_openvino
from .reader import require_openvino

__all__ = ["OpenVinoFormat", "openvino_model", "require_openvino", "to_openvino"]
