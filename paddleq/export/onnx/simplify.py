"""Passes that simplify the graph of paddle2onnx, which has many small nodes for all runtimes.

They do not change the function of the graph. Remaining tensors keep their names in Paddle.
"""

import numpy as np

from .graph import attribute, set_attribute

_SMALL = 1 << 12  # elements of a constant that may be stored twice


def simplify(graph):
    """Remove identities and fold constants, in place."""
    _remove_identities(graph)
    _fold_constants(graph)
    _simplify_flattening(graph)
    graph.remove_unused()


def _remove_identities(graph):
    """Remove identities. The tensor gets the name of the copy, which is its name in Paddle."""
    view, removed, renamed = graph.view(), [], {}
    for node in graph.nodes:
        if node.op_type != "Identity" and (node.op_type != "Dropout" or len(node.output) != 1):
            continue
        source, target = node.input[0], node.output[0]
        while source in renamed:
            source = renamed[source]
        producer = view.producers.get(source)
        # An output of the model must keep its name.
        if producer is not None and source not in graph.outputs and (
                target in graph.outputs or len(view.consumers[source]) == 1):
            index = list(producer.output).index(source)
            producer.output[index] = target
            view.producers[target] = producer
            old, new = source, target
        elif target not in graph.outputs:
            old, new = target, source
        else:
            continue
        renamed[old] = new
        others = [each for each in view.consumers[source] if each is not node]
        view.consumers[new] = others + view.consumers.get(target, [])
        removed.append(node)
    graph.remove(removed)
    graph.rename_inputs(renamed)


def _fold_constants(graph):
    view = graph.view()
    for node in graph.nodes:
        fold = _FOLDS.get(node.op_type)
        if fold is None or node.output[0] in graph.outputs:
            continue
        values = [graph.constants.get(name) for name in node.input]
        # A large constant with other consumers would be stored twice.
        if all(value is not None for value in values) and (
                values[0].size <= _SMALL or view.sole_consumer(node.input[0]) is node):
            folded = fold(node, *values)
            if folded is not None:
                graph.constants[node.output[0]] = folded
    graph.remove([node for node in graph.nodes if node.output[0] in graph.constants])


def _simplify_flattening(graph):
    """Express leading dimensions that a Reshape keeps by zeros instead of computing them."""
    producers = graph.view().producers
    for node in graph.nodes:
        concat = producers.get(node.input[1]) if node.op_type == "Reshape" else None
        if concat is None or concat.op_type != "Concat":
            continue
        kept = _leading(graph, producers, producers.get(concat.input[0]), node.input[0])
        rest = [graph.constants.get(name) for name in concat.input[1:]]
        if kept and all(part is not None and 0 not in part for part in rest):
            shape = np.concatenate([np.zeros(kept, np.int64), *(part.reshape(-1)
                                                                for part in rest)])
            node.input[1] = graph.constant(f"{node.output[0]}.shape", shape)


def _leading(graph, producers, node, source):
    """Number of leading dimensions of ``source`` that a node slices, 0 if it does anything else."""
    if node is None or node.op_type != "Slice":
        return 0
    shape = producers.get(node.input[0])
    if shape is None or shape.op_type != "Shape" or shape.input[0] != source:
        return 0
    starts, ends, *axes = (graph.scalar(name) for name in node.input[1:])
    return ends if starts == 0 and axes == [0] and ends is not None and ends > 0 else 0


def _transpose(node, value):
    return np.ascontiguousarray(value.transpose(attribute(node, "perm")))


def _unsqueeze(node, value, axes):
    return np.expand_dims(value, tuple(axes.reshape(-1).tolist()))


def _squeeze(node, value, axes=None):
    return np.squeeze(value, None if axes is None else tuple(axes.reshape(-1).tolist()))


def _reshape(node, value, shape):
    if 0 in shape:  # in ONNX: keep the dimension
        return None
    return value.reshape(shape)


_VIEWS = {"Transpose": _transpose, "Unsqueeze": _unsqueeze, "Squeeze": _squeeze}
_FOLDS = {"Reshape": _reshape, **_VIEWS}


def fold_weight_views(graph):
    """Apply Unsqueeze, Squeeze and Transpose behind a dequantized weight to its integers, in place.

    Paddle unsqueezes the weight of a Conv1D for a Conv2D, and matmul may transpose its weight.
    Between DequantizeLinear and its consumer, runtimes do not recognize the weight of integers.
    """
    view, removed = graph.view(), []
    for node in graph.nodes:
        move = _VIEWS.get(node.op_type)
        weight = view.producers.get(node.input[0]) if node.input else None
        if (move is None or weight is None or weight.op_type != "DequantizeLinear"
                or any(len(view.consumers[name]) != 1 for name in (weight.input[0], node.input[0]))
                or weight.input[0] not in graph.constants
                or attribute(weight, "block_size") is not None):
            continue
        rest = [graph.constants.get(name) for name in node.input[1:]]
        if any(value is None for value in rest) or (move is _squeeze and not rest):
            continue
        integers = graph.constants[weight.input[0]]
        graph.constants[weight.input[0]] = move(node, integers, *rest)
        axis = attribute(weight, "axis")
        if axis is not None:
            # Find the new axis by the view of a shape in which only this axis has size 2.
            sizes = [1] * integers.ndim
            sizes[axis] = 2
            shape = move(node, np.empty(sizes), *rest).shape
            set_attribute(weight, "axis", shape.index(2))
        weight.output[0] = node.output[0]
        view.producers[node.output[0]] = weight
        removed.append(node)
    graph.remove(removed)
