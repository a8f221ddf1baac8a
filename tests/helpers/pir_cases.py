"""A small program or several for every PIR operation that can be converted."""

import math
from functools import partial

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from pir_harness import Case

CASES = []
_DRAW = np.random.RandomState(7)


def case(ops, function, *inputs, spec=None, make=None, reference=None, check=None,
         tolerance=1e-6):
    """Add a case; ``spec``: shapes to trace with, where they are not those of the inputs."""
    spec = spec or [None] * len(inputs)
    shapes = tuple(list(each.shape) if shape is None else shape
                   for shape, each in zip(spec, inputs))
    CASES.append(Case(tuple(ops.split()), function, inputs, shapes, make, reference, check,
                      tolerance))


def layer(ops, make, *inputs, **options):
    """Add a case that calls a layer."""
    case(ops, lambda net, *tensors: net(*tensors), *inputs, make=make, **options)


def names(text):
    """Names with blanks between them."""
    return text.split()


def reals(*shape, low=-1.0, high=1.0):
    """float32 in [low, high)."""
    return _DRAW.uniform(low, high, shape).astype("float32")


def whole(*shape, low=0, high=10, dtype="int64"):
    """Whole numbers in [low, high)."""
    return _DRAW.randint(low, high, shape).astype(dtype)


def flags(*shape):
    """Booleans."""
    return _DRAW.rand(*shape) > 0.5


def same_kind(low, high):
    """Check of a random result: not the values, only their range."""
    def check(found, wanted):
        for got in found:
            assert np.all(got >= low) and np.all(got <= high), got
            assert got.size < 2 or np.ptp(got) > 0, got
    return check


def shape_only(found, wanted):
    """Check of a result with undefined values: the shapes were compared already."""


def native(name):
    """Paddle's own function of a PIR operation, looked up when it is called."""
    return lambda *args: getattr(paddle._C_ops, name)(*args)


X, Y = reals(2, 3, 4), reals(2, 3, 4)
UNIT, POSITIVE = reals(3, 4, low=-0.9, high=0.9), reals(3, 4, low=0.2, high=3.0)
IMAGE = reals(2, 4, 6, 6)
VOLUME = reals(1, 2, 4, 4, 4)
INTS, MORE_INTS = whole(3, 4, low=1), whole(3, 4, low=1)
FLAGS, MORE_FLAGS = flags(3, 4), flags(3, 4)
ODD = np.array([[1.5, -np.inf, np.nan], [np.inf, 0.0, -2.5]], "float32")


# Activations

for _name in names("relu sigmoid tanh silu log_sigmoid:logsigmoid softsign tanhshrink:tanh_shrink "
              "relu6 leaky_relu elu celu selu gelu mish swish hardswish hardsigmoid hardtanh "
              "hardshrink softshrink softplus thresholded_relu softmax log_softmax"):
    _name, _, _op = _name.partition(":")
    case(_op or _name, getattr(F, _name), X * 4, spec=[[None, 3, 4]])
case("leaky_relu", lambda x: F.leaky_relu(x, 0.3), X)
case("prelu", F.prelu, X, reals(3))
case("prelu", F.prelu, X, reals(1))
case("prelu", lambda x, w: F.prelu(x, w, "NHWC"), IMAGE, reals(6))
case("elu", lambda x: F.elu(x, 0.3), X)
case("celu", lambda x: F.celu(x, 0.3), X)
case("selu", lambda x: F.selu(x, 1.2, 0.4), X)
case("gelu", lambda x: F.gelu(x, True), X)
case("hardsigmoid", lambda x: F.hardsigmoid(x, 0.3, 0.4), X * 4)
case("hardtanh", lambda x: F.hardtanh(x, -0.3, 0.4), X)
case("hardshrink", lambda x: F.hardshrink(x, 0.2), X)
case("softshrink", lambda x: F.softshrink(x, 0.2), X)
case("softplus", lambda x: F.softplus(x, 2, 1.5), X)
case("stanh", lambda x: paddle.stanh(x, 0.5, 1.3), X)
case("thresholded_relu", lambda x: F.thresholded_relu(x, 0.2), X)
case("maxout", lambda x: F.maxout(x, 2, 1), IMAGE)
case("maxout", lambda x: F.maxout(x, 3, -1), IMAGE)
case("logit", paddle.logit, np.abs(UNIT))
case("logit", lambda x: paddle.logit(x, 0.2), np.abs(UNIT))
case("softmax", lambda x: F.softmax(x, 1), X)
case("log_softmax", lambda x: F.log_softmax(x, 0), X)


# Elementwise

for _name in names("abs asin acos asinh atan atanh ceil cos cosh digamma erf erfinv exp expm1 "
                   "floor sign sin sinh square tan round trunc isfinite isinf isnan"):
    case(_name, getattr(paddle, _name), UNIT * (1 if _name in ("asin", "acos", "atanh", "erfinv")
                                                else 3))
for _name in names("acosh lgamma log log10 log1p log2 reciprocal rsqrt sqrt"):
    case(_name, getattr(paddle, _name), POSITIVE + 1)
for _name in names("isfinite isinf isnan"):
    case(_name, getattr(paddle, _name), ODD)
for _name in names("add subtract multiply divide maximum minimum fmax fmin less_than less_equal "
              "greater_than greater_equal equal not_equal heaviside remainder "
              "floor_divide"):
    case(_name, getattr(paddle, _name), POSITIVE, np.round(reals(3, 4) * 2 + 3))
    case(_name, getattr(paddle, _name), X, Y[0, 0] + 2, spec=[[None, 3, 4], [4]])
for _name in names("add subtract multiply maximum minimum remainder floor_divide less_than equal"):
    case(_name, getattr(paddle, _name), INTS, MORE_INTS)
case("elementwise_pow", paddle.pow, POSITIVE, UNIT)
for _name in names("logical_and logical_or logical_xor"):
    case(_name, getattr(paddle, _name), FLAGS, MORE_FLAGS)
for _name in names("bitwise_and bitwise_or bitwise_xor"):
    case(_name, getattr(paddle, _name), INTS, MORE_INTS)
    case(_name, getattr(paddle, _name), FLAGS, MORE_FLAGS)
case("bitwise_not", paddle.bitwise_not, INTS)
case("bitwise_not", paddle.bitwise_not, FLAGS)
case("logical_not", paddle.logical_not, FLAGS)
case("equal_all", paddle.equal_all, INTS, INTS.copy())
case("equal_all", paddle.equal_all, INTS, MORE_INTS)
case("isclose", paddle.isclose, UNIT, UNIT + reals(3, 4) * 2e-5)
case("isclose", lambda x, y: paddle.isclose(x, y, 1e-3, 0.1, True), ODD, ODD + 0.05)
case("isclose", lambda x: paddle.isclose(x, x, equal_nan=False), ODD)
case("allclose", paddle.allclose, UNIT, UNIT + 1e-7)
case("allclose", lambda x, y: paddle.allclose(x, y, 0.0, 0.3), UNIT, UNIT + 0.2)
case("dot", paddle.dot, reals(5), reals(5))
case("kron", paddle.kron, UNIT, reals(2, 2))
case("bmm", paddle.bmm, X, reals(2, 4, 5))
case("mv", paddle.mv, UNIT, reals(4))
case("atan2", paddle.atan2, UNIT, POSITIVE)
case("cross", paddle.cross, reals(2, 3), reals(2, 3))
case("cross", lambda x, y: paddle.cross(x, y, 0), reals(3, 4), reals(3, 4))
case("lerp", paddle.lerp, UNIT, POSITIVE, reals(3, 4))
case("lerp", lambda x, y: paddle.lerp(x, y, 0.3), UNIT, POSITIVE)
case("add_n builtin.combine", lambda x, y: paddle.add_n([x, y, x]), UNIT, POSITIVE)
case("scale full", lambda x: x * 3.5, X)
case("scale", lambda x: (x + 0.25) * 2.0, X)
case("scale", lambda x: paddle.scale(x, 2.0, 0.5, bias_after_scale=False), X)
case("scale", lambda x: (5 - x) * 3, INTS)
case("scale", lambda x, y: paddle.scale(x, y, 0.5), X, reals(1))
case("pow", lambda x: paddle._C_ops.pow(x, 3.0), X)
case("elementwise_pow", lambda x: x ** 3, X)
case("pow", lambda x: paddle._C_ops.pow(x, 0.5), POSITIVE)
case("pow", lambda x: paddle.pow(x, 2), INTS)
case("pow", lambda x: paddle._C_ops.pow(x, 2), INTS)
case("clip", lambda x: paddle.clip(x, -0.2, 0.4), X)
case("clip", lambda x: paddle.clip(x, min=0.0), X)
case("clip", lambda x: paddle.clip(x, 3, 6), INTS)
case("clip", lambda x, y: paddle.clip(x, y, y + 0.3), X, reals(1))
case("clip", lambda x, y: paddle.clip(x, y, 0.8), X, np.float32([-0.3]))
case("clip", lambda x: paddle.clip(x, 0.1, 0.7), np.float64([[0.05, 0.5, 0.9]]))
case("where", paddle.where, FLAGS, UNIT, POSITIVE)
case("where", lambda x: paddle.where(x > 0, x, paddle.zeros_like(x)), X, spec=[[None, 3, None]])
case("where", lambda c, x: paddle.where(c, x, 2.0), FLAGS, UNIT)
case("assign", paddle.assign, X)
case("share_data", native("share_data"), X)
case("share_data_ scale", lambda x: paddle._C_ops.share_data_(x * 2.0), X,
     reference=lambda x: x * 2.0)
case("memcpy_h2d", lambda x: paddle._C_ops.memcpy_h2d(x, 0), X)
case("memcpy_d2h", lambda x: paddle._C_ops.memcpy_d2h(x, 0), X)


def _assigned_out(x, y):
    z = y * 2.0
    w = paddle._C_ops.assign_out_(x, z)
    return w * 2.0, z * 3.0


def _incremented(x):
    y = x * 2.0
    return paddle._C_ops.increment_(y, 3.0) * 2.0, y * 3.0


case("assign_out_", _assigned_out, X, Y)
case("increment_", _incremented, reals(1))
case("increment", lambda x: paddle._C_ops.increment(x, 2.0) * x, reals(1))


def _changed_twice(x):
    y = x * 2.0
    z = paddle._C_ops.tanh_(y)
    w = paddle._C_ops.add_(y, x)
    return z * 2.0, w * 3.0, w + x


def _changed_and_read(x):
    y = x * 2.0
    before = y * 3.0
    z = paddle._C_ops.relu_(y)
    w = paddle._C_ops.multiply_(z, x)
    return before, y * 5.0, w * 7.0


def _reshaped(x):
    y = x * 2.0
    z = paddle._C_ops.reshape_(y, [6, 4])
    return paddle._C_ops.scale_(z, 3.0, 0.5, True) * 2.0


case("tanh_ add_", _changed_twice, X)
case("relu_ multiply_", _changed_and_read, X)
case("reshape_ scale_", _reshaped, X)
case("cast", lambda x: [x.cast(t) for t in ("float64", "int32", "int64", "bool", "float16", "uint8",
                                            "int8")], POSITIVE)
case("cast", lambda x: x.cast("int16").cast("int32"), POSITIVE)
case("cast", lambda x: x.cast("bfloat16").cast("float32"), X)
case("cast_", lambda x: paddle._C_ops.cast_(x * 2.0, paddle.int32), X * 5)
case("masked_fill", lambda x, m: paddle.masked_fill(x, m, 2.0), UNIT, FLAGS)
case("masked_fill", lambda x, m, v: paddle.masked_fill(x, m, v), UNIT, FLAGS[:1],
     np.float32([0.3]), spec=[[None, 4], [1, 4], [1]])
case("swiglu", lambda x: paddle.incubate.nn.functional.swiglu(x), X)
case("swiglu", lambda x, y: paddle.incubate.nn.functional.swiglu(x, y), X, Y)


# Matrices and embeddings

case("matmul", paddle.matmul, X, reals(4, 5), spec=[[None, 3, 4], [4, 5]])
case("matmul", lambda x, y: paddle.matmul(x, y, True, True), X, reals(2, 5, 3))
case("matmul", paddle.matmul, reals(4), reals(4))
case("matmul_with_flatten", lambda x, y: paddle._C_ops.matmul_with_flatten(x, y, 1, 1), X,
     reals(12, 5), reference=lambda x, y: x.reshape([2, 12]) @ y)
case("matmul_with_flatten", lambda x, y: paddle._C_ops.matmul_with_flatten(x, y, 2, 1), X,
     reals(4, 5), reference=lambda x, y: x @ y)
case("addmm", lambda x, y, z: paddle.addmm(x, y, z, 0.3, 1.7), reals(3, 5), UNIT, reals(4, 5))
case("einsum", lambda x, y: paddle._C_ops.einsum([x, y], "bij,bjk->bik")[0], X, reals(2, 4, 5))
case("einsum", lambda x, y: paddle.einsum("bij,bik->bjk", x, y), X, reals(2, 3, 5))
case("einsum", lambda x: paddle.einsum("ij->ji", x), UNIT)
case("embedding", F.embedding, whole(2, 5), reals(10, 4), spec=[[None, None], [10, 4]])
case("embedding", lambda x, w: F.embedding(x, w, padding_idx=3), whole(2, 5), reals(10, 4))
layer("embedding builtin.parameter", lambda: nn.Embedding(10, 4, padding_idx=2), whole(2, 5))
case("bilinear", F.bilinear, reals(3, 4), reals(3, 5), reals(2, 4, 5), reals(1, 2))
case("bilinear", F.bilinear, reals(3, 4), reals(3, 5), reals(2, 4, 5))
case("inverse", paddle.inverse, X[:, :, :3] + 3 * np.eye(3, dtype="float32"), tolerance=1e-5)
case("det", paddle.linalg.det, X[:, :, :3])
case("trace", paddle.trace, UNIT)
case("trace", lambda x: paddle.trace(x, 1, 1, 2), X)


# Convolutions, pooling, resampling

layer("conv2d", lambda: nn.Conv2D(4, 6, 3, padding=1), IMAGE, spec=[[None, 4, None, None]])
layer("conv2d", lambda: nn.Conv2D(4, 6, 3, 2, padding="SAME", dilation=1, groups=2), IMAGE)
layer("conv2d", lambda: nn.Conv2D(4, 6, 2, padding=[[0, 0], [0, 0], [0, 1], [2, 1]],
                                  dilation=(1, 2)), IMAGE)
layer("conv2d", lambda: nn.Conv2D(6, 4, 3, padding="VALID", data_format="NHWC"), IMAGE)
layer("conv2d", lambda: nn.Conv1D(4, 6, 3, padding=1), reals(2, 4, 9))
layer("depthwise_conv2d", lambda: nn.Conv2D(4, 4, 3, padding=1, groups=4), IMAGE)
layer("depthwise_conv2d", lambda: nn.Conv2D(4, 8, 3, stride=2, groups=4, bias_attr=False), IMAGE)
layer("conv3d", lambda: nn.Conv3D(2, 3, 2, padding=1, stride=2), VOLUME)
layer("conv3d", lambda: nn.Conv3D(2, 4, 2, groups=2, dilation=2), VOLUME)
layer("conv2d_transpose", lambda: nn.Conv2DTranspose(4, 6, 3, 2, padding=1), IMAGE,
      spec=[[None, 4, None, None]])
layer("conv2d_transpose", lambda: nn.Conv2DTranspose(4, 6, 3, 2, output_padding=1, groups=2), IMAGE)
case("conv2d_transpose", lambda x, w: F.conv2d_transpose(x, w, stride=2, output_size=[14, 13]),
     IMAGE, reals(4, 3, 3, 3))
layer("depthwise_conv2d_transpose", lambda: nn.Conv2DTranspose(4, 4, 3, 2, groups=4), IMAGE)
layer("conv3d_transpose", lambda: nn.Conv3DTranspose(2, 3, 2, 2), VOLUME)
case("conv3d_transpose", lambda x, w: F.conv3d_transpose(x, w, stride=2, output_size=[9, 8, 9]),
     VOLUME, reals(2, 3, 2, 2, 2))
case("deformable_conv", lambda x, o, w: paddle.vision.ops.deform_conv2d(x, o, w, padding=1),
     IMAGE, reals(2, 18, 6, 6), reals(3, 4, 3, 3))
case("deformable_conv", lambda x, o, w, m: paddle.vision.ops.deform_conv2d(x, o, w, mask=m),
     IMAGE, reals(2, 18, 4, 4), reals(3, 4, 3, 3), reals(2, 9, 4, 4))
case("pool2d", lambda x: F.max_pool2d(x, 2), IMAGE, spec=[[None, 4, None, None]])
case("pool2d", lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), IMAGE)
case("pool2d", lambda x: F.avg_pool2d(x, 3, 2, 1), IMAGE)
case("pool2d", lambda x: F.avg_pool2d(x, 3, 2, 1, exclusive=False, ceil_mode=True), IMAGE)
case("pool2d", lambda x: F.avg_pool2d(x, 3, 2, [0, 1, 1, 2]), IMAGE)
case("pool2d", lambda x: F.max_pool2d(x, 2, padding="SAME", data_format="NHWC"), IMAGE)
case("pool2d", lambda x: F.adaptive_avg_pool2d(x, 1), IMAGE, spec=[[None, 4, None, None]])
case("pool2d", lambda x: F.adaptive_avg_pool2d(x, (3, 5)), IMAGE)
case("max_pool2d_with_index", lambda x: F.adaptive_max_pool2d(x, 3), IMAGE)
case("pool2d", lambda x: F.avg_pool1d(x, 3, 2), reals(2, 3, 8))
case("pool3d", lambda x: F.avg_pool3d(x, 2), VOLUME)
case("pool3d", lambda x: F.max_pool3d(x, 3, 2, 1, ceil_mode=True), VOLUME)
case("pool3d", lambda x: F.adaptive_avg_pool3d(x, 2), VOLUME)
case("max_pool2d_with_index", lambda x: F.max_pool2d(x, 2, return_mask=True), IMAGE)
case("max_pool2d_with_index", lambda x: F.max_pool2d(x, 3, 2, 1, return_mask=True), IMAGE)
case("max_pool2d_with_index", lambda x: F.adaptive_max_pool2d(x, 3, return_mask=True), IMAGE)
case("max_pool3d_with_index", lambda x: F.max_pool3d(x, 2, return_mask=True), VOLUME)
case("unpool", lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_mask=True), 2), IMAGE)
case("unpool", lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_mask=True), 2,
                                        output_size=[2, 4, 7, 7]), IMAGE)
case("unfold", lambda x: F.unfold(x, 3, 2, 1, 1), IMAGE)
case("unfold", lambda x: F.unfold(x, [2, 3], [1, 2], [1, 0, 2, 1], [1, 2]), IMAGE)
case("fold", lambda x: F.fold(x, [4, 5], [2, 2]), reals(2, 12, 12))
for _mode, _image in (("nearest", IMAGE), ("bilinear", IMAGE), ("bicubic", IMAGE),
                      ("linear", IMAGE[:, :, 0]), ("trilinear", VOLUME)):
    _op, _free = f"{_mode}_interp", [None, _image.shape[1], *[None] * (_image.ndim - 2)]
    case(_op, partial(F.interpolate, scale_factor=2, mode=_mode), _image, spec=[_free])
    case(_op, partial(F.interpolate, size=[7, 5, 9][:_image.ndim - 2], mode=_mode), _image)
    if _mode != "nearest":
        case(_op, partial(F.interpolate, scale_factor=1.7, mode=_mode, align_corners=True), _image)
        case(_op, partial(F.interpolate, scale_factor=1.5, mode=_mode, align_mode=1), _image)
case("nearest_interp", lambda x: F.interpolate(x, scale_factor=[2, 3], data_format="NHWC"), IMAGE)
case("nearest_interp", lambda x: F.interpolate(x, scale_factor=2), VOLUME)
case("bilinear_interp", lambda x, y: F.interpolate(
    x, [paddle.shape(y)[2], 8], mode="bilinear"), IMAGE, reals(1, 1, 9, 8),
     spec=[[None, 4, 6, 6], [None, None, None, None]])
case("bilinear_interp", lambda x, n: F.interpolate(x, n, mode="bilinear"), IMAGE,
     np.int32([8, 9]))
case("bilinear_interp", lambda x, s: F.interpolate(x, scale_factor=s, mode="bilinear"), IMAGE,
     np.float32([1.5, 2]))
case("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), IMAGE)
case("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2, "NHWC"), IMAGE.transpose(0, 2, 3, 1).copy())
case("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 3), IMAGE)
case("channel_shuffle", lambda x: F.channel_shuffle(x, 2), IMAGE)
case("shuffle_channel", lambda x: paddle._C_ops.shuffle_channel(x, 2), IMAGE)
case("temporal_shift", lambda x: F.temporal_shift(x, 2, 0.25), IMAGE)
case("affine_grid", lambda x: F.affine_grid(x, [2, 3, 4, 5]), reals(2, 2, 3))
case("affine_grid", lambda x: F.affine_grid(x, [2, 3, 4, 5], align_corners=False), reals(2, 2, 3))
case("affine_grid", lambda x, n: F.affine_grid(x, n), reals(2, 2, 3), np.int32([2, 3, 4, 5]))
case("grid_sample", F.grid_sample, IMAGE, reals(2, 5, 3, 2),
     spec=[[None, 4, 6, 6], [None, 5, 3, 2]])
for _mode in ("nearest", "bilinear"):
    for _padding in ("zeros", "border", "reflection"):
        case("grid_sample", partial(F.grid_sample, mode=_mode, padding_mode=_padding,
                                    align_corners=False), IMAGE, reals(2, 5, 3, 2) * 2)
case("grid_sample", F.grid_sample, VOLUME, reals(1, 3, 2, 4, 3))


# Normalization

def _normalized(make):
    """A layer whose statistics are not those of a new one."""
    def build():
        net = make()
        for each in net.parameters() + net.buffers():
            each.set_value(reals(*each.shape, low=0.5, high=1.5))
        return net
    return build


_DRAWN = {}


def _batch_norm(x, mean, variance, scale, bias):
    return paddle._C_ops.batch_norm(x, mean, variance, scale, bias, True, 0.9, 1e-4, "NCHW", False,
                                    False)[0]


layer("batch_norm_", lambda: nn.BatchNorm2D(4, epsilon=1e-3), IMAGE, spec=[[None, 4, None, None]])
layer("batch_norm_", lambda: nn.BatchNorm1D(3, data_format="NLC"), reals(2, 5, 3))
case("batch_norm_", F.batch_norm, IMAGE, reals(4), reals(4, low=0.5), reals(4), reals(4))
case("batch_norm_", lambda x, m, v, w, b: F.batch_norm(x, m, v, w, b, use_global_stats=True), IMAGE,
     reals(4), reals(4, low=0.5), reals(4), reals(4))
case("batch_norm", _batch_norm, IMAGE, reals(4), reals(4, low=0.5), reals(4), reals(4))
case("layer_norm", lambda x, w, b: F.layer_norm(x, 4, w, b, 1e-3), X, reals(4), reals(4),
     spec=[[None, None, 4], [4], [4]])
case("layer_norm", lambda x: F.layer_norm(x, [3, 4]), X)
case("layer_norm", lambda x, w: F.layer_norm(x, [3, 4], w), X, reals(12))
case("group_norm", lambda x, w, b: F.group_norm(x, 2, 1e-3, w, b), IMAGE, reals(4), reals(4))
case("group_norm", lambda x: F.group_norm(x, 2), IMAGE)
case("group_norm", lambda x, w, b: F.group_norm(x, 3, 1e-5, w, b, "NHWC"), IMAGE, reals(6),
     reals(6))
case("instance_norm", lambda x, w, b: F.instance_norm(x, weight=w, bias=b, eps=1e-3), IMAGE,
     reals(4), reals(4))
case("instance_norm", lambda x: F.instance_norm(x), IMAGE)
case("norm", lambda x: paddle._C_ops.norm(x, 1, 1e-10, True)[0], X)
case("norm", lambda x: paddle._C_ops.norm(x, -1, 1e-3, True)[0], X)
case("p_norm", lambda x: paddle.norm(x, 2, 1), X)
case("p_norm", lambda x: paddle.norm(x, 3.0, -1, keepdim=True), X)
case("p_norm", lambda x: paddle.norm(x, float("inf"), 0), X)
case("p_norm", lambda x: paddle.norm(x, 1), X)
case("p_norm", lambda x: F.normalize(x), X)
case("frobenius_norm", lambda x: paddle.norm(x, "fro", [0, 1]), X)
case("frobenius_norm", lambda x: paddle._C_ops.frobenius_norm(x, [], False, True), X)
case("frobenius_norm", lambda x: paddle.norm(x, "fro", [1, 2], keepdim=True), X)
case("squared_l2_norm", native("squared_l2_norm"), X)
layer("spectral_norm", lambda: nn.SpectralNorm([4, 6], 0, 2), reals(4, 6))
case("dropout", lambda x: F.dropout(x, 0.3, training=False), X)
case("dropout", lambda x: F.dropout(x, 0.3, training=False, mode="downscale_in_infer"), X)
case("label_smooth", lambda x: F.label_smooth(x, epsilon=0.2), X)
case("label_smooth", lambda x, p: F.label_smooth(x, p, 0.2), X, reals(1, 4))
case("fused_softmax_mask", paddle.incubate.softmax_mask_fuse, IMAGE, reals(2, 1, 6, 6))


# Reductions, sorting

for _name in names("mean max min sum prod all any amax amin logsumexp"):
    _x = X > 0 if _name in ("all", "any") else X
    _f = getattr(paddle, _name)
    case(_name, _f, _x)
    case(_name, partial(_f, axis=1), _x, spec=[[None, 3, 4]])
    case(_name, partial(_f, axis=[0, -1], keepdim=True), _x)
    case(_name, partial(_f, axis=[0, 1, 2]), _x)
    case(_name, partial(_f, keepdim=True), _x, spec=[[None, None, None]])
case("sum", lambda x: paddle.sum(x, 1, dtype="float64"), X)
case("sum", lambda x: paddle.sum(x, dtype="int64"), whole(3, 4, dtype="int32"))
case("sum", paddle.sum, whole(3, 4, dtype="int32"))
case("sum", paddle.sum, FLAGS)
case("sum", lambda x: paddle.sum(x, 0), FLAGS)
case("prod", lambda x: paddle.prod(x, 1, dtype="float64"), X)
case("prod", paddle.prod, whole(3, 4, low=1, high=3))
case("max", lambda x: paddle.max(x, 0), INTS)
case("mean_all", native("mean_all"), X)
for _name in ("argmax", "argmin"):
    _f = getattr(paddle, _name)
    case(_name, _f, X)
    case(_name, partial(_f, axis=1), X, spec=[[None, 3, 4]])
    case(_name, partial(_f, axis=-1, keepdim=True, dtype="int32"), X)
    case(_name, partial(_f, keepdim=True), X)
case("cumsum", paddle.cumsum, X)
case("cumsum", lambda x: paddle.cumsum(x, 1), X, spec=[[None, 3, 4]])
case("cumsum", lambda x: paddle._C_ops.cumsum(x, -1, False, True, True), X)
case("cumsum", lambda x: paddle.cumsum(x, 0, "float64"), INTS)
case("logcumsumexp", paddle.logcumsumexp, X)
case("logcumsumexp", lambda x: paddle.logcumsumexp(x, 1), X)
case("cumprod", lambda x: paddle.cumprod(x, 1), X)
case("cumprod", lambda x: paddle.cumprod(x, -2), X)
case("numel", paddle.numel, X, spec=[[None, None, 4]])
case("bincount", paddle.bincount, whole(9))
case("bincount", lambda x, w: paddle.bincount(x, w, 15), whole(9), reals(9))
case("topk", lambda x: paddle.topk(x, 2), X, spec=[[None, 3, 4]])
case("topk", lambda x: paddle.topk(x, 2, 1, False, True), X)
case("topk", lambda x, k: paddle.topk(x, k), X, np.int32([3]))
case("argsort", paddle.argsort, X)
case("argsort", lambda x: paddle.argsort(x, 1, True), X)
case("argsort", lambda x: paddle.sort(x, 0, True), X)
case("kthvalue", lambda x: paddle.kthvalue(x, 2), X)
case("kthvalue", lambda x: paddle.kthvalue(x, 3, 1, True), X)
case("mode", paddle.mode, whole(3, 6, high=3).astype("float32"))
case("mode", lambda x: paddle.mode(x, 0, True), whole(3, 6, high=3).astype("float32"))
case("unique", paddle.unique, whole(9, high=4))
case("unique", lambda x: paddle.unique(x, True, True, True), whole(9, high=4))
case("unique", lambda x: paddle.unique(x, return_counts=True, axis=0), whole(5, 2, high=2))
case("unique", lambda x: paddle.unique(x, return_inverse=True, dtype="int32"), whole(9, high=4))
case("searchsorted", paddle.searchsorted, np.sort(UNIT, -1), reals(3, 2))
case("searchsorted", lambda x, y: paddle.searchsorted(x, y, True, True), np.sort(UNIT[0]),
     UNIT[0].copy())


# Shapes

case("reshape full_int_array", lambda x: paddle.reshape(x, [6, -1]), X)
case("reshape", lambda x: paddle.reshape(x, [0, 12]), X, spec=[[None, 3, 4]])
case("reshape builtin.combine", lambda x: paddle.reshape(x, [paddle.shape(x)[0], 2, -1]), X,
     spec=[[None, 3, 4]])
case("reshape", lambda x, n: paddle.reshape(x, n), X, np.int32([4, 6]))
case("reshape", lambda x, y: paddle.reshape(x, paddle.shape(y)), X, reals(4, 6),
     spec=[[None, 3, 4], [None, None]])
case("reshape", lambda x: paddle.reshape(x, []), reals(1))
case("transpose", lambda x: paddle.transpose(x, [2, 0, 1]), X, spec=[[None, None, 4]])
case("squeeze", paddle.squeeze, X[:, None, :, None])
case("squeeze", lambda x: paddle.squeeze(x, [1, -1]), X[:, None, :, None][..., :1])
case("unsqueeze", lambda x: paddle.unsqueeze(x, [0, -1]), X)
case("unsqueeze", lambda x, n: paddle.unsqueeze(x, n), X, np.int32([1]))
case("flatten", paddle.flatten, X)
case("flatten", lambda x: paddle.flatten(x, 1, -1), X, spec=[[None, 3, 4]])
case("shape64", paddle.shape, X, spec=[[None, 3, 4]])
case("shape64", lambda x: paddle.shape(x)[1:] * 2, X, spec=[[None, None, 4]])
case("shape", native("shape"), X, spec=[[None, 3, 4]])
case("concat builtin.combine", lambda x, y: paddle.concat([x, y, x], 1), X, Y,
     spec=[[None, 3, 4]] * 2)
case("concat", lambda x, y, n: paddle.concat([x, y], n), X, Y, np.int32([2]))
case("concat", lambda x, y: paddle.concat([x, y], -1), INTS, MORE_INTS)
case("stack", lambda x, y: paddle.stack([x, y], 1), X, Y)
case("split builtin.split", lambda x: paddle.split(x, [1, 3], 2), X, spec=[[None, 3, 4]])
case("split", lambda x: paddle.split(x, [1, -1, 1], -1), X)
case("split", lambda x: paddle.split(x, [1, 2], 1)[1], X)
case("split", lambda x, n: [y * 2.0 for y in paddle.split(x, [1, 3], n)], X, np.int32([2]))
case("split", lambda x, n: [y * 2.0 for y in paddle.split(x, [n, 3], 2)], X, np.int32([1]))
case("split_with_num", lambda x: paddle.split(x, 2, 2), X, spec=[[None, 3, 4]])
case("split_with_num", lambda x, n: paddle.split(x, 2, n), X, np.int32([2]))
case("split_with_num", lambda x: paddle.chunk(x, 3, 1)[1], X)
case("unbind", lambda x: paddle.unbind(x, 1), X)
case("unbind", paddle.unbind, X)
case("unstack", lambda x: paddle.unstack(x, 2), X)
case("meshgrid", lambda x, y: paddle.meshgrid(x, y), reals(3), reals(4))
case("slice", lambda x: x[:, 1:, -2], X, spec=[[None, 3, 4]])
case("slice", lambda x: x[0], X)
case("slice", lambda x: paddle.slice(x, [0, 2], [-2, 1], [10, -1]), X)
case("slice", lambda x, n: x[:, :n], X, np.int64([2]))
case("slice", lambda x, a, b: paddle.slice(x, [1, 2], a, b), X, np.int32([0, 1]), np.int32([2, 3]))
case("slice", lambda x, a, b: paddle.slice(x, [1, 2], [a, 1], [3, b]), X, np.int32([1]),
     np.int32([3]))
case("slice", lambda x, y: x[:, : paddle.shape(y)[0]], X, reals(2, 5),
     spec=[[None, 3, 4], [None, 5]])
case("gather_nd", lambda x, i: x[i], X, np.array([1]))
case("slice", lambda x, i: x[:, i:i + 2], X, np.array([1]))
case("strided_slice", lambda x: x[:, ::2, 1::2], X, spec=[[None, 3, 4]])
case("strided_slice", lambda x: x[:, :, ::-1], X)
case("strided_slice", lambda x: x[::-2, 2:0:-1, 3::-2], X, spec=[[None, 3, 4]])
case("strided_slice", lambda x: x[-1::-1, -2:-9:-1, :-3:-1], X, spec=[[None, 3, None]])
case("strided_slice", lambda x: x[0::-1, :0:-1, 3:-9:-2], X, spec=[[None, None, None]])
case("strided_slice", lambda x: paddle.strided_slice(x, [1, 2], [2, 3], [-5, 0], [-1, -2]), X)
case("strided_slice", lambda x, a, b: paddle.strided_slice(x, [1, 2], a, b, [1, 2]), X,
     np.int32([0, 0]), np.int32([2, 4]))
case("strided_slice", lambda x, a, s: paddle.strided_slice(x, [1, 2], [0, a], [3, 4], [s, 1]), X,
     np.int32([1]), np.int32([2]))
case("crop", lambda x: paddle.crop(x, [1, 2, -1], [1, 0, 1]), X)
case("crop", lambda x, n: paddle.crop(x, n, [0, 1, 0]), X, np.int32([1, 2, 3]))
case("crop", lambda x, n, m: paddle.crop(x, [1, n, 3], [m, 1, 0]), X, np.int32([2]), np.int32([1]))
case("tile", lambda x: paddle.tile(x, [2, 1, 3]), X, spec=[[None, 3, 4]])
case("tile", lambda x: paddle.tile(x, [2, 1, 2, 1]), X)
case("tile", lambda x, n: paddle.tile(x, n), X, np.int32([2, 1, 3]))
case("tile", lambda x, n: paddle.tile(x, [1, n, 2]), X, np.int32([2]))
case("expand", lambda x: paddle.expand(x, [3, -1, 3, 4]), X)
case("expand", lambda x: paddle.expand(x, [2, 3, 4]), X[:, :1], spec=[[None, 1, 4]])
case("expand", lambda x, n: paddle.expand(x, n), X[:, :1], np.int32([2, 5, 4]))
case("expand", lambda x, y: paddle.expand(x, [paddle.shape(y)[0], 3]), reals(1, 3), reals(4, 2),
     spec=[[1, 3], [None, 2]])
case("expand_as", paddle.expand_as, reals(1, 4), UNIT, spec=[[1, 4], [None, 4]])
case("pad", lambda x: F.pad(x, [1, 2, 0, 1, 2, 0], value=0.5), X)
case("pad", lambda x: F.pad(x, [1, 0, 2, 1], value=1.0), UNIT)
for _mode in ("constant", "reflect", "replicate", "circular"):
    case("pad3d", partial(F.pad, pad=[1, 2, 0, 1], mode=_mode), IMAGE, spec=[[None, 4, None, None]])
    case("pad3d", partial(F.pad, pad=[1, 0, 2, 1], mode=_mode, data_format="NHWC"), IMAGE)
    case("pad3d", partial(F.pad, pad=[1, 2], mode=_mode, data_format="NLC"), X)
    case("pad3d", partial(F.pad, pad=[1, 0, 2, 1, 1, 1], mode=_mode), VOLUME)
case("pad3d", lambda x: F.pad(x, [1, 1, 1, 1], value=-math.inf), IMAGE)
case("pad3d", lambda x, n: F.pad(x, n, value=0.5), IMAGE, np.int32([1, 0, 2, 1]))
case("flip", lambda x: paddle.flip(x, [0, -1]), X)
case("roll", lambda x: paddle.roll(x, 2), X)
case("roll", lambda x: paddle.roll(x, [1, -1], [0, 2]), X)
case("roll", lambda x, n: paddle.roll(x, n, 1), X, np.int64([2]))
case("repeat_interleave", lambda x: paddle.repeat_interleave(x, 2, 1), X)
case("repeat_interleave", lambda x: paddle.repeat_interleave(x, 3), X)
case("repeat_interleave_with_tensor_index", lambda x, n: paddle.repeat_interleave(x, n, 1), X,
     np.int32([1, 0, 3]))
case("diag", paddle.diag, UNIT)
case("diag", lambda x: paddle.diag(x, -1, 0.5), reals(3))
case("diag_embed", paddle.diag_embed, UNIT)
case("diag_embed", lambda x: paddle.diag_embed(x, 1, 0, 2), UNIT)
case("diagonal", lambda x: paddle.diagonal(x, 1, 2, 1), X)
case("tril", lambda x: paddle.tril(x, -1), X, spec=[[None, None, 4]])
case("triu", lambda x: paddle.triu(x, 1), X)


# Indices

case("gather", paddle.gather, X, np.int64([1, 0, 1]), spec=[[None, 3, 4], [None]])
case("gather", lambda x, i: paddle.gather(x, i, 1), X, np.int32([2, 0]))
case("gather", lambda x, i, n: paddle.gather(x, i, n), X, np.int64([2, 0]), np.int32([2]))
case("gather_nd", paddle.gather_nd, X, np.int64([[1, 2], [0, 1]]))
case("gather_nd", lambda x, i: x[i], X, np.int64([1, 0, 1]))
case("index_select", lambda x, i: paddle.index_select(x, i, 2), X, np.int64([3, 0, 3]))
case("index_sample", paddle.index_sample, UNIT, whole(3, 2, high=4))
case("index_add", lambda x, i, v: paddle.index_add(x, i, 1, v), X, np.int64([2, 0]),
     reals(2, 2, 4))
case("index_put", lambda x, i, j, v: paddle.index_put(x, (i, j), v), UNIT, np.int64([0, 2]),
     np.int64([1, 3]), reals(2))
case("index_put", lambda x, i, v: paddle.index_put(x, (i,), v, True), UNIT, np.int64([1, 1]),
     reals(2, 4))
case("index_put", lambda x, m: paddle.index_put(x, (m,), paddle.full([1], 2.0)), UNIT, FLAGS)
case("take_along_axis", lambda x, i: paddle.take_along_axis(x, i, 1), UNIT, whole(3, 2, high=4))
for _reduce in ("assign", "add", "mul", "amax", "amin", "mean"):
    case("put_along_axis", partial(lambda x, i, v, r: paddle.put_along_axis(x, i, v, 1, r),
                                   r=_reduce), UNIT, whole(3, 2, high=4), reals(3, 2))
case("put_along_axis", lambda x, i, v: paddle.put_along_axis(x, i, v, 0, "add", False), UNIT,
     whole(2, 4, high=3), reals(2, 4))
case("scatter", paddle.scatter, UNIT, np.int64([2, 0]), reals(2, 4))
case("scatter", lambda x, i, u: paddle.scatter(x, i, u, False), UNIT, np.int64([2, 2]),
     reals(2, 4))
case("scatter_nd_add", paddle.scatter_nd_add, UNIT, np.int64([[1], [2], [1]]), reals(3, 4))
case("masked_select", paddle.masked_select, UNIT, FLAGS, spec=[[None, 4], [None, 4]])
case("masked_select", lambda x: x[x > 0], X)
case("nonzero", paddle.nonzero, FLAGS, spec=[[None, 4]])
case("nonzero", paddle.nonzero, X)
case("one_hot", lambda x: F.one_hot(x, 10), whole(2, 3), spec=[[None, 3]])
case("one_hot", lambda x, n: F.one_hot(x, n), whole(2, 3), np.int32([12]))
case("sequence_mask", lambda x: F.sequence_mask(x, 6), np.int64([3, 1, 5]))
case("sequence_mask", lambda x: F.sequence_mask(x, dtype="float32"), np.int64([3, 1, 5]))
case("sequence_mask", lambda x, n: F.sequence_mask(x, n), np.int64([3, 1, 5]), np.int32([7]))
case("shard_index", lambda x: paddle.shard_index(x, 20, 2, 1), whole(4, 1, high=20))
case("set_value_", lambda x: _set(x, (slice(None), 1), 0.5), X, spec=[[None, 3, 4]])
case("set_value_", lambda x: _set(x, (0, slice(0, 3, 2)), 7), INTS)
case("set_value_", lambda x: _set(x, (slice(None, None, -2), None, 1), True), FLAGS)
case("set_value_with_tensor_", lambda x, y: _set(x, (slice(None), slice(1, 3)), y), X,
     reals(2, 2, 4))
case("set_value_with_tensor_", lambda x, y: _set(x, 1, y), X, reals(4))


def _set(x, index, value):
    y = x * 1
    y[index] = value
    return y


case("set_value", lambda x: paddle._C_ops.set_value(
    x, [0], [2], [1], [1], [], [], [1], [2.5]), X)
case("set_value_with_tensor", lambda x, y: paddle._C_ops.set_value_with_tensor(
    x, y, [0], [2], [1], [1], [], []), X, reals(4))


def _set_at(x, n):
    y = x * 2.0
    y[:, n:] = 3.0
    return y + x


case("set_value_", _set_at, X, np.int64([1]))


def _set_twice(x, y):
    z = x * 2.0
    before = z + 1.0
    z[0] = 1.5
    after = z * 3.0
    z[1, 1:] = y
    return before * 2.0, after, z + x


case("set_value_ set_value_with_tensor_", _set_twice, X, reals(2, 4))


# Constants and random numbers

case("full_like", paddle.zeros_like, X, spec=[[None, 3, 4]])
case("full_like", lambda x: paddle.full_like(x, 7, "int64"), X)
case("full_like", lambda x: paddle.full_like(x, math.inf), X)
case("full_like", lambda x: paddle.ones_like(x), FLAGS)
case("full_like", lambda x: paddle.full_like(x, paddle.sum(x) * 2.0), X)
case("full_like", lambda x: paddle.full_like(x, 1), FLAGS)
case("full_batch_size_like",
     lambda x: paddle._C_ops.full_batch_size_like(x, [-1, 5], paddle.float32, 1.5, 0, 0,
                                                  paddle.CPUPlace()), X, spec=[[None, 3, 4]])
case("full", lambda x: [paddle.full([2, 3], value, dtype) for value, dtype in (
    (1.5, "float32"), (math.inf, "float32"), (-math.inf, "float64"), (math.nan, "float32"),
    (2 ** 40 + 1, "int64"), (-7, "int32"), (True, "bool"), (0.1, "float64"), (0.1, "float16"),
    (3, "uint8"), (3, "int8"))] + [x * 2.0], X)
case("full", lambda x: [paddle.full([], 2.5), paddle.full([0, 3], 2.5), x * 2.0], X)
case("full_with_tensor", lambda x: paddle.full([paddle.shape(x)[0], 2], 1.5), X,
     spec=[[None, 3, 4]])
case("full_with_tensor", lambda n: paddle.full(n, 7, "int64"), np.int32([2, 3]))
case("full_with_tensor", lambda v: paddle.full([2, 3], v) * 2.0, np.float32([2.5]))
case("full_with_tensor", lambda x: paddle.zeros([paddle.shape(x)[0]], "bool"), X,
     spec=[[None, 3, 4]])


def _constants(x):
    arrays = [np.float32([[1.5, -2], [math.inf, math.nan]]), np.float64([0.1, 1e300]),
              np.int64([2 ** 60, -1]), np.int32([[7], [8]]), np.array([True, False]),
              np.array(2.5, "float32"), np.zeros([0, 2], "float32"), np.array(3)]
    return [paddle.assign(each) for each in arrays] + [x * 2.0]


case("assign_value_", _constants, X)
for _type, _numbers in (("float32", [0.1, math.inf]), ("float64", [0.1, 1e300]),
                        ("int64", [2 ** 40]), ("int32", [-7]), ("bool", [1, 0]),
                        ("float16", [0.1]), ("int8", [-7])):
    case("assign_value", lambda t=_type, n=_numbers: paddle._C_ops.assign_value(
        [len(n)], getattr(paddle, t), [float(each) for each in n], paddle.CPUPlace()),
         reference=lambda t=_type, n=_numbers: paddle.to_tensor(n, t))


def _assigned_and_read(x):
    y = paddle.zeros([3, 4])
    z = paddle._C_ops.assign_value_(y, [3, 4], paddle.float32, [float(i) for i in range(12)],
                                    paddle.CPUPlace())
    return x + z, y * 2.0


case("assign_value_", _assigned_and_read, X)
case("assign_value_", lambda x: [x * 2.0, paddle.assign(np.float32([1, 2]), paddle.zeros([2]))], X)
case("empty", lambda x: [paddle.empty([2, 3]), paddle.empty([3], "int64"), x * 2.0], X[0],
     check=shape_only)
case("empty", lambda x: paddle.empty([paddle.shape(x)[0], 3]), X, spec=[[None, 3, 4]],
     check=shape_only)
case("gaussian", lambda x: paddle.normal(0.0, 1.0, [2, 3]) + x, UNIT[:2, :3],
     check=same_kind(-9, 9))
case("gaussian", lambda x: paddle.randn([paddle.shape(x)[0], 3]), X, spec=[[None, 3, 4]],
     check=same_kind(-9, 9))
case("uniform", lambda x: paddle.uniform([paddle.shape(x)[0], 9], min=2.0, max=3.0), X,
     spec=[[None, 3, 4]], check=same_kind(2, 3))
case("uniform", lambda: paddle.uniform([9], "float64", 4.0, 5.0), check=same_kind(4, 5))
case("randint", lambda: paddle.randint(3, 9, [20]), check=same_kind(3, 8))
case("randint", lambda x: paddle.randint(3, 9, [paddle.shape(x)[0], 20], "int32"), X,
     spec=[[None, 3, 4]], check=same_kind(3, 8))
case("arange", lambda x: [paddle.arange(5), paddle.arange(1.0, 2.0, 0.3), paddle.arange(9, 2, -3),
                          paddle.arange(0, 4, dtype="float64"), x * 2.0], X)
case("arange", lambda x: paddle.arange(paddle.shape(x)[0]), X, spec=[[None, 3, 4]])
case("arange", lambda x: paddle.arange(0, paddle.shape(x)[0], dtype="float32"), X,
     spec=[[None, 3, 4]])
case("arange", lambda a, b: paddle.arange(a, b, 0.25), np.float32([0.5]), np.float32([2]))
case("linspace", lambda x: [paddle.linspace(0, 1, 5), paddle.linspace(1, 9, 3, "int32"),
                            x * 2.0], X)
case("linspace", lambda a, n: paddle.linspace(a, 3.0, n), np.float32([1.5]), np.int32([4]))
case("eye", lambda x: [paddle.eye(3), paddle.eye(2, 4, "int64"), x * 2.0], X)


# Sequences

for _mode, _make in (("LSTM", nn.LSTM), ("GRU", nn.GRU), ("RNN", nn.SimpleRNN)):
    layer("rnn", partial(_make, 4, 5, 2, direction="bidirect"), X, spec=[[None, 3, 4]])
    case("rnn", lambda net, x, n: net(x, sequence_length=n), X, np.int64([3, 2]),
         make=partial(_make, 4, 5, dropout=0.2))
layer("rnn", lambda: nn.SimpleRNN(4, 5, activation="relu", time_major=True), X)
case("ctc_align", lambda x, n: paddle._C_ops.ctc_align(x, n, 0, True, 0),
     whole(2, 6, high=3, dtype="int32"), np.int32([[6], [4]]))
case("viterbi_decode", lambda x, t, n: paddle.text.viterbi_decode(x, t, n), X, reals(4, 4),
     np.int64([3, 2]))
case("viterbi_decode", lambda x, t, n: paddle.text.viterbi_decode(x, t, n, False), X, reals(4, 4),
     np.int64([3, 3]))
case("gather_tree", F.gather_tree, whole(3, 2, 2), whole(3, 2, 2, high=2))


# Detection

_CORNERS = reals(6, 2, low=0, high=5)
BOXES = np.concatenate([_CORNERS, _CORNERS + reals(6, 2, low=1, high=4)], 1)
SCORES = reals(1, 3, 6, low=0.1)
case("nms", lambda x: paddle.vision.ops.nms(x, 0.3), BOXES)
case("nms", lambda x, s: paddle.vision.ops.nms(x, 0.3, s), BOXES, reals(6))
case("multiclass_nms3", lambda x, s: paddle._C_ops.multiclass_nms3(
    x, s, None, 0.05, 5, 4, 0.4, True, 1.0, 0), BOXES[None], SCORES)
case("matrix_nms", lambda x, s: paddle.vision.ops.matrix_nms(
    x, s, 0.05, 0.02, 5, 4, return_index=True), BOXES[None], SCORES)
case("matrix_nms", lambda x, s: paddle.vision.ops.matrix_nms(
    x, s, 0.05, 0.02, 5, 4, True, 1.5, 1, False), BOXES[None], SCORES)
case("yolo_box", lambda x, n: paddle.vision.ops.yolo_box(
    x, n, [10, 13, 16, 30], 2, 0.01, 32, clip_bbox=False, scale_x_y=1.1), reals(1, 14, 4, 4),
     np.int32([[128, 100]]))
case("yolo_box", lambda x, n: paddle.vision.ops.yolo_box(
    x, n, [10, 13, 16, 30], 2, 0.01, 32, iou_aware=True, iou_aware_factor=0.4),
     reals(1, 16, 4, 4), np.int32([[128, 100]]))
case("prior_box", lambda x, y: paddle.vision.ops.prior_box(
    x, y, [2.0, 4.0], [5.0, 6.0], [1.0, 2.0], flip=True, clip=True, offset=0.4,
    steps=[3.0, 2.0]), IMAGE, reals(2, 3, 20, 20))
case("box_coder", lambda p, v, t: paddle.vision.ops.box_coder(p, v, t), BOXES,
     reals(6, 4, low=0.1), BOXES[:3] + 0.3)
case("box_coder", lambda p, t: paddle.vision.ops.box_coder(
    p, [0.1, 0.1, 0.2, 0.2], t, "decode_center_size", False, axis=1), BOXES, reals(6, 2, 4))
case("generate_proposals", lambda s, d, n, a, v: paddle.vision.ops.generate_proposals(
    s, d, n, a, v, 20, 10, 0.5, 0.1, 1.0, True, True), reals(1, 2, 3, 3, low=0),
     reals(1, 8, 3, 3), np.float32([[20, 20]]), np.tile(BOXES[:2], (9, 1)).reshape(3, 3, 2, 4),
     np.full((3, 3, 2, 4), 0.5, "float32"))
case("distribute_fpn_proposals", lambda x, n: paddle.vision.ops.distribute_fpn_proposals(
    x, 2, 4, 3, 8, True, n), BOXES * 4, np.int32([6]))
for _name in ("roi_align", "roi_pool"):
    case(_name, partial(lambda x, b, n, f: getattr(paddle.vision.ops, f)(x, b, n, 3, 0.5), f=_name),
         IMAGE, BOXES, np.int32([4, 2]))
case("roi_align", lambda x, b, n: paddle.vision.ops.roi_align(x, b, n, (2, 3), 0.7, 2, False),
     IMAGE, BOXES, np.int32([4, 2]))
case("psroi_pool", lambda x, b, n: paddle.vision.ops.psroi_pool(x, b, n, 2, 0.5), reals(2, 8, 6, 6),
     BOXES, np.int32([4, 2]))


# Quantization

def _quantized(x, scale, point):
    args = (paddle.zeros([1]), paddle.zeros([1]), -1, 8, -128, 127, 0, True, False)
    y = paddle._C_ops.quantize_linear(x, scale, point, *args)[0]
    return paddle._C_ops.dequantize_linear(y, scale, point, *args)[0]


case("quantize_linear dequantize_linear", _quantized, X, np.float32([0.8]), np.float32([0]),
     reference=lambda x, scale, point: paddle.clip(paddle.round(x / scale * 127.0) + point, -128,
                                                   127) * scale / 127.0)


def _simulated(x, scale):
    return paddle._C_ops.fake_quantize_dequantize_moving_average_abs_max(
        x, scale, paddle.ones([1]), paddle.ones([1]), 0.9, 8, True, 1)[0]


case("fake_quantize_dequantize_moving_average_abs_max", _simulated, X, np.float32([0.8]),
     reference=lambda x, scale: paddle.clip(paddle.round(
         paddle.clip(x, -0.8, 0.8) * (127.0 / scale)), -127, 127) * scale / 127.0)


# Control flow

def _grows(x):
    parts = []
    for i in range(paddle.shape(x)[0]):
        parts.append(x[i] * 2.0)
    return paddle.stack(parts)


def _joined(x):
    parts = []
    for i in range(paddle.shape(x)[0]):
        parts.append(x[i] * 2.0)
    return paddle.concat(parts)


def _listed(x):
    first = paddle.zeros([1], "int64")
    array = paddle.tensor.create_array("float32")
    array = paddle.tensor.array_write(x, first, array)
    array = paddle.tensor.array_write(x * 2.0, first + 1, array)
    return paddle.tensor.array_read(array, first + 1) * 3.0, paddle.tensor.array_length(array) * 2


def _doubled_until(x, n):
    i = paddle.zeros([1], "int64")
    while i < n:
        x = x * 2.0
        i = i + 1
    return x, i


def _fibonacci(x, n):
    i, a, b = paddle.zeros([1], "int64"), x, x * 2.0
    while i < n:
        a, b = b, a + b
        i += 1
    return a, b


def _nested_loops(x, n):
    i, total = paddle.zeros([1], "int64"), x
    while i < n:
        j = paddle.zeros([1], "int64")
        while j <= i:
            total = total + x * 0.5
            j = j + 1
        i = i + 1
    return total * 2.0


def _branch(x):
    if paddle.sum(x) > 0:
        y, z = x * 2.0, x
    else:
        y, z = x - 1.0, x * 3.0
    return y * z, z


def _branch_without_else(x):
    y = x * 2.0
    if paddle.sum(x) > 0:
        y = paddle.tanh(y)
    return y * 3.0


def _branch_in_loop(x, n):
    i, y = paddle.zeros([1], "int64"), x * 1.5
    while i < n:
        if paddle.sum(y) > 0:
            y = y - 2.0
        else:
            y = y * -0.5
            if i > 1:
                y = y + 0.25
        i = i + 1
    return y, i


def _loop_in_branch(x, n):
    if n > 2:
        i = paddle.zeros([1], "int64")
        while i < n:
            x = x * 0.5 + 1.0
            i = i + 1
    else:
        x = x - 1.0
    return x * 2.0


def _swapped_yields(x, n):
    a, b = x, x * 2.0
    if n > 2:
        a, b = b, a
    return a, b


def _counted(x, n):
    """Changes in place what it reads again in the next turn."""
    i, y = paddle.zeros([1], "int64"), x * 1.0
    while i < n:
        y = y + paddle.cast(i, "float32")
        i = paddle.increment(i)
    return y * 2.0


def _sliced_in_loop(x, n):
    i, y = paddle.zeros([], "int64"), paddle.zeros([3, 4])
    while i < n[0]:
        y = y + x[i] * paddle.arange(4, dtype="float32")
        i = i + 1
    return y * 2.0


def _until_small(x):
    while paddle.max(paddle.abs(x)) > 0.1:
        x = x * 0.5
    return x * 2.0


def _static_while(x, n):
    i = paddle.zeros([1], "int64")
    outside = x * 3.0
    return paddle.static.nn.while_loop(
        lambda i, y: i < n, lambda i, y: [i + 1, y + outside], [i, x])


def _static_cond(x, n):
    return paddle.static.nn.cond(n > 2, lambda: (x * 2.0, n), lambda: (x / 3.0, n + 1))


def _static_switch(x, n):
    return paddle.static.nn.switch_case(n, {0: lambda: x * 2.0, 2: lambda: x * 3.0},
                                        lambda: x * 5.0)


case("create_array array_write_ array_length array_to_tensor while", _grows, X,
     spec=[[None, 3, 4]])
case("array_to_tensor", _joined, X, spec=[[None, 3, 4]])
case("array_write_ array_read array_length", _listed, X,
     reference=lambda x: (x * 6.0, paddle.to_tensor([4])))
for _turns in (0, 3):
    _n = np.int64([_turns])
    for _function in (_doubled_until, _fibonacci, _nested_loops, _branch_in_loop, _counted,
                      _sliced_in_loop, _static_while):
        case("while", _function, X, _n % 3 if _function is _sliced_in_loop else _n)
    case("if while", _loop_in_branch, X, _n)
    case("if", _swapped_yields, X, _n)
    case("if", _static_cond, X, _n)
    case("if", _branch, X + 1.0 - _turns)
    case("if", _branch_without_else, X + 1.0 - _turns)
    case("while", _until_small, X)
case("while if", _branch_in_loop, X, np.int64([4]))
for _turns in range(3):
    case("if", _static_switch, X, np.int32([_turns]))


# Outputs

case("data fetch", lambda x: [x, x * 2.0], X)
case("scale fetch", lambda x: [(y := x * 2.0), y, y + x], X)
class _Bare(nn.Layer):
    def __init__(self):
        super().__init__()
        self.w = self.create_parameter([3, 4])

    def forward(self, x):
        return self.w, x + self.w


layer("builtin.parameter fetch", _Bare, X)

# Special functions and losses

for _name in names("i0 i0e i1 i1e"):
    case(_name, lambda x, name=_name: getattr(paddle, name)(x), X)
for _name, _negative in (("angle", X), ("gammaln", POSITIVE)):
    if hasattr(paddle, _name):
        case(_name, lambda x, name=_name: getattr(paddle, name)(x), _negative)
case("polygamma", lambda x: paddle.polygamma(x, 1), POSITIVE)
case("polygamma", lambda x: paddle.polygamma(x, 3), POSITIVE)
if hasattr(paddle, "copysign"):
    case("copysign", paddle.copysign, UNIT, X)
case("conj", paddle.conj, X)
case("rrelu", lambda x: F.rrelu(x, 0.2, 0.5, training=False), X)
case("multiplex builtin.combine", lambda x, y, index: paddle.multiplex([x, y, x * 2], index),
     reals(4, 3), reals(4, 3), np.array([[2], [0], [1], [2]], "int32"))
for _p in (0.0, 1.0, 2.0, 3.5, float("inf")):
    case("dist", lambda x, y, p=_p: paddle.dist(x, y, p), reals(3, 4), reals(4))
for _delta in (0.3, 1.0):
    case("huber_loss", lambda x, y, d=_delta: F.smooth_l1_loss(x, y, "none", d), X, X[::-1].copy())
for _how in names("none sum mean batchmean"):
    case("kldiv_loss", lambda x, y, how=_how: F.kl_div(x, y, how), -POSITIVE, POSITIVE)
case("log_loss", lambda x, y: F.log_loss(x, y, 1e-3), reals(5, 1, low=0.1, high=0.9),
     reals(5, 1, low=0.0))
case("bce_loss", lambda x, y: F.binary_cross_entropy(x, y, reduction="none"),
     reals(3, 4, low=0.1, high=0.9), reals(3, 4, low=0.0))
case("sigmoid_cross_entropy_with_logits", lambda x, y: F.binary_cross_entropy_with_logits(
    x, y, reduction="none"), X, np.abs(X) / 4)
case("sigmoid_cross_entropy_with_logits", lambda x, y, w: F.binary_cross_entropy_with_logits(
    x, y, reduction="none", pos_weight=w), reals(3, 4), reals(3, 4, low=0.0), reals(4, low=0.5))
case("matrix_power", lambda x: paddle.linalg.matrix_power(x, 3), reals(2, 4, 4))
case("matrix_power", lambda x: paddle.linalg.matrix_power(x, 0), reals(3, 3))
case("multi_dot builtin.combine", lambda x, y, z: paddle.linalg.multi_dot([x, y, z]),
     reals(3, 5), reals(5, 2), reals(2, 4))
_SYMMETRIC = reals(2, 4, 4)
_SYMMETRIC = _SYMMETRIC @ _SYMMETRIC.transpose(0, 2, 1) + np.eye(4, dtype="float32")
for _upper in (False, True):
    case("cholesky", lambda x, upper=_upper: paddle.linalg.cholesky(x, upper), _SYMMETRIC)
case("unpool3d max_pool3d_with_index", lambda x: F.max_unpool3d(*F.max_pool3d(
    x, [1, 3, 2], return_mask=True), [1, 3, 2]), reals(1, 2, 3, 6, 4))
case("unpool3d max_pool3d_with_index", lambda x: F.max_unpool3d(*F.max_pool3d(
    x, 2, return_mask=True), 2, output_size=[4, 7, 5]), reals(1, 2, 4, 7, 5))
if hasattr(F, "lp_pool2d"):
    case("lp_pool2d", lambda x: F.lp_pool2d(x, 2.0, [2, 3], 2), IMAGE)
    case("lp_pool2d", lambda x: F.lp_pool2d(x, 3.0, 3, 2, 1, True), np.abs(IMAGE))
    case("lp_pool2d", lambda x: F.lp_pool2d(x, 1.0, 2, data_format="NHWC"), np.abs(IMAGE))
for _p, _axis in ((1.0, 0), (2.0, 1), (3.0, -1)):
    case("renorm", lambda x, p=_p, axis=_axis: paddle.renorm(x, p, axis, 0.8), reals(2, 3, 4))
for _name in names("cummax cummin"):
    for _axis, _dtype in ((0, "int64"), (-1, "int32"), (None, "int64")):
        case(_name, lambda x, name=_name, axis=_axis, dtype=_dtype: getattr(paddle, name)(
            x, axis, dtype), reals(3, 4))
_WITH_NAN = reals(4, 5)
_WITH_NAN[1, 2] = _WITH_NAN[3, 0] = np.nan
for _axis, _keeps in ((1, False), (0, True)):
    case("nanmedian", lambda x, axis=_axis, keeps=_keeps: paddle.nanmedian(x, axis, keeps),
         _WITH_NAN)
case("histogram", lambda x: paddle.histogram(x, 5, -1, 1), X)
case("histogram", lambda x: paddle.histogram(x, 4), X)
case("broadcast_tensors builtin.combine builtin.split", lambda x, y: paddle.broadcast_tensors(
    [x, y]), reals(3, 1, 4), reals(2, 1))
