"""What runtimes read and current Paddle leaves out or writes otherwise.

None of it changes what the graph computes as it stands. What it says of the machine on which it was
traced (Paddle 2.6 writes the Python stack of each operator) goes: the same model is the same bytes.
"""

import numpy as np

from ..graph_view import Links, replace
from ..op_builder import Emitter, replace_ops
from ..program import attribute, inputs, make_op, outputs, set_attribute, shape_of
from .squeezed_convolutions import move_views
from .weight_readers import INFERENCE_WEIGHTS, fit_weights

_CONVOLUTIONS = ("conv2d", "conv3d", "depthwise_conv2d")  # and these with _transpose


def mend(program):
    """Change ``program`` in place so that runtimes make the best of it."""
    emit = Emitter(program)
    for block in program.desc.blocks:
        for op in block.ops:
            _remove_attribute(op, "op_callstack")
            if op.type == "relu6" and attribute(op, "threshold") is None:
                # Paddle-Lite aborts without it. Paddle dropped it in 2.5.
                set_attribute(op, "threshold", 6.0)
        move_views(emit, block)
        fit_weights(emit, block)
        ops = _direct_biases(program, block, list(block.ops))
        ops = _shielded_integers(program, emit, block, ops)
        replace_ops(block, _shielded_ranges(emit, block, ops))


def _direct_biases(program, block, ops):
    """Add the bias of a convolution as a vector along the channel axis, not reshaped to 4-D.

    It is the same sum. oneDNN's passes know only this form, and without the bias they cannot
    fuse the activation behind it either.
    """
    shapes = {var.name: shape_of(var) for var in block.vars}
    made_by = Links(ops).makers
    replaced = set()
    for op in ops:
        if op.type != "elementwise_add" or attribute(op, "axis", -1) != -1:
            continue
        (x,), (y,) = inputs(op, "X"), inputs(op, "Y")
        conv, reshape = made_by.get(x), made_by.get(y)
        if conv is None or not conv.type.startswith(_CONVOLUTIONS):
            continue
        last = attribute(conv, "data_format") in ("NHWC", "NDHWC")
        if last and y in program.arrays and program.arrays[y].ndim == 1:
            # The same axis. oneDNN has turned the data and takes -1 for the last axis of that.
            set_attribute(op, "axis", len(shapes[x]) - 1)
            continue
        if reshape is None or reshape.type != "reshape2":
            continue
        filter_maker = made_by.get(inputs(conv, "Filter")[0])
        if filter_maker is not None and filter_maker.type == "elementwise_div":
            # oneDNN fuses no bias with a weight that is computed, but the activation with the
            # bias, and then forgets the axis.
            continue
        (bias,) = inputs(reshape, "X")
        axis = len(shapes[y]) - 1 if last else 1
        if bias not in program.arrays or shapes[y][axis] != program.arrays[bias].size:
            continue
        replace(op.inputs, "Y", bias)
        set_attribute(op, "axis", axis)
        replaced.add(y)
    read = {name for op in ops for slot in op.inputs for name in slot.arguments}
    return [op for op in ops
            if not (op.type == "reshape2" and outputs(op, "Out")[0] in replaced - read)]


def _shielded_ranges(emit, block, ops):
    """Put an ``assign`` between an op that changes the range and the quantize_linear behind it.

    Paddle Inference takes the scale behind an average pool, a slice, a split or a factor for
    the scale of what goes into it, and clips that: a squeeze-and-excitation block loses all that
    lies above the largest mean. It does not look through an assign.
    """
    made_by, shielded, kept = Links(ops).makers, {}, []
    for op in ops:
        source = inputs(op, "X")[0] if op.type == "quantize_linear" else None
        if source in made_by and _changes_range(made_by[source]):
            if source not in shielded:
                shielded[source] = emit.variable_like(block, source, f"{source}.assigned")
                kept.append(make_op("assign", {"X": source}, {"Out": shielded[source]}))
            replace(op.inputs, "X", shielded[source])
        kept.append(op)
    return kept


def _shielded_integers(program, emit, block, ops):
    """Put an ``assign`` behind a float weight all of whose values are whole numbers.

    With int8 on, Paddle Inference takes such a weight for one that was quantized, looks for its
    scale and refuses the file: a rotation of 0, 1 and -1, a layer that was pruned to zeros.
    """
    shielded, kept = {}, []
    for op in ops:
        slot = INFERENCE_WEIGHTS.get(op.type)
        name = inputs(op, slot)[0] if slot else None
        if name in program.arrays and _whole_floats(program.arrays[name]):
            if name not in shielded:
                array = program.arrays[name]
                shielded[name] = emit.variable(block, f"{name}.assigned", array.shape,
                                               str(array.dtype))
                kept.append(make_op("assign", {"X": name}, {"Out": shielded[name]}))
            replace(op.inputs, slot, shielded[name])
        kept.append(op)
    return kept


def _whole_floats(array):
    return array.dtype.kind == "f" and not np.any(array % 1)


def _changes_range(op):
    if op.type == "pool2d":
        return attribute(op, "pooling_type") == "avg"
    return op.type in ("scale", "dropout", "slice", "strided_slice", "split")


def _remove_attribute(op, name):
    for attr in [attr for attr in op.attrs if attr.name == name]:
        op.attrs.remove(attr)
