"""Ways out: from a quantized model to files that runtimes load."""

from .onnx import to_onnx
from .pir_to_program import to_program_desc
from .save import save, save_quantized_model

__all__ = ["save", "save_quantized_model", "to_onnx", "to_program_desc"]
