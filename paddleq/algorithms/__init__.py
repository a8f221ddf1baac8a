"""Weight algorithms for Linear layers, and the driver that applies them layer by layer."""

from .awq import AWQ
from .base import ALGORITHMS, QuantizedWeight, Rounder, Smoother, register_algorithm
from .gptq import GPTQ
from .layerwise.driver import LayerwiseResult, quantize_layer_by_layer
from .layerwise.network_helper import NetworkHelper, StackHelper
from .linear import QuantizedLinears, RoundToNearest, quantize_linears
from .smoothquant import SmoothQuant

__all__ = ["ALGORITHMS", "AWQ", "GPTQ", "LayerwiseResult", "NetworkHelper",
           "QuantizedLinears", "QuantizedWeight", "RoundToNearest", "Rounder", "SmoothQuant",
           "Smoother", "StackHelper", "quantize_layer_by_layer", "quantize_linears",
           "register_algorithm"]
