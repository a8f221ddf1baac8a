"""ONNX forms of reductions, products and selections that paddle2onnx does not convert."""

import numpy as np

from .exact_layouts import diagonal_of
from .splice import exact_form

_FLOAT, _INT32, _INT64 = 1, 6, 7  # onnx.TensorProto.DataType


def reduced(to, kind, x, axes, keep, output=None):
    """Add a reduction of several axes, of all for None."""
    axes = {} if axes is None else {"axes": axes}
    if to.opset < 18:
        return to.node(kind, x, output=output, keepdims=int(keep), **axes)
    return to.node(kind, x, *(np.array(each) for each in axes.values()), output=output,
                   keepdims=int(keep))


@exact_form("reduce_amax", "reduce_amin", "frobenius_norm")
def reduction(operator):
    kind = {"reduce_amax": "ReduceMax", "reduce_amin": "ReduceMin",
            "frobenius_norm": "ReduceL2"}[operator.type]
    axes = None if operator.attribute("reduce_all", False) else operator.attribute("dim")
    return lambda to: reduced(to, kind, operator.input("X"), axes,
                              operator.attribute("keep_dim", False), operator.output())


@exact_form("logsumexp")
def log_sum(operator):
    """OpenVINO reduces all axes for a ``ReduceLogSumExp`` of opset 17."""
    x, axes = operator.input("X"), np.array(operator.attribute("axis", [0])).reshape(-1)
    if operator.attribute("reduce_all", False):
        axes = np.arange(len(operator.shape(x)))

    def write(to):
        largest = reduced(to, "ReduceMax", x, axes, True)
        shifted = to.node("Exp", to.node("Sub", x, largest))
        found = to.node("Add", to.node("Log", to.node("ReduceSum", shifted, axes, keepdims=1)),
                        largest)
        to.node(*(("Identity", found) if operator.attribute("keepdim", False) else
                  ("Squeeze", found, axes)), output=operator.output())

    return write


@exact_form("p_norm")
def infinity_norm(operator):
    """Largest or smallest absolute value; paddle2onnx writes another norm."""
    order, axis = operator.attribute("porder", 2.0), operator.attribute("axis", -1)
    if not np.isinf(order):
        return None
    kind = "ReduceMax" if order > 0 else "ReduceMin"
    axes = None if operator.attribute("asvector", False) else [axis]
    return lambda to: reduced(to, kind, to.node("Abs", operator.input("X")), axes,
                              operator.attribute("keepdim", False), operator.output())


@exact_form("lerp")
def lerp(operator):
    x, y, weight = (operator.input(slot) for slot in ("X", "Y", "Weight"))
    return lambda to: to.node("Add", x, to.node("Mul", weight, to.node("Sub", y, x)),
                              output=operator.output())


@exact_form("addmm")
def addmm(operator):
    alpha, beta = (np.float32(operator.attribute(name, 1.0)) for name in ("Alpha", "Beta"))

    def write(to):
        product = to.node("MatMul", operator.input("X"), operator.input("Y"))
        to.node("Add", to.node("Mul", operator.input("Input"), beta),
                to.node("Mul", product, alpha), output=operator.output())

    return write


@exact_form("cross")
def cross(operator):
    x, y, axis = operator.input("X"), operator.input("Y"), operator.attribute("dim", 9)
    shape = operator.shape(x)
    if axis >= len(shape):
        axis = shape.index(3)

    def write(to):
        first, second = (([to.node("Gather", each, np.array(order), axis=axis)
                           for order in ([1, 2, 0], [2, 0, 1])]) for each in (x, y))
        to.node("Sub", to.node("Mul", first[0], second[1]), to.node("Mul", first[1], second[0]),
                output=operator.output())

    return write


@exact_form("trace")
def trace(operator):
    write = diagonal_of(operator)
    return write and (lambda to: to.node("ReduceSum", write(to), np.array([-1]), keepdims=0,
                                         output=operator.output()))


@exact_form("diag_v2")
def diag(operator):
    x, offset = operator.input("X"), operator.attribute("offset", 0)
    shape = operator.shape(x)
    if min(shape) < 1 or len(shape) > 2:
        return None
    if len(shape) == 2:
        index = np.arange(shape[0] * shape[1]).reshape(shape).diagonal(offset)
        return lambda to: to.node("Gather", to.node("Reshape", x, np.array([-1])), index,
                                  output=operator.output())
    filler = np.array([operator.attribute("padding_value", 0.0)], np.float32)
    return lambda to: to.node("Gather", to.node("Concat", x, filler, axis=0),
                              _places(shape[0], offset), output=operator.output())


def _places(size, offset):
    """Indices into a vector and a value behind it that give a matrix with the vector on it."""
    whole = size + abs(offset)
    index = np.full([whole, whole], size)
    rows = np.arange(size)
    index[rows + max(-offset, 0), rows + max(offset, 0)] = rows
    return index


@exact_form("diag_embed")
def diag_embed(operator):
    x = operator.input("Input")
    rank = len(operator.shape(x)) + 1
    size = operator.shape(x)[-1]
    axes = [operator.attribute(name, default) % rank
            for name, default in (("dim1", -2), ("dim2", -1))]
    if size < 1:
        return None

    def write(to):
        pads = np.zeros(2 * (rank - 1), np.int64)
        pads[-1] = 1
        wide = to.node("Gather", to.node("Pad", x, pads),
                       _places(size, operator.attribute("offset", 0)), axis=rank - 2)
        others = iter(range(rank - 2))
        order = [rank - 2 if i == axes[0] else rank - 1 if i == axes[1] else next(others)
                 for i in range(rank)]
        to.node("Transpose", wide, perm=order, output=operator.output())

    return write


@exact_form("equal_all", "allclose", "isclose")
def comparison(operator):
    x, y = (operator.input(slot) for slot in (
        ("X", "Y") if operator.type == "equal_all" else ("Input", "Other")))
    if operator.type != "equal_all" and (operator.dtype(x) != "float32" or operator.attribute(
            "equal_nan", False) or operator.inputs("Rtol") or operator.inputs("Atol")):
        return None
    relative, absolute = (np.float32(float(operator.attribute(name, 0) or 0))
                          for name in ("rtol", "atol"))

    def write(to):
        same = to.node("Equal", x, y)
        if operator.type != "equal_all":
            bound = to.node("Add", to.node("Mul", to.node("Abs", y), relative), absolute)
            distance = to.node("Abs", to.node("Sub", x, y))
            same = to.node("Or", same, to.node("LessOrEqual", distance, bound))
        if operator.type == "isclose":
            to.node("Identity", same, output=operator.output())
            return
        lowest = reduced(to, "ReduceMin", to.node("Cast", same, to=_INT32), None, False)
        to.node("Equal", lowest, np.array(1, np.int32), output=operator.output())

    return write


@exact_form("reduce_sum")
def count(operator):
    """Sum of booleans, which ONNX does not add."""
    x = operator.input("X")
    if operator.dtype(x) != "bool" or operator.dtype(operator.output()) != "int64":
        return None
    axes = [] if operator.attribute("reduce_all", False) else [
        np.array(operator.attribute("dim"))]
    return lambda to: to.node("ReduceSum", to.node("Cast", x, to=_INT64), *axes,
                              keepdims=int(operator.attribute("keep_dim", False)),
                              output=operator.output())


@exact_form("layer_norm")
def layer_norm(operator):
    """Normalization over several axes, whose weights are vectors in Paddle."""
    x, axis = operator.input("X"), operator.attribute("begin_norm_axis", 1)
    shape = operator.shape(x)
    weights = [operator.input(slot) for slot in ("Scale", "Bias")]
    if axis == len(shape) - 1 or min(shape[axis:]) < 1 or not any(weights) or any(
            operator.used(operator.output(slot)) for slot in ("Mean", "Variance")):
        return None

    def write(to):
        axes = list(range(axis, len(shape)))
        distance = to.node("Sub", x, reduced(to, "ReduceMean", x, axes, True))
        variance = reduced(to, "ReduceMean", to.node("Mul", distance, distance), axes, True)
        epsilon = np.float32(operator.attribute("epsilon", 1e-5))
        name = to.node("Div", distance, to.node("Sqrt", to.node("Add", variance, epsilon)))
        for kind, weight in zip(("Mul", "Add"), weights):
            if weight is not None:
                name = to.node(kind, name, to.node("Reshape", weight, np.array(shape[axis:])))
        to.node("Identity", name, output=operator.output("Y"))

    return write


@exact_form("kron")
def kron(operator):
    x, y = operator.input("X"), operator.input("Y")
    shapes = operator.shape(x), operator.shape(y)
    if len(shapes[0]) != len(shapes[1]) or min(*shapes[0], *shapes[1]) < 1:
        return None

    def write(to):
        a, b = (to.node("Reshape", name, np.array(sizes)) for name, sizes in (
            (x, [each for size in shapes[0] for each in (size, 1)]),
            (y, [each for size in shapes[1] for each in (1, size)])))
        to.node("Reshape", to.node("Mul", a, b), np.array(
            [a * b for a, b in zip(*shapes)]), output=operator.output())

    return write


@exact_form("index_add")
def index_add(operator):
    added, axis = operator.input("AddValue"), operator.attribute("axis", 0)
    rank = len(operator.shape(added))

    def write(to):
        to.require_opset(16, "index_add")
        index = to.node("Reshape", operator.input("Index"), np.array(
            [-1 if i == axis % rank else 1 for i in range(rank)]))
        to.node("ScatterElements", operator.input("X"), to.node(
            "Expand", index, to.node("Shape", added)), added, axis=axis, reduction="add",
            output=operator.output())

    return write


@exact_form("put_along_axis")
def put_along_axis(operator):
    index, value = operator.input("Index"), operator.input("Value")
    reduction = {"assign": "none", "add": "add", "mul": "mul", "multiply": "mul"}.get(
        operator.attribute("Reduce", "assign"))
    if reduction is None or not operator.attribute("Include_self", True):
        return None

    def write(to):
        kinds = {} if reduction == "none" else {"reduction": reduction}
        if kinds:
            to.require_opset(16, "put_along_axis with a reduction")
        values = to.node("Expand", value, to.node("Shape", index))
        to.node("ScatterElements", operator.input("Input"), index, values,
                axis=operator.attribute("Axis", 0), output=operator.output("Result"), **kinds)

    return write


@exact_form("searchsorted")
def searchsorted(operator):
    """Number of values of a sequence below each value."""
    sequence, values = operator.input("SortedSequence"), operator.input("Values")
    if len(operator.shape(sequence)) != 1:
        return None

    def write(to):
        below = to.node("LessOrEqual" if operator.attribute("right", False) else "Less", sequence,
                        to.node("Unsqueeze", values, np.array([-1])))
        dtype = _INT32 if operator.attribute("out_int32", False) else _INT64
        to.node("ReduceSum", to.node("Cast", below, to=dtype), np.array([-1]), keepdims=0,
                output=operator.output())

    return write


@exact_form("unbind")
def unbind(operator):
    """paddle2onnx keeps the axis, and OpenVINO in int8 that of a gather with a scalar."""
    axis = operator.attribute("axis", 0)

    def write(to):
        for i, name in enumerate(operator.outputs("Out")):
            part = to.node("Gather", operator.input("X"), np.array([i]), axis=axis)
            to.node("Squeeze", part, np.array([axis]), output=name)

    return write


@exact_form("crop_tensor")
def crop(operator):
    starts, sizes = operator.attribute("offsets"), operator.attribute("shape")
    if any(operator.inputs(slot) for slot in ("Shape", "Offsets", "ShapeTensor", "OffsetsTensor")):
        return None
    ends = [np.iinfo(np.int64).max if size < 0 else start + size
            for start, size in zip(starts, sizes)]
    return lambda to: to.node("Slice", operator.input("X"), np.array(starts), np.array(ends),
                              np.arange(len(starts)), output=operator.output())


@exact_form("determinant")
def determinant(operator):
    return lambda to: to.node("Det", operator.input("Input"), output=operator.output())


@exact_form("masked_select")
def masked_select(operator):
    if operator.shape(operator.input("X")) != operator.shape(operator.input("Mask")):
        return None
    return lambda to: to.node("Compress", operator.input("X"), to.node(
        "Reshape", operator.input("Mask"), np.array([-1])), output=operator.output("Y"))


@exact_form("unfold")
def unfold(operator):
    """A convolution whose weight is one for each place in a block; paddle2onnx mixes up sizes."""
    x = operator.input("X")
    blocks, strides, dilations, pads = (operator.attribute(name) for name in (
        "kernel_sizes", "strides", "dilations", "paddings"))
    channels, area = operator.shape(x)[1], blocks[0] * blocks[1]
    if channels < 1 or len(pads) != 4:
        return None
    weight = np.tile(np.eye(area, dtype=np.float32), (channels, 1)).reshape(-1, 1, *blocks)

    def write(to):
        wide = to.node("Conv", x, weight, group=channels, strides=strides, dilations=dilations,
                       pads=pads)
        to.node("Reshape", wide, np.array([0, channels * area, -1]), output=operator.output("Y"))

    return write


@exact_form("pad3d")
def circular_pad(operator):
    """Parts of the other side; paddle2onnx writes a mode that ONNX does not have."""
    x, pads = operator.input("X"), operator.attribute("paddings")
    if operator.attribute("mode") != "circular" or operator.inputs("Paddings"):
        return None

    def write(to):
        name, end = x, np.array([np.iinfo(np.int64).max])
        for axis, before, after in ((4, *pads[:2]), (3, *pads[2:4]), (2, *pads[4:])):
            parts = [name]
            if before:
                parts.insert(0, to.node("Slice", name, np.array([-before]), end, np.array([axis])))
            if after:
                parts.append(to.node("Slice", name, np.array([0]), np.array([after]),
                                     np.array([axis])))
            name = to.node("Concat", *parts, axis=axis) if len(parts) > 1 else name
        to.node("Identity", name, output=operator.output())

    return write
