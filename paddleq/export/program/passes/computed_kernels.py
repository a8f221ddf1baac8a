"""Convolutions whose kernel the model computes from its inputs.

Paddle Inference's int8 mode (2.6 to 3.3) looks for the stored kernel of each ``conv2d`` and refuses
the file if there is none; transposed convolutions with a computed kernel fail at the first run. It
leaves convolutions of three dimensions in float, which compute the same with a third axis of one
element. OpenVINO does not read those of a ``.pdmodel``, so float programs keep theirs.
"""

from ..graph_view import GraphView
from ..op_desc import (
    all_inputs,
    attribute,
    dtype_of,
    inputs,
    make_op,
    outputs,
    replace_ops,
    shape_of,
)

_TYPES = {"conv2d": "conv3d", "depthwise_conv2d": "conv3d", "conv2d_transpose": "conv3d_transpose",
          "depthwise_conv2d_transpose": "conv3d_transpose"}


def write_computed_kernels(builder, block):
    """Write 2-D convolutions with computed kernels as convolutions of three dimensions."""
    if not (any(op.type in _TYPES for op in block.ops) and _is_quantized(builder.program)):
        return
    view = GraphView.of_program(builder.program)
    replace_ops(block, [new for op in block.ops for new in (
        _in_three_dimensions(builder, block, op) if op.type in _TYPES and _is_computed(
            builder.program, view, inputs(op, "Filter")[0]) else [op])])


def _is_quantized(program):
    return any(op.type == "quantize_linear" for block in program.desc.blocks for op in block.ops)


def _is_computed(program, view, name):
    """Return True if a tensor depends on more than parameters and constants."""
    waiting, seen = [name], set()
    while waiting:
        name = waiting.pop()
        if name in seen or name in program.arrays:
            continue
        seen.add(name)
        producer = view.producers.get(name)
        if producer is None or producer.type == "feed":
            return True
        waiting.extend(all_inputs(producer))
    return False


def _in_three_dimensions(builder, block, op):
    """Yield the operators that compute a 2-D convolution as one of three dimensions."""
    (x,), (kernel,), (result,) = (inputs(op, "Input"), inputs(op, "Filter"), outputs(op, "Output"))

    def axis_added(name):
        variable = builder.program.variable(name, block)
        shape, dtype = shape_of(variable), dtype_of(variable)
        added = builder.variable(block, f"{name}.depth", [*shape[:2], 1, *shape[2:]], dtype)
        return added, builder.variable(block, f"{name}.depth.shape", [0, *shape], dtype)

    (deep_x, x_shape), (deep_kernel, kernel_shape), (deep, shadow) = map(
        axis_added, (x, kernel, result))
    paddings = list(attribute(op, "paddings"))
    yield make_op("unsqueeze2", {"X": x}, {"Out": deep_x, "XShape": x_shape}, axes=[2])
    yield make_op("unsqueeze2", {"X": kernel}, {"Out": deep_kernel, "XShape": kernel_shape},
                  axes=[2])
    yield make_op(_TYPES[op.type], {"Input": deep_x, "Filter": deep_kernel}, {"Output": deep},
                  strides=[1, *attribute(op, "strides")], groups=attribute(op, "groups", 1),
                  dilations=[1, *(attribute(op, "dilations") or [1, 1])],
                  paddings=[0] * (len(paddings) // 2) + paddings, data_format="NCDHW",
                  padding_algorithm=attribute(op, "padding_algorithm", "EXPLICIT"),
                  **({"output_padding": [], "output_size": []} if "transpose" in op.type else {}))
    yield make_op("squeeze2", {"X": deep}, {"Out": result, "XShape": shadow}, axes=[2])
