"""Weights that a saved program holds as integers: how they become floats, in either form.

``dequantize_linear`` is what runtimes look for. Where none can make use of it, three operators
compute the same numbers: cast, elementwise_mul by the thresholds, elementwise_div by the levels.
"""

from typing import NamedTuple

from ....spec import PerChannel, PerTensor, QuantSpec
from ..program import attribute, inputs, outputs

_TYPES = ("int8", "int16")


class StoredWeight(NamedTuple):
    """A parameter of integers and what makes it float.

    Attributes:
        name: of the parameter.
        scale: name of the thresholds.
        bits: of the integers.
        axis: of the channels, -1 where there is one threshold.
        ops: the operators, in order; the last one makes the float weight.
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
        """Whether it is a ``dequantize_linear`` that makes it."""
        return self.ops[-1].type == "dequantize_linear"

    def spec(self, thresholds):
        """The :class:`~paddleq.QuantSpec` with these thresholds."""
        return spec_of(self.bits, self.axis, thresholds)


def spec_of(bits, axis, thresholds):
    """The :class:`~paddleq.QuantSpec` of the attributes of an operator and its thresholds."""
    per_channel = axis >= 0 and len(thresholds) > 1
    return QuantSpec(bits, granularity=PerChannel(axis) if per_channel else PerTensor())


def stored_weights(program, ops):
    """The :class:`StoredWeight` of each weight that ``ops`` make float, by the float's name."""
    made_by = {name: op for op in ops for slot in op.outputs for name in slot.arguments}
    found = {}
    for op in ops:
        weight = _linear(program, made_by, op) or _multiplied(program, made_by, op)
        if weight is not None:
            found[weight.target] = weight
    return found


def _linear(program, made_by, op):
    if op.type != "dequantize_linear":
        return None
    cast = made_by.get(inputs(op, "X")[0])
    made = (op,) if cast is None or cast.type != "cast" else (cast, op)
    name = inputs(made[0], "X")[0]
    if not _integers(program, name):
        return None
    return StoredWeight(name, inputs(op, "Scale")[0], attribute(op, "bit_length", 8),
                        attribute(op, "quant_axis", -1), made)


def _multiplied(program, made_by, op):
    if op.type != "elementwise_div":
        return None
    levels = program.arrays.get(inputs(op, "Y")[0])
    product = made_by.get(inputs(op, "X")[0])
    if levels is None or levels.size != 1 or product is None or product.type != "elementwise_mul":
        return None
    cast, (scale,) = made_by.get(inputs(product, "X")[0]), inputs(product, "Y")
    if cast is None or cast.type != "cast" or scale not in program.arrays:
        return None
    name, bits = inputs(cast, "X")[0], int(levels.item() + 1).bit_length()
    if not _integers(program, name) or levels.item() != 2 ** (bits - 1) - 1:
        return None
    return StoredWeight(name, scale, bits, attribute(product, "axis", -1), (cast, product, op))


def _integers(program, name):
    return name in program.arrays and program.arrays[name].dtype.name in _TYPES
