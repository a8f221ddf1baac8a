"""Pure numerics on tensors: no layers, no state."""

from . import histogram, kl
from .dynamic_quant import from_steps, to_steps, token_steps
from .fake_quant import dequantize, fake_quantize, quantize, representable
from .int4_packing import pack_int4, unpack_int4
from .lsq import learned_fake_quantize
from .pact import clip, clip_and_fake_quantize
from .qparams import EPS, abs_max, affine_qparams
from .weight_qparams import Grid, grid_of

__all__ = ["EPS", "Grid", "abs_max", "affine_qparams", "clip", "clip_and_fake_quantize",
           "dequantize", "fake_quantize", "from_steps", "grid_of", "histogram", "kl",
           "learned_fake_quantize", "pack_int4", "quantize", "representable", "to_steps",
           "token_steps", "unpack_int4"]
