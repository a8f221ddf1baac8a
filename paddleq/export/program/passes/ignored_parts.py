"""Operators of which a runtime ignores a part.

- oneDNN ignores the threshold of softplus, above which Paddle returns the input. From 15 on the
  difference is below the last digit.
- OpenVINO divides floats without rounding for ``floor_divide``, and removes the axis of an argmax
  that keeps it. It overwrites where ``scatter`` adds.
- Paddle 2.6 ignores which axis of ``trace`` is the first, for which an offset counts columns.
"""

import numpy as np

from ...._paddle_compat import trace_respects_order
from ..graph_view import GraphView
from ..op_builder import FLOAT32
from ..op_desc import (
    attribute,
    dtype_of,
    inputs,
    make_op,
    outputs,
    replace_ops,
    set_attribute,
    set_input,
    set_output,
    shape_of,
)

_HIGH_THRESHOLD = 15.0


def write_ignored_parts(builder, block):
    """Write the parts that runtimes ignore as operators, in place."""
    forms = {"softplus": _softplus, "elementwise_floordiv": _floor_divide, "arg_max": _keep_axis,
             "arg_min": _keep_axis, "scatter": _scatter, "trace": _trace}
    if any(op.type in forms for op in block.ops):
        view = GraphView(block.ops)
        replace_ops(block, [new for op in block.ops for new in (
            forms[op.type](builder, block, op, view) if op.type in forms else [op])])


def count_axes_from_end(program):
    """Write the axis of ``index_select`` as a negative number, in place.

    OpenVINO 2026.4 moves a permutation along axis 1 into the weight of a convolution behind it, in
    the order of the inverse permutation. It does not recognize one with a negative axis.
    ``gather`` along that axis becomes ``index_select``: Paddle 2.6 has no negative axis there.
    """
    for block in program.desc.blocks:
        for op in block.ops:
            ranks = [len(shape_of(program.variable(inputs(op, slot)[0], block)))
                     for slot in ("X", "Index")] if op.type == "gather" else [0, 0]
            if (ranks[0] >= 3 and ranks[1] == 1 and attribute(op, "axis", 0) == 1
                    and not inputs(op, "Axis")):
                op.type = "index_select"
                for field, unknown in ((op.attrs, [each for each in op.attrs
                                                   if each.name in ("axis", "overwrite")]),
                                       (op.inputs, [each for each in op.inputs
                                                    if each.parameter == "Axis"])):
                    for each in unknown:
                        field.remove(each)
                set_attribute(op, "dim", 1)
            if op.type == "index_select" and attribute(op, "dim", 0) > 0:
                rank = len(shape_of(program.variable(inputs(op, "X")[0], block)))
                set_attribute(op, "dim", attribute(op, "dim") - rank)


def trace_offset(op, rank):
    """Return (offset, axis, later axis) of the diagonals that the installed Paddle adds up."""
    offset, *axes = (attribute(op, name, default)
                     for name, default in (("offset", 0), ("axis1", 0), ("axis2", 1)))
    axes = [axis % rank for axis in axes]
    swapped = axes[0] > axes[1] and trace_respects_order()
    return -offset if swapped else offset, *sorted(axes)


def _trace(builder, block, op, view):
    rank = len(shape_of(builder.program.variable(inputs(op, "Input")[0], block)))
    for name, value in zip(("offset", "axis1", "axis2"), trace_offset(op, rank)):
        set_attribute(op, name, value)
    return [op]


def _softplus(builder, block, op, view):
    threshold = attribute(op, "threshold", 20.0)
    if threshold >= _HIGH_THRESHOLD:
        return [op]
    (x,), (out,) = inputs(op, "X"), outputs(op, "Out")
    limit = builder.parameter(f"{out}.limit", np.array(
        [threshold / attribute(op, "beta", 1.0)], np.float32))
    above = builder.variable_like(block, x, f"{out}.above", "bool")
    curve = builder.variable_like(block, x, f"{out}.curve")
    set_attribute(op, "threshold", 20.0)
    set_output(op, "Out", curve)
    return [op, make_op("greater_than", {"X": x, "Y": limit}, {"Out": above}, axis=-1),
            make_op("where", {"Condition": above, "X": x, "Y": curve}, {"Out": out})]


def _floor_divide(builder, block, op, view):
    (out,) = outputs(op, "Out")
    if dtype_of(builder.program.variable(out, block)) != "float32" or any(
            each.type == "floor" for each in view.consumers.get(out, ())):
        return [op]
    quotient = builder.variable(block, f"{out}.quotient",
                                shape_of(builder.program.variable(out, block)))
    set_output(op, "Out", quotient)
    return [op, make_op("floor", {"X": quotient}, {"Out": out})]


def _keep_axis(builder, block, op, view):
    (x,), (out,) = inputs(op, "X"), outputs(op, "Out")
    axis = attribute(op, "axis", -1)
    if not attribute(op, "keepdims", False) or attribute(op, "flatten", False) or inputs(
            op, "Axis"):
        return [op]
    shape, variable = shape_of(builder.program.variable(x, block)), builder.program.variable(
        out, block)
    axis %= len(shape)
    index = builder.variable(block, f"{out}.index", shape[:axis] + shape[axis + 1:],
                             dtype_of(variable))
    shadow = builder.variable(block, f"{out}.shape", [0])
    set_attribute(op, "keepdims", False)
    set_output(op, "Out", index)
    return [op, make_op("unsqueeze2", {"X": index}, {"Out": out, "XShape": shadow}, axes=[axis])]


def _scatter(builder, block, op, view):
    """Clear the rows, then add to them."""
    (ids,), (updates,), (out,) = inputs(op, "Ids"), inputs(op, "Updates"), outputs(op, "Out")
    shape = shape_of(builder.program.variable(ids, block))
    if attribute(op, "overwrite", True) or len(shape) != 1 or dtype_of(
            builder.program.variable(updates, block)) != "float32":
        return [op]
    zeros = builder.variable_like(block, updates, f"{out}.zeros")
    cleared = builder.variable_like(block, out, f"{out}.cleared")
    index = builder.variable(block, f"{out}.index", [*shape, 1],
                             dtype_of(builder.program.variable(ids, block)))
    shadow = builder.variable(block, f"{out}.shape", [0])
    set_attribute(op, "overwrite", True)
    set_input(op, "Updates", zeros)
    set_output(op, "Out", cleared)
    return [make_op("fill_any_like", {"X": updates}, {"Out": zeros}, value=0.0, dtype=FLOAT32), op,
            make_op("unsqueeze2", {"X": ids}, {"Out": index, "XShape": shadow}, axes=[1]),
            make_op("scatter_nd_add", {"X": cleared, "Index": index, "Updates": updates},
                    {"Out": out})]
