"""ONNX forms of products and norms of matrices, of running extremes, and of selections."""

import numpy as np

from .exact_tensors import reduced
from .splice import exact_form

_INT32, _INT64 = 6, 7  # onnx.TensorProto.DataType
_CODES = {"int32": _INT32, "int64": _INT64}
_LARGEST_FACTOR = 32  # rows of a matrix, whose Cholesky factor takes a few nodes for each row


@exact_form("matrix_power")
def matrix_power(operator):
    """Product of powers of two of the matrix."""
    x, count = operator.input("X"), operator.attribute("n", 1)
    size = operator.shape(x)[-1]
    if operator.dtype(x) != "float32" or count < 0 or size < 1:
        return None

    def write(to):
        found, square, left = None, x, count
        while left:
            if left % 2:
                found = square if found is None else to.node("MatMul", found, square)
            left //= 2
            square = to.node("MatMul", square, square) if left else square
        if found is None:
            found = to.node("Expand", np.eye(size, dtype=np.float32), to.node("Shape", x))
        to.node("Identity", found, output=operator.output())

    return write


@exact_form("multi_dot")
def multi_dot(operator):
    names = operator.inputs("X")
    if any(operator.dtype(name) != "float32" for name in names):
        return None

    def write(to):
        found = names[0]
        for name in names[1:]:
            found = to.node("MatMul", found, name)
        to.node("Identity", found, output=operator.output())

    return write


@exact_form("cholesky")
def cholesky(operator):
    """Column by column: the rest of the matrix without the product of the columns before."""
    x = operator.input("X")
    shape = operator.shape(x)
    size = shape[-1]
    if operator.dtype(x) != "float32" or not 1 <= size <= _LARGEST_FACTOR:
        return None

    def write(to):
        last, rest, columns = np.array([-1]), x, []
        for number in range(size):
            column = to.node("Slice", rest, np.array([number]), np.array([number + 1]), last)
            pivot = to.node("Slice", column, np.array([number]), np.array([number + 1]),
                            np.array([-2]))
            below = (np.arange(size) >= number).astype(np.float32).reshape(size, 1)
            column = to.node("Mul", to.node("Div", column, to.node("Sqrt", pivot)), below)
            columns.append(column)
            if number + 1 < size:
                order = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
                product = to.node("MatMul", column, to.node("Transpose", column, perm=order))
                rest = to.node("Sub", rest, product)
        lower = to.node("Concat", *columns, axis=-1) if size > 1 else columns[0]
        order = list(range(len(shape)))
        if operator.attribute("upper", False):
            order[-2:] = order[:-3:-1]
        to.node("Transpose", lower, perm=order, output=operator.output())

    return write


@exact_form("renorm")
def renorm(operator):
    """Scale the parts of an axis whose norm is above the limit down to it."""
    x, power = operator.input("X"), operator.attribute("p")
    rank = len(operator.shape(x))
    limit, axis = np.float32(operator.attribute("max_norm")), operator.attribute("axis") % rank
    if operator.dtype(x) != "float32" or not 0 < power < np.inf:
        return None

    def write(to):
        others = [each for each in range(rank) if each != axis]
        powers = to.node("Pow", to.node("Abs", x), np.float32(power))
        norm = to.node("Pow", to.node("ReduceSum", powers, np.array(others)),
                       np.float32(1.0 / power))
        factor = to.node("Where", to.node("Greater", norm, limit), to.node(
            "Div", limit, to.node("Add", norm, np.float32(1e-7))), np.float32(1))
        to.node("Mul", x, factor, output=operator.output())

    return write


@exact_form("cummax", "cummin")
def running_extreme(operator):
    """Extreme of the values so far, and the last place that has it."""
    x, axis = operator.input("x"), operator.attribute("axis", -1)
    rank, dtype = len(operator.shape(x)), operator.dtype(x)
    if dtype not in ("float32", "int32", "int64") or not rank:
        return None
    axis %= rank
    kind = "Max" if operator.type == "cummax" else "Min"
    worst = (-np.inf if dtype == "float32" else np.iinfo(dtype).min) if kind == "Max" else (
        np.inf if dtype == "float32" else np.iinfo(dtype).max)

    def write(to):
        order = [each for each in range(rank) if each != axis] + [axis]
        back = [order.index(each) for each in range(rank)]
        rows = to.node("Transpose", x, perm=order)
        count = to.node("Gather", to.node("Shape", rows), np.array(rank - 1))
        places = to.node("Range", np.array(0), count, np.array(1))
        so_far = to.node("LessOrEqual", places, to.node("Unsqueeze", places, np.array([1])))
        seen = to.node("Where", so_far, to.node("Unsqueeze", rows, np.array([-2])),
                       np.array(worst, dtype))
        value = reduced(to, f"Reduce{kind}", seen, [rank], False)
        same = to.node("And", to.node("Equal", seen, to.node(
            "Unsqueeze", value, np.array([-1]))), so_far)
        place = reduced(to, "ReduceMax", to.node("Where", same, places, np.array(-1)), [rank],
                        False)
        to.node("Transpose", value, perm=back, output=operator.output("out"))
        output = operator.output("indices")
        to.node("Transpose", to.node("Cast", place, to=_CODES[operator.dtype(output)]), perm=back,
                output=output)

    return write


@exact_form("nanmedian")
def median_without_nan(operator):
    """Mean of both middle values of those that are numbers."""
    x, axes = operator.input("X"), operator.attribute("axis") or []
    rank, keep = len(operator.shape(x)), operator.attribute("keepdim", False)
    if (operator.dtype(x) != "float32" or len(axes) != 1
            or operator.attribute("mode", "avg") != "avg"
            or operator.used(operator.output("MedianIndex"))):
        return None
    axis = axes[0] % rank

    def write(to):
        order = [each for each in range(rank) if each != axis] + [axis]
        rows, last = to.node("Transpose", x, perm=order), np.array([rank - 1])
        nan = to.node("IsNaN", rows)
        count = to.node("ReduceSum", to.node("Cast", to.node("Not", nan), to=_INT64), last)
        size = to.node("Slice", to.node("Shape", rows), np.array([rank - 1]), np.array([rank]))
        names = [to.names.fresh("form.sorted"), to.names.fresh("form.places")]
        to.several("TopK", to.node("Where", nan, np.float32(np.inf), rows), size, outputs=names,
                   axis=-1, largest=0)
        zero, two = np.array(0), np.array(2)
        middle = [to.node("GatherElements", names[0], place, axis=-1) for place in (
            to.node("Max", to.node("Div", to.node("Sub", count, np.array(1)), two), zero),
            to.node("Min", to.node("Div", count, two), to.node("Sub", size, np.array(1))))]
        value = to.node("Mul", to.node("Add", *middle), np.float32(0.5))
        value = to.node("Where", to.node("Equal", count, zero), np.float32(np.nan), value)
        if keep:
            to.node("Transpose", value, perm=[order.index(each) for each in range(rank)],
                    output=operator.output())
        else:
            to.node("Squeeze", value, last, output=operator.output())

    return write


@exact_form("histogram")
def histogram(operator):
    """Number of values in each of the parts of a given range."""
    x, bins = operator.input("X"), operator.attribute("bins", 100)
    low, high = (np.float32(operator.attribute(name, 0)) for name in ("min", "max"))
    if (operator.dtype(x) != "float32" or operator.inputs("Weight") or not low < high
            or operator.attribute("density", False)):
        return None

    def write(to):
        flat = to.node("Reshape", x, np.array([-1]))
        place = to.node("Div", to.node("Mul", to.node("Sub", flat, low), np.float32(bins)),
                        high - low)
        inside = to.node("And", to.node("GreaterOrEqual", flat, low),
                         to.node("LessOrEqual", flat, high))
        number = to.node("Min", to.node("Floor", place), np.float32(bins - 1))
        number = to.node("Where", inside, number, np.float32(-1))
        same = to.node("Equal", to.node("Unsqueeze", number, np.array([1])),
                       np.arange(bins, dtype=np.float32))
        to.node("ReduceSum", to.node("Cast", same, to=_INT64), np.array([0]), keepdims=0,
                output=operator.output())

    return write


@exact_form("multiplex")
def multiplex(operator):
    """Row i of the tensor that the index of row i names."""
    names, index = operator.inputs("X"), operator.input("Ids")
    rank = len(operator.shape(names[0]))

    def write(to):
        stacked = to.node("Concat", *[to.node("Unsqueeze", name, np.array([1]))
                                      for name in names], axis=1)
        rows = to.node("Reshape", to.node("Cast", index, to=_INT64), np.array([-1, 1]))
        to.node("GatherND", stacked, rows, batch_dims=1, output=operator.output())

    return write if rank else None


@exact_form("broadcast_tensors")
def broadcast_tensors(operator):
    names, ends = operator.inputs("X"), operator.outputs("Out")
    rank = max(len(operator.shape(name)) for name in names)

    def write(to):
        shapes = []
        for name in names:
            missing = rank - len(operator.shape(name))
            shape = to.node("Shape", name)
            shapes.append(to.node("Concat", np.ones(missing, np.int64), shape, axis=0)
                          if missing else shape)
        shape = to.node("Max", *shapes)
        for name, end in zip(names, ends):
            to.node("Expand", name, shape, output=end)

    return write


@exact_form("unpool3d")
def max_unpool(operator):
    x, shape = operator.input("X"), operator.shape(operator.output())
    if min(shape[1:]) < 1 or operator.attribute("data_format", "NCDHW") != "NCDHW":
        return None

    def write(to):
        flat = np.array([0, 0, -1])
        index = to.node("Reshape", to.node("Cast", operator.input("Indices"), to=_INT64), flat)
        batch = to.node("Slice", to.node("Shape", x), np.array([0]), np.array([1]))
        size = to.node("Concat", batch, np.array([shape[1], int(np.prod(shape[2:]))]), axis=0)
        zeros = to.node("Expand", np.float32(0), size)
        filled = to.node("ScatterElements", zeros, index, to.node("Reshape", x, flat), axis=2)
        to.node("Reshape", filled, np.array([0, *shape[1:]]), output=operator.output())

    return write


@exact_form("lp_pool2d")
def power_pool(operator):
    """Root of the sum of powers of a window, by an average pool that counts all elements."""
    x, power = operator.input("x"), operator.attribute("norm_type", 2.0)
    sizes, strides, pads = (list(operator.attribute(name)) for name in (
        "kernel_size", "strides", "paddings"))
    if (operator.dtype(x) != "float32" or operator.attribute("padding_algorithm") != "EXPLICIT"
            or operator.attribute("ceil_mode", False) or not 0 < power < np.inf
            or operator.attribute("global_pooling", False)
            or operator.attribute("data_format", "NCHW") != "NCHW"):
        return None
    pads = [*pads, *pads] if len(pads) == 2 else [*pads[::2], *pads[1::2]]

    def write(to):
        powers = to.node("Pow", x, np.float32(power))
        mean = to.node("AveragePool", powers, kernel_shape=sizes, strides=strides, pads=pads,
                       count_include_pad=1)
        total = to.node("Mul", mean, np.float32(np.prod(sizes)))
        to.node("Pow", total, np.float32(1.0 / power), output=operator.output("out"))

    return write
