"""Quantized layers and the registry of what can be quantized."""

from .deployable import DeployableLayer
from .integer_linear import IntegerLinear, keep_dequantized
from .kv_cache import Float8KVCache, Int8KVCache, KVCache
from .layer_types import QuantizableFunction, register_layer
from .quantized_layer import QuantizedLayer, is_quantized
from .tuple_cache import adapt_tuple_cache

__all__ = ["DeployableLayer", "Float8KVCache", "Int8KVCache", "IntegerLinear", "KVCache",
           "QuantizableFunction", "QuantizedLayer", "adapt_tuple_cache", "is_quantized",
           "keep_dequantized", "register_layer"]
