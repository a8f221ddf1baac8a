"""Pure numerics on tensors: no layers, no state."""

from . import histogram, kl
from .clipping import clip, clip_and_fake_quantize
from .grid import Grid, grid_of
from .learned_step import learned_fake_quantize
from .numerics import dequantize, fake_quantize, quantize, representable
from .packing import pack_int4, unpack_int4
from .ranges import EPS, abs_max, affine_qparams
from .steps import from_steps, to_steps, token_steps

__all__ = ["EPS", "Grid", "abs_max", "affine_qparams", "clip", "clip_and_fake_quantize",
           "dequantize", "fake_quantize", "from_steps", "grid_of", "histogram", "kl",
           "learned_fake_quantize", "pack_int4", "quantize", "representable", "to_steps",
           "token_steps", "unpack_int4"]
