"""Unsqueeze the weight and the input of a Conv1D before they are quantized, not after.

Paddle expresses Conv1D as a conv2d with an unsqueeze2 on both. Runtimes expect the quantization
next to the operator: behind an unsqueeze2, Paddle Inference's int8 mode fails on the weight, and
Paddle-Lite uses the integers as the float weight.
"""

import numpy as np

from ..graph_view import GraphView
from ..op_desc import attribute, inputs, outputs, replace_ops, set_attribute, set_input, set_output
from .stored_weights import stored_weights

_CONVOLUTIONS = ("conv2d", "depthwise_conv2d", "conv2d_transpose", "depthwise_conv2d_transpose")


def move_unsqueeze(builder, block):
    """Move unsqueeze2 and assign operators in front of the quantization of a block, in place.

    Weights are stored with the added axes.
    """
    ops = _unsqueeze_weights(builder.program, block)
    replace_ops(block, _unsqueeze_activations(builder, block, ops))


def _unsqueeze_activations(builder, block, ops):
    view, replaced = GraphView(ops), {}
    for conv in ops:
        unsqueeze = view.source(conv, "Input") if conv.type in _CONVOLUTIONS else None
        if unsqueeze is None or not _added_axes(unsqueeze):
            continue
        dequantize = view.source(unsqueeze, "X", "dequantize_linear")
        quantize = dequantize and view.source(dequantize, "X", "quantize_linear")
        if quantize is None or not all(_is_per_tensor(op, view) for op in (quantize, dequantize)):
            continue
        (target,) = outputs(unsqueeze, "Out")
        unsqueezed, quantized = (builder.variable_like(block, target, f"{target}.{name}")
                                 for name in ("float", "quantized"))
        set_input(unsqueeze, "X", inputs(quantize, "X")[0])
        set_output(unsqueeze, "Out", unsqueezed)
        set_input(quantize, "X", unsqueezed)
        set_output(quantize, "Y", quantized)
        set_input(dequantize, "X", quantized)
        set_output(dequantize, "Y", target)
        replaced.update({id(unsqueeze): [], id(quantize): [unsqueeze, quantize]})
    return [new for op in ops for new in replaced.get(id(op), [op])]


def _is_per_tensor(op, view):
    """Return True if ``op`` quantizes per tensor, and its output is used once."""
    return (attribute(op, "quant_axis", -1) < 0
            and view.sole_consumer(outputs(op, "Y")[0]) is not None)


def _unsqueeze_weights(program, block):
    """Return the operators of ``block`` without those that add an axis to a weight."""
    ops = list(block.ops)
    all_blocks, view, removed = GraphView.of_program(program), GraphView(ops), set()
    for weight in stored_weights(program, ops).values():
        if len(weight.ops) != 1 or all_blocks.sole_consumer(weight.name) is None:
            continue
        (dequantize,) = weight.ops
        while True:
            unsqueeze = view.sole_consumer(weight.target)
            axes = None if unsqueeze is None else _added_axes(unsqueeze)
            if axes is None or all_blocks.sole_consumer(weight.target) is None:
                break
            _add_axes(program, weight, axes)
            set_output(dequantize, "Y", outputs(unsqueeze, "Out")[0])
            removed.add(id(unsqueeze))
    return [op for op in ops if id(op) not in removed]


def _added_axes(op):
    """Return the axes that ``op`` adds to its input, or None if it does anything else."""
    if op.type == "assign":
        return ()
    if op.type != "unsqueeze2" or any(inputs(op, slot) for slot in ("AxesTensor",
                                                                    "AxesTensorList")):
        return None
    return tuple(attribute(op, "axes"))


def _add_axes(program, weight, axes):
    dequantize = weight.ops[0]
    expanded = np.expand_dims(program.arrays[weight.name], axes)
    program.set_parameter(weight.name, expanded)
    old = attribute(dequantize, "quant_axis", -1)
    if old >= 0:
        added = {axis % expanded.ndim for axis in axes}
        kept = [axis for axis in range(expanded.ndim) if axis not in added]
        set_attribute(dequantize, "quant_axis", kept[old])
