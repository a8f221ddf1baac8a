"""Bias of a convolution: an addition behind it becomes its third input.

It is the same sum. Runtimes look for quantized convolutions in the form input, weight, bias.
"""


CONVOLUTIONS = ("Conv", "ConvTranspose")


def join_biases(graph):
    """Give convolutions the biases that are added behind them, in place."""
    makers, readers, gone = graph.makers(), graph.readers(), []
    for node in graph.nodes:
        if node.op_type != "Add":
            continue
        for x, bias in (node.input, node.input[::-1]):
            conv, value = makers.get(x), graph.constants.get(bias)
            if (conv is None or value is None or conv.op_type not in CONVOLUTIONS
                    or len(conv.input) != 2 or len(readers[x]) != 1 or not _along_channels(value)):
                continue
            conv.input.append(graph.constant(f"{conv.input[1]}.bias", value.reshape(-1)))
            conv.output[0] = node.output[0]
            makers[node.output[0]] = conv
            gone.append(node)
            break
    graph.drop(gone)


def _along_channels(value):
    return value.ndim >= 3 and value.size == value.shape[-1 - (value.ndim - 2)]
