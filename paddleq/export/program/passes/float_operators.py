"""Rounding of what Paddle Inference's int8 mode reads with operators that it computes in float.

Paddle Inference (2.6 to 3.3) computes the scales of the columns of a Linear's weight wrongly: each
is the absolute maximum of K consecutive values in memory of the [K, N] weight. A Linear is right
only if it is computed in float, which the mode does if the input has no scale. It removes all
quantization, so the input would not be rounded either, nor clipped. The same holds for convolutions
without an int8 kernel, those whose weight of few bits is dequantized by multiplication, and
:mod:`.activation_steps`.

A ``concat`` of one tensor in front of the quantizer rounds it: the mode computes that with integers
of the scale of its output, and returns floats. ``assign`` in front of it ends the propagation of
the scale to other operators, and ``assign`` behind ``dequantize_linear`` that to the Linear. As the
file stands, and in other runtimes, all three return their input.
"""

from ..graph_view import GraphView
from ..op_desc import (
    all_inputs,
    all_outputs,
    dtype_of,
    inputs,
    make_op,
    outputs,
    rename_inputs,
    replace_ops,
    set_input,
)

PRODUCTS = ("matmul", "matmul_v2", "mul")
# Quantizer -> slot of its scale.
_QUANTIZERS = {"quantize_linear": "Scale",
               "fake_quantize_dequantize_moving_average_abs_max": "InScale"}
_CONVOLUTIONS = ("conv2d_transpose", "depthwise_conv2d_transpose", "conv3d", "conv3d_transpose")
_INT8_CONVOLUTIONS = ("conv2d", "depthwise_conv2d")  # with a weight that dequantize_linear makes


def round_float_inputs(builder, block, integer_products=(), convolutions=True):
    """Round the quantized inputs of operators that are computed in float, in place.

    ``integer_products``: outputs of the products that are not. ``convolutions``: also of those.
    """
    ops, added, kept = list(block.ops), {}, []
    view = GraphView(ops)

    def behind(source, kind, key=None, **attributes):
        """Return the output of an operator that copies ``source``, which is added once."""
        if (source, kind, key) not in added:
            dtype = dtype_of(builder.program.variable(source, block))
            target = added[source, kind, key] = builder.variable_like(
                block, source, f"{source}.{kind}", dtype)
            kept.append(make_op(kind, {"X": [source]}, {"Out": target}, **attributes))
        return added[source, kind, key]

    def slots(op):
        return [] if not set(integer_products).isdisjoint(all_outputs(op)) else _float_slots(
            view, op)

    for op in ops:
        if op.type in _QUANTIZERS and not _is_rounded(view, op) and any(
                slots(reader) or convolutions and _is_float_convolution(view, reader)
                or _multiplies_by_parameter(builder.program, reader)
                for reader in _readers(view, op)):
            (source,), scale = inputs(op, "X"), builder.program.arrays[
                inputs(op, _QUANTIZERS[op.type])[0]]
            # It is added behind an assign of another pass too, which remove_rounding() has to keep.
            set_input(op, "X", behind(behind(source, "assign"), "concat", scale.tobytes(), axis=0))
        for slot in slots(op):
            set_input(op, slot, behind(inputs(op, slot)[0], "assign"))
        kept.append(op)
    replace_ops(block, kept)


def remove_rounding(program):
    """Remove what :func:`round_float_inputs` added, in place; return True if there was any."""
    found = False
    for block in program.desc.blocks:
        ops = list(block.ops)
        view, renamed = GraphView(ops), {}
        for op in ops:
            if op.type == "assign" and _is_quantized_activation(view, op, "X") and all(
                    reader is not None and reader.type in PRODUCTS
                    for reader in view.consumers.get(outputs(op, "Out")[0], ())):
                renamed[outputs(op, "Out")[0]] = inputs(op, "X")[0]
            elif op.type in _QUANTIZERS and _is_rounded(view, op):
                concat = view.source(op, "X")
                before = view.source(concat, "X")
                renamed[outputs(concat, "Out")[0]] = inputs(before, "X")[0]
                if all(_is_rounding(each) for each in view.consumers[outputs(before, "Out")[0]]):
                    renamed[outputs(before, "Out")[0]] = inputs(before, "X")[0]
        rename_inputs(ops, renamed)
        replace_ops(block, [op for op in ops if renamed.keys().isdisjoint(all_outputs(op))])
        found |= bool(renamed)
    return found


def _float_slots(view, op):
    """Slots of a product that are quantized activations, if only one operand is."""
    if op.type not in PRODUCTS:
        return []
    quantized = [slot for slot in "XY" if _is_quantized_activation(view, op, slot)]
    return quantized if len(quantized) == 1 else []


def _is_float_convolution(view, op):
    weight = view.source(op, "Filter") if op.type in _INT8_CONVOLUTIONS else None
    return op.type in _CONVOLUTIONS or (
        weight is not None and weight.type != "dequantize_linear")


def _multiplies_by_parameter(program, op):
    """Return True for operators of :mod:`.activation_steps`."""
    return op.type == "elementwise_mul" and inputs(op, "Y")[0] in program.arrays


def _is_quantized_activation(view, op, slot):
    source = view.source(op, slot)
    if source is not None and source.type == "dequantize_linear":
        source = view.source(source, "X")
    return source is not None and source.type in _QUANTIZERS


def _readers(view, quantizer):
    """Operators that read the dequantized output of a quantizer."""
    if quantizer.type == "quantize_linear":
        return view.readers_of_quantized(quantizer)
    return [op for op in view.consumers.get(outputs(quantizer, "Out")[0], ()) if op is not None]


def _is_rounded(view, quantize):
    concat = view.source(quantize, "X")
    return concat is not None and _is_rounding(concat) and (
        view.source(concat, "X", "assign") is not None)


def _is_rounding(op):
    return op is not None and op.type == "concat" and len(all_inputs(op)) == 1
