"""Workarounds for Paddle Inference's int8 mode, for Linear layers above all.

Paddle Inference (2.6 to 3.3) quantizes the weight of a Linear again. Its scales are meant to be the
absolute maxima of the columns of the [K, N] weight, but each is computed over K consecutive values
in memory: columns larger than that are clipped, smaller ones are rounded coarsely. In a trained
transformer a Linear loses up to a third of its output.

:func:`fix_int8_layers` replaces such a weight by its integers with one scale for all columns, and
multiplies by the scales of the columns after the product. A ``quantize_linear`` of the weight
passes the one scale: Paddle Inference takes scales from such operators and removes them.

Layers without int8 kernels (transposed convolutions) get float weights. Paddle Inference takes the
absolute maximum of any weight for that of 8 bits; weights of fewer bits are scaled accordingly.
"""

import numpy as np

from ...export.paddle.lower import MarkerRemoval, linear_op
from ...export.paddle.markers_from_program import raise_to_markers
from ...export.program.graph_view import GraphView
from ...export.program.op_builder import OpBuilder
from ...export.program.op_desc import (
    all_inputs,
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
from ...export.program.passes.dequantize_weights import INFERENCE_WEIGHTS, float_weights
from ...export.program.passes.stored_weights import stored_weights
from ...export.program.validate import contradictions_reported
from ..saturation import can_saturate

_PRODUCTS = ("matmul_v2", "matmul", "mul")
_TRANSPOSED = ("trans_x", "trans_y", "transpose_X", "transpose_Y")
# Activations are unsigned after _UNSIGNED operators, also through _PASSING operators.
_UNSIGNED = ("relu", "relu6")
_PASSING = ("quantize_linear", "dequantize_linear", "transpose2", "reshape2", "pool2d", "slice",
            "nearest_interp", "nearest_interp_v2", "flatten_contiguous_range", "squeeze2",
            "unsqueeze2", "dropout", "assign", "concat", "split")
_LAST_AXIS = 2  # products of tensors with more axes are computed in float
_LEVELS = np.float32(127.0)
_MAX_BIAS = 2.0 ** 30


@contradictions_reported()
def fix_int8_layers(program):
    """Change ``program`` in place to run with int8 kernels only; return the number of layers.

    Paddle Inference computes the blocks of ``if`` and ``while`` as they are.
    """
    builder, changed = OpBuilder(program), set()
    for block in program.desc.blocks[:1]:
        _restore_dequantize_linear(builder, block)
        changed |= float_weights(program, block) | _scale_to_8_bits(builder, block)
        graph, replaced = GraphView(block.ops), {}
        for op in block.ops:
            product = _product_of(program, graph, block, op)
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
        replace_ops(block, [new for op in block.ops for new in replaced.get(id(op), [op])])
    return len(changed)


def _restore_dequantize_linear(builder, block):
    """Let ``dequantize_linear`` dequantize the multiplied weights of integer products, in place."""
    program, ops, replaced = builder.program, list(block.ops), {}
    graph = GraphView(ops)
    for weight in stored_weights(program, ops).values():
        if weight.linear:
            continue
        zero = builder.parameter(f"{weight.target}.zero_point",
                                 np.zeros([program.arrays[weight.scale].size], np.float32))
        restored = linear_op("dequantize_linear", weight.name, weight.scale, zero, weight.target,
                             weight.bits, weight.axis)
        if _product_of(program, graph, block, restored) is not None:
            replaced.update((id(op), []) for op in weight.ops[:-1])
            replaced[id(weight.ops[-1])] = [restored]
    replace_ops(block, [new for op in ops for new in replaced.get(id(op), [op])])
    program.remove_unused_parameters()


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


def _product_of(program, graph, block, op):
    """Return the integer product whose weight ``op`` dequantizes, or None."""
    if op.type != "dequantize_linear":
        return None
    weight, (made,) = program.arrays.get(inputs(op, "X")[0]), outputs(op, "Y")
    product = graph.sole_consumer(made)
    if weight is None or weight.ndim != 2 or weight.dtype != np.int8 or product is None:
        return None
    if attribute(op, "quant_axis") not in (1, -1) or product.type not in _PRODUCTS or (
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


@contradictions_reported()
def saturating_layers(program):
    """Return names of the layers whose int8 kernels may saturate or lose bits without VNNI.

    Weights are dequantized by ``dequantize_linear`` afterwards where :func:`fix_int8_layers` can
    use that.
    """
    found = []
    builder = OpBuilder(program)
    for block in program.desc.blocks[:1]:
        _restore_dequantize_linear(builder, block)
        ops = list(block.ops)
        view, weights = GraphView(ops), stored_weights(program, ops)
        scaled = {name for op in ops for product in [_product_of(program, view, block, op)]
                if product is not None for name in inputs(product, "Y")}
        for op in ops:
            slot = INFERENCE_WEIGHTS.get(op.type)
            if slot is None:
                continue
            (name,) = inputs(op, slot)
            (data,) = inputs(op, "Input" if slot == "Filter" else "X")
            if not _comes_from(view, data, ("dequantize_linear",)):
                continue  # computed in float without a scale of its input
            if name not in weights:
                # Float weights, which are quantized to 8 bits, or a product of two activations.
                found.append(name)
            elif can_saturate(program.arrays[weights[name].name]) or (
                    _comes_from(view, data, _UNSIGNED) if slot == "Filter"
                    else name not in scaled):
                found.append(weights[name].name)
    return found


def _comes_from(view, name, kinds):
    """Return True if ``name`` is an output of ``kinds``, also through _PASSING operators."""
    todo, seen = [name], set()
    while todo:
        name = todo.pop()
        producer = view.producers.get(name)
        if producer is None or name in seen:
            continue
        seen.add(name)
        if producer.type in kinds:
            return True
        if producer.type in _PASSING:
            todo += all_inputs(producer)
    return False


@contradictions_reported()
def make_float(program):
    """Replace quantized weights by float weights and remove quantization of activations, in place.

    A program that keeps its weights in float (``fake_*`` operators) raises ``ExportError``.
    """
    MarkerRemoval(program, raise_to_markers(program)).run()
