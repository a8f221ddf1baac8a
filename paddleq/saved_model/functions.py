"""Operators of saved programs as public, differentiable functions of Paddle.

Each function takes the :class:`~.operators.Arguments` of a call and returns the value of the
operator's main output, or a dict of output slots. An operator that is not in the table, or for
which the function returns ``NotImplemented``, is run without gradient.

Most functions follow from the rows of :mod:`..export.pir_to_program.operator_table`: the names and
the order of the operands and attributes of a PIR operation are those of Paddle's public function.
"""

from functools import partial
from typing import Any, Callable, Dict, List, Union

import numpy as np
import paddle
import paddle.nn.functional as F

from ..export.pir_to_program.operator_table import ROWS
from ..export.program.pdiparams import DTYPES
from .operators import Arguments, Operator

# PIR operations with a public function of the same parameters, ``pir:public`` where names differ.
_SAME_PARAMETERS = {
    F: "relu relu6 sigmoid tanh silu logsigmoid:log_sigmoid softsign tanh_shrink:tanhshrink "
       "leaky_relu elu celu selu gelu hardsigmoid hardshrink softshrink softplus thresholded_relu "
       "maxout softmax log_softmax pixel_shuffle pixel_unshuffle channel_shuffle grid_sample "
       "unfold",
    paddle:
       "stanh logit abs acos acosh asin asinh atan atanh ceil cos cosh digamma erf erfinv exp "
       "expm1 floor lgamma log log10 log1p log2 reciprocal rsqrt sign sin sinh sqrt square tan "
       "bitwise_not logical_not trunc round isfinite isinf isnan mean_all:mean fmax fmin heaviside "
       "logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor equal_all dot kron "
       "bmm atan2 mv add subtract multiply divide elementwise_pow:pow maximum minimum remainder "
       "floor_divide less_than less_equal greater_than greater_equal equal not_equal scale where "
       "lerp cross add_n matmul addmm reshape transpose unsqueeze flatten numel concat unbind "
       "meshgrid tile expand flip gather gather_nd index_select index_sample masked_select nonzero "
       "scatter mean max min amax amin all any sum prod topk linspace",
}
# Values of absent attributes where the operator and the public function differ.
_DEFAULTS = {"leaky_relu": {"negative_slope": 0.02}, "flatten": {"start_axis": 1, "stop_axis": 1},
             "topk": {"k": 1}}


def _integers(a, attribute, tensor="", tensors=""):
    """Return a list of integers that is a tensor, a list of tensors or an attribute."""
    if tensor and a.tensor(tensor) is not None:
        return [int(each) for each in a.tensor(tensor).numpy().reshape(-1)]
    if tensors and a.inputs.get(tensors):
        return [int(each) for value in a.inputs[tensors] for each in value.numpy().reshape(-1)]
    return list(a.get(attribute, []))


def _either(a, attribute, tensor, default=None):
    """Return the tensor of a slot, or the attribute where the slot is empty."""
    return a.get(attribute, default) if a.tensor(tensor) is None else a.tensor(tensor)


def _limit(a, attribute, tensor):
    """Return a limit of clip: an integer for integers, which Paddle 3.3 turns into floats."""
    limit, x = _either(a, attribute, tensor), a.tensor("X")
    if isinstance(limit, float) and not paddle.is_floating_point(x):
        info = paddle.iinfo(x.dtype)
        limit = int(min(max(limit, info.min), info.max))
    return limit


def _axes(a):
    """Axes of a reduction, None for all."""
    axes = a.get("dim", [0])
    axes = [axes] if isinstance(axes, int) else list(axes)
    return None if a.get("reduce_all", False) or not axes else axes


def _operands(a, row):
    """Tensors of a call; the attribute ``axis`` is the axis of X where Y's first axis belongs."""
    values = [a.inputs[each.legacy] if each.many else a.tensor(each.legacy)
              for each in row.inputs if each.type is None]
    if any(each.legacy == "axis" for each in row.added):
        (x, y), axis = values, a.get("axis", -1)
        missing = len(x.shape) - axis - len(y.shape)
        if axis >= 0 and len(y.shape) < len(x.shape) and missing > 0:
            # Axes of size 1 at the end of y are dropped by the operator when y is longer than x.
            return x, y.reshape([*y.shape, *[1] * missing])
    return values


def _options(a, row):
    """Name in PIR -> value of the attributes of a call, without absent ones."""
    options = dict(_DEFAULTS.get(row.pir, {}))
    for each in row.inputs:
        if each.type in ("ints", "longs"):
            options[each.pir] = _integers(a, each.legacy, each.tensor or "", each.tensors or "")
        elif each.type:
            value = _either(a, each.legacy, each.tensor or "")
            if value is not None:
                options[each.pir] = value if each.type == "float" else int(value)
    for each in row.attributes:
        value = a.get(each.legacy)
        if value is None or each.fixed or each.legacy == "reduce_all":
            continue
        if each.type == "dtype":
            value = None if value == -1 else DTYPES[value]
        options[each.pir] = _format(a) if each.pir == "data_format" else value
    if row.legacy.startswith("reduce_"):
        options["axis"] = _axes(a)
    return options


def _call_public(row, function, a):
    value = function(*_operands(a, row), **_options(a, row))
    return value if row.pir != "topk" else dict(zip(("Out", "Indices"), value))


FUNCTIONS: Dict[str, Callable[[Arguments], Any]] = {}
for _module, _names in _SAME_PARAMETERS.items():
    for _pir, _, _public in (name.partition(":") for name in _names.split()):
        FUNCTIONS[ROWS[_pir].legacy] = partial(_call_public, ROWS[_pir],
                                               getattr(_module, _public or _pir))
for _name in ("reshape", "transpose", "unsqueeze"):  # of older programs, without XShape
    FUNCTIONS[_name] = FUNCTIONS[f"{_name}2"]


def _operator(*names):
    def add(function):
        FUNCTIONS.update(dict.fromkeys(names, function))
        return function
    return add


# Functions of one expression

FUNCTIONS.update({
    "mish": lambda a: F.mish(a.tensor("X")),
    "brelu": lambda a: F.hardtanh(a.tensor("X"), a.get("t_min"), a.get("t_max")),
    "swish": lambda a: F.swish(a.tensor("X")) if a.get("beta", 1.0) == 1.0 else NotImplemented,
    "cast": lambda a: a.tensor("X").astype(DTYPES[a.get("out_dtype")]),
    **dict.fromkeys(("assign", "share_data", "memcpy"), lambda a: a.tensor("X")),
    "clip": lambda a: paddle.clip(a.tensor("X"), _limit(a, "min", "Min"), _limit(a, "max", "Max")),
    "pow": lambda a: paddle.pow(a.tensor("X"), float(_either(a, "factor", "FactorTensor", 1.0))),
    "einsum": lambda a: paddle.einsum(a.get("equation"), *a.inputs["Operands"]),
    "group_norm": lambda a: F.group_norm(
        a.tensor("X"), a.get("groups"), a.get("epsilon", 1e-5), a.tensor("Scale"),
        a.tensor("Bias"), a.get("data_layout", "NCHW")),
    "instance_norm": lambda a: F.instance_norm(
        a.tensor("X"), weight=a.tensor("Scale"), bias=a.tensor("Bias"),
        eps=a.get("epsilon", 1e-5)),
    "layer_norm": lambda a: F.layer_norm(
        a.tensor("X"), a.tensor("X").shape[a.get("begin_norm_axis", 1):], a.tensor("Scale"),
        a.tensor("Bias"), a.get("epsilon", 1e-5)),
    # Without axes every axis of size 1 is removed.
    **dict.fromkeys(("squeeze2", "squeeze"),
                    lambda a: paddle.squeeze(a.tensor("X"), a.get("axes") or None)),
    "shape": lambda a: paddle.to_tensor(np.array(a.tensor("Input").shape, np.int32)),
    "stack": lambda a: paddle.stack(a.inputs["X"], a.get("axis", 0)),
    "split": lambda a: paddle.split(
        a.tensor("X"), _integers(a, "sections", "", "SectionsTensorList") or a.get("num"),
        int(_either(a, "axis", "AxisTensor", 0))),
    "unstack": lambda a: paddle.unstack(a.tensor("X"), a.get("axis", 0)),
    "pad": lambda a: F.pad(a.tensor("X"), a.get("paddings"), "constant", a.get("pad_value", 0.0)),
    "roll": lambda a: paddle.roll(a.tensor("X"), _integers(a, "shifts", "ShiftsTensor"),
                                  a.get("axis") or None),
    "tril_triu": lambda a: (paddle.tril if a.get("lower", True) else paddle.triu)(
        a.tensor("X"), a.get("diagonal", 0)),
    "take_along_axis": lambda a: paddle.take_along_axis(
        a.tensor("Input"), a.tensor("Index"), a.get("Axis"), broadcast=False),
    "one_hot_v2": lambda a: F.one_hot(
        a.tensor("X"), int(_either(a, "depth", "depth_tensor"))).astype(
            DTYPES[a.get("dtype", 5)]),
    "lod_array_length": lambda a: paddle.to_tensor(np.array([len(a.tensor("X"))], np.int64)),
})


# Elements and matrices

@_operator("hard_swish")
def _hard_swish(a):
    if (a.get("threshold", 6.0), a.get("scale", 6.0), a.get("offset", 3.0)) != (6.0, 6.0, 3.0):
        return NotImplemented
    return F.hardswish(a.tensor("X"))


@_operator("prelu")
def _prelu(a):
    if a.get("mode") == "element":
        return NotImplemented
    return F.prelu(a.tensor("X"), a.tensor("Alpha").reshape([-1]), a.get("data_format", "NCHW"))


@_operator("increment")
def _increment(a):
    x = a.tensor("X")
    return (x + paddle.to_tensor(a.get("step", 1.0)).astype(x.dtype)).reshape(x.shape)


@_operator("matmul")
def _matmul(a):
    product = paddle.matmul(a.tensor("X"), a.tensor("Y"), a.get("transpose_X", False),
                            a.get("transpose_Y", False))
    return product if a.get("alpha", 1.0) == 1.0 else product * a.get("alpha")


@_operator("mul")
def _mul(a):
    x, y = a.tensor("X"), a.tensor("Y")
    rows, columns = a.get("x_num_col_dims", 1), a.get("y_num_col_dims", 1)
    product = paddle.matmul(_matrix(x, rows), _matrix(y, columns))
    return product.reshape([*x.shape[:rows], *y.shape[columns:]])


def _matrix(x, rows):
    return x.reshape([int(np.prod(x.shape[:rows])), int(np.prod(x.shape[rows:]))])


@_operator("flatten2", "flatten")
def _flatten2(a):
    return _matrix(a.tensor("X"), a.get("axis", 1))


@_operator("lookup_table_v2")
def _lookup(a):
    padding = a.get("padding_idx", -1)
    return F.embedding(a.tensor("Ids"), a.tensor("W"), None if padding == -1 else padding)


# Convolutions, pooling, resampling

def _padding(a):
    algorithm = a.get("padding_algorithm", "EXPLICIT")
    return list(a.get("paddings")) if algorithm == "EXPLICIT" else algorithm


def _format(a):
    layout = a.get("data_format", "NCHW")
    return "NCHW" if layout == "AnyLayout" else layout


def convolution_options(op: Union[Operator, Arguments]) -> dict:
    """Return the options of a convolution as Paddle's functions and layers name them."""
    layouts = ("NCDHW", "NDHWC") if "3d" in op.type else ("NCHW", "NHWC")
    options = {"stride": op.get("strides"), "padding": _padding(op),
               "dilation": op.get("dilations"), "groups": op.get("groups", 1) or 1,
               "data_format": layouts[_format(op).endswith("C")]}
    if "transpose" in op.type:
        options["output_padding"] = op.get("output_padding") or 0
    return options


@_operator("conv2d", "depthwise_conv2d", "conv3d", "conv2d_transpose",
           "depthwise_conv2d_transpose", "conv3d_transpose")
def _convolution(a):
    function, options = getattr(F, a.type.replace("depthwise_", "")), convolution_options(a)
    if "transpose" in a.type:
        options["output_size"] = _integers(a, "output_size", "OutputSizeTensor") or None
    return function(a.tensor("Input"), a.tensor("Filter"), **options)


@_operator("pool2d")
def _pool2d(a):
    x, layout = a.tensor("X"), _format(a)
    largest = a.get("pooling_type", "max") == "max"
    size = list(a.get("ksize"))
    if a.get("adaptive", False):
        if largest:
            return F.adaptive_max_pool2d(x, size) if layout == "NCHW" else NotImplemented
        return F.adaptive_avg_pool2d(x, size, layout)
    padding, ceil = _padding(a), a.get("ceil_mode", False)
    stride = a.get("strides")
    if a.get("global_pooling", False):
        size, padding, ceil = x.shape[2:] if layout == "NCHW" else x.shape[1:3], 0, False
    if largest:
        return F.max_pool2d(x, size, stride, padding, ceil_mode=ceil, data_format=layout)
    return F.avg_pool2d(x, size, stride, padding, ceil, a.get("exclusive", True),
                        data_format=layout)


_LAYOUTS = {"NCHW": {1: "NCW", 2: "NCHW", 3: "NCDHW"}, "NHWC": {1: "NWC", 2: "NHWC", 3: "NDHWC"}}
_RANKS = {"linear": (1,), "nearest": (2, 3), "bilinear": (2,), "bicubic": (2,), "trilinear": (3,)}


@_operator(*(f"{mode}_interp_v2" for mode in _RANKS))
def _interpolate(a):
    x, mode = a.tensor("X"), a.type.partition("_")[0]
    rank, corners = len(x.shape) - 2, a.get("align_corners", True)
    if rank not in _RANKS[mode] or mode == "nearest" and corners:
        return NotImplemented
    layout: Any = a.get("data_layout", "NCHW")
    layout = _LAYOUTS.get(layout, {}).get(rank, layout)
    size = _integers(a, "", "OutSize", "SizeTensor")
    scale = a.tensor("Scale")
    scale = list(a.get("scale") or []) if scale is None else scale.numpy().reshape(-1).tolist()
    if not size and not (scale and all(each > 0 for each in scale)):
        size = [a.get(name, -1) for name in ("out_d", "out_h", "out_w")][-rank:]
    scale = [scale[0]] * rank if len(scale) == 1 else scale
    return F.interpolate(x, size or None, None if size else scale, mode, corners,
                         a.get("align_mode", 1), layout)


@_operator("pad3d")
def _pad3d(a):
    if len(a.tensor("X").shape) != 5:
        return NotImplemented
    return F.pad(a.tensor("X"), _integers(a, "paddings", "Paddings"), a.get("mode", "constant"),
                 a.get("value", 0.0), a.get("data_format", "NCDHW"))


# Normalization

def norm_layout(op: Union[Operator, Arguments], rank: int) -> Any:
    """Return the ``data_format`` of a batch norm of tensors with ``rank`` axes."""
    layouts = {2: ("NC", "NC"), 3: ("NCL", "NLC"), 4: ("NCHW", "NHWC"), 5: ("NCDHW", "NDHWC")}
    return layouts[rank][op.get("data_layout", "NCHW") == "NHWC"]


@_operator("batch_norm")
def _batch_norm(a):
    training = not (a.get("is_test", False) or a.get("use_global_stats", False))
    x = a.tensor("X")
    return F.batch_norm(x, a.tensor("Mean"), a.tensor("Variance"), a.tensor("Scale"),
                        a.tensor("Bias"), training, a.get("momentum", 0.9),
                        a.get("epsilon", 1e-5), norm_layout(a, len(x.shape)))


@_operator("dropout")
def _dropout(a):
    x = a.tensor("X")
    if not a.get("is_test", False):
        return NotImplemented
    if a.get("dropout_implementation", "downgrade_in_infer") == "upscale_in_train":
        return x
    return x * (1.0 - a.get("dropout_prob", 0.5))


@_operator("p_norm")
def _p_norm(a):
    if a.get("asvector", False) or a.get("porder", 2.0) in (0.0, float("inf"), float("-inf")):
        return NotImplemented
    return paddle.linalg.norm(a.tensor("X"), a.get("porder", 2.0), a.get("axis", -1),
                              a.get("keepdim", False))


# Reductions, shapes, indices

@_operator("logsumexp")
def _logsumexp(a):
    axes = None if a.get("reduce_all", False) else (a.get("axis") or None)
    return paddle.logsumexp(a.tensor("X"), axes, a.get("keepdim", False))


@_operator("cumsum")
def _cumsum(a):
    if a.get("exclusive", False) or a.get("reverse", False):
        return NotImplemented
    axis = None if a.get("flatten", False) else int(_either(a, "axis", "AxisTensor", -1))
    return paddle.cumsum(a.tensor("X"), axis)


@_operator("slice", "strided_slice")
def _slice(a):
    options = _options(a, ROWS[a.type])
    names = ("axes", "starts", "ends", "strides")
    part = getattr(paddle, a.type)(a.tensor("Input"),
                                   *(options[name] for name in names if name in options))
    removed = a.get("decrease_axis") or []
    return paddle.squeeze(part, removed) if removed else part


@_operator("expand_as_v2")
def _expand_as(a):
    y = a.tensor("Y")
    return paddle.expand(a.tensor("X"), a.get("target_shape") if y is None else y.shape)


@_operator("set_value")
def _set_value(a):
    x = a.tensor("Input")
    if a.get("none_axes") or a.inputs.get("StepsTensorList"):
        return NotImplemented
    places: List[Any] = [slice(None)] * len(x.shape)
    removed = a.get("decrease_axes") or []
    starts, ends = (_integers(a, name.lower(), "", f"{name}TensorList")
                    for name in ("Starts", "Ends"))
    for axis, start, end, step in zip(a.get("axes"), starts, ends, a.get("steps")):
        places[axis] = start if axis in removed else slice(start, end, step)
    value = a.tensor("ValueTensor")
    if value is None:
        names = ("values", "fp32_values", "int32_values", "int64_values", "bool_values",
                 "fp64_values")
        found = next((a.get(name) for name in names if a.get(name)), [])
        value = paddle.to_tensor(np.array(found).reshape(a.get("shape") or [])).astype(x.dtype)
    result = x.clone()
    result[tuple(places)] = value
    return result


# Constants

@_operator("fill_constant")
def _fill_constant(a):
    dtype = DTYPES[a.get("dtype")]
    shape = _integers(a, "shape", "ShapeTensor", "ShapeTensorList")
    value = a.tensor("ValueTensor")
    if value is not None:
        return paddle.expand(value.astype(dtype).reshape([1] * len(shape)), shape)
    text = a.get("str_value", "")
    number = a.get("value", 0.0)
    if text:
        number = int(text) if text.lstrip("+-").isdigit() else float(text)
    return paddle.full(shape, number, dtype)


@_operator("fill_any_like", "fill_zeros_like")
def _fill_like(a):
    code = a.get("dtype", -1)
    x = a.tensor("X")
    return paddle.full_like(x, a.get("value", 0.0), x.dtype if code == -1 else DTYPES[code])


@_operator("fill_constant_batch_size_like")
def _fill_batch(a):
    shape = list(a.get("shape"))
    shape[a.get("output_dim_idx", 0)] = a.tensor("Input").shape[a.get("input_dim_idx", 0)]
    text = a.get("str_value", "")
    return paddle.full(shape, float(text) if text else a.get("value", 0.0),
                       DTYPES[a.get("dtype")])


@_operator("assign_value")
def _assign_value(a):
    name = DTYPES[a.get("dtype")]
    for values in ("values", f"{name}_values", "fp32_values" if name == "float32" else
                   "fp64_values", f"{name.replace('8', '')}_values"):
        if a.get(values):
            break
    array = np.array(a.get(values) or [], "float32" if name == "bfloat16" else name)
    return paddle.to_tensor(array.reshape(a.get("shape")), dtype=name)


@_operator("range")
def _range(a):
    start = a.tensor("Start")
    return paddle.arange(start.item(), a.tensor("End").item(), a.tensor("Step").item(),
                         start.dtype)


@_operator("eye")
def _eye(a):
    columns = a.get("num_columns", -1)
    return paddle.eye(a.get("num_rows"), None if columns == -1 else columns,
                      DTYPES[a.get("dtype", 5)])
