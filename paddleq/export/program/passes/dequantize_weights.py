"""Form in which a weight of integers is dequantized, according to the operators that use it.

Runtimes remove the ``dequantize_linear`` of a weight and pass its integers to the next operator.
Paddle Inference's int8 mode (2.6 to 3.3) does that for all of them, but converts the integers back
to floats for few: every other operator then fails. Paddle-Lite's operators without an int8 kernel
use the integers as the float weight. So ``dequantize_linear`` is kept only where a runtime computes
with the integers.

Paddle Inference's int8 mode also takes the first axis of the size of the scale for the axis of the
channels, which is wrong for a Linear with as many inputs as outputs. Its ``dequantize_linear`` is
kept only for inputs with a fixed scale: the product computes with integers in other runtimes, and
in Paddle Inference with :mod:`~paddleq.deploy.runtimes.paddle_int8_fixes`.
"""

import numpy as np

from ...markers import simulated_weight
from ..graph_view import GraphView
from ..op_desc import attribute, inputs, rename_inputs, replace_ops
from .stored_weights import stored_weights

# Slots in which Paddle Inference's int8 pass looks for a weight.
INFERENCE_WEIGHTS = {"conv2d": "Filter", "depthwise_conv2d": "Filter",
                     "mul": "Y", "matmul": "Y", "matmul_v2": "Y"}


def multiply_unused_integers(builder, block):
    """Dequantize by multiplication where no runtime computes with the integers, in place."""
    program, ops = builder.program, list(block.ops)
    replaced = {}
    for weight in _unused_integers(program, ops, lite=True):
        replaced.update((id(op), []) for op in weight.ops[:-1])
        replaced[id(weight.ops[-1])] = builder.multiply_weight(
            block, weight.name, weight.scale, weight.target, weight.bits,
            weight.axis if program.arrays[weight.scale].size > 1 else -1)
    replace_ops(block, [new for op in ops for new in replaced.get(id(op), [op])])


def float_weights(program, block):
    """Store weights as floats that Paddle Inference does not compute with; return their names."""
    ops = list(block.ops)
    weights = _unused_integers(program, ops, lite=False)
    stored = {weight.target: program.add_parameter(f"{weight.target}.float", simulated_weight(
        weight.mark(program.arrays))) for weight in weights}
    rename_inputs(ops, stored)
    removed = {id(op) for weight in weights for op in weight.ops}
    replace_ops(block, [op for op in ops if id(op) not in removed])
    program.remove_unused_parameters()
    return {weight.name for weight in weights}


def _unused_integers(program, ops, lite):
    """Weights whose integers neither Paddle Inference nor, if ``lite``, Paddle-Lite uses."""
    view = GraphView(ops)
    return [weight for weight in stored_weights(program, ops).values()
            if weight.linear and _is_constant(program, weight)
            and not (weight.target in view.consumers
                     and all(_uses_integers(program, weight, op, view, lite)
                             for op in view.consumers[weight.target]))]


def _uses_integers(program, weight, op, view, lite):
    """Return True if a runtime passes the integers to ``op`` and has a kernel for them."""
    slot = INFERENCE_WEIGHTS.get(op.type)
    slots = [entry.parameter for entry in op.inputs if weight.target in entry.arguments]
    array, channels = program.arrays[weight.name], program.arrays[weight.scale].size
    # Paddle Inference supports channels along the first two axes.
    if slots != [slot] or weight.axis >= 2 or array.dtype != np.int8:
        return False
    return (slot != "Y" or channels == 1 or array.shape.index(channels) == weight.axis
            or _is_product_of_integers(program, view, op, lite))


def _is_product_of_integers(program, view, op, lite):
    """Return True if the input of a product is quantized; for ``lite`` not with a scale per token.

    A tensor with a scale per token is divided by it, and then quantized with a step of 1.
    """
    dequantize = view.source(op, "X", "dequantize_linear")
    if dequantize is None:
        return False
    abs_max = program.arrays.get(inputs(dequantize, "Scale")[0])
    levels = 2 ** (attribute(dequantize, "bit_length", 8) - 1) - 1
    return abs_max is not None and not (lite and (abs_max == levels).all())


def _is_constant(program, weight):
    """Return True if the weight depends on parameters only and has no zero point."""
    zero = program.arrays.get(inputs(weight.ops[-1], "ZeroPoint")[0])
    return weight.scale in program.arrays and zero is not None and not zero.any()
