"""Operators of saved programs as public, differentiable functions of Paddle.

Each function takes the :class:`~.operators.Arguments` of a call and returns the value of the
operator's main output, or a dict of output slots. An operator that is not in the table, or for
which the function returns ``NotImplemented``, is run without gradient.

Most functions follow from the rows of :mod:`..export.pir_to_program.operator_table`: the names and
the order of the operands and attributes of a PIR operation are those of Paddle's public function.
"""

from functools import partial
from typing import Any, Callable, Dict, List

import numpy as np
import paddle
import paddle.nn.functional as F

from .._paddle_compat import group_norm
from ..export.pir_to_program.operator_table import ROWS
from ..export.program.pdiparams import DTYPES
from .operators import Arguments

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


def integers(a, attribute, tensor="", tensors=""):
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


def unless_minus_one(number):
    """Return ``number``, or None for -1, which stands for an absent value in attributes."""
    return None if number == -1 else number


def _dtype(code):
    return None if code == -1 else DTYPES[code]


def data_format(a):
    """Return the layout of images of a call."""
    return a.get("data_format", "NCHW").replace("AnyLayout", "NCHW")


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
            options[each.pir] = integers(a, each.legacy, each.tensor or "", each.tensors or "")
        elif each.type:
            value = _either(a, each.legacy, each.tensor or "")
            if value is not None:
                options[each.pir] = value if each.type == "float" else int(value)
    for each in row.attributes:
        value = a.get(each.legacy)
        if value is None or each.fixed or each.legacy == "reduce_all":
            continue
        if each.type == "dtype":
            value = _dtype(value)
        options[each.pir] = data_format(a) if each.pir == "data_format" else value
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


def operator(*names):
    """Decorator that enters a function under the names of its operators."""
    def add(function):
        FUNCTIONS.update(dict.fromkeys(names, function))
        return function
    return add


# Functions of one expression

FUNCTIONS.update({
    "mish": lambda a: F.mish(a.tensor("X")),
    "brelu": lambda a: F.hardtanh(a.tensor("X"), a.get("t_min"), a.get("t_max")),
    "hard_swish": lambda a: F.hardswish(a.tensor("X")) if all(
        a.get(name, usual) == usual for name, usual in
        (("threshold", 6.0), ("scale", 6.0), ("offset", 3.0))) else NotImplemented,
    "swish": lambda a: F.swish(a.tensor("X")) if a.get("beta", 1.0) == 1.0 else NotImplemented,
    "cast": lambda a: a.tensor("X").astype(DTYPES[a.get("out_dtype")]),
    **dict.fromkeys(("assign", "share_data", "memcpy"), lambda a: a.tensor("X")),
    "clip": lambda a: paddle.clip(a.tensor("X"), _limit(a, "min", "Min"), _limit(a, "max", "Max")),
    "pow": lambda a: paddle.pow(a.tensor("X"), float(_either(a, "factor", "FactorTensor", 1.0))),
    "einsum": lambda a: paddle.einsum(a.get("equation"), *a.inputs["Operands"]),
    "group_norm": lambda a: group_norm(
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
        a.tensor("X"), integers(a, "sections", "", "SectionsTensorList") or a.get("num"),
        int(_either(a, "axis", "AxisTensor", 0))),
    "unstack": lambda a: paddle.unstack(a.tensor("X"), a.get("axis", 0)),
    "pad": lambda a: F.pad(a.tensor("X"), a.get("paddings"), "constant", a.get("pad_value", 0.0)),
    "roll": lambda a: paddle.roll(a.tensor("X"), integers(a, "shifts", "ShiftsTensor"),
                                  a.get("axis") or None),
    "tril_triu": lambda a: (paddle.tril if a.get("lower", True) else paddle.triu)(
        a.tensor("X"), a.get("diagonal", 0)),
    "take_along_axis": lambda a: paddle.take_along_axis(
        a.tensor("Input"), a.tensor("Index"), a.get("Axis"), broadcast=False),
    "one_hot_v2": lambda a: F.one_hot(
        a.tensor("X"), int(_either(a, "depth", "depth_tensor"))).astype(
            DTYPES[a.get("dtype", 5)]),
    "prelu": lambda a: NotImplemented if a.get("mode") == "element" else F.prelu(
        a.tensor("X"), a.tensor("Alpha").reshape([-1]), a.get("data_format", "NCHW")),
    **dict.fromkeys(("flatten2", "flatten"), lambda a: _matrix(a.tensor("X"), a.get("axis", 1))),
    "lookup_table_v2": lambda a: F.embedding(
        a.tensor("Ids"), a.tensor("W"), unless_minus_one(a.get("padding_idx", -1))),
    "logsumexp": lambda a: paddle.logsumexp(
        a.tensor("X"), None if a.get("reduce_all", False) else a.get("axis") or None,
        a.get("keepdim", False)),
    "expand_as_v2": lambda a: paddle.expand(
        a.tensor("X"), a.get("target_shape") if a.tensor("Y") is None else a.tensor("Y").shape),
    "range": lambda a: paddle.arange(
        *(a.tensor(slot).item() for slot in ("Start", "End", "Step")),
        dtype=a.tensor("Start").dtype),
    "eye": lambda a: paddle.eye(a.get("num_rows"), unless_minus_one(a.get("num_columns", -1)),
                                DTYPES[a.get("dtype", 5)]),
    **dict.fromkeys(("fill_any_like", "fill_zeros_like"), lambda a: paddle.full_like(
        a.tensor("X"), a.get("value", 0.0), _dtype(a.get("dtype", -1)))),
    "lod_array_length": lambda a: paddle.to_tensor(np.array([len(a.tensor("X"))], np.int64)),
})


# Elements and matrices

@operator("increment")
def _increment(a):
    x = a.tensor("X")
    return (x + paddle.to_tensor(a.get("step", 1.0)).astype(x.dtype)).reshape(x.shape)


@operator("matmul")
def _matmul(a):
    product = paddle.matmul(a.tensor("X"), a.tensor("Y"), a.get("transpose_X", False),
                            a.get("transpose_Y", False))
    return product if a.get("alpha", 1.0) == 1.0 else product * a.get("alpha")


@operator("mul")
def _mul(a):
    x, y = a.tensor("X"), a.tensor("Y")
    rows, columns = a.get("x_num_col_dims", 1), a.get("y_num_col_dims", 1)
    product = paddle.matmul(_matrix(x, rows), _matrix(y, columns))
    return product.reshape([*x.shape[:rows], *y.shape[columns:]])


def _matrix(x, rows):
    return x.reshape([int(np.prod(x.shape[:rows])), int(np.prod(x.shape[rows:]))])


# Reductions, shapes, indices

@operator("p_norm")
def _p_norm(a):
    order = a.get("porder", 2.0)
    if a.get("asvector", False) or order in (0.0, float("inf"), float("-inf")):
        return NotImplemented
    return paddle.linalg.norm(a.tensor("X"), order, a.get("axis", -1), a.get("keepdim", False))


@operator("cumsum")
def _cumsum(a):
    if a.get("exclusive", False) or a.get("reverse", False):
        return NotImplemented
    axis = None if a.get("flatten", False) else int(_either(a, "axis", "AxisTensor", -1))
    return paddle.cumsum(a.tensor("X"), axis)


@operator("slice", "strided_slice")
def _slice(a):
    options = _options(a, ROWS[a.type])
    names = ("axes", "starts", "ends", "strides")
    part = getattr(paddle, a.type)(a.tensor("Input"),
                                   *(options[name] for name in names if name in options))
    removed = a.get("decrease_axis") or []
    return paddle.squeeze(part, removed) if removed else part


@operator("set_value")
def _set_value(a):
    x = a.tensor("Input")
    if a.get("none_axes") or a.inputs.get("StepsTensorList"):
        return NotImplemented
    places: List[Any] = [slice(None)] * len(x.shape)
    removed = a.get("decrease_axes") or []
    starts, ends = (integers(a, name.lower(), "", f"{name}TensorList")
                    for name in ("Starts", "Ends"))
    for axis, start, end, step in zip(a.get("axes"), starts, ends, a.get("steps")):
        places[axis] = start if axis in removed else slice(start, end, step)
    value = a.tensor("ValueTensor")
    if value is None:
        array = np.array(_constants(a)).reshape(a.get("shape") or [])
        value = paddle.to_tensor(array).astype(x.dtype)
    result = x.clone()
    result[tuple(places)] = value
    return result


# Constants

def _constants(a):
    """Return the list of an operator that has one attribute of lists for each dtype."""
    return next((value for name, value in a.operator.attributes.items()
                 if name.endswith("values") and value), [])


@operator("fill_constant")
def _fill_constant(a):
    dtype = DTYPES[a.get("dtype")]
    shape = integers(a, "shape", "ShapeTensor", "ShapeTensorList")
    value = a.tensor("ValueTensor")
    if value is not None:
        return paddle.expand(value.astype(dtype).reshape([1] * len(shape)), shape)
    return paddle.full(shape, _number(a), dtype)


def _number(a):
    text = a.get("str_value", "")
    if not text:
        return a.get("value", 0.0)
    return int(text) if text.lstrip("+-").isdigit() else float(text)


@operator("fill_constant_batch_size_like")
def _fill_batch(a):
    shape = list(a.get("shape"))
    shape[a.get("output_dim_idx", 0)] = a.tensor("Input").shape[a.get("input_dim_idx", 0)]
    return paddle.full(shape, _number(a), DTYPES[a.get("dtype")])


@operator("assign_value")
def _assign_value(a):
    name = DTYPES[a.get("dtype")]
    array = np.array(_constants(a), "float32" if name == "bfloat16" else name)
    return paddle.to_tensor(array.reshape(a.get("shape")), dtype=name)
