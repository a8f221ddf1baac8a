"""Weights of a saved program as integers, dequantized when the program runs."""

import numpy as np

from ....functional import EPS
from ....spec import QuantSpec
from ..op_builder import Emitter, replace_ops

# Op type -> (slot of the weight, axis of its output channels).
WEIGHTED_OPS = {
    "conv2d": ("Filter", 0),
    "depthwise_conv2d": ("Filter", 0),
    "conv3d": ("Filter", 0),
    "conv2d_transpose": ("Filter", 1),
    "depthwise_conv2d_transpose": ("Filter", 1),
    "mul": ("Y", 1),
    "matmul": ("Y", 1),
    "matmul_v2": ("Y", 1),
    "lookup_table_v2": ("W", 0),
}


def quantize_array(value, bits, axis=None):
    """(integers, thresholds) of a weight; ``axis`` None is per tensor.

    The numbers are those of :func:`paddleq.functional.quantize`.
    """
    spec = QuantSpec(bits)
    others = tuple(i for i in range(value.ndim) if i != axis) if axis is not None else None
    threshold = np.maximum(np.abs(value).max(axis=others), np.float32(EPS)).reshape(-1)
    shape = [1] * value.ndim
    if axis is not None:
        shape[axis] = -1
    factor = np.float32(spec.quant_max) * (np.float32(1) / threshold.reshape(shape))
    integers = np.clip(np.rint(factor * value), spec.quant_min, spec.quant_max).astype(spec.storage)
    return integers, threshold


def dequantize_array(integers, threshold, bits, axis=None):
    """The float32 weight that stands for the integers."""
    shape = [1] * integers.ndim
    if axis is not None:
        shape[axis] = -1
    levels = np.float32(QuantSpec(bits).quant_max)
    return integers.astype(np.float32) * threshold.reshape(shape) / levels


def quantize_weights(program, op_types, bits, per_channel, as_float=False):
    """Replace weights of ``program`` by integers and dequantize ops, in place.

    Args:
        program: a :class:`~paddleq.export.program.program.Program`.
        op_types: which ops' weights.
        bits: 8 or 16.
        per_channel: one scale for each output channel.
        as_float: put the dequantized weights into the file instead, in float32.

    Returns:
        Names of the weights that were quantized.
    """
    emitter = Emitter(program)
    stored = {}  # weight -> (bits, axis) it was quantized with
    for block in program.desc.blocks:
        readers = _readers(program, block, op_types, stored)
        for _, _, name, axis in readers:
            if name not in stored:
                stored[name] = axis if per_channel else None
                _store(emitter, name, bits, stored[name], as_float)
        if as_float:
            continue
        loads, here = {}, {}
        for position, slot, name, _ in sorted(readers, key=lambda reader: reader[0]):
            if name not in here:
                here[name], loads[position] = _load(emitter, block, name, bits, stored[name])
            for i, argument in enumerate(slot.arguments):
                if argument == name:
                    slot.arguments[i] = here[name]
        replace_ops(block, [each for position, op in enumerate(block.ops)
                            for each in [*loads.get(position, ()), op]])
    program.remove_unused_parameters()
    return sorted(stored)


def _readers(program, block, op_types, stored):
    """(position of the op that reads it, its slot, parameter, channel axis) of each weight."""
    # Conv1D's weight reaches conv2d through these, which leave its first two axes alone.
    made_at = {name: position for position, op in enumerate(block.ops)
               if op.type in ("assign", "unsqueeze2")
               for entry in op.outputs for name in entry.arguments}
    found = []
    for position, op in enumerate(block.ops):
        if op.type not in op_types:
            continue
        slot_name, axis = WEIGHTED_OPS[op.type]
        slot = _slot(op, slot_name)
        while slot.arguments[0] in made_at:
            position = made_at[slot.arguments[0]]
            slot = _slot(block.ops[position], "X")
        name = slot.arguments[0]
        if name in stored or _is_weight(program, name):
            found.append((position, slot, name, channel_axis(op, axis, program.arrays[name])))
    return found


def _slot(op, name):
    return next(entry for entry in op.inputs if entry.parameter == name)


def _store(emitter, name, bits, axis, as_float):
    program = emitter.program
    integers, threshold = quantize_array(program.arrays[name], bits, axis)
    if as_float:
        program.set_parameter(name, dequantize_array(integers, threshold, bits, axis))
    else:
        program.set_parameter(name, integers)
        emitter.parameter(f"{name}.scale", threshold)


def _load(emitter, block, name, bits, axis):
    """(variable with the float weight, ops that make it) for one block."""
    shape = emitter.program.arrays[name].shape
    target = emitter.variable(block, f"{name}.dequantized", shape)
    return target, emitter.dequantize_weight(block, name, f"{name}.scale", target, bits, axis)


def _is_weight(program, name):
    array = program.arrays.get(name)
    return array is not None and array.dtype.kind == "f" and array.ndim >= 2


def channel_axis(op, axis, array):
    """Axis of the output channels of ``op``'s weight; ``axis`` is what WEIGHTED_OPS says."""
    transposed = any(a.name in ("trans_y", "transpose_Y") and a.b for a in op.attrs)
    if op.type in ("matmul", "matmul_v2"):
        # A matrix may be stored either way round, and a batch of matrices has more axes.
        return array.ndim - (2 if transposed else 1)
    return axis
