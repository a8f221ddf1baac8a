"""Channels of a convolution whose weights hardly matter beside their bias.

A runtime that computes in integers counts the bias in steps of the input times steps of the weight,
in 32 bits. Where a channel's weights are zero, or a norm behind it made them tiny, the count
overflows (in ONNX Runtime without a word). Such a channel gets a larger step: its integers become
smaller or zero, which loses less than the last bits of the bias.
"""

import numpy as np

from .graph import set_attribute

_MOST_STEPS = 2.0 ** 30


def enlarge_steps(graph):
    """Change weights of ``graph`` in place, so that each bias has at most 2^30 steps."""
    makers, readers = graph.makers(), graph.readers()
    for node in graph.nodes:
        if node.op_type != "Conv" or len(node.input) != 3 or (
                node.input[2] not in graph.constants):
            continue
        activation, weight = (makers.get(name) for name in node.input[:2])
        if any(each is None or each.op_type != "DequantizeLinear"
               for each in (activation, weight)) or weight.input[0] in graph.types:
            continue
        if all(len(readers[name]) == 1 for name in (node.input[1], *weight.input)):
            _enlarge(graph, graph.constants[activation.input[1]], weight,
                     graph.constants[node.input[2]])


def _enlarge(graph, input_step, weight, bias):
    integers, step, zero = (graph.constants[name] for name in weight.input)
    needed = (np.abs(bias.astype(np.float64)) / (_MOST_STEPS * input_step.min())).astype(np.float32)
    if not (needed > step).any():
        return
    shape = [-1] + [1] * (integers.ndim - 1)
    old = np.broadcast_to(step.reshape(-1), bias.shape).astype(np.float32)
    new, zero = np.maximum(old, needed), np.broadcast_to(zero.reshape(-1), bias.shape)
    offsets = zero.astype(np.int32).reshape(shape)
    numbers = np.rint((integers - offsets) * (old / new).reshape(shape)) + offsets
    values = numbers.astype(integers.dtype), new, zero.copy()
    graph.constants.update(zip(weight.input, values))
    set_attribute(weight, "axis", 0)
