"""How the weights of Linear layers become integers: rounding, GPTQ, AWQ, SmoothQuant."""

from .awq import AWQ
from .base import QuantizedWeight
from .gptq import GPTQ
from .linear import LinearPolicy, Outcome, quantize_linears
from .rtn import RoundToNearest
from .smoothquant import SmoothQuant
from .statistics import Statistics

__all__ = ["AWQ", "GPTQ", "LinearPolicy", "Outcome", "QuantizedWeight", "RoundToNearest",
           "SmoothQuant", "Statistics", "quantize_linears"]
