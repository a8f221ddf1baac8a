"""Weights of integers in the form that makes the best of whatever operator reads them.

Runtimes take the ``dequantize_linear`` of a weight away and hand its integers to the next operator.
Paddle Inference's int8 mode (2.6 to 3.3) does that for all of them, but makes the integers floats
again for few: every other operator then fails on them. Paddle-Lite's operators without an int8
kernel take the integers for the weight. So only where somebody computes with the integers is there
a ``dequantize_linear``.
"""

import numpy as np

from ..graph_view import Links, replace
from ..op_builder import replace_ops
from ..program import inputs
from .stored_weights import stored_weights
from .weight_only import dequantize_array

# Where Paddle Inference's int8 pass looks for a weight.
INFERENCE_WEIGHTS = {"conv2d": "Filter", "depthwise_conv2d": "Filter",
                     "mul": "Y", "matmul": "Y", "matmul_v2": "Y"}
# Paddle-Lite has int8 kernels for these too, if what goes into them is quantized.
_LITE_WEIGHTS = {"conv2d_transpose": "Filter", "depthwise_conv2d_transpose": "Filter"}


def fit_weights(emit, block):
    """Multiply where nobody computes with the integers of a weight, in place.

    Args:
        emit: an :class:`~..op_builder.Emitter` of the program.
        block: of the program.
    """
    program, ops = emit.program, list(block.ops)
    replaced = {}
    for weight in _left_alone(program, ops, lite=True):
        replaced.update((id(op), []) for op in weight.ops[:-1])
        replaced[id(weight.ops[-1])] = emit.multiply_weight(
            block, weight.name, weight.scale, weight.target, weight.bits,
            weight.axis if program.arrays[weight.scale].size > 1 else -1)
    replace_ops(block, [new for op in ops for new in replaced.get(id(op), [op])])


def float_weights(program, block):
    """Put the float weight into the file where Paddle Inference does not compute with integers.

    Returns:
        The set of the weights' names.
    """
    ops, links = list(block.ops), Links(block.ops)
    weights = _left_alone(program, ops, lite=False)
    for weight in weights:
        thresholds = program.arrays[weight.scale].reshape(-1)
        axis = weight.axis if thresholds.size > 1 else None
        name = program.add_parameter(f"{weight.target}.float", dequantize_array(
            program.arrays[weight.name], thresholds, weight.bits, axis))
        for op in links.readers.get(weight.target, []):
            for slot in op.inputs:
                if weight.target in slot.arguments:
                    replace(op.inputs, slot.parameter, name)
    gone = {id(op) for weight in weights for op in weight.ops}
    replace_ops(block, [op for op in ops if id(op) not in gone])
    program.remove_unused_parameters()
    return {weight.name for weight in weights}


def _left_alone(program, ops, lite):
    """The weights that no runtime, of ``lite`` and Paddle Inference, takes as integers."""
    links, found = Links(ops), []
    for weight in stored_weights(program, ops).values():
        readers = links.readers.get(weight.target, [])
        taken = readers and all(_takes(program, weight, op, links, lite) for op in readers)
        if weight.linear and not taken and _all_known(program, weight):
            found.append(weight)
    return found


def _takes(program, weight, op, links, lite):
    """Whether a runtime hands the integers to ``op`` and knows what to do with them there."""
    slot = INFERENCE_WEIGHTS.get(op.type)
    if slot is None and lite and op.type in _LITE_WEIGHTS:
        source = links.makers.get(inputs(op, "Input")[0])
        if source is not None and source.type == "dequantize_linear":
            slot = _LITE_WEIGHTS[op.type]
    read_as = [entry.parameter for entry in op.inputs if weight.target in entry.arguments]
    # Paddle Inference looks for channels along the first two axes.
    return (read_as == [slot] and weight.axis < 2
            and program.arrays[weight.name].dtype == np.int8)


def _all_known(program, weight):
    """Whether integers and thresholds of the file are all that makes the weight."""
    zero = program.arrays.get(inputs(weight.ops[-1], "ZeroPoint")[0])
    return weight.scale in program.arrays and zero is not None and not zero.any()
