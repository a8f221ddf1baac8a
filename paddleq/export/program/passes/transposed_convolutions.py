"""Sizes of the outputs of transposed convolutions, in the form that every runtime computes.

A stride gives several outputs of different sizes; ``output_size`` or ``output_padding`` selects
one. paddle2onnx ignores ``output_size``, OpenVINO both. Smaller paddings at the end give the same
output. For the padding "SAME" both compute another one than Paddle, from the size of the output.
"""

import numpy as np

from ....errors import UnsupportedOperatorError
from ..graph_view import GraphView
from ..op_builder import OpBuilder
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
    tensor_of,
)
from .stored_weights import stored_weights

_CONVOLUTIONS = ("conv2d_transpose", "depthwise_conv2d_transpose", "conv3d_transpose")
COMPUTED_SIZES = ("OutputSizeTensor", "OutputSizeTensorList")  # slots of a computed size
_VARIABLES = (13, 14)  # types of an attribute that names one or several variables


def resolve_output_sizes(program, computed=False):
    """Replace ``output_size`` by ``output_padding`` in place; by a slice if it is computed.

    ``computed``: replace only those that the program computes.
    """
    builder = None
    for block in program.desc.blocks:
        if not any(op.type in _CONVOLUTIONS for op in block.ops):
            continue
        builder = builder or OpBuilder(program)
        kept = []
        for op in block.ops:
            kept.append(op)
            if op.type in _CONVOLUTIONS and (_computed_sizes(op) or not computed):
                if not computed:
                    _write_same_padding(program, block, op)
                kept.extend(_resolve(builder, block, op))
        replace_ops(block, kept)


def _resolve(builder, block, op):
    """Yield the operators that follow a transposed convolution to give the size it has now."""
    sizes = _computed_sizes(op)
    known = attribute(op, "output_size") or []
    if not sizes and not known:
        return
    geometry = _geometry(builder.program, block, op)
    if geometry is None:
        raise UnsupportedOperatorError(
            f"{op.type} has an output_size and padding_algorithm "
            f"{attribute(op, 'padding_algorithm')!r}; give the padding in numbers", op.type)
    for attr in [attr for attr in op.attrs if attr.name == "output_size"]:
        op.attrs.remove(attr)
    set_attribute(op, "output_size", [])
    strides, spans, paddings = geometry
    if not sizes:
        # The size of the input contributes a multiple of the stride.
        known = known * len(strides) if len(known) == 1 else known
        set_attribute(op, "output_padding", [
            (size - span + sum(pair)) % stride
            for size, stride, span, pair in zip(known, strides, spans, paddings)])
        return
    for entry in [entry for entry in op.inputs if entry.parameter in COMPUTED_SIZES]:
        op.inputs.remove(entry)
    set_attribute(op, "output_padding", [stride - 1 for stride in strides])
    (result,) = outputs(op, "Output")
    axes = _spatial_axes(op)
    shape = shape_of(builder.program.variable(result, block))
    whole = builder.variable(block, f"{result}.whole", [
        -1 if axis in axes else size for axis, size in enumerate(shape)])
    set_output(op, "Output", whole)
    ends = {"EndsTensor": sizes} if len(sizes) == 1 < len(strides) else {"EndsTensorList": sizes}
    yield make_op("slice", {"Input": whole, **ends}, {"Out": result}, axes=axes,
                  starts=[0] * len(axes), ends=[-1] * len(axes), infer_flags=[-1] * len(axes),
                  decrease_axis=[])


def _write_same_padding(program, block, op):
    """Write the padding "SAME" in numbers. Paddle ignores dilations then."""
    if attribute(op, "padding_algorithm", "EXPLICIT") != "SAME":
        return
    axes, strides = _spatial_axes(op), list(attribute(op, "strides"))
    shape = shape_of(program.variable(inputs(op, "Input")[0], block))
    sizes = [shape[axis] for axis in axes]
    kernel = shape_of(program.variable(inputs(op, "Filter")[0], block))[2:]
    if any(size < 1 < stride for size, stride in zip(sizes, strides)):
        raise UnsupportedOperatorError(
            f"{op.type} has the padding 'SAME' and an input of the open size {sizes}, for which "
            "OpenVINO and ONNX compute another padding; give the padding in numbers or the size "
            "in input_spec", op.type)
    totals = [max((-(-size // stride) - 1) * stride + extent - size, 0)
              for size, stride, extent in zip(sizes, strides, kernel)]
    set_attribute(op, "paddings", [part for total in totals
                                   for part in (total // 2, total - total // 2)])
    set_attribute(op, "padding_algorithm", "EXPLICIT")
    set_attribute(op, "dilations", [1] * len(axes))


def _computed_sizes(op):
    """Variables with the output size: one for all axes, or one for each."""
    for slot in COMPUTED_SIZES:
        if inputs(op, slot):
            return inputs(op, slot)
    attr = next((attr for attr in op.attrs if attr.name == "output_size"
                 and attr.type in _VARIABLES), None)
    return [] if attr is None else list(attr.vars_name) or [attr.var_name]


def write_output_paddings(builder, block):
    """Write ``output_padding`` as smaller paddings, in place."""
    program, ops, added = builder.program, list(block.ops), {}
    stored = view = None  # before any change
    for op in ops:
        extra = op.type in _CONVOLUTIONS and attribute(op, "output_padding") or []
        geometry = _geometry(program, block, op) if any(extra) else None
        if geometry is None:
            continue
        _, _, paddings = geometry
        dilations = attribute(op, "dilations") or [1] * len(paddings)
        # More than the padding: rows of zeros at the end of the kernel.
        missing = [max(more - end, 0) for more, (_, end) in zip(extra, paddings)]
        rows = [-(-size // dilation) for size, dilation in zip(missing, dilations)]
        if any(rows):
            if view is None:
                stored, view = stored_weights(program, ops), GraphView.of_program(program)
            if not _append_zeros(program, block, stored, view, op, rows):
                added[id(op)] = _concatenate_zeros(builder, block, op, rows)
        set_attribute(op, "paddings", [value for (start, end), more, count, dilation in zip(
            paddings, extra, rows, dilations)
            for value in (start, end - more + count * dilation)])
        set_attribute(op, "padding_algorithm", "EXPLICIT")
        set_attribute(op, "output_padding", [])
    if added:
        replace_ops(block, [new for op in ops for new in (*added.get(id(op), ()), op)])


def _append_zeros(program, block, stored, view, op, rows):
    """Enlarge the stored kernel of ``op``; return False if it is computed or used twice."""
    (name,) = inputs(op, "Filter")
    weight = stored.get(name)
    parameter = name if weight is None else weight.name
    if parameter not in program.arrays or any(
            view.sole_consumer(each) is None for each in (parameter, name)):
        return False
    array = np.pad(program.arrays[parameter], [(0, 0), (0, 0), *((0, row) for row in rows)])
    program.set_parameter(parameter, array)
    for each in () if weight is None else weight.ops:
        for entry in each.outputs:
            for target in entry.arguments:
                var = program.variable(target, block)
                if len(shape_of(var)) == array.ndim:
                    tensor_of(var).dims[:] = array.shape
    return True


def _concatenate_zeros(builder, block, op, rows):
    """Return the operators that enlarge the kernel of ``op`` when it is computed."""
    (name,) = inputs(op, "Filter")
    var, ops = builder.program.variable(name, block), []
    shape, dtype = shape_of(var), dtype_of(var)
    for axis, count in enumerate(rows, 2):
        if count:
            zeros = builder.parameter(f"{name}.zeros", np.zeros(
                [*shape[:axis], count, *shape[axis + 1:]], dtype))
            shape[axis] += count
            longer = builder.variable(block, f"{name}.longer", shape, dtype)
            ops.append(make_op("concat", {"X": [name, zeros]}, {"Out": longer}, axis=axis))
            name = longer
    set_input(op, "Filter", name)
    return ops


def _spatial_axes(op):
    layout = attribute(op, "data_format") or "NCHW"
    rank = 3 if "3d" in op.type else 2
    first = 1 if layout.endswith("C") else 2
    return list(range(first, first + rank))


def _geometry(program, block, op):
    """Return (strides, extents of the kernel, paddings as pairs), None if padding is not given."""
    algorithm, rank = attribute(op, "padding_algorithm", "EXPLICIT"), 3 if "3d" in op.type else 2
    paddings = list(attribute(op, "paddings") or [0] * rank)
    if algorithm == "VALID":
        paddings = [0] * rank
    if algorithm == "SAME" or len(paddings) not in (rank, 2 * rank):
        return None
    pairs = ([(each, each) for each in paddings] if len(paddings) == rank
             else list(zip(paddings[::2], paddings[1::2])))
    kernel = shape_of(program.variable(inputs(op, "Filter")[0], block))[2:]
    dilations = attribute(op, "dilations") or [1] * rank
    spans = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel)]
    return list(attribute(op, "strides")), spans, pairs
