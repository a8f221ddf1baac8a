"""Pure numerics on tensors: no layers, no state."""

from . import histogram, kl
from .clipping import clip, clip_and_fake_quantize
from .learned_step import learned_fake_quantize
from .numerics import dequantize, fake_quantize, quantize, representable
from .ranges import EPS, abs_max, affine_qparams

__all__ = ["EPS", "abs_max", "affine_qparams", "clip", "clip_and_fake_quantize", "dequantize",
           "fake_quantize", "histogram", "kl", "learned_fake_quantize", "quantize", "representable"]
