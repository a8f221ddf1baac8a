"""Making the graph of paddle2onnx short: it writes for every runtime, through many small nodes.

None of it changes what the graph computes. What stays has the names that it had in Paddle.
"""

import numpy as np

from .weight_views import TURNS

_SMALL = 1 << 12  # numbers


def tidy(graph):
    """Take out identities and compute what depends on constants only, in place."""
    _drop_identities(graph)
    _fold_constants(graph)
    _shorten_flattening(graph)
    graph.drop_unread()


def _drop_identities(graph):
    """What an identity copies gets the name of the copy, which is Paddle's name for it."""
    makers, readers, gone, renamed = graph.makers(), graph.readers(), [], {}
    for node in graph.nodes:
        if not _does_nothing(node):
            continue
        source, target = node.input[0], node.output[0]
        maker = makers.get(source)
        # A second name for one value; an output of the model must keep its own.
        if maker is not None and source not in graph.outputs and (
                target in graph.outputs or len(readers[source]) == 1):
            index = list(maker.output).index(source)
            maker.output[index] = target
            makers[target] = maker
            renamed[source] = target
            gone.append(node)
        elif target not in graph.outputs:
            renamed[target] = source
            gone.append(node)
    graph.drop(gone)
    graph.rename_inputs(renamed)


def _does_nothing(node):
    return node.op_type == "Identity" or (node.op_type == "Dropout" and len(node.output) == 1)


def _fold_constants(graph):
    readers = graph.readers()
    for node in graph.nodes:
        fold = _FOLDS.get(node.op_type)
        if fold is None or node.output[0] in graph.outputs:
            continue
        values = [graph.constants.get(name) for name in node.input]
        # A large one that others read too would be in the file twice.
        if all(value is not None for value in values) and (
                values[0].size <= _SMALL or len(readers[node.input[0]]) == 1):
            folded = fold(node, *values)
            if folded is not None:
                graph.constants[node.output[0]] = folded
    graph.drop([node for node in graph.nodes if node.output[0] in graph.constants])


def _shorten_flattening(graph):
    """Where a new shape begins with dimensions of the old one, zeros say so: nothing needs to look
    at the tensor for that."""
    makers = graph.makers()
    for node in graph.nodes:
        concat = makers.get(node.input[1]) if node.op_type == "Reshape" else None
        if concat is None or concat.op_type != "Concat":
            continue
        kept = _leading(graph, makers, makers.get(concat.input[0]), node.input[0])
        rest = [graph.constants.get(name) for name in concat.input[1:]]
        if kept and all(part is not None and 0 not in part for part in rest):
            shape = np.concatenate([np.zeros(kept, np.int64), *(part.reshape(-1)
                                                                for part in rest)])
            node.input[1] = graph.constant(f"{node.output[0]}.shape", shape)


def _leading(graph, makers, node, source):
    """How many dimensions of ``source``, counted from the first, a node takes; 0: none so."""
    if node is None or node.op_type != "Slice":
        return 0
    shape = makers.get(node.input[0])
    if shape is None or shape.op_type != "Shape" or shape.input[0] != source:
        return 0
    starts, ends, *axes = (graph.scalar(name) for name in node.input[1:])
    return ends if starts == 0 and axes == [0] and ends is not None and ends > 0 else 0


def _reshape(node, value, shape):
    if 0 in shape:  # it means "as before" there
        return None
    return value.reshape(shape)


_FOLDS = {"Reshape": _reshape, **TURNS}
