"""Operators whose channels come last, as ones whose channels come first between two transposes.

ONNX knows no other order, and paddle2onnx writes some of these operators as if they had it.
"""

from ..op_builder import OpBuilder
from ..op_desc import (
    attribute,
    make_op,
    outputs,
    replace_ops,
    set_attribute,
    set_typed_attribute,
    shape_of,
)

_DENSE_TENSOR = 7  # paddle.framework.proto.VarType.Type
_LAST = {"NHWC": "NCHW", "NDHWC": "NCDHW", "NLC": "NCL", "NWC": "NCW"}
_CONVOLUTION = ("Input", "Output", "data_format")
_INTERPOLATION = ("X", "Out", "data_layout")
# Op type -> (slot of what it reads, slot of what it makes, attribute that says the order).
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


def put_channels_first(program):
    """Change ``program`` in place; what it computes stays."""
    emit = OpBuilder(program)
    for block in program.desc.blocks:
        shapes = {var.name: shape_of(var) for var in block.vars
                  if var.type.type == _DENSE_TENSOR}
        ops = [new for op in block.ops for new in _replaced(emit, block, op, shapes)]
        replace_ops(block, ops)


def _replaced(emit, block, op, shapes):
    source_slot, target_slot, order = _LAYOUTS.get(op.type, (None, None, None))
    layout = order and attribute(op, order)
    if layout not in _LAST:
        return [op]
    (target,) = outputs(op, target_slot)
    rank = len(shapes[target])
    if rank != len(layout):  # the order means nothing: two dimensions, say
        return [op]
    set_attribute(op, order, _LAST[layout])
    forth, back = [0, rank - 1, *range(1, rank - 1)], [0, *range(2, rank), 1]
    source = next(slot for slot in op.inputs if slot.parameter == source_slot)
    made = next(slot for slot in op.outputs if slot.parameter == target_slot)
    first = _transpose(emit, block, source.arguments[0], None, forth, shapes)
    source.arguments[0] = outputs(first, "Out")[0]
    inner = [shapes[target][i] for i in forth]
    made.arguments[0] = emit.variable(block, f"{target}.first", inner)
    last = _transpose(emit, block, made.arguments[0], target, back, shapes)
    return [first, op, last]


def _transpose(emit, block, source, target, axes, shapes):
    if target is None:
        shape = [shapes[source][i] for i in axes]
        target = emit.variable(block, f"{source}.first", shape)
    shadow = emit.variable(block, f"{target}.shape", [0])
    op = make_op("transpose2", {"X": source}, {"Out": target, "XShape": shadow})
    set_typed_attribute(op, "axis", "ints", axes)
    return op
