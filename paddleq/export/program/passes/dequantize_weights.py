"""Form in which a weight of integers is dequantized, according to the operators that use it.

Runtimes remove the ``dequantize_linear`` of a weight and pass its integers to the next operator.
Paddle Inference's int8 mode (2.6 to 3.3) does that for all of them, but converts the integers back
to floats for few: every other operator then fails. Paddle-Lite's operators without an int8 kernel
use the integers as the float weight. So ``dequantize_linear`` is kept only where a runtime computes
with the integers.

Paddle Inference's int8 mode also takes the first axis of the size of the scale for the axis of the
channels, which is wrong for a Linear with as many inputs as outputs, and takes the absolute maximum
of any weight for that of 8 bits. Such weights are dequantized by multiplication too;
:func:`restore_dequantize_linear` undoes that for runtimes without these defects.
"""

import numpy as np

from ...markers import simulated_weight
from ..graph_view import GraphView
from ..op_builder import linear_op
from ..op_desc import attribute, inputs, rename_inputs, replace_ops
from .stored_weights import stored_weights

# Slots in which Paddle Inference's int8 pass looks for a weight.
INFERENCE_WEIGHTS = {"conv2d": "Filter", "depthwise_conv2d": "Filter",
                     "mul": "Y", "matmul": "Y", "matmul_v2": "Y"}
_DATA = {"Filter": "Input", "Y": "X"}  # slot of a weight -> slot of the data


def multiply_unused_integers(builder, block):
    """Dequantize by multiplication where no runtime computes with the integers, in place."""
    program, ops = builder.program, list(block.ops)
    replaced = {}
    for weight in _unused_integers(program, ops, _is_right_in_paddle_inference):
        replaced.update((id(op), []) for op in weight.ops[:-1])
        replaced[id(weight.ops[-1])] = builder.multiply_weight(
            block, weight.name, weight.scale, weight.target, weight.bits,
            weight.axis if program.arrays[weight.scale].size > 1 else -1)
    replace_ops(block, [new for op in ops for new in replaced.get(id(op), [op])])


def restore_dequantize_linear(builder, block, slots, per_token=True):
    """Undo :func:`multiply_unused_integers` where operators read quantized inputs, in place.

    ``slots``: type of the operators -> slot of their weight. ``per_token``: also for inputs with a
    scale for each token, which are divided by it and quantized with a step of 1.
    """
    program, ops, replaced = builder.program, list(block.ops), {}
    view = GraphView(ops)
    for weight in stored_weights(program, ops).values():
        op = view.sole_consumer(weight.target)
        if weight.linear or op is None or weight.target not in inputs(op, slots.get(op.type)) or (
                program.arrays[weight.name].dtype != np.int8):
            continue
        dequantize = view.source(op, _DATA[slots[op.type]], "dequantize_linear")
        abs_max = None if dequantize is None else program.arrays.get(inputs(dequantize, "Scale")[0])
        levels = 2 ** (attribute(dequantize, "bit_length", 8) - 1) - 1 if dequantize else 0
        if abs_max is None or not per_token and (abs_max == levels).all():
            continue
        zero = builder.parameter(f"{weight.target}.zero_point",
                                 np.zeros([program.arrays[weight.scale].size], np.float32))
        replaced.update((id(each), []) for each in weight.ops[:-1])
        replaced[id(weight.ops[-1])] = [linear_op(
            "dequantize_linear", weight.name, weight.scale, zero, weight.target, weight.bits,
            weight.axis)]
    replace_ops(block, [new for op in ops for new in replaced.get(id(op), [op])])
    program.remove_unused_parameters()


def float_weights(program, block, integer_products):
    """Store weights as floats that Paddle Inference cannot dequantize; return their names.

    ``integer_products``: float weights of products that do not need them.
    """
    ops = list(block.ops)
    weights = _unused_integers(program, ops, lambda program, weight, op: (
        weight.target in integer_products or _has_clear_axis(program, weight, op)))
    stored = {weight.target: program.add_parameter(f"{weight.target}.float", simulated_weight(
        weight.mark(program.arrays))) for weight in weights}
    rename_inputs(ops, stored)
    removed = {id(op) for weight in weights for op in weight.ops}
    replace_ops(block, [op for op in ops if id(op) not in removed])
    program.remove_unused_parameters()
    return {weight.name for weight in weights}


def _unused_integers(program, ops, uses):
    """Weights with an operator for which ``uses(program, weight, op)`` is False."""
    view = GraphView(ops)
    return [weight for weight in stored_weights(program, ops).values()
            if weight.linear and _is_constant(program, weight)
            and not (weight.target in view.consumers
                     and all(_is_weight_of(program, weight, op) and uses(program, weight, op)
                             for op in view.consumers[weight.target]))]


def _is_weight_of(program, weight, op):
    """Return True if Paddle Inference's int8 pass finds the weight of ``op``."""
    slots = [entry.parameter for entry in op.inputs if weight.target in entry.arguments]
    # It supports channels along the first two axes.
    return slots == [INFERENCE_WEIGHTS.get(op.type)] and weight.axis < 2 and (
        program.arrays[weight.name].dtype == np.int8)


def _is_right_in_paddle_inference(program, weight, op):
    """Return True if Paddle Inference converts the integers to the right floats."""
    return weight.bits == 8 and _has_clear_axis(program, weight, op)


def _has_clear_axis(program, weight, op):
    """Return True if Paddle Inference finds the axis of the channels by their number."""
    channels, shape = program.arrays[weight.scale].size, program.arrays[weight.name].shape
    return INFERENCE_WEIGHTS[op.type] != "Y" or channels == 1 or (
        shape.index(channels) == weight.axis)


def _is_constant(program, weight):
    """Return True if the weight depends on parameters only and has no zero point."""
    zero = program.arrays.get(inputs(weight.ops[-1], "ZeroPoint")[0])
    return weight.scale in program.arrays and zero is not None and not zero.any()
