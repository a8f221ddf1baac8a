"""Correction of concatenated numbers, which paddle2onnx 2.x leaves without a dimension."""

import numpy as np

from .graph import attribute, make_node

_SAME_RANK = ("Cast", "Identity", "Slice", "Neg", "Abs", "Floor", "Ceil", "Relu")
_BROADCAST = ("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Concat", "Where")


def correct_concatenations(graph):
    """Make scalars among the inputs of a Concat vectors of one number, in place.

    In the PIR form of a program, from which paddle2onnx 2.x converts, a size that is taken from a
    shape has no dimension. Paddle concatenates it with vectors; a Concat of ONNX must not.
    """
    from onnx import numpy_helper

    ranks = {each.name: len(each.dims) for each in graph.initializer}
    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer
              if each.dims in ([], [1])}
    nodes, vector = [], None
    for node in graph.node:
        value = attribute(node, "value") if node.op_type == "Constant" else None
        if value is not None:
            ranks[node.output[0]] = len(value.dims)
            if np.prod(value.dims) <= 8:
                values[node.output[0]] = numpy_helper.to_array(value)
        if node.op_type == "Concat" and any(ranks.get(name) == 0 for name in node.input):
            for i, name in enumerate(node.input):
                if vector is None:
                    vector = f"{node.output[0]}.vector"
                    graph.initializer.append(numpy_helper.from_array(np.array([-1]), vector))
                made = f"{node.output[0]}.input_{i}"
                nodes.append(make_node("Reshape", [name, vector], made))
                ranks[made] = 1
                node.input[i] = made
        nodes.append(node)
        rank = _rank(node, ranks, values)
        if rank is not None:
            ranks[node.output[0]] = rank
    if vector is not None:
        kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)


def _rank(node, ranks, values):
    """Return the rank of the output of a node as far as sizes and shapes need it, or None."""
    known = [ranks.get(name) for name in node.input]
    if node.op_type == "Shape":
        return 1
    if not known or known[0] is None:
        return None
    if node.op_type in _SAME_RANK:
        return known[0]
    if node.op_type in _BROADCAST:
        return None if None in known else max(known)
    if node.op_type == "Gather":
        return None if known[1] is None else known[0] - 1 + known[1]
    axes = values.get(node.input[1]) if len(node.input) > 1 else None
    if axes is None:
        return None
    signs = {"Squeeze": -1, "Unsqueeze": 1}
    if node.op_type == "Reshape":
        return axes.size
    return known[0] + signs[node.op_type] * axes.size if node.op_type in signs else None
