"""Recurrent layers of OpenVINO for nodes of ONNX, whose axes and gates have another order."""

import numpy as np

# Gates of a kind, and their order in OpenVINO by those of ONNX.
_ORDER = {"GRU": [0, 1, 2], "RNN": [0], "LSTM": [2, 0, 3, 1]}


def recurrent(kind, ov, ins, attributes):
    """Return the outputs [sequence, direction, image, feature] and the last states of a layer.

    Args:
        kind: "GRU", "RNN" or "LSTM".
        ins: the inputs of the node of ONNX: x [sequence, image, feature], weights, recurrences,
            biases, lengths or None, and the first states [direction, image, feature].
    """
    x, weights, recurrences, biases, lengths, *states = ins
    hidden, order = attributes["hidden_size"], _ORDER[kind]
    weights, recurrences = (_gates(each.data, order, hidden) for each in (weights, recurrences))
    parts = biases.data.reshape(biases.data.shape[0], 2, len(order), hidden)[:, :, order]
    if kind == "GRU":  # both biases of the last gate stay apart
        parts = np.concatenate([parts[:, 0, :2] + parts[:, 1, :2], parts[:, :, 2]], 1)
    else:
        parts = parts.sum(1)
    biases = parts.reshape(len(parts), -1)
    x = ov.transpose(x, np.array([1, 0, 2]))
    states = [ov.transpose(each, np.array([1, 0, 2])) for each in states]
    if lengths is None:
        shape = ov.shape_of(x, "i64")
        size, count = (ov.gather(shape, np.array([i]), np.int64(0)) for i in (0, 1))
        lengths = ov.broadcast(count, size)
    direction = attributes["direction"].upper()
    arguments = [x, *states, lengths, weights, recurrences, biases, hidden, direction]
    if kind == "GRU":
        made = ov.gru_sequence(*arguments, linear_before_reset=True)
    elif kind == "LSTM":
        made = ov.lstm_sequence(*arguments)
    else:
        made = ov.rnn_sequence(*arguments, activations=[attributes["activations"][0].lower()])
    outputs = made.outputs()
    return [ov.transpose(outputs[0], np.array([2, 1, 0, 3])).output(0),
            *(ov.transpose(each, np.array([1, 0, 2])).output(0) for each in outputs[1:])]


def _gates(array, order, hidden):
    """Order the gates of weights [direction, gates * hidden, feature]."""
    shape = array.shape
    return array.reshape(shape[0], len(order), hidden, -1)[:, order].reshape(shape)
