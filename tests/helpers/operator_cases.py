"""Operators as functions of one tensor or of two, for the test of operator conformance.

A name is the operator and, behind a blank, the attributes that are not the defaults. The tensors
are outputs of convolutions, about N(0, 1), of the shape [2, 12, 9, 7]. The tables for other kinds
of operators are in operator_cases_tensors and operator_cases_spatial.
"""

import numpy as np
import paddle
import paddle.nn.functional as F


def ramp(*shape, low=-1.0, high=1.0):
    """Constant with values from ``low`` to ``high``."""
    values = np.linspace(low, high, int(np.prod(shape)), dtype=np.float32)
    return paddle.to_tensor(values.reshape(shape))


def unit(x):
    """Values in (-0.9, 0.9)."""
    return paddle.tanh(x) * 0.9


def positive(x):
    """Values above 0.5."""
    return x.abs() + 0.5


def whole(x):
    """Whole numbers from 0 to 9."""
    return (F.sigmoid(x) * 9.5).astype("int32")


def _plain(names, view=lambda x: x):
    """Functions of ``paddle`` by name, applied to ``view(x)``; some versions lack some."""
    def function(name):
        return lambda x: getattr(paddle, name)(view(x))

    return {name: function(name) for name in names.split()}


def _of_two(names):
    def function(name):
        return lambda x, y: getattr(paddle, name)(x, y)

    return {name: function(name) for name in names.split()}


ACTIVATIONS = {
    "relu": F.relu, "relu6": F.relu6, "gelu": F.gelu, "silu": F.silu, "swish": F.swish,
    "mish": F.mish, "tanh": F.tanh, "sigmoid": F.sigmoid, "log_sigmoid": F.log_sigmoid,
    "softsign": F.softsign, "tanhshrink": F.tanhshrink, "hardswish": F.hardswish,
    "leaky_relu 0.3": lambda x: F.leaky_relu(x, 0.3),
    "elu 0.3": lambda x: F.elu(x, 0.3),
    "celu 0.3": lambda x: F.celu(x, 0.3),
    "selu 1.2, 0.4": lambda x: F.selu(x, 1.2, 0.4),
    "gelu approximate": lambda x: F.gelu(x, True),
    "hardsigmoid 0.3, 0.4": lambda x: F.hardsigmoid(x, 0.3, 0.4),
    "hardtanh -0.3, 0.4": lambda x: F.hardtanh(x, -0.3, 0.4),
    "hardshrink 0.2": lambda x: F.hardshrink(x, 0.2),
    "softshrink 0.2": lambda x: F.softshrink(x, 0.2),
    "softplus": F.softplus,
    "softplus beta 2, threshold 1.5": lambda x: F.softplus(x, 2, 1.5),
    "softplus beta 0.5": lambda x: F.softplus(x, 0.5),
    "stanh 0.5, 1.3": lambda x: paddle.stanh(x, 0.5, 1.3),
    "thresholded_relu 0.2": lambda x: F.thresholded_relu(x, 0.2),
    "maxout 3 groups": lambda x: F.maxout(x, 3, 1),
    "maxout axis -1": lambda x: F.maxout(x, 7, -1),
    "prelu one": lambda x: F.prelu(x, ramp(1, low=0.3)),
    "prelu channels": lambda x: F.prelu(x, ramp(12, low=-0.3)),
    "rrelu": lambda x: F.rrelu(x, 0.1, 0.4, training=False),
    "glu axis 1": lambda x: F.glu(x, 1),
    "swiglu": lambda x: paddle.incubate.nn.functional.swiglu(x.transpose([0, 2, 3, 1])),
    "softmax axis 1": lambda x: F.softmax(x, 1),
    "softmax": F.softmax,
    "log_softmax axis 2": lambda x: F.log_softmax(x, 2),
    "logit 0.2": lambda x: paddle.logit(F.sigmoid(x), 0.2),
}

UNARY = {
    **_plain("abs asinh atan ceil cos erf expm1 floor round sign sin sinh cosh square trunc frac "
             "neg isfinite isinf isnan exp nan_to_num deg2rad rad2deg sgn"),
    **_plain("acos asin atanh erfinv tan", unit),
    **_plain("digamma lgamma log log10 log1p log2 reciprocal rsqrt sqrt i0 i0e i1 i1e gammaln",
             positive),
    "acosh": lambda x: paddle.acosh(positive(x) + 0.6),
    "angle": paddle.angle,
    "polygamma 1": lambda x: paddle.polygamma(positive(x), 1),
    "signbit": lambda x: paddle.signbit(x),
    "scale bias first": lambda x: paddle.scale(x, 2.0, 0.5, bias_after_scale=False),
    "clip": lambda x: paddle.clip(x, -0.2, 0.4),
    "clip below": lambda x: paddle.clip(x, min=0.1),
    "pow 3": lambda x: paddle.pow(x, 3),
    "pow 0.7": lambda x: paddle.pow(positive(x), 0.7),
    "cast int32": lambda x: (x * 5).astype("int32"),
    "cast bool": lambda x: F.relu(x).astype("bool"),
    "zeros_like": lambda x: x + paddle.zeros_like(x),
    "ones_like": lambda x: x + paddle.ones_like(x),
    "full_like 1.5": lambda x: x * paddle.full_like(x, 1.5),
    "logical_not": lambda x: paddle.logical_not(x > 0.2),
    "bitwise_not": lambda x: paddle.bitwise_not(whole(x)),
    "dropout in evaluation": lambda x: F.dropout(x, 0.3, training=False),
    "dropout downscale_in_infer": lambda x: F.dropout(x, 0.3, training=False,
                                                      mode="downscale_in_infer"),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.3, training=False),
    "assign": lambda x: paddle.assign(x) * 2,
    "frexp": lambda x: paddle.frexp(x),
    "label_smooth 0.2": lambda x: F.label_smooth(x, epsilon=0.2),
}

BINARY = {
    **_of_two("add subtract multiply maximum minimum fmax fmin atan2 less_than less_equal "
              "greater_than greater_equal equal not_equal heaviside isclose dist logaddexp hypot "
              "copysign"),
    "divide": lambda x, y: paddle.divide(x, positive(y)),
    "elementwise_pow": lambda x, y: paddle.pow(positive(x), y),
    "remainder": lambda x, y: paddle.remainder(x, positive(y)),
    "remainder whole": lambda x, y: paddle.remainder(whole(x), whole(y) + 1),
    "floor_divide": lambda x, y: paddle.floor_divide(x, positive(y)),
    "floor_divide whole": lambda x, y: paddle.floor_divide(whole(x), whole(y) + 1),
    "add row": lambda x, y: paddle.add(x, y[:, :, :1]),
    "multiply column": lambda x, y: paddle.multiply(x, y[:, :, :, 2:3]),
    "subtract scalar": lambda x: 1.5 - x,
    "logical_and": lambda x, y: paddle.logical_and(x > 0, y > 0),
    "logical_or": lambda x, y: paddle.logical_or(x > 0, y > 0),
    "logical_xor": lambda x, y: paddle.logical_xor(x > 0, y > 0),
    "bitwise_and": lambda x, y: paddle.bitwise_and(whole(x), whole(y)),
    "bitwise_or": lambda x, y: paddle.bitwise_or(whole(x), whole(y)),
    "bitwise_xor": lambda x, y: paddle.bitwise_xor(whole(x), whole(y)),
    "allclose 0.3": lambda x, y: paddle.allclose(x, x + 0.1 * unit(y), 0.0, 0.3),
    "equal_all": lambda x: paddle.equal_all(x, x * 1.0),
    "lerp 0.3": lambda x, y: paddle.lerp(x, y, 0.3),
    "lerp tensor": lambda x, y: paddle.lerp(x, y, F.sigmoid(y)),
    "ldexp": lambda x, y: paddle.ldexp(x, whole(y)),
    "add_n": lambda x, y: paddle.add_n([x, y, x]),
    "where": lambda x, y: paddle.where(x > y, x * 2, y),
    "masked_fill 2.5": lambda x, y: paddle.masked_fill(x, y > 0.1, 2.5),
    "multiplex": lambda x, y: paddle.multiplex([x, y], paddle.to_tensor([[1], [0]], "int32")),
    "inner": lambda x, y: paddle.inner(x[0, 0], y[1, 2]),
    "outer": lambda x, y: paddle.outer(x[0, 0, 0], y[1, 2, 3]),
    "dot": lambda x, y: paddle.dot(x[0, :, 0, 0], y[0, :, 1, 1]),
    "cross": lambda x, y: paddle.cross(x[:, :3], y[:, :3], axis=1),
    "kron": lambda x, y: paddle.kron(x[0, 0], y[0, 0, :2, :3]),
    "matmul": lambda x, y: paddle.matmul(x, y, transpose_y=True),
    "matmul transposed": lambda x, y: paddle.matmul(x, y, transpose_x=True),
    "matmul 3-D": lambda x, y: paddle.matmul(x.flatten(2), y.flatten(2), transpose_y=True),
    "bmm": lambda x, y: paddle.bmm(x[:, 0], y[:, 1].transpose([0, 2, 1])),
    "mv": lambda x, y: paddle.mv(x[0, 0], y[0, 0, 0]),
    "addmm 0.3, 1.7": lambda x, y: paddle.addmm(x[0, 0, :, :1], x[0, 1], y[0, 2, 0].reshape(
        [7, 1]), 0.3, 1.7),
    "einsum": lambda x, y: paddle.einsum("bchw,bdhw->bcd", x, y),
    "tensordot": lambda x, y: paddle.tensordot(x[0], y[0], [[1, 2], [1, 2]]),
    "bilinear": lambda x, y: F.bilinear(x[:, 0, 0], y[:, 1, :, 0], ramp(3, 7, 9)),
    "cdist": lambda x, y: paddle.cdist(x[:, 0], y[:, 1]),
    "cosine_similarity": lambda x, y: F.cosine_similarity(x, y, axis=1),
    "pairwise_distance 1.5": lambda x, y: F.pairwise_distance(x[:, 0, 0], y[:, 1, 0], 1.5),
    "mse_loss": lambda x, y: F.mse_loss(x, y, "none"),
    "l1_loss": lambda x, y: F.l1_loss(x, y, "sum"),
    "smooth_l1_loss 0.4": lambda x, y: F.smooth_l1_loss(x, y, "none", 0.4),
    "kl_div": lambda x, y: F.kl_div(F.log_softmax(x, 1), F.softmax(y, 1), "none"),
    "log_loss": lambda x, y: F.log_loss(
        F.sigmoid(x).reshape([-1, 1]), F.sigmoid(y).reshape([-1, 1]), 0.01),
    "square_error_cost": F.square_error_cost,
    "binary_cross_entropy": lambda x, y: F.binary_cross_entropy(
        F.sigmoid(x), F.sigmoid(y), reduction="none"),
    "binary_cross_entropy_with_logits": lambda x, y: F.binary_cross_entropy_with_logits(
        x, F.sigmoid(y), reduction="none"),
    "scaled_dot_product_attention": lambda x, y: F.scaled_dot_product_attention(
        x, y, x, is_causal=False),
    "index_add": lambda x, y: paddle.index_add(x, paddle.to_tensor([4, 0, 4]), 1, y[:, :3]),
    "trapezoid": lambda x: paddle.trapezoid(x, dx=0.3, axis=2),
    "diff": lambda x: paddle.diff(x, 2, axis=1),
}

TABLES = (ACTIVATIONS, UNARY, BINARY)
