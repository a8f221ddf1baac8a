"""Choice of the operators that compute with channels first.

:mod:`.channels_first` writes them.
"""

from collections import defaultdict
from typing import Any, Dict

from ..graph_view import GraphView
from ..op_desc import (
    DENSE_TENSOR,
    all_inputs,
    all_outputs,
    attribute,
    inputs,
    outputs,
    shape_of,
)
from .layout_rules import (
    conversion,
    has_channels_last,
    quantizer_output,
    to_first,
    to_last,
)

LAST, FIRST = False, True
_SOURCE, _SINK = "first", "last"  # nodes of the graph that is cut: operators of a fixed order
# Costs of a transpose: of a tensor with one pixel, of any other, of one whose producer runtimes
# fuse with the operators behind it.
_SMALL, _USUAL, _FUSED = 4, 16, 17
_PRODUCTS = ("conv", "matmul", "mul")


class Orders:
    """Order of the inputs and outputs of the operators of a block.

    Operators that state that their channels are last, and those that they reach through operators
    that :mod:`.layout_rules` can convert, are converted unless that needs more transposes.
    """

    def __init__(self, program, block, marks):
        self.program, self.block = program, block
        self.ops, self._marks = list(block.ops), marks
        self.shapes = {}
        for outer in _ancestors(program, block):
            for var in outer.vars:
                if var.type.type == DENSE_TENSOR:
                    self.shapes.setdefault(var.name, shape_of(var))
        self._view = GraphView(self.ops, self.reads, self.writes)
        local = {var.name for var in block.vars if not var.persistable}
        parameters = set(program.arrays)
        # Parameters, and views of them: variable -> (parameter, shape).
        self.constants = {name: (name, list(program.arrays[name].shape)) for name in parameters}
        for op in self.ops:
            (name,) = outputs(op, "Out") if op.type in ("reshape", "reshape2") else (None,)
            if name in local - self._view.rewritten and inputs(op, "X")[0] in parameters:
                self.constants[name] = inputs(op, "X")[0], self.shapes[name]
        self.quantizers = {}  # output of a quantizer -> the operator
        for op in self.ops:
            name = quantizer_output(op, marks)
            if name in local - self._view.rewritten and not parameters & set(inputs(op, "X")):
                self.quantizers[name] = op
        # Variables that other blocks see, or that are assigned repeatedly, keep their order.
        self.fixed = self._view.rewritten | self._view.producers.keys() - local | {
            name for op in self.ops if sub_blocks(op) for name in self.writes(op)}
        self.conversions = {}  # id of an operator -> its form
        self._chosen = {}  # id of an operator -> (order of its inputs, of its outputs)
        self._grow()
        self._choose()

    def follows_convolution(self, op):
        """Return True if a convolution returns the first operand of ``op``."""
        producer = self._view.source(op, "X")
        return producer is not None and "conv" in producer.type

    def reads(self, op):
        """Variables that an operator and its sub-blocks read."""
        return [*all_inputs(op), *self._inner(op, self.reads)]

    def writes(self, op):
        """Variables that an operator and its sub-blocks write."""
        return [*all_outputs(op), *self._inner(op, self.writes)]

    def _inner(self, op, names_of):
        return [name for index in sub_blocks(op) for each in self.program.desc.blocks[index].ops
                for name in names_of(each)]

    def of(self, op):
        """Return (order of the inputs that an operator takes, of the outputs that it gives).

        They differ for a transpose, which need not be computed then.
        """
        return self._chosen.get(id(op), (LAST, LAST))

    def taken(self, op):
        """Names of the inputs to which the order of ``op`` applies."""
        found = self.conversions.get(id(op))
        return inputs(op, "X") if found is None else [
            inputs(op, slot)[i] for slot, i in found.takes]

    def given(self, op):
        """Names of the outputs to which the order of ``op`` applies."""
        found = self.conversions.get(id(op))
        slots = ["Out"] if found is None else found.gives
        return [name for slot in slots for name in outputs(op, slot)]

    def source(self, name):
        """Return the tensor of which quantizers make ``name``."""
        while name in self.quantizers:
            (name,) = inputs(self.quantizers[name], "X")
        return name

    def _readers(self, name):
        """Yield the operators that read a tensor, also through quantizers."""
        for op in self._view.consumers.get(name, ()):
            quantized = quantizer_output(op, self._marks)
            if quantized in self.quantizers:
                yield from self._readers(quantized)
            else:
                yield op

    def _grow(self):
        """Find the operators that can be converted, and the transposes next to them."""
        pending, seen = [op for op in self.ops if has_channels_last(op)], set()
        while pending:
            op = pending.pop()
            if id(op) in seen or quantizer_output(op, self._marks) in self.quantizers:
                continue
            seen.add(id(op))
            found = conversion(op, self.shapes, self.constants.keys())
            if found is None or not found.required and not self.fixed.isdisjoint(all_outputs(op)):
                continue
            self.conversions[id(op)] = found
            sources = [name for name in map(self.source, self.taken(op)) if name not in self.fixed]
            for name in sources:
                producer = self._view.producers.get(name)
                if self._is_transpose(producer, to_last):
                    self._chosen.setdefault(id(producer), (LAST, FIRST))
                elif producer is not None:
                    pending.append(producer)
            for name in (*sources, *self.given(op)):
                for reader in self._readers(name):
                    if self._is_transpose(reader, to_first):
                        self._chosen.setdefault(id(reader), (FIRST, LAST))
                    else:
                        pending.append(reader)

    def _is_transpose(self, op, axes):
        """Return True for a transpose by ``axes(rank)``."""
        if op is None or op.type not in ("transpose", "transpose2"):
            return False
        found, names = list(attribute(op, "axis") or ()), [*inputs(op, "X"), *outputs(op, "Out")]
        return (len(found) >= 3 and found == axes(len(found)) and self.fixed.isdisjoint(names)
                and self.constants.keys().isdisjoint(names))

    def _choose(self):
        """Choose the orders with the least costs of transposes: a minimum cut of a graph.

        Its nodes are operators. Those of one tensor are joined by two nodes of the tensor.
        """
        edges = defaultdict(dict)
        for name in self._tensors():
            producer = self._view.producers.get(name)
            ends = {self._node(producer, name, self.given, 1),
                    *(self._node(op, name, self.taken, 0) for op in self._readers(name))}
            if len(ends) > 1:
                before, after = ("before", name), ("after", name)
                edges[before][after] = self._transpose_cost(name, producer)
                for end in ends:
                    edges[end][before] = edges[after][end] = float("inf")
        last = _side_of_sink(edges)
        for op in self.ops:
            if id(op) in self.conversions:
                order = LAST if id(op) in last else FIRST
                self._chosen[id(op)] = order, order

    def _tensors(self):
        """Tensors whose producers or readers can be converted."""
        return dict.fromkeys(
            name for op in self.ops if id(op) in self.conversions or id(op) in self._chosen
            for name in (*map(self.source, self.taken(op)), *self.given(op)))

    def _node(self, op, name, names_of, side):
        """Return the node of an operator that reads or writes a tensor."""
        if op is None or name in self.fixed and side:
            return _SINK
        if id(op) in self._chosen:
            return _SOURCE if self._chosen[id(op)][side] else _SINK
        if id(op) not in self.conversions or name not in map(self.source, names_of(op)):
            return _SINK
        return _SOURCE if self.conversions[id(op)].required else id(op)

    def _transpose_cost(self, name, producer):
        if all(size == 1 for size in self.shapes[name][1:-1]):
            return _SMALL
        return _FUSED if producer is not None and any(
            each in producer.type for each in _PRODUCTS) else _USUAL


def _side_of_sink(edges):
    """Return the nodes on the side of ``_SINK`` of a minimum cut; as few as possible.

    Args:
        edges: node -> {node: capacity}, which becomes the remaining capacity.
    """
    reverse = defaultdict(set)
    for node, ends in list(edges.items()):
        for end in ends:
            reverse[end].add(node)
    while True:
        # Search backwards, so that the last search finds the nodes that reach the sink.
        after: Dict[Any, Any] = {_SINK: None}
        pending = [_SINK]
        for node in pending:
            for start in reverse[node]:
                if start not in after and edges[start].get(node, 0) > 0:
                    after[start] = node
                    pending.append(start)
        if _SOURCE not in after:
            return set(after)
        path = [_SOURCE]
        while path[-1] != _SINK:
            path.append(after[path[-1]])
        steps = list(zip(path, path[1:]))
        flow = min(edges[start][end] for start, end in steps)
        for start, end in steps:
            edges[start][end] -= flow
            edges[end][start] = edges[end].get(start, 0) + flow
            reverse[start].add(end)


def sub_blocks(op):
    found = attribute(op, "sub_block")
    return [*(attribute(op, "blocks") or ()), *([] if found is None else [found])]


def _ancestors(program, block):
    """Yield a block and the blocks around it."""
    yield block
    while block.parent_idx >= 0:
        block = program.desc.blocks[block.parent_idx]
        yield block
