"""Placement of quantizers so that ONNX Runtime computes the graph in integers.

ONNX Runtime fuses DequantizeLinear, Conv and QuantizeLinear in a row, with unsigned activations,
into an integer convolution. Operators of the float model between them, a relu or a pool, prevent
that: it then computes in float, with weights that it dequantizes in each run. So:

1. Signed activations become unsigned ones with a zero point in the middle: the same numbers.
2. A quantizer moves before operators that only move or limit values, which then run on integers; a
   relu becomes a lower limit of the integers. Rounding is monotonic, so all values stay the same.
3. A weight whose operator is computed in float is dequantized by Cast and Mul, which ONNX Runtime
   folds when it loads the model. (It computes DequantizeLinear in each run, and fuses a blocked one
   into a product that rounds its other factor to 8 bits.)
4. The bias of an integer convolution is stored as 32-bit integers, which ONNX Runtime before 1.21
   needs and later versions compute themselves.
5. A bias behind an integer MatMul is negated and subtracted: ONNX Runtime fuses MatMul and Add into
   a Gemm before it looks for integers, and computes that in float.
6. A concatenation is kept in front of the quantizer of a MatMul, for OpenVINO.

In all files, a reduction to extremes is kept in front of a quantizer, for OpenVINO.
"""

import numpy as np

from .graph import attribute, make_node
from .opset import FLOAT

# Operators with integer kernels between dequantizers and a quantizer.
_BETWEEN_INTEGERS = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool")
_MOVES = ("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice")
# Operators whose results are of the type of all operands, or of the first.
_OF_VALUES = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Concat", "PRelu")
_OF_FIRST = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Abs", "Neg", "Elu", "Selu", "HardSigmoid",
             "HardSwish", "Softplus", "Exp", "Sqrt", "Clip", "Gather", "Split", "Expand", "Tile",
             "Pad", "Resize", "Identity", "AveragePool", "GlobalAveragePool", "ReduceMean")
# With a constant, ONNX Runtime folds them into the float convolution before them.
_FOLDED = ("Add", "Sub", "Mul", "Div", "BatchNormalization")


def place_quantizers(graph):
    """Change ``graph`` in place; its numbers stay the same."""
    _make_activations_unsigned(graph)
    _move_quantizers(graph)
    _dequantize_at_load(graph)
    _quantize_biases(graph)
    _subtract_biases(graph)
    _keep_concatenations(graph)


def _keep_concatenations(graph):
    """Take the maximum of a concatenation and the lowest number in front of a MatMul's quantizer.

    OpenVINO (2026.4) otherwise quantizes the parts, joins their zero points along the axis of the
    concatenation, and refuses the model if that is not the axis that the product adds up
    ("Broadcast ... Input shape dimension equal 20 cannot be broadcasted").
    """
    view, replaced = graph.view(), {}
    for node in _quantizers(graph):
        source = view.producers.get(node.input[0])
        if source is not None and source.op_type == "Relu":
            source = view.producers.get(source.input[0])
        if source is None or source.op_type != "Concat" or not _is_multiplied(view, node):
            continue
        kept = f"{node.output[0]}.kept"
        replaced[id(node)] = [_maximum(graph, node.input[0], kept), node]
        node.input[0] = kept
    graph.replace(replaced)


def separate_extremes(graph):
    """Take the maximum of the lowest number and each ReduceMin or ReduceMax that is quantized.

    OpenVINO (2026.4) otherwise computes other values, also with operators between the reduction and
    the quantizer. The graph is changed in place.
    """
    view, replaced, seen = graph.view(), {}, set()
    names = [node.input[0] for node in _quantizers(graph)]
    while names:
        node = view.producers.get(names.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if node.op_type in ("ReduceMin", "ReduceMax"):
            (result,) = node.output
            node.output[0] = f"{result}.reduced"
            replaced[id(node)] = [node, _maximum(graph, node.output[0], result)]
        elif node.op_type in _OF_VALUES:
            names += node.input
        elif node.op_type in _MOVES or node.op_type in _OF_FIRST:
            names.append(node.input[0])
    graph.replace(replaced)


def _maximum(graph, name, result):
    """Return a node that computes the values of ``name`` again."""
    lowest = graph.constant(f"{result}.lowest", np.float32(np.finfo(np.float32).min))
    return make_node("Max", [name, lowest], result)


def _is_multiplied(view, node):
    """Return True if a MatMul reads the output of ``node``, also behind operators that move it."""
    return any(each.op_type in ("MatMul", "Gemm") or each.op_type in (
        "Clip", "DequantizeLinear", *_MOVES) and _is_multiplied(view, each)
        for each in view.consumers[node.output[0]] if each is not None)


def _quantizers(graph):
    return [node for node in graph.nodes if node.op_type == "QuantizeLinear"]


def _make_activations_unsigned(graph):
    for node in _quantizers(graph):
        zero = graph.constants[node.input[2]]
        if zero.dtype == np.int8:  # the dequantizer reads the same constant
            graph.constants[node.input[2]] = (zero.astype(np.int16) + 128).astype(np.uint8)


def _move_quantizers(graph):
    """Move quantizers up to the integer operators that produce their input."""
    view, replaced = graph.view(), {}
    for node in _quantizers(graph):
        between = _nodes_between(graph, view, node)
        if between:
            replaced.update({id(each): [] for each in between})
            replaced[id(node)] = _quantized_first(graph, node, between)
    graph.replace(replaced)


def _nodes_between(graph, view, quantizer):
    """Return the nodes between an integer operator and its quantizer, the last one first.

    Empty if the quantizer cannot move before all of them.
    """
    found, name = [], quantizer.input[0]
    if graph.constants[quantizer.input[2]].size != 1:
        return []
    while len(view.consumers[name]) == 1 and name in view.producers:
        node = view.producers[name]
        if node.op_type == "Conv" or node.op_type in _BETWEEN_INTEGERS and all(
                _dequantizes(view.producers.get(each)) for each in node.input):
            return found
        if _limits(graph, node) is None and not (
                node.op_type in _MOVES and len(node.output) == 1):
            return []
        found.append(node)
        name = node.input[0]
    return []


def _limits(graph, node):
    """Return (lowest, highest) output of a clipping node, None for other nodes."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type != "Clip":
        return None
    lowest, highest = [*node.input[1:], "", ""][:2]
    limits = (graph.scalar(lowest) if lowest else -np.inf,
              graph.scalar(highest) if highest else np.inf)
    return None if None in limits else limits


def _quantized_first(graph, quantizer, between):
    """Return the nodes that quantize first, then clip and move the integers."""
    last = quantizer.output[0]
    scale, zero = (graph.constants[name].reshape(-1)[0] for name in quantizer.input[1:])
    lowest, highest = np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max
    low, high, steps = lowest, highest, []
    for node in reversed(between):
        limits = _limits(graph, node)
        if limits is None:
            steps.append(node)
            continue
        least, most = (int(np.clip(np.rint(np.float32(limit) / scale) + int(zero), lowest,
                                   highest)) for limit in limits)
        low, high = max(low, least), max(min(high, most), least)
    if (low, high) != (lowest, highest):
        names = [graph.constant(f"{last}.{side}", np.array(limit, zero.dtype))
                 for side, limit in (("low", low), ("high", high))]
        steps.insert(0, make_node("Clip", ["", *names], ""))
    chain, name = [quantizer, *steps], between[-1].input[0]
    for node in chain:
        node.input[0] = name
        name = last if node is chain[-1] else graph.fresh(f"{last}.{node.op_type}")
        node.output[0], node.name = name, f"{node.op_type}:{name}"
    return chain


class _IntegerKernels:
    """Prediction of the operators that ONNX Runtime computes in integers."""

    def __init__(self, graph):
        self.graph, view = graph, graph.view()
        self.producers, self.consumers = view.producers, view.consumers

    def is_integer(self, node):
        """Return True if a node that reads a dequantized weight is computed in integers."""
        if node is None or node.op_type not in ("Conv", "MatMul"):
            return False
        activation, weight = (self.producers.get(name) for name in node.input[:2])
        if not (self.is_quantized(activation) and _dequantizes(weight)) or (
                attribute(weight, "block_size") is not None):
            return False
        zeros = self.graph.constants[weight.input[2]].reshape(-1)
        return node.op_type == "MatMul" or (
            bool((zeros == zeros[0]).all()) and self.is_between_integers(node))

    def is_between_integers(self, node):
        """Return True if a node is between dequantized values and one 8-bit quantizer."""
        (consumer, *others) = self.consumers[node.output[0]]
        return (self.is_quantized(self.producers.get(node.input[0])) and not others
                and consumer is not None and consumer.op_type == "QuantizeLinear"
                and self.graph.constants[consumer.input[2]].dtype == np.uint8)

    def may_become_integer(self, node):
        """Return True if folding and moving of quantizers can put a node between integers."""
        if not self.is_quantized(self.producers.get(node.input[0])):
            return False
        while len(self.consumers[node.output[0]]) == 1:
            (reader,) = self.consumers[node.output[0]]
            if reader is None or reader.op_type == "QuantizeLinear":
                return reader is not None
            others = [name for name in reader.input if name and name != node.output[0]]
            if reader.op_type not in (*_MOVES, "Relu", "Clip") and not (
                    reader.op_type in _FOLDED
                    and all(name in self.graph.constants for name in others)):
                return False
            node = reader
        return False

    def is_quantized(self, node):
        """Return True if a node dequantizes an 8-bit activation per tensor."""
        if not _dequantizes(node) or node.input[0] in self.graph.constants:
            return False
        zero = self.graph.constants[node.input[2]]
        return zero.size == 1 and zero.dtype == np.uint8


def _dequantizes(node):
    return node is not None and node.op_type == "DequantizeLinear"


def _dequantize_at_load(graph):
    kernels, nodes, renamed = _IntegerKernels(graph), [], []
    for node in graph.nodes:
        nodes.append(node)
        if not _dequantizes(node) or not _is_simple_weight(graph, node):
            continue
        (name,) = node.output
        # Between integers ONNX Runtime would quantize float weights again, with its own scales.
        in_float = [each for each in kernels.consumers[name] if each is None or not (
            kernels.is_integer(each) or kernels.may_become_integer(each))]
        if len(in_float) == len(kernels.consumers[name]):
            nodes.pop()
            nodes += _cast_and_multiply(graph, node, name)
        elif in_float:
            target = graph.fresh(f"{name}.float")
            nodes += _cast_and_multiply(graph, node, target)
            renamed.append(([each for each in in_float if each is not None], name, target))
    graph.nodes = nodes
    for consumers, name, target in renamed:
        graph.rename_inputs({name: target}, consumers)


def _is_simple_weight(graph, node):
    return node.input[0] in graph.constants and node.input[0] not in graph.types


def _cast_and_multiply(graph, node, target):
    """Dequantize a constant with operators that ONNX Runtime folds."""
    scale, zero = (graph.constants[name].astype(np.float32) for name in node.input[1:])
    name = f"{node.output[0]}.number"
    steps = [make_node("Cast", [node.input[0]], graph.fresh(name), to=FLOAT)]

    def broadcast(array, name):
        array = array.reshape(_broadcast_shape(graph, node, array))
        made = [graph.constant(name, array)]
        for kind, *parameters in _repeat_blocks(graph, node):
            inputs = [made[-1], *(graph.constant(f"{name}.{kind}", np.array(each, np.int64))
                                  for each in parameters)]
            made.append(graph.fresh(f"{name}.repeated"))
            steps.append(make_node(kind, inputs, made[-1]))
        return made[-1]

    result = steps[-1].output[0]
    if zero.any():
        zeros = broadcast(zero, f"{name}.zero")
        steps.append(make_node("Sub", [result, zeros], graph.fresh(f"{name}.shifted")))
        result = steps[-1].output[0]
    factor = broadcast(scale, f"{name}.factor")
    return [*steps, make_node("Mul", [result, factor], target)]


def _broadcast_shape(graph, node, array):
    """Return the shape in which a scale or zero point broadcasts to the weight, or to blocks."""
    if attribute(node, "block_size") is not None:
        return [len(array), 1, -1]
    shape = [1] * graph.constants[node.input[0]].ndim
    if array.size != 1:
        shape[attribute(node, "axis", 1)] = -1
    return shape


def _repeat_blocks(graph, node):
    """Return (operator, parameters) that repeat a row for each block of rows of a weight."""
    size = attribute(node, "block_size")
    if size is None:
        return []
    rows, columns = graph.constants[node.input[0]].shape
    blocks = -(-rows // size)
    return [("Expand", [blocks, size, columns]), ("Reshape", [blocks * size, columns]),
            *([("Slice", [0], [rows], [0])] if blocks * size > rows else [])]


def _quantize_biases(graph):
    kernels, nodes = _IntegerKernels(graph), []
    for node in graph.nodes:
        if (node.op_type == "Conv" and len(node.input) == 3 and node.input[2] in graph.constants
                and kernels.is_integer(node)):
            nodes += _quantized_bias(graph, kernels, node)
        nodes.append(node)
    graph.nodes = nodes


def _quantized_bias(graph, kernels, conv):
    """Store the bias of a convolution as integers; return the nodes that dequantize it."""
    activation, weight = (kernels.producers[name] for name in conv.input[:2])
    bias = graph.constants[conv.input[2]]
    scales = (graph.constants[activation.input[1]].reshape([1])
              * graph.constants[weight.input[1]].reshape(-1))
    integers = np.rint(bias.astype(np.float64) / scales)
    if not (np.abs(integers) <= np.iinfo(np.int32).max).all():
        return []  # a shared weight, whose scales could not be enlarged
    name, nodes = conv.input[2], []
    if scales.shape == bias.shape:
        # The product of two existing constants is folded at loading and not stored.
        scale = graph.fresh(f"{name}.scale")
        nodes.append(make_node("Mul", [activation.input[1], weight.input[1]], scale))
    else:
        scale = graph.constant(f"{name}.scale", np.broadcast_to(scales, bias.shape).copy())
    numbers = graph.constant(f"{name}.integers", integers.astype(np.int32))
    conv.input[2] = graph.fresh(f"{name}.dequantized")
    nodes.append(make_node("DequantizeLinear", [numbers, scale], conv.input[2], axis=0))
    return nodes


def _subtract_biases(graph):
    kernels = _IntegerKernels(graph)
    for node in graph.nodes:
        x, bias = graph.addends(node)
        product = kernels.producers.get(x)
        if product is not None and product.op_type == "MatMul" and kernels.is_integer(product):
            negative = graph.constant(f"{bias}.negative", -graph.constants[bias])
            node.op_type = "Sub"
            node.input[:] = [x, negative]
