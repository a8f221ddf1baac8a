"""Numerics of quantization on tensors, without layers or state."""

from . import histogram, kl
from .dynamic_quant import dequantize_by_scale, quantize_by_scale, token_scales
from .fake_quant import dequantize, fake_quantize, quantize, representable_range
from .float_formats import decode, encode, round_to_format
from .int4_packing import pack_int4, unpack_int4
from .lsq import learned_fake_quantize
from .pact import clip, clip_and_fake_quantize
from .qparams import EPS, abs_max, affine_qparams
from .weight_qparams import WeightQParams, compute_weight_qparams

__all__ = ["EPS", "WeightQParams", "abs_max", "affine_qparams", "clip", "clip_and_fake_quantize",
           "compute_weight_qparams", "decode", "dequantize", "dequantize_by_scale", "encode",
           "fake_quantize", "histogram", "kl", "learned_fake_quantize", "pack_int4", "quantize",
           "quantize_by_scale", "representable_range", "round_to_format", "token_scales",
           "unpack_int4"]
