"""Passes that make quantized tensors unsigned, and write what OpenVINO computes right.

Int8 kernels multiply unsigned by signed integers: where a tensor has no negative value, integers
from 0 on need no zero point. A Clamp then leaves out those above 127.

OpenVINO 2026.4 computes other values for a FakeQuantize behind a Clamp, unless a convolution
computes both together with itself. Elsewhere the Clamp is written as maxima.
"""

import numpy as np

_POSITIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp", "Sqrt", "SoftPlus")
_KEEPING = ("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "ReduceMean", "ReduceMax",
            "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Gather", "Slice", "StridedSlice",
            "Split", "VariadicSplit", "Broadcast", "Tile")
_COMBINING = ("Add", "Multiply", "Concat", "Maximum")
# Operators that a convolution computes on its result.
_FUSED = ("BatchNormInference", "Relu", "Sigmoid", "HardSigmoid", "Tanh", "Abs", "Elu", "HSwish",
          "Swish", "Gelu", "Mish")
_WITH_CONSTANT = ("Add", "Subtract", "Multiply", "Divide")
_CONVOLUTIONS = ("Convolution", "GroupConvolution")
_TRANSPOSED = ("ConvolutionBackpropData", "GroupConvolutionBackpropData")
_SMALLEST = np.finfo(np.float32).tiny
_RATIO = 128 / 127  # of the ends of the range of signed integers of 8 bits


def place_clips(model, ov):
    """Change an ``openvino.Model`` in place; ``ov`` is the module of an opset."""
    known = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize":
            continue
        x, (low, high) = node.input_value(0), (_constant(node, i) for i in (1, 2))
        fused = _is_fused(x)
        if (_is_int8(node, low, high) and is_positive(x, known)
                and (fused or _feeds_transposed(node))):
            node.input(0).replace_source_output(ov.clamp(x, 0.0, high.item()).output(0))
            ends = [ov.constant(np.float32(0)), ov.constant(np.float32(high.item() * 255 / 127))]
            for i in range(4):
                node.input(i + 1).replace_source_output(ends[i % 2].output(0))
        clamp = node.input_value(0).get_node()
        if clamp.get_type_name() == "Clamp" and not _is_fused(clamp.input_value(0)):
            node.input(0).replace_source_output(_maxima(ov, clamp).output(0))


def separate_quantizers(model, ov):
    """Put a maximum with the lowest number where OpenVINO computes a FakeQuantize wrongly.

    OpenVINO 2026.4 computes other values for an activation times a negative constant, which a
    convolution with unsigned results computes together with itself, and for a ReduceMin or
    ReduceMax that is quantized, in both cases also with other operators in front of the
    FakeQuantize. The model is changed in place.
    """
    nodes, known = model.get_ordered_ops(), {}
    if not any(node.get_type_name() == "FakeQuantize" for node in nodes):
        return
    for node in nodes:
        negated = _negated_input(node)
        if negated is not None and (is_positive(negated.get_source_output(), known)
                                    or _is_activation(negated.get_source_output())):
            negated.replace_source_output(_separate(ov, negated.get_source_output()))
        elif node.get_type_name() in ("ReduceMin", "ReduceMax") and (
                node.get_output_element_type(0).is_real()):
            readers = list(node.output(0).get_target_inputs())
            separate = _separate(ov, node.output(0))
            for each in readers:
                each.replace_source_output(separate)


def _is_activation(x):
    return x.get_node().get_type_name() in (*_FUSED[1:], "PRelu", "Selu", "Clamp")


def _separate(ov, x):
    return ov.maximum(x, ov.constant(np.finfo(np.float32).min)).output(0)


def _negated_input(node):
    """Return the input that an operator with a constant negates, or None."""
    kind, values = node.get_type_name(), node.input_values()
    if kind == "Negative":
        return node.input(0)
    varying = [i for i, each in enumerate(values) if not _is_constant(each)]
    if kind in ("Multiply", "Divide", "Subtract") and len(varying) == 1 and (
            kind == "Subtract" and varying == [1]
            or kind != "Subtract" and (_values(values[1 - varying[0]]) < 0).any()):
        return node.input(varying[0])
    return None


def add_smallest_biases(model, ov):
    """Add a bias to convolutions without one whose results several operators read, in place.

    OpenVINO 2026.4 computes other values for these with int8 kernels if a dimension is dynamic: the
    scales of the weights are its last step then. The bias is the smallest number, which changes no
    other number.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() not in _CONVOLUTIONS or (
                node.input_value(0).get_node().get_type_name() != "FakeQuantize"):
            continue
        output = node.output(0)
        readers = list(output.get_target_inputs())
        if len(readers) == 1 and readers[0].get_node().get_type_name() == "Add":
            add = readers[0].get_node()
            constants = [each for each in add.input_values() if _is_constant(each)]
            if not constants or _values(constants[0]).any():
                continue
            readers = list(add.output(0).get_target_inputs())
            output = add.output(0)
        if len(readers) > 1:
            rank = output.get_partial_shape().rank.get_length()
            bias = ov.constant(np.full([1] * rank, _SMALLEST, np.float32))
            biased = ov.add(output, bias)
            for each in readers:
                each.replace_source_output(biased.output(0))


def count_axes_from_end(model, ov):
    """Write the axes of gathers as negative numbers, in place.

    OpenVINO 2026.4 moves a permutation of channels into the weight of a convolution behind it, in
    the order of the inverse permutation. It does not recognize one with a negative axis.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Gather" or not _is_constant(node.input_value(2)):
            continue
        axis, rank = _values(node.input_value(2)), node.get_input_partial_shape(0).rank
        if rank.is_static and (axis > 0).all():
            node.input(2).replace_source_output(
                ov.constant((axis - rank.get_length()).astype(np.int64)).output(0))


def gather_by_vectors(model, ov):
    """Write gathers with a scalar index with a vector, in place.

    OpenVINO 2026.4 moves a quantizer behind, or the step of a layer in front, through the gather,
    and the results keep the axis that it removes.
    """
    nodes = model.get_ordered_ops()
    if not any(node.get_type_name() == "FakeQuantize" for node in nodes):
        return
    for node in nodes:
        if (node.get_type_name() == "Gather" and all(map(_is_constant, node.input_values()[1:]))
                and not node.get_input_shape(1) and node.get_output_element_type(0).is_real()):
            readers = list(node.output(0).get_target_inputs())
            index, axis = (ov.constant(_values(each).reshape([1])) for each in
                           node.input_values()[1:])
            kept = ov.squeeze(ov.gather(node.input_value(0), index, axis), axis)
            for each in readers:
                each.replace_source_output(kept.output(0))


def _values(x):
    node = x.get_node()
    while node.get_type_name() != "Constant":
        node = node.input_value(0).get_node()
    return node.data


def _constant(node, index):
    return node.input_value(index).get_node().data


def _is_int8(node, low, high):
    return (node.get_attributes()["levels"] == 256 and low.size == high.size == 1
            and abs(low.item() + high.item() * _RATIO) <= 1e-5 * abs(low.item()))


def _feeds_transposed(node):
    return any(each.get_node().get_type_name() in _TRANSPOSED
               for each in node.output(0).get_target_inputs())


def _is_fused(x):
    """Return True if a convolution computes an output together with itself."""
    while len(x.get_target_inputs()) <= 1:
        node = x.get_node()
        kind, values = node.get_type_name(), node.input_values()
        if kind in _CONVOLUTIONS:
            return True
        if kind in _WITH_CONSTANT:
            varying = [each for each in values if not _is_constant(each)]
            if len(varying) != 1:
                return False
            (x,) = varying
        elif kind in (*_FUSED, "Clamp"):
            x = values[0]
        else:
            return False
    return False


def _is_constant(x):
    node = x.get_node()
    while node.get_type_name() in ("Convert", "Reshape", "Unsqueeze"):
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant"


def _maxima(ov, clamp):
    """Return the values of a Clamp, in a form that is not converted back to it."""
    limits = clamp.get_attributes()
    low, high = (ov.constant(np.float32(each)) for each in (limits["min"], -limits["max"]))
    above = ov.maximum(clamp.input_value(0), low)
    return ov.negative(ov.maximum(ov.negative(above), high))


def is_positive(x, known):
    """Return True if an output has no negative value because of the operators before it.

    ``known`` is a dict of the results for nodes, by name, which is extended.
    """
    node = x.get_node()
    name = node.get_name()
    if name not in known:
        known[name] = _has_no_negative(node, known)
    return known[name]


def _has_no_negative(node, known):
    kind, values = node.get_type_name(), node.input_values()
    if kind == "Clamp":
        return node.get_attributes()["min"] >= 0
    if kind == "FakeQuantize":
        return bool(_constant(node, 3).min() >= 0)
    if kind == "Constant":
        return node.get_element_type().is_real() and bool(node.data.min(initial=0) >= 0)
    if kind in _COMBINING:
        return all(is_positive(each, known) for each in values)
    return kind in _POSITIVE or kind in _KEEPING and is_positive(values[0], known)
