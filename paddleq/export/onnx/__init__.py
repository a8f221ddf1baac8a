"""Export to ONNX: a float graph with QuantizeLinear and DequantizeLinear operators."""

from .export import TARGETS, to_onnx, write_program
from .float_graph import require_onnx

__all__ = ["TARGETS", "require_onnx", "to_onnx", "write_program"]
