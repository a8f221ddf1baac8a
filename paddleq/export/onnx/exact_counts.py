"""ONNX forms of order statistics and counts, and of the inverse of a matrix."""

import numpy as np

from .exact_tensors import reduced
from .splice import exact_form

_BOOL, _FLOAT, _INT32, _INT64 = 9, 1, 6, 7  # onnx.TensorProto.DataType
_CODES = {"bool": _BOOL, "float32": _FLOAT, "int32": _INT32, "int64": _INT64}
_LARGEST_INVERSE = 32  # rows of a matrix, whose inverse takes a dozen nodes for each row


@exact_form("kthvalue")
def kth_value(operator):
    x, axis = operator.input("X"), operator.attribute("axis", -1)
    k, keep = operator.attribute("k", 1), operator.attribute("keepdim", False)
    if operator.dtype(x) not in ("float32", "int32", "int64") or not operator.shape(x):
        return None

    def write(to):
        names = [to.names.fresh("form.TopK"), to.names.fresh("form.places")]
        to.several("TopK", x, np.array([k]), outputs=names, axis=axis, largest=0)
        index = np.array([k - 1] if keep else k - 1)
        for name, output in zip(names, (operator.output(), operator.output("Indices"))):
            to.node("Gather", name, index, axis=axis, output=output)

    return write


@exact_form("mode")
def mode(operator):
    """Most frequent value, of several the smallest, and its last place."""
    x, axis = operator.input("X"), operator.attribute("axis", -1)
    keep, rank, dtype = (operator.attribute("keepdim", False), len(operator.shape(x)),
                         operator.dtype(x))
    if dtype not in ("float32", "int32", "int64") or not rank:
        return None
    axis %= rank

    def write(to):
        order = [each for each in range(rank) if each != axis] + [axis]
        rows = to.node("Transpose", x, perm=order)
        same = to.node("Equal", *(to.node("Unsqueeze", rows, np.array([place]))
                                  for place in (-1, -2)))
        times = to.node("ReduceSum", to.node("Cast", same, to=_INT64), np.array([-1]), keepdims=0)
        often = to.node("Equal", times, reduced(to, "ReduceMax", times, [rank - 1], True))
        # Not a constant: OpenVINO computes integers in float32, where the largest one overflows.
        highest = reduced(to, "ReduceMax", rows, [rank - 1], True)
        candidates = to.node("Where", often, rows, highest)
        value = reduced(to, "ReduceMin", candidates, [rank - 1], True)
        count = to.node("Gather", to.node("Shape", rows), np.array(rank - 1))
        places = to.node("Where", to.node("Equal", rows, value),
                         to.node("Range", np.array(0), count, np.array(1)), np.array(-1))
        place = reduced(to, "ReduceMax", places, [rank - 1], True)
        for name, output in ((value, operator.output()), (place, operator.output("Indices"))):
            if keep:
                back = [order.index(each) for each in range(rank)]
                to.node("Transpose", name, perm=back, output=output)
            else:
                to.node("Squeeze", name, np.array([rank - 1]), output=output)

    return write


@exact_form("bincount")
def bincount(operator):
    x, weights = operator.input("X"), operator.input("Weights")
    if operator.inputs("minlength"):  # a tensor
        return None
    dtype = "int64" if weights is None else operator.dtype(weights)
    if dtype not in _CODES:
        return None

    def write(to):
        to.require_opset(16, "bincount")
        index = to.node("Cast", x, to=_INT64)
        least = np.array([operator.attribute("minlength", 0) - 1])
        last = reduced(to, "ReduceMax", to.node("Concat", index, least, axis=0), [0], True)
        zeros = to.node("Expand", np.array(0, dtype), to.node("Add", last, np.array([1])))
        added = weights or to.node("Expand", np.array(1, dtype), to.node("Shape", x))
        to.node("ScatterElements", zeros, index, added, axis=0, reduction="add",
                output=operator.output())

    return write


@exact_form("shard_index")
def shard_index(operator):
    """Number inside its shard of each index, another number for indices of other shards."""
    x, shards = operator.input("X"), operator.attribute("nshards")
    dtype, size = operator.dtype(x), -(-operator.attribute("index_num") // shards)

    def write(to):
        size_of_shard, shard, other = (np.array(each, dtype) for each in (
            size, operator.attribute("shard_id"), operator.attribute("ignore_value", -1)))
        own = to.node("Equal", to.node("Div", x, size_of_shard), shard)
        to.node("Where", own, to.node("Mod", x, size_of_shard), other, output=operator.output())

    return write


@exact_form("unique")
def unique(operator):
    """Sorted values with their first places, the place of each value, and their counts."""
    x, axis = operator.input("X"), operator.attribute("axis", [])
    dtype = operator.dtype(x)
    if dtype not in ("float32", "int32", "int64") or not operator.attribute("is_sorted", True):
        return None

    def write(to):
        # ONNX Runtime does not have it for int32.
        values = to.node("Cast", x, to=_INT64) if dtype == "int32" else x
        names = [to.names.fresh(f"form.{each}") for each in ("Unique", "first", "place", "count")]
        kinds = {"axis": axis[0]} if axis else {}
        to.several("Unique", values, outputs=names, sorted=1, **kinds)
        for name, slot in zip(names, ("Out", "Indices", "Index", "Counts")):
            output = operator.output(slot)
            if output is not None:
                to.node("Cast", name, to=_CODES[operator.dtype(output)], output=output)

    return write


@exact_form("inverse")
def inverse(operator):
    """Elimination, with the largest value of each column as its pivot."""
    x = operator.input("Input")
    size = operator.shape(x)[-1]
    if operator.dtype(x) != "float32" or not 1 <= size <= _LARGEST_INVERSE:
        return None

    def write(to):
        last = np.array([-1])
        unit = to.node("Expand", np.eye(size, dtype=np.float32), to.node("Shape", x))
        both, chosen = to.node("Concat", x, unit, axis=-1), []
        free = to.node("Expand", np.zeros(1, np.float32), to.node("Shape", x))
        free = to.node("Gather", free, np.array(0), axis=-1)  # 0 for a row without pivot, or -inf
        for column in range(size):
            values = to.node("Gather", both, np.array(column), axis=-1)
            best = to.node("ArgMax", to.node("Add", to.node("Abs", values), free), axis=-1)
            is_pivot = to.node("Equal", np.arange(size), best)
            row = to.node("MatMul", to.node("Unsqueeze", to.node(
                "Cast", is_pivot, to=_FLOAT), np.array([-2])), both)
            row = to.node("Div", row, to.node("Gather", row, np.array([column]), axis=-1))
            rest = to.node("Sub", both, to.node("Mul", to.node("Unsqueeze", values, last), row))
            both = to.node("Where", to.node("Unsqueeze", is_pivot, last), row, rest)
            free = to.node("Where", is_pivot, np.float32(-np.inf), free)
            chosen.append(to.node("Unsqueeze", to.node("Cast", is_pivot, to=_FLOAT),
                                  np.array([-2])))
        order = to.node("Concat", *chosen, axis=-2) if size > 1 else chosen[0]
        result = to.node("Slice", both, np.array([size]), np.array([2 * size]), last)
        to.node("MatMul", order, result, output=operator.output("Output"))

    return write
