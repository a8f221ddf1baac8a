"""Weights that are turned before they are used: their integers are turned in the file.

Paddle turns the weight of a Conv1D into one of a Conv2D, and matmul may take it transposed. Between
DequantizeLinear and the operator such a step hides from runtimes that the weight is integers.
"""

import numpy as np

from .graph import attribute, set_attribute


def _transpose(node, value):
    return np.ascontiguousarray(value.transpose(attribute(node, "perm")))


def _unsqueeze(node, value, axes):
    return np.expand_dims(value, tuple(axes.reshape(-1).tolist()))


def _squeeze(node, value, axes=None):
    return np.squeeze(value, None if axes is None else tuple(axes.reshape(-1).tolist()))


TURNS = {"Transpose": _transpose, "Unsqueeze": _unsqueeze, "Squeeze": _squeeze}


def fold_views(graph):
    """Apply Unsqueeze, Squeeze and Transpose behind a dequantized weight to it, in place."""
    makers, readers, gone = graph.makers(), graph.readers(), []
    for node in graph.nodes:
        turn = TURNS.get(node.op_type)
        weight = makers.get(node.input[0]) if node.input else None
        if (turn is None or weight is None or weight.op_type != "DequantizeLinear"
                or any(len(readers[name]) != 1 for name in (weight.input[0], node.input[0]))
                or weight.input[0] not in graph.constants
                or attribute(weight, "block_size") is not None):
            continue
        rest = [graph.constants.get(name) for name in node.input[1:]]
        if any(value is None for value in rest) or (turn is _squeeze and not rest):
            continue
        # What the numbers of the axes become shows where the axis of the scales goes.
        integers = graph.constants[weight.input[0]]
        marked = np.empty([1] * integers.ndim)
        graph.constants[weight.input[0]] = turn(node, integers, *rest)
        axis = attribute(weight, "axis")
        if axis is not None:
            sizes = [1] * integers.ndim
            sizes[axis] = 2  # the only one that is not 1
            turned = turn(node, np.broadcast_to(marked, sizes), *rest).shape
            set_attribute(weight, "axis", turned.index(2))
        weight.output[0] = node.output[0]
        makers[node.output[0]] = weight
        gone.append(node)
    graph.drop(gone)
