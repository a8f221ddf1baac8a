"""Convert operators with channels last to channels first, between two transposes.

ONNX supports no other order, and paddle2onnx ignores the order of some of these operators.
"""

from ..op_builder import OpBuilder
from ..op_desc import (
    DENSE_TENSOR,
    attribute,
    inputs,
    make_op,
    outputs,
    replace_ops,
    set_attribute,
    set_input,
    set_output,
    shape_of,
)

_LAST = {"NHWC": "NCHW", "NDHWC": "NCDHW", "NLC": "NCL", "NWC": "NCW"}
# Operator type -> (input slot, output slot, attribute with the order).
_LAYOUTS = {
    **dict.fromkeys(("conv2d", "depthwise_conv2d", "conv3d", "conv2d_transpose",
                     "depthwise_conv2d_transpose", "conv3d_transpose"),
                    ("Input", "Output", "data_format")),
    **dict.fromkeys(("pool2d", "pool3d", "pad3d", "prelu", "pixel_shuffle"),
                    ("X", "Out", "data_format")),
    **dict.fromkeys(("batch_norm", "group_norm"), ("X", "Y", "data_layout")),
    **dict.fromkeys((f"{kind}_interp_v2" for kind in ("linear", "bilinear", "nearest", "bicubic",
                                                      "trilinear")), ("X", "Out", "data_layout")),
}


# Runtimes of a .pdmodel ignore their order: OpenVINO, for pools also Paddle Inference with oneDNN.
IGNORED_BY_RUNTIMES = ("pool2d", "pool3d", *(each for each in _LAYOUTS if "interp" in each))


def to_channels_first(program, types=tuple(_LAYOUTS)):
    """Convert all operators of ``types`` in ``program`` in place."""
    if not any(op.type in types for block in program.desc.blocks for op in block.ops):
        return
    builder = OpBuilder(program)
    for block in program.desc.blocks:
        shapes = {var.name: shape_of(var) for var in block.vars if var.type.type == DENSE_TENSOR}
        ops = [new for op in block.ops for new in (
            _replaced(builder, block, op, shapes) if op.type in types else [op])]
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
    (source,) = inputs(op, source_slot)
    first, inner = (builder.variable(block, f"{name}.first", [shapes[name][i] for i in forth])
                    for name in (source, target))
    set_input(op, source_slot, first)
    set_output(op, target_slot, inner)
    return [_transpose(builder, block, source, first, forth), op,
            _transpose(builder, block, inner, target, back)]


def _transpose(builder, block, source, target, axes):
    shadow = builder.variable(block, f"{target}.shape", [0])
    return make_op("transpose2", {"X": source}, {"Out": target, "XShape": shadow}, axis=axes)
