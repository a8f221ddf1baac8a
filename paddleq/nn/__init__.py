"""Quantized layers and the registry of what can be quantized."""

from .functions import QuantizableFunction
from .quantized import QuantizedLayer, is_quantized
from .registry import register_layer

__all__ = ["QuantizableFunction", "QuantizedLayer", "is_quantized", "register_layer"]
