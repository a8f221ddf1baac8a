"""Forms of operators for tensors with channels first, where they now have channels last.

A tensor ``[N, *, C]`` becomes ``[N, C, *]``. :func:`conversion` says what changes in an operator
whose inputs and outputs become so; :mod:`.channels_first` decides for which operators that is done.
"""

from typing import Any, Dict, NamedTuple, Sequence, Tuple

from ....nn.tracing import MARKER_FACTOR
from ..op_desc import ATTRIBUTE_TYPES, all_inputs, all_outputs, attribute, inputs, outputs

_ORDERS = {"NHWC": "NCHW", "NDHWC": "NCDHW", "NLC": "NCL", "NWC": "NCW"}
# Operator type -> (input slot, output slot, attribute with the order).
_LAYOUTS = {
    **dict.fromkeys(("conv2d", "depthwise_conv2d", "conv3d", "conv2d_transpose",
                     "depthwise_conv2d_transpose", "conv3d_transpose"),
                    ("Input", "Output", "data_format")),
    **dict.fromkeys(("pool2d", "pool3d", "pad2d", "pad3d", "prelu", "pixel_shuffle",
                     "pixel_unshuffle", "channel_shuffle", "temporal_shift", "lrn"),
                    ("X", "Out", "data_format")),
    **dict.fromkeys(("batch_norm", "group_norm"), ("X", "Y", "data_layout")),
    "affine_channel": ("X", "Out", "data_layout"),
    "lp_pool2d": ("x", "out", "data_format"),
    **dict.fromkeys((f"{kind}_interp{version}" for version in ("", "_v2") for kind in (
        "linear", "bilinear", "nearest", "bicubic", "trilinear")), ("X", "Out", "data_layout")),
}
_UNARY = (
    "relu", "relu6", "gelu", "silu", "swish", "mish", "tanh", "sigmoid", "logsigmoid", "hard_swish",
    "hard_sigmoid", "leaky_relu", "elu", "celu", "selu", "softplus", "softsign", "exp", "expm1",
    "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "square", "abs", "floor", "ceil", "round",
    "trunc", "sign", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh",
    "atanh", "reciprocal", "hard_shrink", "softshrink", "thresholded_relu", "brelu", "hard_tanh",
    "stanh", "tanh_shrink", "clip", "scale", "cast", "assign", "pow", "erf", "logit", "dropout",
    "fill_any_like", "isfinite_v2", "isnan_v2", "isinf_v2", "logical_not", "bitwise_not")
_BINARY = (
    "elementwise_add", "elementwise_sub", "elementwise_mul", "elementwise_div", "elementwise_max",
    "elementwise_min", "elementwise_pow", "elementwise_mod", "elementwise_floordiv",
    "elementwise_fmax", "elementwise_fmin", "less_than", "less_equal", "greater_than",
    "greater_equal", "equal", "not_equal", "logical_and", "logical_or", "logical_xor",
    "bitwise_and", "bitwise_or", "bitwise_xor")
# Operator type -> (input slots of tensors, output slots, attribute with axes, others that it has).
_AXES = {
    **dict.fromkeys(("softmax", "log_softmax", "concat", "split", "flip", "reverse"),
                    ("X", ("Out",), "axis", {"SectionsTensorList"})),
    "maxout": ("X", ("Out",), "axis", set()),
    "roll": ("X", ("Out",), "axis", {"ShiftsTensor"}),
    "cumsum": ("X", ("Out",), "axis", set()),
    "argsort": ("X", ("Out", "Indices"), "axis", set()),
    "top_k_v2": ("X", ("Out", "Indices"), "axis", {"K"}),
    "gather": ("X", ("Out",), "axis", {"Index"}),
    "slice": ("Input", ("Out",), "axes", {"StartsTensor", "EndsTensor", "StartsTensorList",
                                          "EndsTensorList"}),
    "strided_slice": ("Input", ("Out",), "axes", {
        "StartsTensor", "EndsTensor", "StridesTensor", "StartsTensorList", "EndsTensorList",
        "StridesTensorList"}),
}
_REDUCTIONS = ("reduce_mean", "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_all",
               "reduce_any", "arg_max", "arg_min", "p_norm", "logsumexp")
_SUMS = ("reduce_mean", "reduce_sum", "reduce_prod", "p_norm", "logsumexp")
# Quantizers compute elements one by one. They are repeated rather than separated by a transpose
# from the operators whose inputs they quantize, because runtimes recognize only neighbors.
_QUANTIZERS = {"quantize_linear": "Y", "dequantize_linear": "Y",
               "fake_quantize_dequantize_moving_average_abs_max": "Out"}


class Conversion(NamedTuple):
    """Changes of an operator for channels first.

    Attributes:
        takes: (slot, position) of the inputs that are given channels first.
        gives: slots of the outputs that are then channels first. Others do not change.
        attributes: new values.
        views: (slot, position, axes) of smaller operands: ``unsqueeze`` with these axes gives them
            all axes, in the order with channels last.
        required: True if the operator states that its channels are last.
    """

    takes: Sequence[Tuple[str, int]]
    gives: Sequence[str]
    attributes: Dict[str, Any] = {}
    views: Sequence[Tuple[str, int, Sequence[int]]] = ()
    required: bool = False


def to_first(rank):
    """Axes for a transpose from channels last to channels first."""
    return [0, rank - 1, *range(1, rank - 1)]


def to_last(rank):
    """Axes for a transpose from channels first to channels last."""
    return [0, *range(2, rank), 1]


def moved(axis, rank):
    """Place of an axis when channels are first."""
    return to_first(rank).index(axis % rank)


def has_channels_last(op):
    """Return True if an operator states that its channels are last."""
    _, _, order = _LAYOUTS.get(op.type, (None, None, None))
    return order is not None and attribute(op, order) in _ORDERS


def quantizer_output(op, marks=()):
    """Name of the output of a quantizer per tensor or of its marker, None for other operators."""
    if op.type == "scale" and attribute(op, "scale") == MARKER_FACTOR:
        number = int(attribute(op, "bias"))
        mark = marks[number - 1] if 0 < number <= len(marks) else None
        return outputs(op, "Out")[0] if (
            mark is not None and getattr(mark.spec, "channel_axis", None) is None) else None
    slot = _QUANTIZERS.get(op.type)
    return outputs(op, slot)[0] if slot and attribute(op, "quant_axis", -1) < 0 else None


def conversion(op, shapes, parameters):
    """Return the :class:`Conversion` of an operator, None if it has no form for channels first.

    Args:
        shapes: name of a variable -> its shape.
        parameters: names of constants.
    """
    if op.type in _LAYOUTS:
        return _of_layout(op, shapes)
    rule = _RULES.get(op.type)
    if (rule is None or any(attr.type not in ATTRIBUTE_TYPES for attr in op.attrs)
            or not shapes.keys() >= {*all_inputs(op), *all_outputs(op)}):
        return None
    found = rule(op, shapes, parameters)
    names = [] if found is None else [inputs(op, slot)[i] for slot, i in found.takes]
    return found if names and all(len(shapes[name]) >= 3 for name in names) else None


def _of_layout(op, shapes):
    source, target, order = _LAYOUTS[op.type]
    rank = len(shapes.get(inputs(op, source)[0], ()))
    if rank < 3:  # without spatial axes the order has no meaning
        return None
    if op.type == "prelu" and attribute(op, "mode") == "all":
        return Conversion([(source, 0)], [target], {order: "NCHW"})
    layout = attribute(op, order)
    if layout not in _ORDERS or op.type == "prelu" and attribute(op, "mode") != "channel":
        return None
    return Conversion([(source, 0)], [target], {order: _ORDERS[layout]}, required=True)


def _only(op, *slots):
    """Return True if no other input slot of an operator is in use."""
    return all(entry.parameter in slots or not entry.arguments for entry in op.inputs)


def _of_unary(op, shapes, parameters):
    return Conversion([("X", 0)], ["Out"]) if _only(op, "X", "Min", "Max", "FactorTensor",
                                                    "ScaleTensor") else None


def _of_binary(op, shapes, parameters):
    rank, axis = len(shapes[outputs(op, "Out")[0]]), attribute(op, "axis")
    takes, views = [], []
    for slot in ("X", "Y"):
        (name,) = inputs(op, slot)
        shape = shapes[name]
        start = rank - len(shape) if axis is None or axis < 0 else axis
        if len(shape) == rank and name not in parameters:
            takes.append((slot, 0))
        elif len(shape) == rank or any(size != 1 for size in shape):
            views.append((slot, 0, [*range(start), *range(start + len(shape), rank)]))
    return Conversion(takes, ["Out"], {} if axis is None else {"axis": -1}, views)


def _of_same_shapes(op, shapes, parameters):
    """Operators of tensors of one shape."""
    takes = [(entry.parameter, i) for entry in op.inputs for i in range(len(entry.arguments))]
    names = [name for entry in op.inputs for name in entry.arguments]
    (out,) = outputs(op, "Out")
    if parameters & set(names) or any(shapes[name] != shapes[out] for name in names):
        return None
    return Conversion(takes, ["Out"])


def _of_axes(op, shapes, parameters):
    slot, gives, name, others = _AXES[op.type]
    names, value = inputs(op, slot), attribute(op, name)
    rank = len(shapes[names[0]])
    if (value is None or not _only(op, slot, *others) or attribute(op, "decrease_axis")
            or attribute(op, "flatten", False) or parameters & set(names)
            or op.type in ("roll", "flip", "reverse") and not value
            or op.type == "gather" and len(shapes[inputs(op, "Index")[0]]) != 1):
        return None
    changed = ([moved(each, rank) for each in value] if isinstance(value, list)
               else moved(value, rank))
    return Conversion([(slot, i) for i in range(len(names))], gives, {name: changed})


def _of_reduction(op, shapes, parameters):
    rank = len(shapes[inputs(op, "X")[0]])
    name = next((each for each in ("dim", "axis") if attribute(op, each) is not None), None)
    if (name is None or not _only(op, "X") or attribute(op, "reduce_all", False)
            or attribute(op, "flatten", False) or attribute(op, "asvector", False)):
        return None
    value = attribute(op, name)
    axes = {each % rank for each in (value if isinstance(value, list) else [value])}
    changed = ([moved(each, rank) for each in value] if isinstance(value, list)
               else moved(value, rank))
    keeps = any(attribute(op, each, False) for each in ("keep_dim", "keepdim", "keepdims"))
    kept = [axis for axis in to_first(rank) if axis not in axes]
    # Another order of the terms of a sum would change its last digits.
    if (not axes or not keeps and kept != sorted(kept)
            or op.type in _SUMS and rank - 1 in axes):
        return None
    return Conversion([("X", 0)], ["Out"] if keeps else [], {name: changed})


def _of_sizes(op, shapes, parameters):
    """``tile`` and ``expand_v2``, with a number for each axis."""
    name = "repeat_times" if op.type == "tile" else "shape"
    values, rank = attribute(op, name), len(shapes[inputs(op, "X")[0]])
    if not _only(op, "X") or len(values or ()) != rank:
        return None
    return Conversion([("X", 0)], ["Out"], {name: [values[axis] for axis in to_first(rank)]})


def _of_pad(op, shapes, parameters):
    pads, rank = attribute(op, "paddings"), len(shapes[inputs(op, "X")[0]])
    if not _only(op, "X") or len(pads or ()) != 2 * rank:
        return None
    return Conversion([("X", 0)], ["Out"], {
        "paddings": [pad for axis in to_first(rank) for pad in pads[2 * axis:2 * axis + 2]]})


def _of_new_axes(op, shapes, parameters):
    """``unsqueeze2`` and ``squeeze2`` of spatial axes."""
    added, shape = op.type == "unsqueeze2", shapes[inputs(op, "X")[0]]
    given = attribute(op, "axes") or []
    rank = len(shape) + (len(given) if added else 0)
    axes = [axis % rank for axis in given]
    if (not _only(op, "X") or not axes or axes != sorted(axes) or axes[0] < 1
            or axes[-1] > rank - 2 or added and len(axes) > 1 and min(given) < 0
            or not added and any(shape[axis] != 1 for axis in axes)):
        return None
    return Conversion([("X", 0)], ["Out"] if added or rank - len(axes) > 2 else [],
                      {"axes": [axis + 1 for axis in axes]})


def _of_reshape(op, shapes, parameters):
    """``[N, 1, 1, C]`` and ``[N, C, 1, 1]`` have the same elements in the same order."""
    shape = shapes[inputs(op, "X")[0]]
    plain = (attribute(op, "start_axis"), attribute(op, "stop_axis", -1) % max(len(shape), 1)) == (
        1, len(shape) - 1) if op.type == "flatten_contiguous_range" else (
        0 not in (attribute(op, "shape") or [0])[1:])
    return Conversion([("X", 0)], []) if (
        _only(op, "X") and plain and all(size == 1 for size in shape[1:-1])) else None


_RULES = {
    **dict.fromkeys(_UNARY, _of_unary),
    **dict.fromkeys(_BINARY, _of_binary),
    **dict.fromkeys(("where", "sum"), _of_same_shapes),
    **dict.fromkeys(_AXES, _of_axes),
    **dict.fromkeys(_REDUCTIONS, _of_reduction),
    **dict.fromkeys(("tile", "expand_v2"), _of_sizes),
    "pad": _of_pad,
    **dict.fromkeys(("unsqueeze2", "squeeze2"), _of_new_axes),
    **dict.fromkeys(("reshape2", "flatten_contiguous_range"), _of_reshape),
}
