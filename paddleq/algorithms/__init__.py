"""How the weights of Linear layers become integers: rounding, GPTQ, AWQ, SmoothQuant."""

from .base import QuantizedWeight
from .linear import LinearPolicy, Outcome, quantize_linears
from .rtn import RoundToNearest
from .smoothquant import SmoothQuant
from .statistics import Statistics

__all__ = ["LinearPolicy", "Outcome", "QuantizedWeight", "RoundToNearest", "SmoothQuant",
           "Statistics", "quantize_linears"]
