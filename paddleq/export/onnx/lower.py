"""Putting quantization into a float graph: markers become QuantizeLinear and DequantizeLinear."""

import numpy as np

from ...nn.tracing import MARKER_FACTOR
from ...spec import PerGroup
from ..paddle.lower import ActivationMark, mark_of
from .graph import make_node
from .integer_types import holder_of


def put_in(graph, marks, opset, parameters):
    """Replace the markers of ``graph`` by what ``marks`` says they stand for, in place.

    ``parameters``: names of the model's own; other constants are placeholders of weights.
    """
    _Rewriter(graph, marks, opset, parameters).run()


class _Rewriter:
    def __init__(self, graph, marks, opset, parameters):
        self.graph, self.marks, self.opset, self.parameters = graph, marks, opset, parameters
        self.markers = _markers(graph)
        inside = {id(node) for pair in self.markers.values() for node in pair[1:]}
        self.float_uses = {name for node in graph.nodes if id(node) not in inside
                           for name in node.input}
        self.taken = set()  # parameters whose own name stands for integers by now
        self.folded = {}  # parameter -> name of the float value that takes its place
        self.made = {}  # what a pair computes -> name of its result
        self.renamed = {}

    def run(self):
        first = {id(pair[1]) for pair in self.markers.values()}
        nodes = []
        for node in self.graph.nodes:
            if id(node) in first:
                continue
            if id(node) not in self.markers:
                nodes.append(node)
                continue
            number, multiply, _ = self.markers[id(node)]
            mark = self.marks[number - 1]
            source, target = multiply.input[0], node.output[0]
            source = self.renamed.get(source, source)
            write = self.activation if isinstance(mark, ActivationMark) else self.weight
            nodes += write(mark, source, target)
        self.graph.nodes = nodes
        self.graph.rename_inputs(self.renamed)

    def activation(self, mark, source, target):
        if mark.spec.binary:
            return self.sign(source, target, mark.threshold[0])
        holder = holder_of(mark.spec, self.opset, weight=False)
        step, zero = step_of(mark), zero_of(mark)
        key = (source, mark.spec, step.tobytes(), zero.tobytes())
        if key in self.made:  # several layers read one tensor, with one scale
            self.renamed[target] = self.made[key]
            return []
        self.made[key] = target
        along = _along(mark.spec)
        parameters = self.scale_and_zero(target, step, zero, holder, along)
        source, nodes = self.clipped(mark, source, target, step, zero, holder)
        quantized = self.graph.fresh(f"{target}.quantized")
        return [*nodes,
                make_node("QuantizeLinear", [source, *parameters], quantized, **along),
                make_node("DequantizeLinear", [quantized, *parameters], target, **along)]

    def clipped(self, mark, source, target, step, zero, holder):
        """Where the type has more integers than the spec: the values are kept in range."""
        spec = mark.spec
        if (spec.quant_min, spec.quant_max) == (holder.low, holder.high):
            return source, []
        low, high = ((limit - zero.astype(np.float32)) * step
                     for limit in (spec.quant_min, spec.quant_max))
        name = self.graph.fresh(f"{target}.clipped")
        limits = [self.graph.constant(f"{target}.{side}", limit.reshape([]))
                  for side, limit in (("low", low), ("high", high))]
        return name, [make_node("Clip", [source, *limits], name)]

    def weight(self, mark, source, target):
        if mark.integers is None:
            if source not in self.folded:
                self.folded[source] = self.store(mark, source, ".folded", mark.value)
            self.renamed[target] = self.folded[source]
            return []
        holder = holder_of(mark.spec, self.opset, weight=True)
        key = (source, id(mark))
        if key in self.made:
            self.renamed[target] = self.made[key]
            return []
        self.made[key] = target
        step, zero = step_of(mark), zero_of(mark)
        name = self.store(mark, source, ".integers", mark.integers, holder.element_type)
        along = _along(mark.spec)
        parameters = self.scale_and_zero(name, step, zero, holder, along)
        return [make_node("DequantizeLinear", [name, *parameters], target, **along)]

    def scale_and_zero(self, name, step, zero, holder, along):
        """Names of step and zero point."""
        shape = step.shape if along else []
        return [self.graph.constant(f"{name}.scale", step.reshape(shape)),
                self.graph.constant(f"{name}.zero_point",
                                    zero.astype(holder.dtype).reshape(shape),
                                    holder.element_type)]

    def store(self, mark, source, suffix, array, element_type=None):
        """Put ``array`` into the file, under the parameter's own name if that is free."""
        graph = self.graph
        if source not in self.parameters:  # a placeholder
            return graph.constant(f"{mark.layer}.weight", array, element_type)
        if source in self.float_uses or source in self.taken:
            return graph.constant(source + suffix, array, element_type)
        self.taken.add(source)
        graph.constants[source] = array
        if element_type is not None:
            graph.types[source] = element_type
        return source

    def sign(self, source, target, size):
        """-size below 0, +size from 0 on."""
        constant, fresh = self.graph.constant, self.graph.fresh
        zero, above, below = (constant(f"{target}.{name}", np.float32(value))
                              for name, value in (("zero", 0), ("above", size), ("below", -size)))
        negative = fresh(f"{target}.negative")
        return [make_node("Less", [source, zero], negative),
                make_node("Where", [negative, below, above], target)]


def _along(spec):
    """Attributes that say which elements share a scale."""
    if isinstance(spec.granularity, PerGroup):
        return {"axis": 0, "block_size": spec.granularity.size}
    return {} if spec.channel_axis is None else {"axis": spec.channel_axis}


def step_of(mark):
    """The step between two integers, float32."""
    levels = 1 if mark.spec.binary else mark.spec.quant_max
    return (mark.threshold.astype(np.float64) / levels).astype(np.float32)


def zero_of(mark):
    """The integers that stand for 0, int64, of the step's shape."""
    zero = mark.zero_point
    return np.zeros(mark.threshold.shape, np.int64) if zero is None else zero


def _markers(graph):
    """id of the last node of each marker -> (its number, its Mul, its Add)."""
    readers, found = graph.readers(), {}
    for node in graph.nodes:
        if node.op_type != "Mul" or graph.scalar(node.input[1]) != MARKER_FACTOR:
            continue
        (add,) = readers[node.output[0]]
        found[id(add)] = mark_of(graph.scalar(add.input[1])), node, add
    return found
