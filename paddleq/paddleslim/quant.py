"""``paddleslim.quant``: quantization of saved models."""

from ..frontends.paddleslim.quant_post import quant_post_dynamic, quant_post_static
from ..frontends.paddleslim.quant_recon import quant_recon_static

__all__ = ["quant_post_dynamic", "quant_post_static", "quant_recon_static"]
