"""Operators of saved programs as public, differentiable functions of Paddle.

Each function takes the :class:`~.operators.Arguments` of a call and returns the value of the
operator's main output, or a dict of output slots. An operator that is not in the table, or for
which the function returns ``NotImplemented``, is run by :mod:`.legacy` without gradient.
"""

from typing import Any, Callable, Dict

import numpy as np
import paddle
import paddle.nn.functional as F

from ..export.program.pdiparams import DTYPES
from .operators import Arguments

FUNCTIONS: Dict[str, Callable[[Arguments], Any]] = {}


def _operator(*names):
    def add(function):
        FUNCTIONS.update(dict.fromkeys(names, function))
        return function
    return add


def _unary(names, module):
    """Add operators of one tensor without attributes; ``legacy:public`` where names differ."""
    for pair in names.split():
        legacy, _, public = pair.partition(":")
        function = getattr(module, public or legacy)
        FUNCTIONS[legacy] = lambda a, function=function: function(a.tensor("X"))


def _binary(names, slots=("X", "Y")):
    for pair in names.split():
        legacy, _, public = pair.partition(":")
        function = getattr(paddle, public or legacy)
        FUNCTIONS[legacy] = lambda a, function=function: function(
            *(a.tensor(slot) for slot in slots))


def dtype_name(code: int) -> Any:
    """Return the name of an element type, given its number in a ProgramDesc."""
    return DTYPES[code]


def integers(a: Arguments, attribute: str, tensor: str = "", tensors: str = "") -> list:
    """Return a list of integers that is a tensor, a list of tensors or an attribute."""
    if tensor and a.tensor(tensor) is not None:
        return [int(each) for each in a.tensor(tensor).numpy().reshape(-1)]
    if tensors and a.inputs.get(tensors):
        return [int(each) for value in a.inputs[tensors] for each in value.numpy().reshape(-1)]
    return list(a.get(attribute, []))


def _integer(a, attribute, tensor, default=0):
    if a.tensor(tensor) is not None:
        return int(a.tensor(tensor).item())
    return a.get(attribute, default)


# Activations

_unary("relu sigmoid tanh silu logsigmoid:log_sigmoid softsign tanh_shrink:tanhshrink mish:mish "
       "relu6", F)


def _activation(name, function):
    FUNCTIONS[name] = lambda a: function(a.tensor("X"), a)


_activation("leaky_relu", lambda x, a: F.leaky_relu(x, a.get("alpha", 0.02)))
_activation("elu", lambda x, a: F.elu(x, a.get("alpha", 1.0)))
_activation("celu", lambda x, a: F.celu(x, a.get("alpha", 1.0)))
_activation("selu", lambda x, a: F.selu(x, a.get("scale"), a.get("alpha")))
_activation("gelu", lambda x, a: F.gelu(x, a.get("approximate", False)))
_activation("brelu", lambda x, a: F.hardtanh(x, a.get("t_min"), a.get("t_max")))
_activation("hard_sigmoid", lambda x, a: F.hardsigmoid(x, a.get("slope"), a.get("offset")))
_activation("hard_shrink", lambda x, a: F.hardshrink(x, a.get("threshold")))
_activation("softshrink", lambda x, a: F.softshrink(x, a.get("lambda")))
_activation("softplus", lambda x, a: F.softplus(x, a.get("beta", 1.0), a.get("threshold", 20.0)))
_activation("stanh", lambda x, a: paddle.stanh(x, a.get("scale_a"), a.get("scale_b")))
_activation("thresholded_relu", lambda x, a: F.thresholded_relu(x, a.get("threshold")))
_activation("maxout", lambda x, a: F.maxout(x, a.get("groups"), a.get("axis", 1)))
_activation("logit", lambda x, a: paddle.logit(x, a.get("eps")))
_activation("softmax", lambda x, a: F.softmax(x, a.get("axis", -1)))
_activation("log_softmax", lambda x, a: F.log_softmax(x, a.get("axis", -1)))


@_operator("hard_swish")
def _hard_swish(a):
    if (a.get("threshold", 6.0), a.get("scale", 6.0), a.get("offset", 3.0)) != (6.0, 6.0, 3.0):
        return NotImplemented
    return F.hardswish(a.tensor("X"))


@_operator("swish")
def _swish(a):
    return F.swish(a.tensor("X")) if a.get("beta", 1.0) == 1.0 else NotImplemented


@_operator("prelu")
def _prelu(a):
    if a.get("mode") == "element":
        return NotImplemented
    return F.prelu(a.tensor("X"), a.tensor("Alpha").reshape([-1]), a.get("data_format", "NCHW"))


# Elementwise

_unary("abs acos acosh asin asinh atan atanh ceil cos cosh digamma erf erfinv exp expm1 floor "
       "lgamma log log10 log1p log2 reciprocal rsqrt sign sin sinh sqrt square tan bitwise_not "
       "logical_not trunc round isfinite_v2:isfinite isinf_v2:isinf isnan_v2:isnan mean", paddle)
_binary("elementwise_fmax:fmax elementwise_fmin:fmin elementwise_heaviside:heaviside "
        "logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor equal_all dot kron "
        "bmm")
_binary("atan2", ("X1", "X2"))
_binary("mv", ("X", "Vec"))


def _broadcast(names):
    """Add operators of X and Y; their attribute ``axis`` is the axis of X of Y's first axis."""
    for pair in names.split():
        legacy, _, public = pair.partition(":")
        function = getattr(paddle, public or legacy)
        FUNCTIONS[legacy] = lambda a, function=function: function(*_aligned(a))


def _aligned(a):
    x, y, axis = a.tensor("X"), a.tensor("Y"), a.get("axis", -1)
    missing = len(x.shape) - axis - len(y.shape)
    if axis >= 0 and len(y.shape) < len(x.shape) and missing > 0:
        # Axes of size 1 at the end of y are dropped by the operator when y is longer than x.
        y = y.reshape([*y.shape, *[1] * missing])
    return x, y


_broadcast("elementwise_add:add elementwise_sub:subtract elementwise_mul:multiply "
           "elementwise_div:divide elementwise_pow:pow elementwise_max:maximum "
           "elementwise_min:minimum elementwise_mod:remainder elementwise_floordiv:floor_divide "
           "less_than less_equal greater_than greater_equal equal not_equal")


@_operator("scale")
def _scale(a):
    factor = a.tensor("ScaleTensor")
    return paddle.scale(a.tensor("X"), a.get("scale", 1.0) if factor is None else factor,
                        a.get("bias", 0.0), a.get("bias_after_scale", True))


@_operator("pow")
def _pow(a):
    factor = a.tensor("FactorTensor")
    return paddle.pow(a.tensor("X"), a.get("factor", 1.0) if factor is None else factor.item())


@_operator("clip")
def _clip(a):
    low, high = a.tensor("Min"), a.tensor("Max")
    return paddle.clip(a.tensor("X"), a.get("min") if low is None else low,
                       a.get("max") if high is None else high)


@_operator("cast")
def _cast(a):
    return a.tensor("X").astype(dtype_name(a.get("out_dtype")))


@_operator("where")
def _where(a):
    return paddle.where(a.tensor("Condition"), a.tensor("X"), a.tensor("Y"))


@_operator("lerp")
def _lerp(a):
    return paddle.lerp(a.tensor("X"), a.tensor("Y"), a.tensor("Weight"))


@_operator("cross")
def _cross(a):
    return paddle.cross(a.tensor("X"), a.tensor("Y"), axis=a.get("dim", 9))


@_operator("sum")
def _sum(a):
    return paddle.add_n(a.inputs["X"])


@_operator("assign", "share_data", "memcpy")
def _assign(a):
    return a.tensor("X")


@_operator("increment")
def _increment(a):
    x = a.tensor("X")
    return (x + paddle.to_tensor(a.get("step", 1.0)).astype(x.dtype)).reshape(x.shape)


# Matrices

@_operator("matmul_v2")
def _matmul_v2(a):
    return paddle.matmul(a.tensor("X"), a.tensor("Y"), a.get("trans_x", False),
                         a.get("trans_y", False))


@_operator("matmul")
def _matmul(a):
    product = paddle.matmul(a.tensor("X"), a.tensor("Y"), a.get("transpose_X", False),
                            a.get("transpose_Y", False))
    return product if a.get("alpha", 1.0) == 1.0 else product * a.get("alpha")


@_operator("mul")
def _mul(a):
    x, y = a.tensor("X"), a.tensor("Y")
    rows, columns = a.get("x_num_col_dims", 1), a.get("y_num_col_dims", 1)
    product = paddle.matmul(
        x.reshape([int(np.prod(x.shape[:rows])), int(np.prod(x.shape[rows:]))]),
        y.reshape([int(np.prod(y.shape[:columns])), int(np.prod(y.shape[columns:]))]))
    return product.reshape([*x.shape[:rows], *y.shape[columns:]])


@_operator("addmm")
def _addmm(a):
    return paddle.addmm(a.tensor("Input"), a.tensor("X"), a.tensor("Y"), a.get("Beta", 1.0),
                        a.get("Alpha", 1.0))


@_operator("einsum")
def _einsum(a):
    return paddle.einsum(a.get("equation"), *a.inputs["Operands"])


@_operator("lookup_table_v2")
def _lookup(a):
    padding = a.get("padding_idx", -1)
    return F.embedding(a.tensor("Ids"), a.tensor("W"), None if padding == -1 else padding)


# Convolutions

def _padding(a):
    algorithm = a.get("padding_algorithm", "EXPLICIT")
    return list(a.get("paddings")) if algorithm == "EXPLICIT" else algorithm


def _format(a, name="data_format"):
    layout = a.get(name, "NCHW")
    return "NCHW" if layout == "AnyLayout" else layout


@_operator("conv2d", "depthwise_conv2d")
def _conv2d(a, function=F.conv2d):
    return function(a.tensor("Input"), a.tensor("Filter"), None, a.get("strides"), _padding(a),
                    a.get("dilations"), a.get("groups", 1) or 1, _format(a))


@_operator("conv3d")
def _conv3d(a):
    layout = "NDHWC" if _format(a).endswith("C") else "NCDHW"
    return F.conv3d(a.tensor("Input"), a.tensor("Filter"), None, a.get("strides"), _padding(a),
                    a.get("dilations"), a.get("groups", 1) or 1, layout)


@_operator("conv2d_transpose", "depthwise_conv2d_transpose", "conv3d_transpose")
def _conv_transpose(a):
    function: Any = F.conv3d_transpose if a.type == "conv3d_transpose" else F.conv2d_transpose
    size = integers(a, "output_size", "OutputSizeTensor")
    layouts = ("NDHWC", "NCDHW") if a.type == "conv3d_transpose" else ("NHWC", "NCHW")
    return function(a.tensor("Input"), a.tensor("Filter"), None, a.get("strides"), _padding(a),
                    a.get("output_padding") or 0, groups=a.get("groups", 1) or 1,
                    dilation=a.get("dilations"), output_size=size or None,
                    data_format=layouts[0 if _format(a).endswith("C") else 1])


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


_MODES: Dict[str, Any] = {
    "nearest_interp_v2": "nearest", "bilinear_interp_v2": "bilinear",
    "bicubic_interp_v2": "bicubic", "linear_interp_v2": "linear",
    "trilinear_interp_v2": "trilinear"}


@_operator(*_MODES)
def _interpolate(a):
    x, mode = a.tensor("X"), _MODES[a.type]
    layout: Any = a.get("data_layout", "NCHW")
    rank = len(x.shape) - 2
    if rank != {"linear": 1, "trilinear": 3}.get(mode, 2):
        return NotImplemented
    if layout == "NCHW":
        layout = {1: "NCW", 2: "NCHW", 3: "NCDHW"}[rank]
    elif layout == "NHWC":
        layout = {1: "NWC", 2: "NHWC", 3: "NDHWC"}[rank]
    size = integers(a, "", "OutSize", "SizeTensor")
    scale = a.tensor("Scale")
    scale = list(a.get("scale") or []) if scale is None else scale.numpy().reshape(-1).tolist()
    if not size and not (scale and all(each > 0 for each in scale)):
        size = [a.get(name, -1) for name in ("out_d", "out_h", "out_w")][-rank:]
    if mode == "nearest" and a.get("align_corners", False):
        return NotImplemented
    scale = [scale[0]] * rank if len(scale) == 1 else scale
    return F.interpolate(x, size or None, None if size else scale, mode,
                         a.get("align_corners", True), a.get("align_mode", 1), layout)


@_operator("pixel_shuffle")
def _pixel_shuffle(a):
    return F.pixel_shuffle(a.tensor("X"), a.get("upscale_factor"), _format(a))


@_operator("pixel_unshuffle")
def _pixel_unshuffle(a):
    return F.pixel_unshuffle(a.tensor("X"), a.get("downscale_factor"), _format(a))


@_operator("channel_shuffle")
def _channel_shuffle(a):
    return F.channel_shuffle(a.tensor("X"), a.get("groups"), _format(a))


@_operator("grid_sampler")
def _grid_sampler(a):
    return {"Output": F.grid_sample(
        a.tensor("X"), a.tensor("Grid"), a.get("mode", "bilinear"),
        a.get("padding_mode", "zeros"), a.get("align_corners", True))}


@_operator("unfold")
def _unfold(a):
    return F.unfold(a.tensor("X"), a.get("kernel_sizes"), a.get("strides"), a.get("paddings"),
                    a.get("dilations"))


# Normalization

@_operator("batch_norm")
def _batch_norm(a):
    training = not (a.get("is_test", False) or a.get("use_global_stats", False))
    x = a.tensor("X")
    last = a.get("data_layout", "NCHW") == "NHWC"
    layout: Any = {2: "NC", 3: "NLC" if last else "NCL", 5: "NDHWC" if last else "NCDHW"}.get(
        len(x.shape), "NHWC" if last else "NCHW")
    return F.batch_norm(x, a.tensor("Mean"), a.tensor("Variance"), a.tensor("Scale"),
                        a.tensor("Bias"), training, a.get("momentum", 0.9),
                        a.get("epsilon", 1e-5), layout)


@_operator("layer_norm")
def _layer_norm(a):
    x = a.tensor("X")
    return F.layer_norm(x, x.shape[a.get("begin_norm_axis", 1):], a.tensor("Scale"),
                        a.tensor("Bias"), a.get("epsilon", 1e-5))


@_operator("group_norm")
def _group_norm(a):
    return F.group_norm(a.tensor("X"), a.get("groups"), a.get("epsilon", 1e-5),
                        a.tensor("Scale"), a.tensor("Bias"), a.get("data_layout", "NCHW"))


@_operator("instance_norm")
def _instance_norm(a):
    return F.instance_norm(a.tensor("X"), weight=a.tensor("Scale"), bias=a.tensor("Bias"),
                           eps=a.get("epsilon", 1e-5))


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


# Reductions

def _axes(a):
    axes = a.get("dim", [0])
    axes = [axes] if isinstance(axes, int) else list(axes)
    return None if a.get("reduce_all", False) or not axes else axes


def _reductions(names):
    for legacy in names.split():
        public = getattr(paddle, legacy.replace("reduce_", ""))
        FUNCTIONS[legacy] = lambda a, public=public: public(
            a.tensor("X"), axis=_axes(a), keepdim=a.get("keep_dim", False))


_reductions("reduce_mean reduce_max reduce_min reduce_amax reduce_amin reduce_all reduce_any")


@_operator("reduce_sum")
def _reduce_sum(a):
    code = a.get("out_dtype", -1)
    return paddle.sum(a.tensor("X"), _axes(a), None if code == -1 else dtype_name(code),
                      a.get("keep_dim", False))


@_operator("reduce_prod")
def _reduce_prod(a):
    axes = _axes(a)
    return paddle.prod(a.tensor("X"), axes, a.get("keep_dim", False))


@_operator("logsumexp")
def _logsumexp(a):
    axes = None if a.get("reduce_all", False) else (a.get("axis") or None)
    return paddle.logsumexp(a.tensor("X"), axes, a.get("keepdim", False))


@_operator("cumsum")
def _cumsum(a):
    if a.get("exclusive", False) or a.get("reverse", False):
        return NotImplemented
    axis = None if a.get("flatten", False) else _integer(a, "axis", "AxisTensor", -1)
    return paddle.cumsum(a.tensor("X"), axis)


@_operator("top_k_v2")
def _top_k(a):
    values, places = paddle.topk(a.tensor("X"), _integer(a, "k", "K", 1), a.get("axis", -1),
                                 a.get("largest", True), a.get("sorted", True))
    return {"Out": values, "Indices": places}


# Shapes

@_operator("reshape2", "reshape")
def _reshape(a):
    return paddle.reshape(a.tensor("X"), integers(a, "shape", "Shape", "ShapeTensor"))


@_operator("transpose2", "transpose")
def _transpose(a):
    return paddle.transpose(a.tensor("X"), a.get("axis"))


@_operator("squeeze2", "squeeze")
def _squeeze(a):
    x = a.tensor("X")
    # Without axes every axis of size 1 is removed.
    return paddle.squeeze(x, a.get("axes") or None)


@_operator("unsqueeze2", "unsqueeze")
def _unsqueeze(a):
    return paddle.unsqueeze(a.tensor("X"), integers(a, "axes", "AxesTensor", "AxesTensorList"))


@_operator("flatten_contiguous_range")
def _flatten(a):
    return paddle.flatten(a.tensor("X"), a.get("start_axis", 1), a.get("stop_axis", 1))


@_operator("flatten2", "flatten")
def _flatten2(a):
    x, axis = a.tensor("X"), a.get("axis", 1)
    return x.reshape([int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:]))])


@_operator("shape")
def _shape(a):
    return paddle.to_tensor(np.array(a.tensor("Input").shape, np.int32))


@_operator("size")
def _size(a):
    return paddle.numel(a.tensor("Input"))


@_operator("concat")
def _concat(a):
    return paddle.concat(a.inputs["X"], _integer(a, "axis", "AxisTensor"))


@_operator("stack")
def _stack(a):
    return {"Y": paddle.stack(a.inputs["X"], a.get("axis", 0))}


@_operator("split")
def _split(a):
    sections = integers(a, "sections", "", "SectionsTensorList")
    return {"Out": list(paddle.split(a.tensor("X"), sections or a.get("num"),
                                     _integer(a, "axis", "AxisTensor")))}


@_operator("unbind")
def _unbind(a):
    return {"Out": list(paddle.unbind(a.tensor("X"), a.get("axis", 0)))}


@_operator("unstack")
def _unstack(a):
    return {"Y": list(paddle.unstack(a.tensor("X"), a.get("axis", 0)))}


@_operator("meshgrid")
def _meshgrid(a):
    return {"Out": list(paddle.meshgrid(a.inputs["X"]))}


@_operator("slice")
def _slice(a):
    x, axes = a.tensor("Input"), list(a.get("axes"))
    starts, ends = (integers(a, f"{name}s", f"{name.title()}sTensor", f"{name.title()}sTensorList")
                    for name in ("start", "end"))
    part = paddle.slice(x, axes, starts, ends)
    removed = a.get("decrease_axis") or []
    return paddle.squeeze(part, removed) if removed else part


@_operator("strided_slice")
def _strided_slice(a):
    x = a.tensor("Input")
    starts, ends, strides = (
        integers(a, f"{name}s", f"{name.title()}sTensor", f"{name.title()}sTensorList")
        for name in ("start", "end", "stride"))
    part = paddle.strided_slice(x, a.get("axes"), starts, ends, strides)
    removed = a.get("decrease_axis") or []
    return paddle.squeeze(part, removed) if removed else part


@_operator("tile")
def _tile(a):
    return paddle.tile(a.tensor("X"), integers(a, "repeat_times", "RepeatTimes",
                                               "repeat_times_tensor"))


@_operator("expand_v2")
def _expand(a):
    return paddle.expand(a.tensor("X"), integers(a, "shape", "Shape", "expand_shapes_tensor"))


@_operator("expand_as_v2")
def _expand_as(a):
    y = a.tensor("Y")
    return paddle.expand(a.tensor("X"), a.get("target_shape") if y is None else y.shape)


@_operator("pad3d")
def _pad3d(a):
    x, mode = a.tensor("X"), a.get("mode", "constant")
    layout = a.get("data_format", "NCDHW")
    if len(x.shape) != 5:
        return NotImplemented
    return F.pad(x, integers(a, "paddings", "Paddings"), mode, a.get("value", 0.0), layout)


@_operator("pad")
def _pad(a):
    x, sizes = a.tensor("X"), a.get("paddings")
    return F.pad(x, sizes, "constant", a.get("pad_value", 0.0))


@_operator("flip")
def _flip(a):
    return paddle.flip(a.tensor("X"), a.get("axis"))


@_operator("roll")
def _roll(a):
    return paddle.roll(a.tensor("X"), integers(a, "shifts", "ShiftsTensor"),
                       a.get("axis") or None)


@_operator("tril_triu")
def _triangle(a):
    function = paddle.tril if a.get("lower", True) else paddle.triu
    return function(a.tensor("X"), a.get("diagonal", 0))


# Indices

@_operator("gather")
def _gather(a):
    return paddle.gather(a.tensor("X"), a.tensor("Index"), _integer(a, "axis", "Axis"))


@_operator("gather_nd")
def _gather_nd(a):
    return paddle.gather_nd(a.tensor("X"), a.tensor("Index"))


@_operator("index_select")
def _index_select(a):
    return paddle.index_select(a.tensor("X"), a.tensor("Index"), a.get("dim", 0))


@_operator("index_sample")
def _index_sample(a):
    return paddle.index_sample(a.tensor("X"), a.tensor("Index"))


@_operator("take_along_axis")
def _take_along_axis(a):
    return {"Result": paddle.take_along_axis(a.tensor("Input"), a.tensor("Index"), a.get("Axis"),
                                             broadcast=False)}


@_operator("masked_select")
def _masked_select(a):
    return paddle.masked_select(a.tensor("X"), a.tensor("Mask"))


@_operator("where_index")
def _nonzero(a):
    return paddle.nonzero(a.tensor("Condition"))


@_operator("scatter")
def _scatter(a):
    return paddle.scatter(a.tensor("X"), a.tensor("Ids"), a.tensor("Updates"),
                          a.get("overwrite", True))


@_operator("set_value")
def _set_value(a):
    x = a.tensor("Input")
    if a.get("none_axes") or a.inputs.get("StepsTensorList"):
        return NotImplemented
    places = [slice(None)] * len(x.shape)
    removed = a.get("decrease_axes") or []
    starts, ends = (integers(a, name.lower(), "", f"{name}TensorList")
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


@_operator("one_hot_v2")
def _one_hot(a):
    x, depth = a.tensor("X"), _integer(a, "depth", "depth_tensor")
    return F.one_hot(x, depth).astype(dtype_name(a.get("dtype", 5)))


# Constants

@_operator("fill_constant")
def _fill_constant(a):
    dtype = dtype_name(a.get("dtype"))
    shape = integers(a, "shape", "ShapeTensor", "ShapeTensorList")
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
    return paddle.full_like(x, a.get("value", 0.0), x.dtype if code == -1 else dtype_name(code))


@_operator("fill_constant_batch_size_like")
def _fill_batch(a):
    shape = list(a.get("shape"))
    shape[a.get("output_dim_idx", 0)] = a.tensor("Input").shape[a.get("input_dim_idx", 0)]
    text = a.get("str_value", "")
    return paddle.full(shape, float(text) if text else a.get("value", 0.0),
                       dtype_name(a.get("dtype")))


@_operator("assign_value")
def _assign_value(a):
    name = dtype_name(a.get("dtype"))
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


@_operator("linspace")
def _linspace(a):
    return paddle.linspace(a.tensor("Start"), a.tensor("Stop"), a.tensor("Num"),
                           dtype_name(a.get("dtype")))


@_operator("eye")
def _eye(a):
    columns = a.get("num_columns", -1)
    return paddle.eye(a.get("num_rows"), None if columns == -1 else columns,
                      dtype_name(a.get("dtype", 5)))


@_operator("lod_array_length")
def _array_length(a):
    return paddle.to_tensor(np.array([len(a.tensor("X"))], np.int64))
