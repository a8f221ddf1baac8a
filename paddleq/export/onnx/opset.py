"""Opset of a model, and the integer types that it offers for a :class:`~paddleq.QuantSpec`."""

from typing import NamedTuple, Optional

import numpy as np

from ...errors import ExportError, UnsupportedOperatorError
from ...spec import PerGroup

LOWEST, USUAL, HIGHEST = 13, 17, 21  # 13: the first with a scale for each channel
CONVERTER_HIGHEST = 19  # of paddle2onnx
_INT4_OPSET = _WIDE_OPSET = 21  # the first with 4 bits and with 16 bits
FLOAT, _UINT4, _INT4 = 1, 21, 22  # onnx.TensorProto.DataType
# Modes of GridSample from opset 20 on, by their former names.
_MODES = {b"bilinear": b"linear", b"bicubic": b"cubic"}


class IntegerType(NamedTuple):
    """Integer type of ONNX."""

    dtype: str  # numpy type of an array of these integers
    low: int
    high: int
    element_type: Optional[int] = None  # of TensorProto, if numpy has no such type


_FOUR_BITS = {True: IntegerType("int8", -8, 7, _INT4), False: IntegerType("uint8", 0, 15, _UINT4)}


def integer_type(spec, opset, is_weight):
    """Smallest integer type of ``opset`` for the integers of ``spec``.

    Types of 4 bits are for weights only: no runtime computes with them in activations.
    """
    if is_weight and spec.bits <= 4 and not spec.binary and opset >= _INT4_OPSET:
        return _FOUR_BITS[spec.signed]
    limits = np.iinfo(spec.storage)
    return IntegerType(spec.storage, int(limits.min), int(limits.max))


def resolve_opset(marks, opset):
    """Return ``opset``; None: the default, or the higher one that these marks need.

    Raises ExportError if ``opset`` lacks an integer type or granularity for a mark.
    """
    needed = [(mark.layer, *need) for mark in marks for need in [_needs(mark)] if need]
    if opset is None:
        return _WIDE_OPSET if needed else USUAL
    if needed and opset < _WIDE_OPSET:
        layer, kind, alternative = needed[0]
        raise ExportError(
            f"{layer} is quantized {kind}, which DequantizeLinear knows from opset {_WIDE_OPSET} "
            f"on, but opset is {opset}; leave opset out, or give {_WIDE_OPSET} or {alternative}")
    return opset


def _needs(mark):
    """Return (property that needs a newer opset, alternative), or None."""
    if mark.spec is None:
        return None
    if mark.spec.bits > 8:
        return f"to {mark.spec.bits} bits", "at most 8 bits"
    if isinstance(mark.spec.granularity, PerGroup):
        return f"in groups of {mark.spec.granularity.size}", "one scale for each channel"
    return None


def raise_opset(model):
    """Convert a model of opset 19 to opset 21, in place.

    Of the operators that paddle2onnx writes, only GridSample changed by more than its types.
    """
    version = model.opset_import[0].version
    if version < CONVERTER_HIGHEST:
        raise ExportError(f"cannot raise a model of opset {version}")
    for node in model.graph.node:
        if node.op_type == "GroupNormalization":
            raise UnsupportedOperatorError("GroupNormalization changed its meaning in opset 21; "
                                           "use opset 19 or lower", "group_norm")
        for attribute in node.attribute:
            if node.op_type == "GridSample" and attribute.name == "mode":
                attribute.s = _MODES.get(attribute.s, attribute.s)
