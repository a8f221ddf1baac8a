"""Folding batch norms of a saved program into the weights before them."""

from collections import Counter

import numpy as np

from ..op_desc import attribute, inputs, make_op, outputs, set_attribute, shape_of
from .weight_only import WEIGHTED_OPS, channel_axis


def fold_norms(program):
    """Fold each ``batch_norm`` that reads nothing but a convolution or a product, in place.

    What must not be folded is left: a norm that uses the batch's statistics, an output that
    somebody else reads too, a weight that two operators share.

    Args:
        program: a :class:`~paddleq.export.program.program.Program`.

    Returns:
        Names of the weights that took a norm in.
    """
    block = program.desc.blocks[0]
    reads = Counter(name for each in program.desc.blocks for op in each.ops
                    for slot in op.inputs for name in slot.arguments)
    made_by = {name: op for op in block.ops for slot in op.outputs for name in slot.arguments}
    folded, gone = [], []
    for position, op in enumerate(block.ops):
        if op.type != "batch_norm" or not attribute(op, "is_test", False):
            continue
        source = inputs(op, "X")[0]
        producer, bias = _producer(made_by, source, reads)
        if producer is None or reads[source] != 1 or not _same_channels(program, producer, op):
            continue
        slot, axis = WEIGHTED_OPS[producer.type]
        weight = inputs(producer, slot)[0]
        if reads[weight] != 1 or weight not in program.arrays:
            continue
        if bias is not None and inputs(bias[1], bias[2])[0] not in program.arrays:
            continue
        factor, shift = _factor_and_shift(program, op)
        array = program.arrays[weight]
        scaled = _scaled(array, factor, producer, channel_axis(producer, axis, array))
        if scaled is None:
            continue
        program.set_parameter(weight, scaled)
        target = outputs(op, "Y")[0]
        if bias is None:
            add = make_op("elementwise_add", {"X": source, "Y": ""}, {"Out": target}, axis=-1)
        else:
            add, holder, slot = bias
            shift = shift + program.arrays[inputs(holder, slot)[0]].reshape(-1) * factor
            gone.append(op)
        name = program.add_parameter(_fresh(program, f"{weight}.bias"), shift.astype(np.float32))
        _set(add.inputs, "Y", name)
        _set(add.outputs, "Out", target)
        last = attribute(op, "data_layout") in ("NHWC", "NDHWC")
        set_attribute(add, "axis", -1 if last else 1)
        if bias is None:
            block.ops[position].CopyFrom(add)
        folded.append(weight)
    for op in gone:
        block.ops.remove(op)
    _remove_unread(program, block)
    return folded


def _producer(made_by, name, reads):
    """(weighted op, None) or, with a bias between, (it, (add, op that holds the bias, slot))."""
    op = made_by.get(name)
    if op is None:
        return None, None
    if op.type in WEIGHTED_OPS and op.type != "lookup_table_v2":
        return op, None
    if op.type != "elementwise_add":
        return None, None
    inner = made_by.get(inputs(op, "X")[0])
    if inner is None or inner.type not in WEIGHTED_OPS or inner.type == "lookup_table_v2":
        return None, None
    if reads[inputs(op, "X")[0]] != 1:
        return None, None
    reshape = made_by.get(inputs(op, "Y")[0])
    holder = (op, op, "Y") if reshape is None else (op, reshape, "X")
    return inner, holder if reshape is None or reshape.type == "reshape2" else None


def _same_channels(program, producer, norm):
    """Whether the norm's channels are the producer's output channels."""
    layout = attribute(norm, "data_layout", "NCHW")
    if producer.type in ("mul", "matmul", "matmul_v2"):
        return len(shape_of(program.variables()[inputs(norm, "X")[0]])) == 2
    last = attribute(producer, "data_format", "NCHW") in ("NHWC", "NDHWC")
    return last == (layout in ("NHWC", "NDHWC"))


def _factor_and_shift(program, norm):
    mean, variance, gamma, beta = (
        program.arrays[inputs(norm, slot)[0]].astype(np.float64)
        for slot in ("Mean", "Variance", "Scale", "Bias"))
    factor = gamma / np.sqrt(variance + attribute(norm, "epsilon"))
    return factor, beta - mean * factor


def _scaled(weight, factor, producer, axis):
    """``weight`` with each output channel times its entry; None where they do not fit."""
    groups = attribute(producer, "groups", 1) or 1
    if "transpose" in producer.type and groups > 1:
        grouped = weight.reshape([groups, weight.shape[0] // groups, *weight.shape[1:]])
        if groups * weight.shape[1] != factor.size:
            return None
        rest = [1] * (weight.ndim - 2)
        scaled = grouped * factor.reshape([groups, 1, -1, *rest])
        return scaled.reshape(weight.shape).astype(weight.dtype)
    if weight.shape[axis] != factor.size:
        return None
    shape = [1] * weight.ndim
    shape[axis] = -1
    return (weight * factor.reshape(shape)).astype(weight.dtype)


def _fresh(program, name):
    taken = {var.name for block in program.desc.blocks for var in block.vars}
    while name in taken:
        name += "_"
    return name


def _set(entries, slot, name):
    for entry in entries:
        if entry.parameter == slot:
            del entry.arguments[:]
            entry.arguments.append(name)


def _remove_unread(program, block):
    """Drop the reshapes of biases that nobody reads any more, and the parameters of norms."""
    read = {name for each in program.desc.blocks for op in each.ops
            for slot in op.inputs for name in slot.arguments}
    for op in [op for op in block.ops if op.type == "reshape2"
               and outputs(op, "Out")[0] not in read and inputs(op, "X")[0] in program.arrays]:
        block.ops.remove(op)
    program.remove_unused_parameters()
