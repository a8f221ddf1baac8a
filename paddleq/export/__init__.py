"""Export of quantized models to the files that runtimes load.

Importing a lowering (``paddle``, ``pir``, ``onnx``, ``openvino``) registers its format.
"""

from .formats import FORMATS, Format, register_format
from .onnx import to_onnx
from .openvino import to_openvino
from .paddle import lower as _pdmodel  # noqa: F401
from .pir import lower as _pir  # noqa: F401
from .pir_to_program import to_program_desc
from .save import save, save_quantized_model

__all__ = ["FORMATS", "Format", "register_format", "save", "save_quantized_model", "to_onnx",
           "to_openvino", "to_program_desc"]
