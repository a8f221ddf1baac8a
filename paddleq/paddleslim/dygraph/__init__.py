"""``paddleslim.dygraph``: quantization of models in dynamic mode."""

from . import quant as quant
