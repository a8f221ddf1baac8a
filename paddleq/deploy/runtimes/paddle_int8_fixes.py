"""Layers so that Paddle Inference's int8 mode computes them right: Linears above all.

Paddle Inference (2.6 to 3.3) quantizes the weight of a Linear anew, in steps of its own. It means
to take the largest value of each column of the [K, N] weight, but reads K values in a row of
memory for each: a column that is larger than what it looked at is clipped, one that is smaller is
rounded coarsely. In a trained transformer a Linear can lose a third of its output so.

Here the weight becomes its integers, in one step for all columns, and the steps of the columns are
multiplied behind the product. The one step is told: Paddle Inference takes a quantize_linear that
reads the weight for the source of its scale, and removes it with the other quantizers.

Where it has no int8 kernel (transposed convolutions) the weight is put in as floats. It takes the
threshold of any weight for that of the level 127; where there are fewer levels, that is put in.
"""

import numpy as np

from ...export.paddle.lower import remove_markers
from ...export.paddle.markers_from_program import raise_to_markers
from ...export.program.graph_view import GraphView
from ...export.program.op_builder import OpBuilder
from ...export.program.op_desc import (
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
from ..saturation import can_saturate

_PRODUCTS = ("matmul_v2", "matmul", "mul")
_TRANSPOSED = ("trans_x", "trans_y", "transpose_X", "transpose_Y")
# Paddle Inference keeps activations unsigned behind these, and through those.
_UNSIGNED = ("relu", "relu6")
_PASSING = ("quantize_linear", "dequantize_linear", "transpose2", "reshape2", "pool2d", "slice",
            "nearest_interp", "nearest_interp_v2", "flatten_contiguous_range", "squeeze2",
            "unsqueeze2", "dropout", "assign", "concat", "split")
_LAST_AXIS = 2  # products of tensors with more axes it computes in float
_LEVELS = np.float32(127.0)
_MOST_STEPS = 2.0 ** 30


def tell_steps(program):
    """Change ``program`` in place. It is then for int8 kernels only: as it stands it cannot run.

    Returns:
        How many layers were changed.
    """
    emit, changed = OpBuilder(program), set()
    for block in program.desc.blocks:
        changed |= float_weights(program, block) | _as_eight_bits(emit, block)
        graph, replaced = GraphView(block.ops), {}
        for op in block.ops:
            product = _product_of(program, graph, block, op)
            if product is None:
                continue
            steps = _made_integers(emit, op)
            bias = _bias_behind(emit, graph, product, steps)
            if bias is None:
                # Without a bias it would be another operator, with other mistakes.
                bias = _behind(emit, block, product, "add", np.zeros_like(steps))
                replaced[id(product)] = [product, bias, _behind(emit, block, bias, "mul", steps)]
            else:
                replaced[id(bias)] = [bias, _behind(emit, block, bias, "mul", steps)]
            replaced[id(op)] = [_told(emit, op), op]
            changed.update(inputs(op, "X"))
        replace_ops(block, [new for op in block.ops for new in replaced.get(id(op), [op])])
    return len(changed)


def _as_eight_bits(emit, block):
    """Names of the weights that had fewer bits, and now have the threshold of the level 127."""
    changed, ops = set(), list(block.ops)
    for weight in stored_weights(emit.program, ops).values():
        if weight.linear and weight.bits < 8:
            levels = np.float32(2 ** (weight.bits - 1) - 1)
            thresholds = emit.program.arrays[weight.scale] * (_LEVELS / levels)
            set_input(weight.ops[-1], "Scale",
                    emit.parameter(f"{weight.scale}.of_127", thresholds))
            set_attribute(weight.ops[-1], "bit_length", 8)
            changed.add(weight.name)
    return changed


def _product_of(program, graph, block, op):
    """The product of integers whose weight ``op`` dequantizes, or None."""
    if op.type != "dequantize_linear":
        return None
    weight, (made,) = program.arrays.get(inputs(op, "X")[0]), outputs(op, "Y")
    readers = graph.consumers.get(made, [])
    if weight is None or weight.ndim != 2 or weight.dtype != np.int8 or len(readers) != 1:
        return None
    if attribute(op, "quant_axis") not in (1, -1):
        return None
    (product,) = readers
    if product.type not in _PRODUCTS or inputs(product, "Y")[0] != made or any(
            attribute(product, name, False) for name in _TRANSPOSED):
        return None
    if attribute(product, "alpha", 1.0) != 1.0:
        return None
    (source,) = inputs(product, "X")
    if _last_axis(block, source) > _LAST_AXIS:
        return None
    activation = graph.producers.get(source)
    return product if activation is not None and activation.type == "dequantize_linear" else None


def _told(emit, op):
    """The op that tells that the integers of a weight are its values."""
    (weight,) = inputs(op, "X")
    scale = emit.parameter(f"{weight}.levels", np.array([_LEVELS]))
    zero = emit.parameter(f"{weight}.no_zero_point", np.zeros([1], np.float32))
    block = emit.program.desc.blocks[0]
    target = emit.variable(block, f"{weight}.told", emit.program.arrays[weight].shape)
    return make_op("quantize_linear", {"X": weight, "Scale": scale, "ZeroPoint": zero},
                   {"Y": target}, quant_axis=-1, bit_length=8, qmin=-128, qmax=127, round_type=0,
                   is_test=True, only_observer=False)


def _made_integers(emit, op):
    """Makes ``op`` give the integers of its weight; returns the step of each column, [N]."""
    (scale,) = inputs(op, "Scale")
    columns = emit.program.arrays[inputs(op, "X")[0]].shape[1]
    thresholds = np.broadcast_to(emit.program.arrays[scale].reshape(-1), [columns])
    set_input(op, "Scale", emit.parameter(f"{scale}.levels", np.array([_LEVELS])))
    set_attribute(op, "quant_axis", -1)
    return thresholds / _LEVELS


def _bias_behind(emit, graph, product, steps):
    """The addition of a bias behind a product, now in steps, or None."""
    program, readers = emit.program, graph.consumers.get(outputs(product, "Out")[0], [])
    if len(readers) != 1 or readers[0].type != "elementwise_add":
        return None
    (addition,) = readers
    bias = program.arrays.get(inputs(addition, "Y")[0])
    if bias is None or bias.shape != steps.shape:
        return None
    (scale,) = inputs(graph.producers[inputs(product, "X")[0]], "Scale")
    input_step = program.arrays[scale].max() / _LEVELS
    # The kernel counts it in steps of both, in 32 bits.
    if not (np.abs(bias) < _MOST_STEPS * input_step * steps).all():
        return None
    name = f"{outputs(product, 'Out')[0]}.bias_in_steps"
    set_input(addition, "Y", emit.parameter(name, bias / steps))
    return addition


def _behind(emit, block, op, kind, value):
    """Return ``elementwise_{kind}`` with a vector after ``op``; it takes over the output's name."""
    (result,) = outputs(op, "Out")
    before = emit.variable_like(block, result, f"{result}.before_{kind}")
    set_output(op, "Out", before)
    vector = emit.parameter(f"{result}.{kind}", value)
    return make_op(f"elementwise_{kind}", {"X": before, "Y": vector}, {"Out": result},
                   axis=_last_axis(block, result))


def _last_axis(block, name):
    return len(shape_of(next(var for var in block.vars if var.name == name))) - 1


def saturating_layers(program):
    """Return names of the layers that Paddle Inference's int8 mode may compute wrongly.

    Args:
        program: a quantized :class:`~paddleq.export.program.program.Program`.
    """
    found = []
    for block in program.desc.blocks:
        ops = list(block.ops)
        view, weights = GraphView(ops), stored_weights(program, ops)
        told = {name for op in ops for product in [_product_of(program, view, block, op)]
                if product is not None for name in inputs(product, "Y")}
        for op in ops:
            slot = INFERENCE_WEIGHTS.get(op.type)
            if slot is None:
                continue
            (name,) = inputs(op, slot)
            (data,) = inputs(op, "Input" if slot == "Filter" else "X")
            if not _comes_from(view, data, ("dequantize_linear",)):
                continue  # without a scale of its input it is computed in float
            array = program.arrays[weights[name].name] if name in weights else None
            if array is None:
                # Float weights, which it quantizes to 8 bits, or a product of two activations.
                found.append(name)
            elif can_saturate(array) or (_comes_from(view, data, _UNSIGNED) if slot == "Filter"
                                         else name not in told):
                found.append(weights[name].name)
    return found


def _comes_from(view, name, kinds):
    """Return True if an operator of ``kinds`` makes ``name`` or what is passed on to it."""
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
            todo += [each for slot in producer.inputs for each in slot.arguments]
    return False


def make_float(program):
    """Replace quantized weights by float weights and remove quantization of activations, in place.

    Raises:
        ExportError: the program keeps its weights in float already (``fake_*`` operators).
    """
    remove_markers(program, raise_to_markers(program))
