"""Quantized layers and the registry of what can be quantized."""

from .deployable import DeployableLayer, deployable
from .functions import QuantizableFunction
from .integer_linear import IntegerLinear
from .kv_cache import Int8KVCache, KVCache
from .quantized import QuantizedLayer, is_quantized
from .registry import register_layer

__all__ = ["DeployableLayer", "Int8KVCache", "IntegerLinear", "KVCache", "QuantizableFunction",
           "QuantizedLayer", "deployable", "is_quantized", "register_layer"]
