"""Weights of a saved program as integers, dequantized when the program runs."""

from ..op_builder import OpBuilder
from ..op_desc import replace_ops
from .stored_weights import WEIGHTED_OPS, channel_axis, dequantize_array, quantize_array


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
    emitter = OpBuilder(program)
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
