"""Passes for defects and expectations of the runtimes that read a ``.pdmodel``.

:meth:`~..program.Program.save` applies them. They do not change the function of the graph. They
also remove attributes that describe the machine on which the program was traced (Paddle 2.6 stores
the Python stack of each operator), so that the same model gives the same bytes.
"""

from functools import partial

import numpy as np

from ..graph_view import GraphView
from ..op_builder import OpBuilder
from ..op_desc import (
    all_inputs,
    attribute,
    dtype_of,
    inputs,
    make_op,
    outputs,
    replace_ops,
    set_attribute,
    set_input,
    shape_of,
)
from ..validate import contradictions_reported
from .adaptive_pools import write_partly_global_pools
from .blocked_layouts import BlockedLayouts
from .channels_first import to_channels_first
from .computed_kernels import write_computed_kernels
from .dequantize_weights import INFERENCE_WEIGHTS, multiply_unused_integers
from .float_operators import PRODUCTS, round_float_inputs
from .ignored_parts import count_axes_from_end, write_ignored_parts
from .inclusive_pools import write_inclusive_pools
from .move_unsqueeze import move_unsqueeze
from .nearest_interpolation import gather_nearest
from .pads import write_pads
from .scale_propagation import ACTIVATIONS, ScalePropagation
from .transposed_convolutions import resolve_output_sizes, write_output_paddings

_CONVOLUTIONS = ("conv2d", "conv3d", "depthwise_conv2d")  # and these with _transpose
_ELEMENTWISE = ("elementwise_add", "elementwise_sub", "elementwise_mul", "elementwise_div")


@contradictions_reported()
def apply_runtime_workarounds(program):
    """Apply all runtime workarounds to the program in place. A second time changes nothing."""
    to_channels_first(program)
    resolve_output_sizes(program)
    count_axes_from_end(program)
    write_inclusive_pools(program)
    builder = OpBuilder(program)
    for block in program.desc.blocks:
        for op in block.ops:
            for attr in [attr for attr in op.attrs if attr.name == "op_callstack"]:
                op.attrs.remove(attr)
            if op.type in ("arg_max", "arg_min") and attribute(op, "axis", 0) < 0:
                # OpenVINO refuses negative axes.
                rank = len(shape_of(program.variable(inputs(op, "X")[0], block)))
                set_attribute(op, "axis", attribute(op, "axis") + rank, "long")
            if op.type == "relu6" and attribute(op, "threshold") is None:
                # Paddle-Lite aborts without it. Paddle removed it in 2.5.
                set_attribute(op, "threshold", 6.0)
        move_unsqueeze(builder, block)
        multiply_unused_integers(builder, block)
        write_output_paddings(builder, block)
        write_computed_kernels(builder, block)
        gather_nearest(builder, block)
        write_ignored_parts(builder, block)
        write_pads(builder, block)
        write_partly_global_pools(builder, block)
        ops = _add_biases_as_vectors(program, block, list(block.ops))
        ops = _write_all_axes(builder, block, ops)
        ops = _insert_assign(builder, block, ops, partial(_slots_of_whole_floats, program))
        ops = _insert_assign(builder, block, ops, partial(_slots_of_large_products, program, block,
                                                          GraphView(ops)))
        ops = _insert_assign(builder, block, ops, partial(_slots_of_scaled_products, program,
                                                          GraphView(ops)))
        ops = _insert_assign(builder, block, ops, partial(_slots_of_second_activations,
                                                          GraphView(ops)))
        ops = _insert_assign(builder, block, ops, BlockedLayouts(ops).slots_to_assign)
        replace_ops(block, _insert_assign(builder, block, ops,
                                          ScalePropagation(program, ops).slots_to_assign))
        round_float_inputs(builder, block)
    program.remove_unused_parameters()


def _add_biases_as_vectors(program, block, ops):
    """Add the bias of a convolution as a vector along the channel axis, not reshaped to 4-D.

    oneDNN's passes recognize only this form. Without the bias they cannot fuse the activation
    behind it either.
    """
    shapes = {var.name: shape_of(var) for var in block.vars}
    view, replaced = GraphView(ops), set()
    for op in ops:
        if op.type != "elementwise_add" or attribute(op, "axis", -1) != -1:
            continue
        (x,), (y,) = inputs(op, "X"), inputs(op, "Y")
        conv, reshape = view.source(op, "X"), view.source(op, "Y", "reshape2")
        if conv is None or not conv.type.startswith(_CONVOLUTIONS):
            continue
        if reshape is None or view.source(conv, "Filter", "elementwise_div") is not None:
            # oneDNN does not fuse a bias with a computed weight, but fuses the activation with the
            # bias, and then ignores the axis.
            continue
        (bias,) = inputs(reshape, "X")
        if bias not in program.arrays or len(shapes[y]) != len(shapes[x]) or (
                shapes[y][1] != program.arrays[bias].size):
            continue
        set_input(op, "Y", bias)
        set_attribute(op, "axis", 1)
        replaced.add(y)
    unused = replaced.difference(*(all_inputs(op) for op in ops))
    return [op for op in ops
            if not (op.type == "reshape2" and outputs(op, "Out")[0] in unused)]


def _write_all_axes(builder, block, ops):
    """Give operands that ``axis`` aligns with other axes than the last ones all axes.

    oneDNN's fused elementwise operators ignore ``axis``, and refuse the shapes. Biases that it
    fuses with a convolution stay.
    """
    view, written, kept = GraphView(ops), {}, []
    for op in ops:
        shape = _aligned_shape(builder.program, block, view, op)
        if shape is not None:
            (y,) = inputs(op, "Y")
            if (y, len(shape)) not in written:
                if y in builder.program.arrays:
                    array = builder.program.arrays[y]
                    full = builder.parameter(f"{y}.all_axes", array.reshape(shape))
                else:
                    dtype = dtype_of(builder.program.variable(y, block))
                    full, shadow = (builder.variable(block, f"{y}.{name}", sizes, kind)
                                    for name, sizes, kind in (("all_axes", shape, dtype),
                                                              ("all_axes.shape", [0], "float32")))
                    rank = len(shape_of(builder.program.variable(y, block)))
                    kept.append(make_op("unsqueeze2", {"X": y}, {"Out": full, "XShape": shadow},
                                        axes=list(range(rank, len(shape)))))
                written[y, len(shape)] = full
            set_input(op, "Y", written[y, len(shape)])
            set_attribute(op, "axis", -1)
        kept.append(op)
    return kept


def _aligned_shape(program, block, view, op):
    """Return the shape of ``Y`` with all axes behind its own, None if it needs no others."""
    axis = attribute(op, "axis", -1)
    if op.type not in _ELEMENTWISE or axis < 0:
        return None
    x, y = (shape_of(program.variable(inputs(op, slot)[0], block)) for slot in "XY")
    if not y or axis + len(y) >= len(x):
        return None
    producer = view.source(op, "X")
    if producer is not None and (
            producer.type == "cast" and inputs(producer, "X")[0] in program.arrays  # a weight
            or op.type == "elementwise_add" and inputs(op, "Y")[0] in program.arrays
            and producer.type.startswith(_CONVOLUTIONS)
            and view.source(producer, "Filter", "elementwise_div") is None):
        return None
    return y + [1] * (len(x) - axis - len(y))


def _insert_assign(builder, block, ops, slots_of):
    """Insert ``assign`` in front of the input slots ``slots_of(op)`` of each operator."""
    assigned, kept = {}, []
    for op in ops:
        for slot in slots_of(op):
            source = inputs(op, slot)[0]
            if source not in assigned:
                dtype = dtype_of(builder.program.variable(source, block))
                assigned[source] = builder.variable_like(block, source, f"{source}.assigned", dtype)
                kept.append(make_op("assign", {"X": source}, {"Out": assigned[source]}))
            set_input(op, slot, assigned[source])
        kept.append(op)
    return kept


def _slots_of_large_products(program, block, view, op):
    """Slot of the product in the addition of a bias, if it has more than four dimensions.

    oneDNN's fused operator in Paddle 2.6 refuses more.
    """
    product = view.source(op, "X") if op.type == "elementwise_add" else None
    large = product is not None and product.type in PRODUCTS and len(
        shape_of(program.variable(inputs(op, "X")[0], block))) > 4
    return ("X",) if large and inputs(op, "Y")[0] in program.arrays else ()


def _slots_of_scaled_products(program, view, op):
    """Slot of a product in a multiplication by a constant.

    oneDNN's pass gives the constant to the operator in front of it. If this is a product with a
    bias (and a relu), it ignores the constant. If this is a product that other operators read too,
    the pass removes the result from the graph, and Paddle Inference fails. Where the constant is a
    tensor, it fails behind every operator that the pass knows.
    """
    if op.type != "scale" or attribute(op, "bias", 0.0):
        return ()
    producer = view.source(op, "X")
    if producer is not None and inputs(op, "ScaleTensor"):
        return ("X",)
    if producer is not None and producer.type in PRODUCTS:
        return () if view.sole_consumer(inputs(op, "X")[0]) is op else ("X",)
    if producer is not None and producer.type == "relu":
        producer = view.source(producer, "X")
    if producer is None or producer.type != "elementwise_add" or (
            inputs(producer, "Y")[0] not in program.arrays):
        return ()
    product = view.source(producer, "X")
    return ("X",) if product is not None and product.type in PRODUCTS else ()


def _slots_of_second_activations(view, op):
    """Slot of an activation in another activation behind it.

    oneDNN's passes fuse both with the operator in front of them, which computes only the last.
    """
    first = view.source(op, "X") if op.type in ACTIVATIONS else None
    front = view.source(first, "X") if first is not None and first.type in ACTIVATIONS else None
    return ("X",) if front is not None and (
        front.type in (*_ELEMENTWISE, *PRODUCTS, "batch_norm")
        or front.type.startswith(_CONVOLUTIONS)) else ()


def _slots_of_whole_floats(program, op):
    """Slot of a float weight that consists of whole numbers.

    With int8 enabled, Paddle Inference takes such a weight (a rotation of 0, 1 and -1, a layer
    pruned to zeros) for a quantized one, looks for its scale and refuses the file.
    """
    slot = INFERENCE_WEIGHTS.get(op.type)
    array = program.arrays.get(inputs(op, slot)[0]) if slot else None
    return (slot,) if (array is not None and array.dtype.kind == "f"
                       and not np.any(array % 1)) else ()
