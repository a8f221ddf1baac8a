"""Weights of a program: the operators that use them, and weights stored as integers.

A stored weight is dequantized by ``dequantize_linear``, which runtimes recognize, or where none can
use it by three operators with the same result: cast, elementwise_mul by abs_max and elementwise_div
by the number of levels.
"""

from typing import Any, NamedTuple, Tuple

from ....spec import PerChannel, PerTensor, QuantSpec
from ...markers import WeightMark
from ..graph_view import GraphView
from ..op_desc import attribute, inputs, outputs
from ..validate import contradictions_reported

_TYPES = ("int8", "int16")

WEIGHTED_OPS = {
    **dict.fromkeys(("conv2d", "depthwise_conv2d", "conv3d", "conv2d_transpose",
                     "depthwise_conv2d_transpose"), "Filter"),
    **dict.fromkeys(("mul", "matmul", "matmul_v2"), "Y"),
    "lookup_table_v2": "W",
}
"""Operator type -> slot of its weight."""


class StoredWeight(NamedTuple):
    """A parameter of integers and the operators that dequantize it."""

    name: str  # of the parameter
    scale: str  # name of the parameter or variable with abs_max
    bits: int
    axis: int  # of the channels, -1 for per tensor
    ops: Tuple[Any, ...]  # in order; the last one writes the float weight

    @property
    def target(self):
        """Name of the float weight."""
        return outputs(self.ops[-1], "Y" if self.linear else "Out")[0]

    @property
    def linear(self):
        """True if the last operator is ``dequantize_linear``."""
        return self.ops[-1].type == "dequantize_linear"

    def mark(self, arrays):
        """:class:`~paddleq.export.markers.WeightMark` of the weight, given the parameters."""
        abs_max = arrays[self.scale].reshape(-1).astype("float32")
        return WeightMark(self.name, None, arrays[self.name], abs_max,
                          spec_of(self.bits, self.axis, abs_max))


def spec_of(bits, axis, abs_max):
    """:class:`~paddleq.QuantSpec` of the attributes of an operator and its abs_max."""
    per_channel = axis >= 0 and len(abs_max) > 1
    return QuantSpec(bits, granularity=PerChannel(axis) if per_channel else PerTensor())


@contradictions_reported()
def stored_weights(program, ops):
    """Find the weights that ``ops`` dequantize, name of the float weight -> StoredWeight."""
    view = GraphView(ops)
    found = [weight for op in ops for weight in [_stored_weight(program, view, op)]
             if weight is not None and weight.name in program.arrays
             and program.arrays[weight.name].dtype.name in _TYPES]
    return {weight.target: weight for weight in found}


def _stored_weight(program, view, op):
    if op.type == "dequantize_linear":
        cast = view.source(op, "X", "cast")
        chain = (op,) if cast is None else (cast, op)
        return StoredWeight(inputs(chain[0], "X")[0], inputs(op, "Scale")[0],
                            attribute(op, "bit_length", 8), attribute(op, "quant_axis", -1), chain)
    if op.type != "elementwise_div":
        return None
    levels = program.arrays.get(inputs(op, "Y")[0])
    product = view.source(op, "X", "elementwise_mul")
    cast = None if product is None else view.source(product, "X", "cast")
    if levels is None or levels.size != 1 or cast is None:
        return None
    (scale,), bits = inputs(product, "Y"), int(levels.item() + 1).bit_length()
    if scale not in program.arrays or levels.item() != 2 ** (bits - 1) - 1:
        return None
    return StoredWeight(inputs(cast, "X")[0], scale, bits, attribute(product, "axis", -1),
                        (cast, product, op))
