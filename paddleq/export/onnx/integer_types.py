"""Which integers of ONNX hold those of a :class:`~paddleq.QuantSpec`."""

from dataclasses import dataclass

import numpy as np

from ...errors import ExportError
from ...spec import PerGroup
from .opset import USUAL

FLOAT, _UINT4, _INT4 = 1, 21, 22  # onnx.TensorProto.DataType
INT4_OPSET = WIDE_OPSET = 21  # the first with four and with sixteen bits


@dataclass(frozen=True)
class Holder:
    """An integer type of ONNX.

    Attributes:
        dtype: numpy's name of the type that an array of them has here.
        low, high: the least and the greatest of them.
        element_type: of TensorProto, where numpy has no such type.
    """

    dtype: str
    low: int
    high: int
    element_type: int = None


def _plain(dtype):
    limits = np.iinfo(dtype)
    return Holder(dtype, int(limits.min), int(limits.max))


_FOUR_BITS = {True: Holder("int8", -8, 7, _INT4), False: Holder("uint8", 0, 15, _UINT4)}


def holder_of(spec, opset, weight):
    """The smallest type that holds the integers of ``spec``.

    Four bits are for weights only: no runtime computes with them in activations.
    """
    if weight and spec.bits <= 4 and not spec.binary and opset >= INT4_OPSET:
        return _FOUR_BITS[spec.signed]
    return _plain(spec.storage)


def opset_for(marks):
    """The usual opset, or the one that these marks need."""
    return WIDE_OPSET if any(map(_needs, marks)) else USUAL


def check_opset(mark, opset):
    """Raise where a mark has integers that no type of ``opset`` holds."""
    need = _needs(mark)
    if need and opset < WIDE_OPSET:
        raise ExportError(
            f"{mark.layer} is quantized {need[0]}, which DequantizeLinear knows from opset "
            f"{WIDE_OPSET} on, but opset is {opset}; leave opset out, or give {WIDE_OPSET} or "
            f"{need[1]}")


def _needs(mark):
    """What a mark has that needs a newer opset, and what would not; or None."""
    if mark.spec is None:
        return None
    if mark.spec.bits > 8:
        return f"to {mark.spec.bits} bits", "at most 8 bits"
    if isinstance(mark.spec.granularity, PerGroup):
        return f"in groups of {mark.spec.granularity.size}", "one scale for each channel"
    return None
