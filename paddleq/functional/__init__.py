"""Pure numerics on tensors: no layers, no state."""

from . import histogram, kl
from .numerics import (
    EPS,
    abs_max,
    clip,
    clip_and_fake_quantize,
    dequantize,
    fake_quantize,
    quantize,
)

__all__ = ["EPS", "abs_max", "clip", "clip_and_fake_quantize", "dequantize", "fake_quantize",
           "histogram", "kl", "quantize"]
