"""Quantized layers and the registry of what can be quantized."""

from .functions import QuantizableFunction
from .kv_cache import Int8KVCache, KVCache
from .quantized import QuantizedLayer, is_quantized
from .registry import register_layer

__all__ = ["Int8KVCache", "KVCache", "QuantizableFunction", "QuantizedLayer", "is_quantized",
           "register_layer"]
