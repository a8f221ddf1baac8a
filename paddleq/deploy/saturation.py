"""Saturation of int8 kernels on x86 processors without VNNI.

There, u8 x s8 kernels add products in pairs in 16 bits (``vpmaddubsw``), which saturates: a pair of
activations of 255 with weights of 127 gives 32767 instead of 64770. oneDNN (Paddle Inference,
OpenVINO) and ONNX Runtime leave it to the user to prevent that; see "Nuances of int8 computations"
in oneDNN's documentation. Weights of at most 7 bits cannot saturate: 2 * 255 * 64 < 2 ** 15.

Behavior of the runtimes, measured on AVX2:

- oneDNN halves the weights of convolutions with signed inputs, which costs one bit of them.
- Paddle Inference quantizes the weights of convolutions again, to the full range of 8 bits, so
  unsigned inputs (after relu) may saturate with weights of any bits.
- ONNX Runtime is exact with the session option ``session.x64quantprecision``.
"""

import functools
import platform
from typing import List

import numpy as np

from ..export.paddle.int8_kernels import product_of
from ..export.program.graph_view import GraphView
from ..export.program.op_builder import OpBuilder
from ..export.program.op_desc import all_inputs, inputs
from ..export.program.passes.dequantize_weights import (
    INFERENCE_WEIGHTS,
    restore_dequantize_linear,
)
from ..export.program.passes.float_operators import remove_rounding
from ..export.program.passes.stored_weights import stored_weights
from ..export.program.validate import contradictions_reported

_MAX_WEIGHT = 64  # |weight| up to which a pair of products with activations of 8 bits fits int16
# Activations are unsigned after _UNSIGNED operators, also through _PASSING operators.
_UNSIGNED = ("relu", "relu6")
_DEQUANTIZERS = ("dequantize_linear", "fake_quantize_dequantize_moving_average_abs_max",
                 "fake_quantize_dequantize_abs_max")
_PASSING = ("quantize_linear", "dequantize_linear", "transpose2", "reshape2", "pool2d", "slice",
            "nearest_interp", "nearest_interp_v2", "flatten_contiguous_range", "squeeze2",
            "unsqueeze2", "dropout", "assign", "concat", "split")
_X86 = ("x86_64", "amd64", "i386", "i686", "x86")
_FLAGS = ("avx512_vnni", "avx_vnni")


@functools.lru_cache(maxsize=None)
def has_vnni() -> bool:
    """Return True if int8 kernels of this processor accumulate without saturation.

    x86 processors do with AVX512-VNNI or AVX-VNNI instructions; others than x86 always do. Where
    the processor's features cannot be read (x86 without ``/proc/cpuinfo``), it returns False, which
    costs speed but no accuracy.

    Examples:
        >>> from paddleq.deploy import has_vnni
        >>> has_vnni() in (True, False)
        True
    """
    if platform.machine().lower() not in _X86:
        return True
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        return False
    return any(flag in flags for flag in _FLAGS)


def can_saturate(weight: np.ndarray) -> bool:
    """Return True if pairs of products with ``weight`` (integers) may exceed 16 bits."""
    return bool(weight.size) and (int(weight.max()) > _MAX_WEIGHT
                                  or int(weight.min()) < -_MAX_WEIGHT)


def fallback_reason(title: str, layers: List[str]) -> str:
    """Return the reason why float kernels replace int8 kernels; "" if no layer may saturate."""
    if not layers:
        return ""
    shown = ", ".join(layers[:3]) + (", ..." if len(layers) > 3 else "")
    return (f"computed in float: on this processor, which has no VNNI instructions, int8 kernels "
            f"of {title} may saturate in {len(layers)} layers ({shown}); weights of at most 7 bits "
            "have int8 kernels in OpenVINO, and ONNX Runtime computes 8 bits without saturation")


@contradictions_reported()
def saturating_layers(program):
    """Return names of the layers whose int8 kernels may saturate or lose bits without VNNI.

    Weights are dequantized by ``dequantize_linear`` afterwards where
    :func:`~paddleq.export.paddle.int8_kernels.use_int8_kernels` can use that.
    """
    found = []
    builder = OpBuilder(program)
    remove_rounding(program)
    for block in program.desc.blocks[:1]:
        restore_dequantize_linear(builder, block, INFERENCE_WEIGHTS)
        ops = list(block.ops)
        view, weights = GraphView(ops), stored_weights(program, ops)
        scaled = {name for op in ops for product in [product_of(program, view, block, op)]
                if product is not None for name in inputs(product, "Y")}
        for op in ops:
            slot = INFERENCE_WEIGHTS.get(op.type)
            if slot is None:
                continue
            (name,) = inputs(op, slot)
            (data,) = inputs(op, "Input" if slot == "Filter" else "X")
            if not _comes_from(view, data, _DEQUANTIZERS):
                continue  # computed in float without a scale of its input
            if name not in weights:
                # Float weights, which are quantized to 8 bits, or a product of two activations.
                found.append(name)
            elif can_saturate(program.arrays[weights[name].name]) or (
                    _comes_from(view, data, _UNSIGNED) if slot == "Filter"
                    else name not in scaled):
                found.append(weights[name].name)
    return found


def _comes_from(view, name, kinds):
    """Return True if ``name`` is an output of ``kinds``, also through _PASSING operators."""
    todo, seen = [name], set()
    while todo:
        name = todo.pop()
        producer = view.producers.get(name)
        if producer is None or name in seen:
            continue
        seen.add(name)
        if producer.type in kinds:
            return True
        if producer.type in _PASSING:
            todo += all_inputs(producer)
    return False
