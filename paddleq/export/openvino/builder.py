"""Builder of OpenVINO nodes in the vocabulary of ONNX operators.

The forms of :mod:`~paddleq.export.onnx.splice` are written in this vocabulary, so that one form of
an operator of Paddle serves both formats. Kinds that ONNX does not have are functions of an opset
of OpenVINO.
"""

from typing import Any, Callable, Dict, List, Optional

import numpy as np

from ..program.graph_view import Names
from .recurrence import recurrent

# onnx.TensorProto.DataType -> element type of OpenVINO.
_TYPES = {1: "f32", 2: "u8", 3: "i8", 5: "i16", 6: "i32", 7: "i64", 9: "boolean", 10: "f16",
          11: "f64"}
_SAME = {"Neg": "negative", "Sub": "subtract", "Mul": "multiply", "Div": "divide",
         "Not": "logical_not", "And": "logical_and", "Or": "logical_or", "Xor": "logical_xor",
         "IsNaN": "is_nan", "IsInf": "is_inf", "Mod": "floor_mod", "Pow": "power",
         "LessOrEqual": "less_equal", "GreaterOrEqual": "greater_equal", "Where": "select"}
_REDUCTIONS = {"ReduceSum": "reduce_sum", "ReduceMax": "reduce_max", "ReduceMin": "reduce_min",
               "ReduceMean": "reduce_mean", "ReduceL1": "reduce_l1", "ReduceL2": "reduce_l2",
               "ReduceProd": "reduce_prod"}
_KINDS: Dict[str, Callable] = {}  # kind -> function (builder, inputs, attributes) of its output
_SCATTERED = {"add": "sum", "mul": "prod"}


class OpenVinoBuilder:
    """Builds the nodes of a form.

    Args:
        opset: object with the functions of opsets that create nodes, see :func:`~.reader.opset`.
        values: dict of the outputs of nodes by name. Names that a form gives are added.
    """

    opset = 21  # of ONNX, for forms that depend on it: reductions take axes as an input

    def __init__(self, opset: Any, values: Dict[str, Any]):
        self.ov, self.values = opset, values
        self.names = Names(values)

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Add a constant and return its name."""
        return self._named(self.ov.constant(np.asarray(value, dtype)))

    def node(self, kind: str, *ins: Any, output: Optional[str] = None, **attributes: Any) -> str:
        """Add a node and return the name of its output.

        Inputs are names, None for an absent one, or values of constants.
        """
        taken = [self._value(each) for each in ins]
        if kind in _KINDS:
            made = _KINDS[kind](self, taken, attributes)
        elif kind in _REDUCTIONS:
            made = self._reduced(kind, taken, attributes)
        else:
            made = getattr(self.ov, _SAME.get(kind) or kind.lower())(*taken, **attributes)
        return self._named(made, output)

    def _value(self, given: Any) -> Any:
        if given is None or isinstance(given, str):
            return None if given is None else self.values[given]
        return self.ov.constant(np.asarray(given))

    def _named(self, made: Any, name: Optional[str] = None) -> str:
        name = name or self.names.fresh("form.value")
        self.values[name] = made.output(0) if hasattr(made, "get_type_name") else made
        return name

    def several(self, kind: str, *ins: Any, outputs: List[str], **attributes: Any) -> None:
        """Add a node with several outputs, "" for those that are not needed."""
        found = _SEVERAL[kind](self, [self._value(each) for each in ins], attributes)
        self.values.update((name, each) for name, each in zip(outputs, found) if name)

    def reduce(self, kind: str, x: str, axis: int) -> str:
        """Add a reduction of one axis."""
        return self.node(kind, x, np.array([axis]), keepdims=0)

    def require_opset(self, opset: int, operator: str) -> None:
        """Do nothing: the vocabulary is that of a late opset."""

    def type(self, name: str) -> str:
        """Element type of a value, such as "f32"."""
        return self.values[name].get_element_type().get_type_name()

    def rank(self, value: Any) -> int:
        """Number of dimensions of an output."""
        return value.get_partial_shape().rank.get_length()

    def _reduced(self, kind, ins, attributes):
        x = ins[0]
        axes = ins[1] if len(ins) > 1 else self.ov.constant(np.arange(self.rank(x)))
        return getattr(self.ov, _REDUCTIONS[kind])(
            x, axes, keep_dims=bool(attributes.get("keepdims", 1)))


def _kind(*names: str) -> Callable:
    def register(function: Callable) -> Callable:
        _KINDS.update(dict.fromkeys(names, function))
        return function

    return register


@_kind("Identity")
def _identity(to, ins, attributes):
    return ins[0]


@_kind("Cast")
def _cast(to, ins, attributes):
    return to.ov.convert(ins[0], _TYPES[attributes["to"]])


@_kind("Gather")
def _gather(to, ins, attributes):
    return to.ov.gather(*ins, to.ov.constant(np.int64(attributes.get("axis", 0))))


@_kind("GatherND")
def _gather_nd(to, ins, attributes):
    return to.ov.gather_nd(*ins, attributes.get("batch_dims", 0))


@_kind("GatherElements")
def _gather_elements(to, ins, attributes):
    return to.ov.gather_elements(*ins, axis=attributes.get("axis", 0))


@_kind("Shape")
def _shape(to, ins, attributes):
    return to.ov.shape_of(ins[0], "i64")


@_kind("Reshape")
def _reshape(to, ins, attributes):
    return to.ov.reshape(*ins, special_zero=True)


@_kind("Transpose")
def _transpose(to, ins, attributes):
    return to.ov.transpose(ins[0], to.ov.constant(np.array(attributes["perm"], np.int64)))


@_kind("Concat")
def _concat(to, ins, attributes):
    return to.ov.concat(ins, attributes["axis"])


@_kind("Squeeze")
def _squeeze(to, ins, attributes):
    axes = ins[1] if len(ins) > 1 else to.ov.constant(np.arange(to.rank(ins[0])))
    return to.ov.squeeze(ins[0], axes)


@_kind("Slice")
def _slice(to, ins, attributes):
    x, start, stop = ins[:3]
    shape = list(start.get_shape() if hasattr(start, "get_shape") else start.shape)
    axes = ins[3] if len(ins) > 3 else to.ov.constant(np.arange(*shape))
    step = ins[4] if len(ins) > 4 else to.ov.constant(np.ones(shape, np.int64))
    return to.ov.slice(x, start, stop, step, axes)


@_kind("Range")
def _range(to, ins, attributes):
    return to.ov.range(*ins, "i64")


@_kind("Expand")
def _expand(to, ins, attributes):
    return to.ov.broadcast(*ins, broadcast_spec="BIDIRECTIONAL")


def _variadic(name):
    def made(to, ins, attributes):
        found = ins[0]
        for each in ins[1:]:
            found = getattr(to.ov, name)(found, each)
        return found

    return made


_KINDS.update(Max=_variadic("maximum"), Min=_variadic("minimum"), Sum=_variadic("add"))


@_kind("ArgMax")
def _places(to, ins, attributes):
    made = to.ov.topk(ins[0], to.ov.constant(np.int64(1)), attributes["axis"], "max", "value",
                      "i64", stable=True)
    return to.ov.squeeze(made.output(1), to.ov.constant(np.array([attributes["axis"]], np.int64)))


@_kind("Round")
def _rounded(to, ins, attributes):
    return to.ov.round(ins[0], "half_to_even")


@_kind("MatMul")
def _matmul(to, ins, attributes):
    return to.ov.matmul(*ins, False, False)


@_kind("ScatterElements")
def _scatter_elements(to, ins, attributes):
    axis = to.ov.constant(np.int64(attributes.get("axis", 0)))
    if attributes.get("reduction", "none") == "none":
        return to.ov.scatter_elements_update(*ins, axis)
    return to.ov.later.scatter_elements_update(*ins, axis, _SCATTERED[attributes["reduction"]])


@_kind("ScatterND")
def _scatter_nd(to, ins, attributes):
    if attributes.get("reduction", "none") == "none":
        return to.ov.scatter_nd_update(*ins)
    return to.ov.later.scatter_nd_update(*ins, _SCATTERED[attributes["reduction"]])


@_kind("Trilu")
def _triangle(to, ins, attributes):
    x, offset = ins
    shape, rank = to.ov.shape_of(x, "i64"), to.rank(x)
    rows, columns = (to.ov.range(
        to.ov.constant(np.int64(0)),
        to.ov.gather(shape, to.ov.constant(np.int64(rank + axis)), to.ov.constant(np.int64(0))),
        to.ov.constant(np.int64(1)), "i64") for axis in (-2, -1))
    distance = to.ov.subtract(columns, to.ov.unsqueeze(rows, to.ov.constant(np.int64(1))))
    compare = to.ov.greater_equal if attributes.get("upper", 1) else to.ov.less_equal
    zero = to.ov.convert_like(to.ov.constant(np.float32(0)), x)
    return to.ov.select(compare(distance, offset), x, zero)


@_kind("CumSum")
def _cumulative_sum(to, ins, attributes):
    return to.ov.cum_sum(*ins)


@_kind("Pad")
def _pad(to, ins, attributes):
    x, pads = ins[:2]
    both = pads.get_node().data if hasattr(pads, "get_node") else pads.data
    half = len(both) // 2
    value = ins[2] if len(ins) > 2 else to.ov.convert_like(to.ov.constant(np.float32(0)), x)
    return to.ov.pad(x, both[:half], both[half:], "constant", value)


@_kind("Clip")
def _clip(to, ins, attributes):
    return to.ov.minimum(to.ov.maximum(ins[0], ins[1]), ins[2])


@_kind("LeakyRelu")
def _leaky_relu(to, ins, attributes):
    return to.ov.prelu(ins[0], to.ov.constant(np.float32(attributes.get("alpha", 0.01))))


@_kind("Reciprocal")
def _reciprocal(to, ins, attributes):
    return to.ov.divide(to.ov.constant(np.float32(1)), ins[0])


@_kind("Celu")
def _celu(to, ins, attributes):
    alpha = to.ov.constant(np.float32(attributes.get("alpha", 1.0)))
    return to.ov.multiply(to.ov.elu(to.ov.divide(ins[0], alpha), 1.0), alpha)


@_kind("Conv")
def _convolution(to, ins, attributes):
    x, weight = ins
    rank = to.rank(x) - 2
    pads = attributes.get("pads", [0] * 2 * rank)
    strides, dilations = (attributes.get(name) or [1] * rank for name in ("strides", "dilations"))
    groups, auto_pad = attributes.get("group", 1), attributes.get("auto_pad", "explicit")
    if groups == 1:
        return to.ov.convolution(x, weight, strides, pads[:rank], pads[rank:], dilations, auto_pad)
    return to.ov.group_convolution(x, _in_groups(to, weight, groups), strides, pads[:rank],
                                   pads[rank:], dilations, auto_pad)


@_kind("ConvTranspose")
def _transposed_convolution(to, ins, attributes):
    x, weight = ins
    rank = to.rank(x) - 2
    pads, groups = attributes.get("pads", [0] * 2 * rank), attributes.get("group", 1)
    rest = {"pads_begin": pads[:rank], "pads_end": pads[rank:],
                "dilations": attributes.get("dilations") or [1] * rank, "auto_pad": "explicit",
                "output_padding": attributes.get("output_padding") or [0] * rank}
    if groups == 1:
        return to.ov.convolution_backprop_data(x, weight, attributes["strides"], **rest)
    return to.ov.group_convolution_backprop_data(x, _in_groups(to, weight, groups),
                                                 attributes["strides"], **rest)


def _in_groups(to, weight, groups):
    """Split the first axis of a weight: [C, ...] to [groups, C / groups, ...]."""
    shape = list(weight.get_shape() if hasattr(weight, "get_shape") else weight.shape)
    return to.ov.reshape(weight, to.ov.constant(np.array(
        [groups, shape[0] // groups, *shape[1:]], np.int64)), special_zero=False)


@_kind("AveragePool")
def _average_pool(to, ins, attributes):
    rank = to.rank(ins[0]) - 2
    pads = attributes.get("pads", [0] * 2 * rank)
    return to.ov.avg_pool(
        ins[0], attributes.get("strides", [1] * rank), pads[:rank], pads[rank:],
        attributes["kernel_shape"], not attributes.get("count_include_pad", 0),
        "ceil" if attributes.get("ceil_mode") else "floor", "explicit")


@_kind("SpaceToDepth")
def _space_to_depth(to, ins, attributes):
    return to.ov.space_to_depth(ins[0], "blocks_first", attributes["blocksize"])


@_kind("DepthToSpace")
def _depth_to_space(to, ins, attributes):
    mode = "depth_first" if attributes.get("mode") == "CRD" else "blocks_first"
    return to.ov.depth_to_space(ins[0], mode, attributes["blocksize"])


@_kind("Compress")
def _compress(to, ins, attributes):
    x, mask = ins
    axis = attributes.get("axis")
    if axis is None:
        x = to.ov.reshape(x, to.ov.constant(np.array([-1], np.int64)), special_zero=False)
    places = to.ov.squeeze(to.ov.non_zero(mask, "i64"), to.ov.constant(np.array([0], np.int64)))
    return to.ov.gather(x, places, to.ov.constant(np.int64(axis or 0)))


@_kind("NonZero")
def _non_zero(to, ins, attributes):
    return to.ov.non_zero(ins[0], "i64")


@_kind("RoiAlign")
def _roi_align(to, ins, attributes):
    aligned = attributes.get("coordinate_transformation_mode") == "half_pixel"
    return to.ov.roi_align(*ins, attributes["output_height"], attributes["output_width"],
                           attributes["sampling_ratio"], attributes["spatial_scale"], "avg",
                           "half_pixel_for_nn" if aligned else "asymmetric")


@_kind("MaxRoiPool")
def _roi_pool(to, ins, attributes):
    return to.ov.roi_pooling(*ins, attributes["pooled_shape"], attributes["spatial_scale"], "max")


@_kind("NonMaxSuppression")
def _suppression(to, ins, attributes):
    count = to.ov.squeeze(ins[2], to.ov.constant(np.array([0], np.int64)))
    limits = [to.ov.reshape(each, to.ov.constant(np.array([], np.int64)), special_zero=False)
              for each in ins[3:]]
    if len(limits) < 2:  # otherwise scores below 0 are left out
        limits.append(to.ov.constant(np.float32(-np.inf)))
    made = to.ov.non_max_suppression(*ins[:2], count, *limits, box_encoding="corner",
                                     sort_result_descending=False, output_type="i64")
    return made.output(0)


@_kind("LogSoftmax")
def _log_softmax(to, ins, attributes):
    return to.ov.log_softmax(ins[0], attributes["axis"])


@_kind("Einsum")
def _einsum(to, ins, attributes):
    return to.ov.einsum(ins, attributes["equation"])


def _top(to, ins, attributes):
    mode = "max" if attributes.get("largest", 1) else "min"
    k = to.ov.squeeze(ins[1], to.ov.constant(np.array([0], np.int64)))
    return to.ov.topk(ins[0], k, attributes.get("axis", -1), mode, "value", "i64",
                      stable=True).outputs()


def _max_pool(to, ins, attributes):
    rank = to.rank(ins[0]) - 2
    pads = attributes["pads"]
    return to.ov.max_pool(
        ins[0], attributes["strides"], [1] * rank, pads[:rank], pads[rank:],
        attributes["kernel_shape"], "ceil" if attributes.get("ceil_mode") else "floor",
        "explicit", "i64", 2).outputs()


def _recurrent(kind):
    return lambda to, ins, attributes: recurrent(kind, to.ov, ins, attributes)


# Kind -> function (builder, inputs, attributes) of the list of its outputs.
_SEVERAL = {"TopK": _top, "MaxPool": _max_pool,
            **{kind: _recurrent(kind) for kind in ("GRU", "RNN", "LSTM")}}
