"""Convert operators with channels last to channels first, between two transposes.

ONNX supports no other order, and paddle2onnx ignores the order of some of these operators.
"""

from ..op_builder import OpBuilder
from ..op_desc import (
    attribute,
    inputs,
    make_op,
    outputs,
    replace_ops,
    set_attribute,
    set_input,
    set_output,
    set_typed_attribute,
    shape_of,
)

_DENSE_TENSOR = 7  # VarType.Type of framework.proto
_LAST = {"NHWC": "NCHW", "NDHWC": "NCDHW", "NLC": "NCL", "NWC": "NCW"}
_CONVOLUTION = ("Input", "Output", "data_format")
_INTERPOLATION = ("X", "Out", "data_layout")
# Operator type -> (input slot, output slot, attribute with the order).
_LAYOUTS = {
    "conv2d": _CONVOLUTION, "depthwise_conv2d": _CONVOLUTION, "conv3d": _CONVOLUTION,
    "conv2d_transpose": _CONVOLUTION, "depthwise_conv2d_transpose": _CONVOLUTION,
    "conv3d_transpose": _CONVOLUTION,
    "pool2d": ("X", "Out", "data_format"), "pool3d": ("X", "Out", "data_format"),
    "batch_norm": ("X", "Y", "data_layout"), "group_norm": ("X", "Y", "data_layout"),
    "linear_interp_v2": _INTERPOLATION, "bilinear_interp_v2": _INTERPOLATION,
    "nearest_interp_v2": _INTERPOLATION, "bicubic_interp_v2": _INTERPOLATION,
    "trilinear_interp_v2": _INTERPOLATION,
    "pad3d": ("X", "Out", "data_format"), "prelu": ("X", "Out", "data_format"),
}


def to_channels_first(program):
    """Convert all operators of ``program`` in place."""
    builder = OpBuilder(program)
    for block in program.desc.blocks:
        shapes = {var.name: shape_of(var) for var in block.vars
                  if var.type.type == _DENSE_TENSOR}
        ops = [new for op in block.ops for new in _replaced(builder, block, op, shapes)]
        replace_ops(block, ops)


def _replaced(builder, block, op, shapes):
    source_slot, target_slot, order = _LAYOUTS.get(op.type, (None, None, None))
    layout = order and attribute(op, order)
    if layout not in _LAST:
        return [op]
    (target,) = outputs(op, target_slot)
    rank = len(shapes[target])
    if rank != len(layout):  # without spatial dimensions the order has no meaning
        return [op]
    set_attribute(op, order, _LAST[layout])
    forth, back = [0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]
    first = _transpose(builder, block, inputs(op, source_slot)[0], None, forth, shapes)
    set_input(op, source_slot, outputs(first, "Out")[0])
    inner = builder.variable(block, f"{target}.first", [shapes[target][i] for i in forth])
    set_output(op, target_slot, inner)
    last = _transpose(builder, block, inner, target, back, shapes)
    return [first, op, last]


def _transpose(builder, block, source, target, axes, shapes):
    if target is None:
        shape = [shapes[source][i] for i in axes]
        target = builder.variable(block, f"{source}.first", shape)
    shadow = builder.variable(block, f"{target}.shape", [0])
    op = make_op("transpose2", {"X": source}, {"Out": target, "XShape": shadow})
    set_typed_attribute(op, "axis", "ints", axes)
    return op
