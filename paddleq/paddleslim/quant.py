"""``paddleslim.quant``: quantization of saved models."""

from ..frontends.paddleslim.quant_post import quant_post_dynamic, quant_post_static

__all__ = ["quant_post_dynamic", "quant_post_static"]
