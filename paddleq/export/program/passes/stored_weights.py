"""Weights of a program: the operators that use them, and weights stored as integers.

A stored weight is dequantized by ``dequantize_linear``, which runtimes recognize, or where none can
use it by three operators with the same result: cast, elementwise_mul by abs_max and elementwise_div
by the number of levels.
"""

from typing import NamedTuple

import numpy as np

from ....functional import EPS
from ....spec import PerChannel, PerTensor, QuantSpec
from ..graph_view import GraphView
from ..op_desc import attribute, inputs, outputs

_TYPES = ("int8", "int16")

# Operator type -> (slot of the weight, axis of its output channels).
WEIGHTED_OPS = {
    "conv2d": ("Filter", 0),
    "depthwise_conv2d": ("Filter", 0),
    "conv3d": ("Filter", 0),
    "conv2d_transpose": ("Filter", 1),
    "depthwise_conv2d_transpose": ("Filter", 1),
    "mul": ("Y", 1),
    "matmul": ("Y", 1),
    "matmul_v2": ("Y", 1),
    "lookup_table_v2": ("W", 0),
}


def quantize_array(value, bits, axis=None):
    """Quantize a float weight as :func:`paddleq.functional.quantize` does.

    Args:
        axis: of the output channels; None: per tensor.

    Returns:
        Tuple (integers, abs_max).
    """
    spec = QuantSpec(bits)
    others = tuple(i for i in range(value.ndim) if i != axis) if axis is not None else None
    abs_max = np.maximum(np.abs(value).max(axis=others), np.float32(EPS)).reshape(-1)
    shape = [1] * value.ndim
    if axis is not None:
        shape[axis] = -1
    factor = np.float32(spec.quant_max) * (np.float32(1) / abs_max.reshape(shape))
    integers = np.clip(np.rint(factor * value), spec.quant_min, spec.quant_max).astype(spec.storage)
    return integers, abs_max


def dequantize_array(integers, abs_max, bits, axis=None):
    """Dequantize the integers of a weight to float32."""
    shape = [1] * integers.ndim
    if axis is not None:
        shape[axis] = -1
    levels = np.float32(QuantSpec(bits).quant_max)
    return integers.astype(np.float32) * abs_max.reshape(shape) / levels


def channel_axis(op, axis, array):
    """Axis of the output channels of the weight of ``op``.

    Args:
        axis: the axis in ``WEIGHTED_OPS``, which transposition may change.
    """
    transposed = any(a.name in ("trans_y", "transpose_Y") and a.b for a in op.attrs)
    if op.type in ("matmul", "matmul_v2"):
        # A matrix may be stored transposed, and a batch of matrices has more axes.
        return array.ndim - (2 if transposed else 1)
    return axis


class StoredWeight(NamedTuple):
    """A parameter of integers and the operators that dequantize it.

    Attributes:
        name: name of the parameter.
        scale: name of the parameter or variable with abs_max.
        bits: number of bits of the integers.
        axis: axis of the channels, -1 for per tensor.
        ops: the operators in order; the last one writes the float weight.
    """

    name: str
    scale: str
    bits: int
    axis: int
    ops: tuple

    @property
    def target(self):
        """Name of the float weight."""
        return outputs(self.ops[-1], "Y" if self.linear else "Out")[0]

    @property
    def linear(self):
        """True if the last operator is ``dequantize_linear``."""
        return self.ops[-1].type == "dequantize_linear"

    def spec(self, abs_max):
        """:class:`~paddleq.QuantSpec` of the weight, given the values of ``scale``."""
        return spec_of(self.bits, self.axis, abs_max)


def spec_of(bits, axis, abs_max):
    """:class:`~paddleq.QuantSpec` of the attributes of an operator and its abs_max."""
    per_channel = axis >= 0 and len(abs_max) > 1
    return QuantSpec(bits, granularity=PerChannel(axis) if per_channel else PerTensor())


def stored_weights(program, ops):
    """Find the weights that ``ops`` dequantize.

    Returns:
        Dict, name of the float weight -> :class:`StoredWeight`.
    """
    producers, found = GraphView(ops).producers, {}
    for op in ops:
        weight = _linear(program, producers, op) or _multiplied(program, producers, op)
        if weight is not None:
            found[weight.target] = weight
    return found


def _linear(program, producers, op):
    if op.type != "dequantize_linear":
        return None
    cast = producers.get(inputs(op, "X")[0])
    chain = (op,) if cast is None or cast.type != "cast" else (cast, op)
    name = inputs(chain[0], "X")[0]
    if not _is_integer(program, name):
        return None
    return StoredWeight(name, inputs(op, "Scale")[0], attribute(op, "bit_length", 8),
                        attribute(op, "quant_axis", -1), chain)


def _multiplied(program, producers, op):
    if op.type != "elementwise_div":
        return None
    levels = program.arrays.get(inputs(op, "Y")[0])
    product = producers.get(inputs(op, "X")[0])
    if levels is None or levels.size != 1 or product is None or product.type != "elementwise_mul":
        return None
    cast, (scale,) = producers.get(inputs(product, "X")[0]), inputs(product, "Y")
    if cast is None or cast.type != "cast" or scale not in program.arrays:
        return None
    name, bits = inputs(cast, "X")[0], int(levels.item() + 1).bit_length()
    if not _is_integer(program, name) or levels.item() != 2 ** (bits - 1) - 1:
        return None
    return StoredWeight(name, scale, bits, attribute(product, "axis", -1), (cast, product, op))


def _is_integer(program, name):
    return name in program.arrays and program.arrays[name].dtype.name in _TYPES
