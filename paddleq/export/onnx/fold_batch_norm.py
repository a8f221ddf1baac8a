"""Batch norms behind a convolution with an integer weight: folded into its scales and its bias.

The integers stay, but for those of channels whose factor is negative: they change their sign. The
function is the same; what changes is in which order the same factors are multiplied.
"""

import numpy as np

from .graph import attribute, set_attribute


def fold_norms(graph):
    """Fold each BatchNormalization that is all that reads a convolution, in place."""
    makers, readers, gone = graph.makers(), graph.readers(), []
    for node in graph.nodes:
        if node.op_type != "BatchNormalization" or len(node.output) != 1:
            continue
        conv = makers.get(node.input[0])
        if conv is None or conv.op_type != "Conv" or len(readers[conv.output[0]]) != 1:
            continue
        weight = makers.get(conv.input[1])
        if _can_change(graph, weight, readers, conv):
            factor, shift = _factor_and_shift(graph, node)
            if _scale(graph, weight, factor):
                _set_bias(graph, conv, factor, shift)
                conv.output[0] = node.output[0]
                makers[node.output[0]] = conv
                gone.append(node)
    graph.drop(gone)


def _can_change(graph, weight, readers, conv):
    if weight is None or weight.op_type != "DequantizeLinear":
        return False
    own = all(len(readers[name]) == 1 for name in [weight.output[0], *weight.input])
    return (own and weight.input[0] in graph.constants
            and attribute(weight, "axis", 0) in (0, -4)
            and (len(conv.input) == 2 or conv.input[2] in graph.constants))


def _factor_and_shift(graph, norm):
    gamma, beta, mean, variance = (graph.constants[name].astype(np.float64)
                                   for name in norm.input[1:])
    factor = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
    return factor, beta - mean * factor


def _scale(graph, weight, factor):
    """Multiply each channel of a dequantized weight; whether its integers allow that."""
    integers, scale, zero = (graph.constants[name] for name in weight.input)
    limits = np.iinfo(integers.dtype) if weight.input[0] not in graph.types else None
    if limits is None or len(factor) != len(integers):
        return False
    shape = [-1] + [1] * (integers.ndim - 1)
    zero = np.broadcast_to(zero.astype(np.int32).reshape(-1), factor.shape).copy()
    numbers = integers.astype(np.int32)
    negative = factor < 0
    # Mirrored within the type where it is unsigned, around zero where it is signed.
    numbers = np.where(negative.reshape(shape), _mirror(numbers, limits), numbers)
    zero = np.where(negative, _mirror(zero, limits), zero)
    if numbers.max() > limits.max:  # -128 has no counterpart
        return False
    # A scale must be positive: a channel that is zero has the integer that stands for it.
    numbers = np.where((factor == 0).reshape(shape), zero.reshape(shape), numbers)
    scale = scale.reshape(-1) * np.where(factor == 0, 1.0, np.abs(factor))
    for name, value in zip(weight.input, (numbers.astype(integers.dtype),
                                          scale.astype(np.float32), zero.astype(integers.dtype))):
        graph.constants[name] = value
    if attribute(weight, "axis") is None:
        set_attribute(weight, "axis", 0)
    return True


def _mirror(numbers, limits):
    return limits.max - numbers if limits.min == 0 else -numbers


def _set_bias(graph, conv, factor, shift):
    if len(conv.input) == 3:
        shift = shift + graph.constants[conv.input[2]].astype(np.float64) * factor
        del conv.input[2:]
    conv.input.append(graph.constant(f"{conv.input[1]}.bias", shift.astype(np.float32)))
