"""One language for all front doors: rules that map layers to policies."""

from .policy import LayerPolicy, NormFold, QuantizerConfig
from .rules import QuantConfig

__all__ = ["LayerPolicy", "NormFold", "QuantConfig", "QuantizerConfig"]
