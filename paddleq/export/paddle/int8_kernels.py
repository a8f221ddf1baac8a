"""Operators of a ``.pdmodel`` for the int8 kernels of Paddle Inference's oneDNN only.

Paddle Inference (2.6 to 3.3) quantizes the weight of a Linear again. Its scales are meant to be the
absolute maxima of the columns of the [K, N] weight, but each is computed over K consecutive values
in memory: columns larger than that are clipped, smaller ones are rounded coarsely. So files for
every runtime have Linears that it computes in float
(:mod:`~paddleq.export.program.passes.float_operators`).

:func:`use_int8_kernels` replaces such a weight by its integers with one scale for all columns, and
multiplies by the scales of the columns after the product. A ``quantize_linear`` of the weight
passes the one scale: Paddle Inference takes scales from such operators and removes them.

Layers without int8 kernels (transposed convolutions) get float weights. Paddle Inference takes the
absolute maximum of any weight for that of 8 bits; weights of fewer bits are scaled accordingly.
"""

import numpy as np

from ..program.graph_view import GraphView
from ..program.op_builder import OpBuilder
from ..program.op_desc import (
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
from ..program.passes.dequantize_weights import (
    INFERENCE_WEIGHTS,
    float_weights,
    restore_dequantize_linear,
)
from ..program.passes.float_operators import PRODUCTS, remove_rounding, round_float_inputs
from ..program.passes.stored_weights import stored_weights
from ..program.validate import contradictions_reported

_TRANSPOSED = ("trans_x", "trans_y", "transpose_X", "transpose_Y")
_LAST_AXIS = 2  # products of tensors with more axes are computed in float
_LEVELS = np.float32(127.0)
_MAX_BIAS = 2.0 ** 30


@contradictions_reported()
def use_int8_kernels(program):
    """Change ``program`` in place to run with int8 kernels only; return the number of layers.

    Paddle Inference computes the blocks of ``if`` and ``while`` as they are.
    """
    builder, changed = OpBuilder(program), set()
    remove_rounding(program)
    for block in program.desc.blocks[:1]:
        restore_dequantize_linear(builder, block, INFERENCE_WEIGHTS)
        graph = GraphView(block.ops)
        changed |= float_weights(program, block, {
            name for op in block.ops if product_of(program, graph, block, op) is not None
            for name in outputs(op, "Y")}) | _scale_to_8_bits(builder, block)
        graph, replaced, products = GraphView(block.ops), {}, set()
        for op in block.ops:
            product = product_of(program, graph, block, op)
            if product is None:
                continue
            steps = _use_integers(builder, op)
            kept = [_bias_after(builder, graph, product, steps)]
            if kept[0] is None:
                # Without a bias it would be another operator, with other defects.
                kept = [product, _insert_after(builder, block, product, "add",
                                               np.zeros_like(steps))]
            replaced[id(kept[0])] = [*kept, _insert_after(builder, block, kept[-1], "mul", steps)]
            replaced[id(op)] = [_scale_operator(builder, op), op]
            changed.update(inputs(op, "X"))
            products.update(outputs(product, "Out"))
        replace_ops(block, [new for op in block.ops for new in replaced.get(id(op), [op])])
        round_float_inputs(builder, block, products, convolutions=False)
    return len(changed)


def _scale_to_8_bits(builder, block):
    """Scale weights of fewer bits to 8 bits; return their names."""
    changed, ops = set(), list(block.ops)
    for weight in stored_weights(builder.program, ops).values():
        if weight.linear and weight.bits < 8:
            levels = np.float32(2 ** (weight.bits - 1) - 1)
            abs_max = builder.program.arrays[weight.scale] * (_LEVELS / levels)
            set_input(weight.ops[-1], "Scale",
                      builder.parameter(f"{weight.scale}.of_127", abs_max))
            set_attribute(weight.ops[-1], "bit_length", 8)
            changed.add(weight.name)
    return changed


def product_of(program, graph, block, op):
    """Return the integer product whose weight ``op`` dequantizes, or None."""
    if op.type != "dequantize_linear":
        return None
    weight, (made,) = program.arrays.get(inputs(op, "X")[0]), outputs(op, "Y")
    product = graph.sole_consumer(made)
    if weight is None or weight.ndim != 2 or weight.dtype != np.int8 or product is None:
        return None
    if attribute(op, "quant_axis") not in (1, -1) or product.type not in PRODUCTS or (
            inputs(product, "Y")[0] != made or attribute(product, "alpha", 1.0) != 1.0
            or any(attribute(product, name, False) for name in _TRANSPOSED)):
        return None
    (source,) = inputs(product, "X")
    if _last_axis(block, source) > _LAST_AXIS:
        return None
    activation = graph.producers.get(source)
    return product if activation is not None and activation.type == "dequantize_linear" else None


def _scale_operator(builder, op):
    """Return the operator with the scale of a weight whose values are its integers."""
    (weight,) = inputs(op, "X")
    scale = builder.parameter(f"{weight}.levels", np.array([_LEVELS]))
    zero = builder.parameter(f"{weight}.no_zero_point", np.zeros([1], np.float32))
    block = builder.program.desc.blocks[0]
    target = builder.variable(block, f"{weight}.with_scale", builder.program.arrays[weight].shape)
    return make_op("quantize_linear", {"X": weight, "Scale": scale, "ZeroPoint": zero},
                   {"Y": target}, quant_axis=-1, bit_length=8, qmin=-128, qmax=127, round_type=0,
                   is_test=True, only_observer=False)


def _use_integers(builder, op):
    """Let ``op`` return the integers of its weight; return the scale of each column, [N]."""
    (scale,) = inputs(op, "Scale")
    columns = builder.program.arrays[inputs(op, "X")[0]].shape[1]
    abs_max = np.broadcast_to(builder.program.arrays[scale].reshape(-1), [columns])
    set_input(op, "Scale", builder.parameter(f"{scale}.levels", np.array([_LEVELS])))
    set_attribute(op, "quant_axis", -1)
    return abs_max / _LEVELS


def _bias_after(builder, graph, product, steps):
    """Divide the bias after a product by the scales; return its addition, or None."""
    program, addition = builder.program, graph.sole_consumer(outputs(product, "Out")[0])
    if addition is None or addition.type != "elementwise_add":
        return None
    bias = program.arrays.get(inputs(addition, "Y")[0])
    if bias is None or bias.shape != steps.shape:
        return None
    (scale,) = inputs(graph.producers[inputs(product, "X")[0]], "Scale")
    input_step = program.arrays[scale].max() / _LEVELS
    # The kernel quantizes it to 32 bits with both scales.
    if not (np.abs(bias) < _MAX_BIAS * input_step * steps).all():
        return None
    name = f"{outputs(product, 'Out')[0]}.bias_in_steps"
    set_input(addition, "Y", builder.parameter(name, bias / steps))
    return addition


def _insert_after(builder, block, op, kind, value):
    """Return ``elementwise_{kind}`` with a vector after ``op``; it takes over the output's name."""
    (result,) = outputs(op, "Out")
    before = builder.variable_like(block, result, f"{result}.before_{kind}")
    set_output(op, "Out", before)
    vector = builder.parameter(f"{result}.{kind}", value)
    return make_op(f"elementwise_{kind}", {"X": before, "Y": vector}, {"Out": result},
                   axis=_last_axis(block, result))


def _last_axis(block, name):
    return len(shape_of(next(var for var in block.vars if var.name == name))) - 1
