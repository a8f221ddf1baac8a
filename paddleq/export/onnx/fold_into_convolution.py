"""Passes that fold biases and batch norms into convolutions with an integer weight, and add biases.

The function stays the same; the order in which the same factors are multiplied changes.
"""

import numpy as np

from .graph import attribute, set_attribute

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_MOST_STEPS = 2.0 ** 30


def fold_biases(graph):
    """Make an addition behind a convolution its third input, in place.

    Runtimes recognize quantized convolutions in the form input, weight, bias.
    """
    view, folded = graph.view(), []
    for node in graph.nodes:
        x, bias = graph.addends(node)
        conv = view.producers.get(x)
        if (conv is not None and conv.op_type in _CONVOLUTIONS and len(conv.input) == 2
                and view.sole_consumer(x) is node and _is_along_channels(graph.constants[bias])):
            conv.input.append(graph.constant(f"{conv.input[1]}.bias",
                                             graph.constants[bias].reshape(-1)))
            conv.output[0] = node.output[0]
            view.producers[node.output[0]] = conv
            folded.append(node)
    graph.remove(folded)


def _is_along_channels(value):
    return value.ndim >= 3 and value.size == value.shape[-1 - (value.ndim - 2)]


def fold_batch_norms(graph):
    """Fold each BatchNormalization that is the only consumer of a convolution, in place.

    The norm changes the scales of the weight and the bias. The integers stay, except in channels
    with a negative factor, where they change their sign.
    """
    view, folded = graph.view(), []
    for norm in graph.nodes:
        if norm.op_type != "BatchNormalization" or len(norm.output) != 1:
            continue
        conv = view.producers.get(norm.input[0])
        if conv is None or conv.op_type != "Conv" or not _is_foldable(graph, view, conv):
            continue
        if any(name not in graph.constants for name in norm.input[1:]):
            continue  # computed in the model
        weight = view.producers[conv.input[1]]
        gamma, beta, mean, variance = (graph.constants[name].astype(np.float64)
                                       for name in norm.input[1:])
        factor = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
        if _scale_weight(graph, weight, factor):
            shift = beta - mean * factor
            if len(conv.input) == 3:
                shift = shift + graph.constants[conv.input[2]].astype(np.float64) * factor
                del conv.input[2:]
            conv.input.append(graph.constant(f"{conv.input[1]}.bias", shift.astype(np.float32)))
            conv.output[0] = norm.output[0]
            view.producers[norm.output[0]] = conv
            folded.append(norm)
    graph.remove(folded)


def _is_foldable(graph, view, conv):
    weight = view.producers.get(conv.input[1])
    return (weight is not None and weight.op_type == "DequantizeLinear"
            and all(len(view.consumers[name]) == 1
                    for name in [conv.output[0], weight.output[0], *weight.input])
            and weight.input[0] in graph.constants and attribute(weight, "axis", 0) in (0, -4)
            and (len(conv.input) == 2 or conv.input[2] in graph.constants))


def _scale_weight(graph, weight, factor):
    """Multiply the channels of a dequantized weight; return False if its integers prevent it."""
    integers, scale, zero = (graph.constants[name] for name in weight.input)
    limits = np.iinfo(integers.dtype) if weight.input[0] not in graph.types else None
    if limits is None or len(factor) != len(integers):
        return False
    shape = [-1] + [1] * (integers.ndim - 1)
    zero = np.broadcast_to(zero.astype(np.int32).reshape(-1), factor.shape).copy()
    values = integers.astype(np.int32)
    negative = factor < 0
    # Mirrored within the type if it is unsigned, around zero if it is signed.
    values = np.where(negative.reshape(shape), _mirror(values, limits), values)
    zero = np.where(negative, _mirror(zero, limits), zero)
    if values.max() > limits.max:  # -128 has no counterpart
        return False
    # A scale must be positive: a channel that becomes zero gets the zero point as its integers.
    values = np.where((factor == 0).reshape(shape), zero.reshape(shape), values)
    scale = scale.reshape(-1) * np.where(factor == 0, 1.0, np.abs(factor))
    for name, value in zip(weight.input, (values.astype(integers.dtype),
                                          scale.astype(np.float32), zero.astype(integers.dtype))):
        graph.constants[name] = value
    if attribute(weight, "axis") is None:
        set_attribute(weight, "axis", 0)
    return True


def _mirror(values, limits):
    return limits.max - values if limits.min == 0 else -values


def enlarge_scales(graph):
    """Enlarge weight scales so that each bias of a convolution has at most 2^30 steps, in place.

    A runtime that computes in integers represents the bias in steps of input scale times weight
    scale, in 32 bits. In channels whose weights are zero, or that a batch norm made tiny, it would
    overflow (in ONNX Runtime without an error). A larger scale makes the integers of such a channel
    smaller or zero, which loses less than the last bits of the bias.
    """
    view = graph.view()
    for node in graph.nodes:
        if node.op_type != "Conv" or len(node.input) != 3 or (
                node.input[2] not in graph.constants):
            continue
        activation, weight = (view.producers.get(name) for name in node.input[:2])
        if any(each is None or each.op_type != "DequantizeLinear"
               for each in (activation, weight)) or weight.input[0] in graph.types:
            continue
        if all(len(view.consumers[name]) == 1 for name in (node.input[1], *weight.input)):
            _enlarge(graph, graph.constants[activation.input[1]], weight,
                     graph.constants[node.input[2]])


def _enlarge(graph, input_scale, weight, bias):
    integers, scale, zero = (graph.constants[name] for name in weight.input)
    needed = np.abs(bias.astype(np.float64)) / (_MOST_STEPS * input_scale.min())
    needed = needed.astype(np.float32)
    if not (needed > scale).any():
        return
    shape = [-1] + [1] * (integers.ndim - 1)
    old = np.broadcast_to(scale.reshape(-1), bias.shape).astype(np.float32)
    new, zero = np.maximum(old, needed), np.broadcast_to(zero.reshape(-1), bias.shape)
    offsets = zero.astype(np.int32).reshape(shape)
    values = np.rint((integers - offsets) * (old / new).reshape(shape)) + offsets
    graph.constants.update(zip(weight.input, (values.astype(integers.dtype), new, zero.copy())))
    set_attribute(weight, "axis", 0)


def _is_quantized(view, node):
    """Return True if one operator reads the output, a quantizer or a Relu in front of one."""
    for _ in range(2):
        readers = view.consumers[node.output[0]]
        if len(readers) != 1 or readers[0] is None:
            return False
        (node,) = readers
        if node.op_type != "Relu":
            return node.op_type == "QuantizeLinear"
    return False


def add_smallest_biases(graph):
    """Give convolutions whose output is not quantized at once a bias that is not zero, in place.

    OpenVINO (2026.4) computes a quantized convolution without a bias, or with one of zeros, in
    integers, and applies the scales of the channels later: to some of several readers not at all,
    and behind a Reshape that joins channels with another axis, or a reduction behind any Reshape,
    to the wrong elements. The smallest normal number changes no sum except zero.
    """
    view = graph.view()
    for node in graph.nodes:
        if node.op_type != "Conv" or _is_quantized(view, node):
            continue
        activation, weight = (view.producers.get(name) for name in node.input[:2])
        if any(each is None or each.op_type != "DequantizeLinear"
               for each in (activation, weight)) or weight.input[0] not in graph.constants:
            continue
        if len(node.input) == 3 and (node.input[2] not in graph.constants
                                     or graph.constants[node.input[2]].any()):
            continue
        smallest = np.full(graph.constants[weight.input[0]].shape[0], np.finfo(np.float32).tiny,
                           np.float32)
        node.input[2:] = [graph.constant(f"{node.output[0]}.smallest_bias", smallest)]
