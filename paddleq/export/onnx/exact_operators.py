"""ONNX forms of operators that paddle2onnx converts wrongly, or with some attributes only."""

import math
from typing import Any, Dict

import numpy as np

from ..program.op_desc import all_outputs, attribute, inputs
from .splice import exact_form

_BOOL, _FLOAT, _INT32, _INT64 = 9, 1, 6, 7  # onnx.TensorProto.DataType


@exact_form("gelu")
def gelu(operator):
    """Approximation by tanh; paddle2onnx writes the exact function for it."""
    if not operator.attribute("approximate", False):
        return None

    def write(to):
        x, factor = operator.input("X"), np.float32(math.sqrt(2 / math.pi))
        cube = to.node("Mul", to.node("Mul", x, x), x)
        inner = to.node("Add", x, to.node("Mul", cube, np.float32(0.044715)))
        tanh = to.node("Tanh", to.node("Mul", inner, factor))
        half = to.node("Mul", x, np.float32(0.5))
        to.node("Mul", half, to.node("Add", tanh, np.float32(1)), output=operator.output())

    return write


@exact_form("softplus")
def softplus(operator):
    """``log(1 + exp(beta * x)) / beta`` up to a threshold; paddle2onnx ignores both attributes."""
    beta, threshold = operator.attribute("beta", 1.0), operator.attribute("threshold", 20.0)
    if (beta, threshold) == (1.0, 20.0):  # beyond 20 the function is x, to the last digit
        return None

    def write(to):
        x = operator.input("X")
        scaled = to.node("Mul", x, np.float32(beta))
        curve = to.node("Div", to.node("Softplus", scaled), np.float32(beta))
        to.node("Where", to.node("Greater", scaled, np.float32(threshold)), x, curve,
                output=operator.output())

    return write


@exact_form("pool2d", "pool3d", "max_pool2d_with_index", "max_pool3d_with_index")
def adaptive_pool(operator):
    """Adaptive pools whose windows differ in size or overlap; paddle2onnx writes equal windows.

    ``interpolate(mode="area")`` is one of them.
    """
    x, sizes = operator.input("X"), operator.attribute("ksize", [])
    spatial = operator.shape(x)[-len(sizes):]
    if operator.used(operator.output("Mask")) and not operator.attribute("adaptive", False):
        return _pool_with_places(operator, x, sizes, spatial)
    if (not operator.attribute("adaptive", False) or operator.attribute("global_pooling", False)
            or operator.used(operator.output("Mask")) or min(sizes, default=0) < 1
            or all(size == 1 for size in sizes)
            or all(have > 0 and have % size == 0 for have, size in zip(spatial, sizes))):
        return None
    average = operator.attribute("pooling_type", "max") == "avg"
    if not average and min(spatial) < 0:
        return None

    def write(to):
        rank, name = len(operator.shape(x)), x
        for axis, (have, size) in enumerate(zip(spatial, sizes), rank - len(sizes)):
            if have != size:
                name = (_average if average else _maximum)(to, name, axis, rank, have, size)
        to.node("Identity", name, output=operator.output())

    return write


def _pool_with_places(operator, x, sizes, spatial):
    """Maximum and its place in the channel, which ONNX counts from the first image."""
    pads = operator.attribute("paddings", [])
    if min(spatial) < 1 or len(pads) != len(sizes) or operator.attribute("global_pooling", False):
        return None

    def write(to):
        place = to.names.fresh("form.MaxPool")
        to.several("MaxPool", x, outputs=[operator.output(), place], kernel_shape=sizes,
                   strides=operator.attribute("strides"), pads=[*pads, *pads],
                   ceil_mode=int(operator.attribute("ceil_mode", False)))
        inner = to.node("Mod", place, np.array(math.prod(spatial)))
        to.node("Cast", inner, to=_INT32, output=operator.output("Mask"))

    return write


def _windows(have, size):
    """Return (first, end) of the windows of an adaptive pool along one axis."""
    return [(i * have // size, -(-(i + 1) * have // size)) for i in range(size)]


def _maximum(to, x, axis, rank, have, size):
    windows = _windows(have, size)
    width = max(end - first for first, end in windows)
    parts = [to.node("Gather", x, np.array([min(first + i, end - 1) for first, end in windows]),
                     axis=axis) for i in range(width)]
    return to.node("Max", *parts)


def _average(to, x, axis, rank, have, size):
    """Multiply by a matrix of the shares of each value in each window."""
    order = [i for i in range(rank) if i != axis] + [axis]
    back = np.argsort(order).tolist()
    if have > 0:
        matrix = np.zeros([have, size], np.float32)
        for i, (first, end) in enumerate(_windows(have, size)):
            matrix[first:end, i] = 1 / (end - first)
    else:
        matrix = _shares(to, x, axis, size)
    if axis == rank - 1:
        return to.node("MatMul", x, matrix)
    moved = to.node("MatMul", to.node("Transpose", x, perm=order), matrix)
    return to.node("Transpose", moved, perm=back)


def _shares(to, x, axis, size):
    """Compute the matrix of :func:`_average` for an axis of dynamic size."""
    have = to.node("Gather", to.node("Shape", x), np.array(axis))
    places = np.arange(size)
    first = to.node("Div", to.node("Mul", have, places), np.array(size))
    end = to.node("Div", to.node("Add", to.node("Mul", have, places + 1), np.array(size - 1)),
                  np.array(size))
    index = to.node("Unsqueeze", to.node("Range", np.array(0), have, np.array(1)), np.array([1]))
    inside = to.node("And", to.node("GreaterOrEqual", index, first), to.node("Less", index, end))
    count = to.node("Cast", to.node("Sub", end, first), to=_FLOAT)
    return to.node("Div", to.node("Cast", inside, to=_FLOAT), count)


# Operator of ONNX, its activation functions, and the order of Paddle's gates in it.
_CELLS = {"LSTM": ("LSTM", None, [0, 3, 1, 2]), "GRU": ("GRU", None, [1, 0, 2]),
          "RNN_TANH": ("RNN", "Tanh", [0]), "RNN_RELU": ("RNN", "Relu", [0])}


@exact_form("rnn")
def recurrent(operator):
    """Recurrent layers with all states and the lengths of sequences; paddle2onnx ignores both."""
    kind, function, order = _CELLS.get(operator.attribute("mode"), (None, None, []))
    weights = [operator.value(name) for name in operator.inputs("WeightList")]
    layers = operator.attribute("num_layers", 1)
    sides = 2 if operator.attribute("is_bidirec", False) else 1
    hidden = operator.attribute("hidden_size")
    if kind is None or len(weights) != 4 * layers * sides or any(
            each is None or each.shape[0] != len(order) * hidden for each in weights):
        return None  # such as a projection
    states, lengths = operator.inputs("PreState"), operator.input("SequenceLength")
    zero_states = operator.shape(operator.input("Input"))[1] < 0 and all(
        _is_zero(operator, state) for state in states)

    def write(to):
        attributes: Dict[str, Any] = (
            {} if function is None else {"activations": [function] * sides})
        if kind == "GRU":
            attributes["linear_before_reset"] = 1
        lengths32 = None if lengths is None else to.node("Cast", lengths, to=6)
        x, ends = operator.input("Input"), [[] for _ in states]
        for layer in range(layers):
            own = [layer * sides + side for side in range(sides)]
            # All matrices of all layers precede all biases.
            matrices, recurrences = (np.stack([_gates(weights[2 * i + part], order, hidden)
                                               for i in own]) for part in (0, 1))
            biases = np.stack([np.concatenate([
                _gates(weights[2 * (layers * sides + i) + part], order, hidden)
                for part in (0, 1)]) for i in own])
            if zero_states:
                first = [_zeros_of(to, x, sides, matrices.shape[-1], hidden)] * len(states)
            else:
                first = [to.node("Slice", state, np.array([own[0]]), np.array([own[-1] + 1]),
                                 np.array([0])) for state in states]
            made = [to.names.fresh(f"form.{kind}") for _ in range(1 + len(states))]
            to.several(kind, x, matrices, recurrences, biases, lengths32, *first, outputs=made,
                       hidden_size=hidden, direction="bidirectional" if sides == 2 else "forward",
                       **attributes)
            for end, name in zip(ends, made[1:]):
                end.append(name)
            x = to.node("Reshape", to.node("Transpose", made[0], perm=[0, 2, 1, 3]),
                        np.array([0, 0, sides * hidden]))
        to.node("Identity", x, output=operator.output("Out"))
        for name, end in zip(operator.outputs("State"), ends):
            to.node("Concat", *end, output=name, axis=0)

    return write


def _is_zero(operator, name):
    """Return True for a variable that another operator fills with zeros."""
    maker = next((op for op in operator.program.desc.blocks[0].ops
                  if name in all_outputs(op)), None)
    return maker is not None and maker.type == "fill_constant" and not inputs(
        maker, "ValueTensor") and not float(attribute(maker, "str_value") or attribute(
            maker, "value", 0.0))


def _zeros_of(to, x, sides, width, hidden):
    """Return zeros [sides, samples, hidden], computed from the values of ``x``.

    If their size is computed from the shape of ``x``, OpenVINO (2026.4) adds the bias of the first
    channel to all channels of a convolution that precedes a quantizer.
    """
    first = to.node("Slice", x, np.array([0]), np.array([1]), np.array([0]))
    zeros = to.node("Cast", to.node("Less", first, first), to=_FLOAT)
    zeros = to.node("MatMul", zeros, np.zeros((width, hidden), np.float32))
    return to.node("Concat", *[zeros] * sides, axis=0)


def _gates(weight, order, hidden):
    """Order the gates of a weight or bias as ONNX does."""
    return weight.reshape(len(order), hidden, *weight.shape[1:])[order].reshape(weight.shape)


@exact_form("set_value")
def assign_slices(operator):
    """Assignment to slices; paddle2onnx writes an invalid one for several axes."""
    x, value = operator.input("Input"), operator.input("ValueTensor")
    axes, starts, ends, steps = (operator.attribute(name) or []
                                 for name in ("axes", "starts", "ends", "steps"))
    if value is None or not axes or operator.attribute("none_axes") or min(steps) < 1 or any(
            operator.inputs(f"{slot}TensorList") for slot in ("Starts", "Ends", "Steps")):
        return None
    rank, sizes = len(operator.shape(x)), operator.shape(value)
    removed = [axis % rank for axis in operator.attribute("decrease_axes") or []]
    kept = [axis for axis in range(rank) if axis not in removed]
    extra = max(len(sizes) - len(kept), 0)
    if any(size != 1 for size in sizes[:extra]):
        return None

    def write(to):
        source = to.node("Squeeze", value, np.arange(extra)) if extra else value
        lengths = dict(zip(kept[len(kept) + extra - len(sizes):], sizes[extra:]))
        first = min(lengths, default=rank)
        added = [axis - first for axis in removed if axis > first]
        source = to.node("Unsqueeze", source, np.array(added)) if added else source
        inside, shape = [], to.node("Shape", x)
        for axis, start, end, step in zip(axes, starts, ends, steps):
            index, selected = _selected(to, to.node("Gather", shape, np.array(axis)), start, end,
                                        step)
            if lengths.get(axis, 1) != 1:
                source = to.node("Gather", source, index, axis=axis - first)
            others = np.arange(1, rank - axis)
            inside.append(to.node("Unsqueeze", selected, others) if others.size else selected)
        while len(inside) > 1:
            inside.append(to.node("And", inside.pop(), inside.pop()))
        to.node("Where", inside[0], source, x, output=operator.output())

    return write


def _selected(to, have, start, end, step):
    """Return, for each place of an axis, its index in a slice and a mask of the slice."""
    places = to.node("Range", np.array(0), have, np.array(1))
    zero = np.array(0)
    if start < 0:
        start = to.node("Max", to.node("Add", have, np.array(start)), zero)
    end = to.node("Add", have, np.array(end)) if end < 0 else np.array(end)
    offset = to.node("Sub", places, start if isinstance(start, str) else np.array(start))
    mask = to.node("And", to.node("GreaterOrEqual", offset, zero), to.node("Less", places, end))
    if step > 1:
        rest = to.node("Mod", offset, np.array(step))
        mask = to.node("And", mask, to.node("Equal", rest, zero))
        offset = to.node("Div", offset, np.array(step))
    # Places outside of the slice take any index.
    count = to.node("ReduceSum", to.node("Cast", mask, to=_INT64))
    last = to.node("Sub", to.node("Squeeze", count), np.array(1))
    return to.node("Max", to.node("Min", offset, last), zero), mask
