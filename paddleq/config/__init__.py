"""One language for all front doors: rules that map layers to policies."""

from .layer_config import LayerPolicy, NormFold, QuantizerConfig
from .quant_config import QuantConfig

__all__ = ["LayerPolicy", "NormFold", "QuantConfig", "QuantizerConfig"]
