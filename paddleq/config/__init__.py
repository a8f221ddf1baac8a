"""Configuration of quantization: rules that assign a :class:`LayerConfig` to layers."""

from .layer_config import LayerConfig, NormFold, QuantizerConfig
from .quant_config import QuantConfig, SkipKind, SkipReason
from .scope import Scope

__all__ = ["LayerConfig", "NormFold", "QuantConfig", "QuantizerConfig", "Scope",
           "SkipKind", "SkipReason"]
