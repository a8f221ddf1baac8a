"""Arranging a quantized graph so that ONNX Runtime computes it in integers.

ONNX Runtime makes an integer convolution of DequantizeLinear, Conv, QuantizeLinear in a row, with
unsigned activations. What a float model has between, a relu or a pool, keeps it from that, and then
it computes in float, with weights that it dequantizes in each run. So:

1. Signed activations become unsigned ones with a zero point in the middle: the same numbers.
2. A quantizer moves in front of what only orders or moves values, which then runs on integers; a
   relu is a lower limit of theirs. Rounding is monotonic, so that each value stays what it was.
3. A weight whose operator is computed in float all the same is dequantized by Cast and Mul, which
   ONNX Runtime computes when it loads the model. (DequantizeLinear it computes in each run.)
4. The bias of an integer convolution is 32-bit integers, which ONNX Runtime before 1.21 needs and
   later ones make themselves. It is rounded to what the smallest two factors give.
5. A bias behind a product of integers is subtracted, negated: of an addition behind a product ONNX
   Runtime makes a Gemm, before it looks for integers, and that one is computed in float.
"""

import numpy as np

from .graph import attribute, make_node
from .integer_types import FLOAT

_MOVES = ("MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze")


def arrange(graph):
    """Change ``graph`` in place; the numbers that it computes stay."""
    _count_from_the_middle(graph)
    _Advance(graph).run()
    _dequantize_when_loaded(graph)
    _round_biases(graph)
    _subtract_biases(graph)


def _of_type(graph, kind):
    return [node for node in graph.nodes if node.op_type == kind]


def _count_from_the_middle(graph):
    for node in _of_type(graph, "QuantizeLinear"):
        zero = graph.constants[node.input[2]]
        if zero.dtype == np.int8:  # the dequantizer reads the same constant
            graph.constants[node.input[2]] = (zero.astype(np.int16) + 128).astype(np.uint8)


class _Advance:
    """Moves quantizers up to the convolutions that feed them."""

    def __init__(self, graph):
        self.graph, self.makers, self.readers = graph, graph.makers(), graph.readers()

    def run(self):
        replaced = {}  # id of a node -> what stands in its place
        for node in _of_type(self.graph, "QuantizeLinear"):
            between = self.between(node)
            if between:
                replaced.update({id(each): [] for each in between})
                replaced[id(node)] = self.rebuilt(node, between)
        self.graph.nodes = [new for node in self.graph.nodes
                            for new in replaced.get(id(node), [node])]

    def between(self, quantizer):
        """The nodes that a quantizer may pass up to a convolution, the nearest first."""
        found, name = [], quantizer.input[0]
        if self.graph.constants[quantizer.input[2]].size != 1:
            return []
        while len(self.readers[name]) == 1 and name in self.makers:
            node = self.makers[name]
            if node.op_type == "Conv":
                return found
            if self.limits(node) is None and not (
                    node.op_type in _MOVES and len(node.output) == 1):
                return []
            found.append(node)
            name = node.input[0]
        return []

    def limits(self, node):
        """(lowest, highest) value that a limiting node lets through, or None."""
        if node.op_type == "Relu":
            return 0.0, np.inf
        if node.op_type != "Clip":
            return None
        limits = []
        for index, default in ((1, -np.inf), (2, np.inf)):
            given = len(node.input) > index and node.input[index]
            limits.append(self.graph.scalar(given) if given else default)
        return None if None in limits else tuple(limits)

    def rebuilt(self, quantizer, between):
        """Quantize first, then limit and move the integers."""
        graph, last = self.graph, quantizer.output[0]
        scale, zero = (graph.constants[name].reshape(-1)[0] for name in quantizer.input[1:])
        lowest, highest = np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max
        low, high, steps = lowest, highest, []
        for node in reversed(between):
            limits = self.limits(node)
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
        first = between[-1].input[0]
        chain = [quantizer, *steps]
        for node, source in zip(chain, [first, *[None] * len(steps)]):
            node.input[0] = source or previous  # noqa: F821
            previous = node.output[0] = (
                last if node is chain[-1] else graph.fresh(f"{last}.{node.op_type}"))
            node.name = f"{node.op_type}:{previous}"
        return chain


class _Products:
    """Which operators ONNX Runtime computes in integers."""

    def __init__(self, graph):
        self.graph, self.makers, self.readers = graph, graph.makers(), graph.readers()

    def in_integers(self, node):
        """Whether a node that reads a dequantized weight is one of them."""
        if node is None or node.op_type not in ("Conv", "MatMul"):
            return False
        activation, weight = (self.makers.get(name) for name in node.input[:2])
        if not (self.is_quantized(activation) and _dequantizes(weight)):
            return False
        zeros = self.graph.constants[weight.input[2]].reshape(-1)
        return node.op_type == "MatMul" or (
            bool((zeros == zeros[0]).all()) and self.is_between_integers(node))

    def in_blocks(self, node):
        """Whether its weight is dequantized in blocks, of which ONNX Runtime makes one operator."""
        weight = self.makers.get(node.input[1])
        return _dequantizes(weight) and attribute(weight, "block_size") is not None

    def is_between_integers(self, node):
        """Whether it reads dequantized values and is read by one quantizer of 8 bits."""
        (reader, *others) = self.readers[node.output[0]]
        return (self.is_quantized(self.makers.get(node.input[0])) and not others
                and reader is not None and reader.op_type == "QuantizeLinear"
                and self.graph.constants[reader.input[2]].dtype == np.uint8)

    def is_quantized(self, node):
        """Whether it dequantizes an activation of 8 bits that has one scale."""
        if not _dequantizes(node) or node.input[0] in self.graph.constants:
            return False
        zero = self.graph.constants[node.input[2]]
        return zero.size == 1 and zero.dtype == np.uint8


def _dequantizes(node):
    return node is not None and node.op_type == "DequantizeLinear"


def _dequantize_when_loaded(graph):
    products, nodes, renamed = _Products(graph), [], {}
    for node in graph.nodes:
        nodes.append(node)
        if not _dequantizes(node) or not _is_plain_weight(graph, node):
            continue
        readers = products.readers[node.output[0]]
        # Between integers ONNX Runtime would quantize float weights anew, in its own way.
        in_float = [each for each in readers if each is None or not (
            products.in_integers(each) or products.is_between_integers(each))]
        if not in_float:
            continue
        if len(in_float) == len(readers):
            nodes.pop()
            nodes += _cast_and_multiply(graph, node, node.output[0])
            continue
        target = graph.fresh(f"{node.output[0]}.float")
        nodes += _cast_and_multiply(graph, node, target)
        renamed.update({(id(each), node.output[0]): target for each in in_float})
    graph.nodes = nodes
    for node in nodes:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get((id(node), name), name)


def _is_plain_weight(graph, node):
    return (node.input[0] in graph.constants and node.input[0] not in graph.types
            and attribute(node, "block_size") is None)


def _cast_and_multiply(graph, node, target):
    """What a dequantizer of a constant computes, in operators that are folded."""
    integers, scale, zero = (graph.constants[name] for name in node.input)
    shape = [1] * integers.ndim
    if scale.size != 1:
        shape[attribute(node, "axis", 1)] = -1
    name, steps = f"{node.output[0]}.number", []
    steps.append(make_node("Cast", [node.input[0]], graph.fresh(name), to=FLOAT))
    if zero.any():
        zeros = graph.constant(f"{name}.zero", zero.astype(np.float32).reshape(shape))
        steps.append(make_node("Sub", [steps[-1].output[0], zeros],
                               graph.fresh(f"{name}.shifted")))
    factor = graph.constant(f"{name}.factor", scale.reshape(shape))
    return [*steps, make_node("Mul", [steps[-1].output[0], factor], target)]


def _round_biases(graph):
    products, nodes = _Products(graph), []
    for node in graph.nodes:
        if (node.op_type == "Conv" and len(node.input) == 3 and node.input[2] in graph.constants
                and products.in_integers(node)):
            nodes += _rounded_bias(graph, products, node)
        nodes.append(node)
    graph.nodes = nodes


def _rounded_bias(graph, products, conv):
    """Turns a convolution's bias into integers; returns the nodes that this needs."""
    activation, weight = (products.makers[name] for name in conv.input[:2])
    bias = graph.constants[conv.input[2]]
    steps = (graph.constants[activation.input[1]].reshape([1])
             * graph.constants[weight.input[1]].reshape(-1))
    integers = np.rint(bias.astype(np.float64) / steps)
    if not (np.abs(integers) <= np.iinfo(np.int32).max).all():
        return []  # a weight that others read too, whose steps could not be enlarged
    name, nodes = conv.input[2], []
    if steps.shape == bias.shape:
        # The product of two that are there is folded at loading, and not in the file.
        scale = graph.fresh(f"{name}.scale")
        nodes.append(make_node("Mul", [activation.input[1], weight.input[1]], scale))
    else:
        scale = graph.constant(f"{name}.scale", np.broadcast_to(steps, bias.shape).copy())
    numbers = graph.constant(f"{name}.integers", integers.astype(np.int32))
    conv.input[2] = graph.fresh(f"{name}.dequantized")
    nodes.append(make_node("DequantizeLinear", [numbers, scale], conv.input[2], axis=0))
    return nodes


def _subtract_biases(graph):
    products = _Products(graph)
    for node in graph.nodes:
        if node.op_type != "Add":
            continue
        for x, bias in (node.input, node.input[::-1]):
            product = products.makers.get(x)
            if (bias in graph.constants and product is not None and product.op_type == "MatMul"
                    and (products.in_integers(product) or products.in_blocks(product))):
                negative = graph.constant(f"{bias}.negative", -graph.constants[bias])
                node.op_type = "Sub"
                node.input[:] = [x, negative]
                break
