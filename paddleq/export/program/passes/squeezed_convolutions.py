"""Conv1D is a conv2d whose weight and input get an axis: first that, then the quantization.

Runtimes look for quantization next to the operator. Behind an unsqueeze2, Paddle Inference's int8
mode fails on the weight, and Paddle-Lite takes integers for the weight.
"""

import numpy as np

from ..graph_view import Links, replace
from ..op_builder import replace_ops
from ..program import attribute, inputs, outputs, set_attribute
from .stored_weights import stored_weights

_CONVOLUTIONS = ("conv2d", "depthwise_conv2d", "conv2d_transpose", "depthwise_conv2d_transpose")


def move_views(emit, block):
    """Put axes in before quantization instead of behind it, in place.

    The file then has the weights with their axes.
    """
    ops = _without_views(emit.program, block)
    replace_ops(block, _quantized_last(emit, block, ops))


def _quantized_last(emit, block, ops):
    """``ops`` with the input of a convolution quantized behind its unsqueeze2, not before."""
    links, first = Links(ops), {}
    for conv in ops:
        view = links.makers.get(inputs(conv, "Input")[0]) if conv.type in _CONVOLUTIONS else None
        if view is None or not _added_axes(view):
            continue
        dequantize = links.makers.get(inputs(view, "X")[0])
        if not _one_step(dequantize, "dequantize_linear", links):
            continue
        quantize = links.makers.get(inputs(dequantize, "X")[0])
        if not _one_step(quantize, "quantize_linear", links):
            continue
        (target,) = outputs(view, "Out")
        grown, quantized = (emit.variable_like(block, target, f"{target}.{name}")
                            for name in ("float", "quantized"))
        replace(view.inputs, "X", inputs(quantize, "X")[0])
        replace(view.outputs, "Out", grown)
        replace(quantize.inputs, "X", grown)
        replace(quantize.outputs, "Y", quantized)
        replace(dequantize.inputs, "X", quantized)
        replace(dequantize.outputs, "Y", target)
        first[id(quantize)] = view
    moved = {id(view) for view in first.values()}
    return [new for op in ops if id(op) not in moved
            for new in ([first[id(op)], op] if id(op) in first else [op])]


def _one_step(op, kind, links):
    """Whether ``op`` is of this kind, per tensor, and one operator reads what it makes."""
    return (op is not None and op.type == kind and attribute(op, "quant_axis", -1) < 0
            and len(links.readers[outputs(op, "Y")[0]]) == 1)


def _without_views(program, block):
    """The ops of ``block`` without those that add an axis to a weight."""
    ops = list(block.ops)
    everywhere = Links([op for each in program.desc.blocks for op in each.ops])
    here, gone = Links(ops), set()
    for weight in stored_weights(program, ops).values():
        if len(weight.ops) > 1 or len(everywhere.readers[weight.name]) > 1:
            continue
        (dequantize,) = weight.ops
        while True:
            readers = here.readers.get(weight.target, [])
            axes = _added_axes(readers[0]) if len(readers) == 1 else None
            if axes is None or len(everywhere.readers[weight.target]) > 1:
                break
            _add_axes(program, weight, axes)
            replace(dequantize.outputs, "Y", outputs(readers[0], "Out")[0])
            gone.add(id(readers[0]))
    return [op for op in ops if id(op) not in gone]


def _added_axes(op):
    """What ``op`` adds to the shape of its input, or None if it does anything else."""
    if op.type == "assign":
        return ()
    if op.type != "unsqueeze2" or any(inputs(op, slot) for slot in ("AxesTensor",
                                                                    "AxesTensorList")):
        return None
    return tuple(attribute(op, "axes"))


def _add_axes(program, weight, axes):
    (dequantize,) = weight.ops
    array = program.arrays[weight.name]
    grown = np.expand_dims(array, axes)
    program.set_parameter(weight.name, grown)
    old = attribute(dequantize, "quant_axis", -1)
    if old >= 0:
        added = {axis % grown.ndim for axis in axes}
        kept = [axis for axis in range(grown.ndim) if axis not in added]
        set_attribute(dequantize, "quant_axis", kept[old])
