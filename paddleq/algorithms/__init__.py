"""How the weights of Linear layers become integers: rounding, GPTQ, AWQ, SmoothQuant; and the
driver that takes a network through it, decoder layer by decoder layer."""

from .awq import AWQ
from .base import ALGORITHMS, QuantizedWeight, Rounder, Smoother, register_algorithm
from .gptq import GPTQ
from .layerwise.driver import Quantized, quantize_layer_by_layer
from .layerwise.network_helper import NetworkHelper, StackHelper
from .linear import Outcome, quantize_linears
from .rtn import RoundToNearest
from .smoothquant import SmoothQuant
from .statistics import Statistics

__all__ = ["ALGORITHMS", "AWQ", "GPTQ", "NetworkHelper", "Outcome", "Quantized",
           "QuantizedWeight", "RoundToNearest", "Rounder", "SmoothQuant", "Smoother",
           "StackHelper", "Statistics", "quantize_layer_by_layer", "quantize_linears",
           "register_algorithm"]
