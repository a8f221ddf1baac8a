"""Lower markers to QuantizeLinear and DequantizeLinear of an ONNX graph."""

from operator import attrgetter

import numpy as np

from ...nn.tracing import MARKER_FACTOR
from ...spec import PerGroup
from ..markers import MarkerLowering, marker_number, simulated_weight
from ..program.graph_view import GraphView
from .graph import all_subgraphs, captured, make_node, set_nodes
from .opset import integer_type


class OnnxLowering(MarkerLowering):
    """Replace the markers of an :class:`~.graph.OnnxGraph` by operators, in place.

    Constants that are not in ``parameters`` are placeholders of weights.
    """

    def __init__(self, graph, marks, opset, parameters):
        super().__init__(marks, _inputs_of, attrgetter("output"))
        self.graph, self.opset, self.parameters = graph, opset, parameters
        self.results = {}  # parameters of a quantizer -> its result
        self._blocks = [graph, *(inner for node in graph.nodes for inner in all_subgraphs(node))]
        self._nodes = [graph.nodes, *(list(inner.node) for inner in self._blocks[1:])]
        self.numbers = {}  # id of a node -> number of its marker
        for nodes in self._nodes:
            self._merge_markers(nodes)

    def _merge_markers(self, nodes):
        """Merge the Mul and Add of each marker into the Add, in place."""
        graph, merged = self.graph, set()
        consumers = GraphView(nodes, attrgetter("input"), attrgetter("output")).consumers
        for node in nodes:
            if node.op_type != "Mul" or graph.scalar(node.input[1]) != MARKER_FACTOR:
                continue
            (add,) = consumers[node.output[0]]
            self.numbers[id(add)] = marker_number(MARKER_FACTOR, graph.scalar(add.input[1]))
            add.input[0] = node.input[0]
            merged.add(id(node))
        nodes[:] = [node for node in nodes if id(node) not in merged]

    def quantize_dequantize(self, marker):
        mark, target = marker.mark, marker.target
        integers = integer_type(mark.spec, self.opset, is_weight=False)
        scale, zero = _qparams(mark)
        key = (id(marker.block), marker.source, mark.spec, scale.tobytes(), zero.tobytes())
        if key in self.results:  # several layers read one tensor with one scale
            return self.repeated(target, self.results[key])
        self.results[key] = target
        axis = _axis_attributes(mark.spec)
        parameters = self.scale_and_zero_point(target, scale, zero, integers, axis)
        source, nodes = self.clipped(marker, scale, zero, integers)
        quantized = self.graph.fresh(f"{target}.quantized")
        return [*nodes,
                make_node("QuantizeLinear", [source, *parameters], quantized, **axis),
                make_node("DequantizeLinear", [quantized, *parameters], target, **axis)]

    def repeated(self, target, result):
        """Replace ``target`` by an equal tensor."""
        if target in self.graph.outputs:
            return [make_node("Identity", [result], target)]
        self.renamed[target] = result
        return []

    def clipped(self, marker, scale, zero, integers):
        """Clip the activation if the integer type has more values than the spec."""
        spec, target = marker.mark.spec, marker.target
        if (spec.quant_min, spec.quant_max) == (integers.low, integers.high):
            return marker.source, []
        low, high = ((limit - zero.astype(np.float32)) * scale
                     for limit in (spec.quant_min, spec.quant_max))
        name = self.graph.fresh(f"{target}.clipped")
        limits = [self.graph.constant(f"{target}.{side}", limit.reshape([]))
                  for side, limit in (("low", low), ("high", high))]
        return name, [make_node("Clip", [marker.source, *limits], name)]

    def integer_weight(self, marker):
        mark = marker.mark
        integers = integer_type(mark.spec, self.opset, is_weight=True)
        key = (id(marker.block), marker.source, id(mark))
        if key in self.results:
            return self.repeated(marker.target, self.results[key])
        self.results[key] = marker.target
        name = self.store(marker, mark.integers, ".integers")
        if integers.element_type is not None:
            self.graph.types[name] = integers.element_type
        axis = _axis_attributes(mark.spec)
        parameters = self.scale_and_zero_point(name, *_qparams(mark), integers, axis)
        return [make_node("DequantizeLinear", [name, *parameters], marker.target, **axis)]

    def scale_and_zero_point(self, name, scale, zero, integers, axis):
        """Add the constants of a quantizer and return their names."""
        shape = scale.shape if axis else []
        return [self.graph.constant(f"{name}.scale", scale.reshape(shape)),
                self.graph.constant(f"{name}.zero_point",
                                    zero.astype(integers.dtype).reshape(shape),
                                    integers.element_type)]

    def sign(self, marker, size):
        target, constant = marker.target, self.graph.constant
        zero, above, below = (constant(f"{target}.{name}", np.float32(value))
                              for name, value in (("zero", 0), ("above", size), ("below", -size)))
        negative = self.graph.fresh(f"{target}.negative")
        return [make_node("Less", [marker.source, zero], negative),
                make_node("Where", [negative, below, above], target)]

    def run(self):
        super().run()
        self.graph.keep_captured()

    def blocks(self):
        return list(zip(self._blocks, self._nodes))

    def set_operations(self, block, ops):
        if block is self.graph:
            block.nodes = ops
        else:
            set_nodes(block, ops)

    def float_weight(self, marker, value):
        nodes = super().float_weight(marker, value)
        return nodes or self.repeated(marker.target, self.renamed.pop(marker.target))

    def rename_inputs(self, ops):
        self.graph.rename_inputs(self.renamed, ops)

    def marker_of(self, op):
        number = self.numbers.get(id(op))
        return None if number is None else (number, op.input[0], op.output[0])

    def parameter_name(self, source):
        return source if source in self.parameters else None

    def add_parameter(self, name, array):
        return self.graph.constant(name, array)

    def set_parameter(self, source, array):
        self.graph.constants[source] = array


class FloatLowering(OnnxLowering):
    """Restore the float graph, like :class:`~..paddle.lower.MarkerRemoval`."""

    def activation(self, marker):
        return self.repeated(marker.target, marker.source)

    def weight(self, marker):
        mark = marker.mark
        return self.float_weight(marker,
                                 simulated_weight(mark) if mark.value is None else mark.value)


def _inputs_of(node):
    return [*node.input, *captured(node)]


def _axis_attributes(spec):
    """Attributes of the granularity of a quantizer."""
    if isinstance(spec.granularity, PerGroup):
        return {"axis": 0, "block_size": spec.granularity.size}
    return {} if spec.channel_axis is None else {"axis": spec.channel_axis}


def _qparams(mark):
    """Scale (float32) and zero point (int64) of a mark, of the same shape."""
    levels = 1 if mark.spec.binary else mark.spec.quant_max
    scale = (mark.abs_max.astype(np.float64) / levels).astype(np.float32)
    return scale, np.zeros(scale.shape, np.int64) if mark.zero_point is None else mark.zero_point
