"""Functions that paddle2onnx does not convert, in their exact ONNX forms."""

import numpy as np
import paddle
import pytest
from onnx_exports import normal, written_equals_model
from paddle import nn

F = nn.functional


@pytest.fixture(autouse=True)
def _seeded():
    np.random.seed(3)
    paddle.seed(3)


def special(x):
    """``x`` with infinities and NaN."""
    return paddle.sqrt(x + 1) + paddle.reciprocal(x - x[:, :1])


FUNCTIONS = {
    "celu": lambda x: F.celu(x, 2.5), "log_sigmoid": lambda x: F.log_sigmoid(30 * x),
    "stanh": lambda x: paddle.stanh(x, 1.4, 0.2), "logit": lambda x: paddle.logit(F.sigmoid(x)),
    "asinh": paddle.asinh, "acosh": lambda x: paddle.acosh(paddle.abs(x) + 1.1),
    "atanh": lambda x: paddle.atanh(0.9 * paddle.tanh(x)), "expm1": paddle.expm1,
    "trunc": lambda x: paddle.trunc(3 * x), "isnan": lambda x: paddle.isnan(special(x)) * 1.0,
    "isinf": lambda x: paddle.isinf(special(x)) * 1.0,
    "isfinite": lambda x: paddle.isfinite(special(x)) * 1.0,
    "fmax": lambda x: paddle.fmax(paddle.sqrt(x - 0.5), x[:, :1]),
    "fmin": lambda x: paddle.fmin(x, paddle.log(x + 0.3)),
    "heaviside": lambda x: paddle.heaviside(F.relu(x), x[:, 1:2]),
    "label_smooth": lambda x: F.label_smooth(x, epsilon=0.3),
    "maxout": lambda x: F.maxout(x, 2, -1), "cumprod": lambda x: paddle.cumprod(x, -1),
    "logcumsumexp": lambda x: paddle.logcumsumexp(40 * x, 1),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x, 3),
    "pixel_unshuffle last": lambda x: F.pixel_unshuffle(x, 2, "NHWC"),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 3),
    "channel_shuffle last": lambda x: F.channel_shuffle(x, 2, "NHWC"),
    "diagonal": lambda x: paddle.diagonal(x, -2, -1, 1),
    "meshgrid": lambda x: paddle.meshgrid(x[0, 0, 0], x[0, :, 1, 1], x[:, 2, 2, 2]),
    "fold": lambda x: F.fold(x.flatten(2), [13, 6], [3, 2], [2, 1], [0, 1], [1, 2]),
    "affine_grid": lambda x: F.affine_grid(x[:, 0, :2, :3], [2, 1, 4, 7], align_corners=False),
    "amax": lambda x: paddle.amax(x, [0, -1], keepdim=True), "amin": lambda x: paddle.amin(x, 2),
    "norm": lambda x: paddle.norm(x, "fro", [1, 2], keepdim=True),
    "norm -inf": lambda x: paddle.norm(x, -float("inf"), 1, keepdim=True),
    "lerp": lambda x: paddle.lerp(x, x[:, :1], paddle.abs(x)),
    "addmm": lambda x: paddle.addmm(x[0, 0], x[1, 0], x[1, 1], 0.7, -1.3),
    "cross": lambda x: paddle.cross(x[:, :, :3], x[:, :, 3:], 2),
    "trace": lambda x: paddle.trace(x, -1, 1, 3), "det": paddle.linalg.det,
    "diag": lambda x: paddle.diag(x[0, 1, :, 2], -2, 0.7),
    "diag_embed": lambda x: paddle.diag_embed(x[:, :, 0], -1, 0, 2),
    "searchsorted": lambda x: paddle.searchsorted(paddle.sort(x[0, 0, 0]), x, out_int32=True),
    "unbind": lambda x: paddle.unbind(x, -1),
    "kron": lambda x: paddle.kron(x[0, 0], x[1, 0, :, :2]),
    "crop": lambda x: paddle.crop(x, [1, -1, 3, 2], [1, 2, 0, 3]),
    "masked_select": lambda x: paddle.masked_select(x, x < 0.1),
    "isclose": lambda x: paddle.isclose(x, x.flip(1), 0.2, 0.3) * 1.0,
    "allclose": lambda x: paddle.allclose(x, x + 0.2, 0.0, 0.1) * 1.0,
    "index_add": lambda x: paddle.index_add(x, paddle.to_tensor([1, 3, 1]), -1, x[..., :3]),
    "nanmean": lambda x: paddle.nanmean(paddle.sqrt(x + 1), [0, 2], keepdim=True),
    "unfold": lambda x: F.unfold(x, [2, 3], [1, 2], [0, 1, 2, 1], [2, 1]),
    "pad circular": lambda x: F.pad(x, [2, 0, 1, 6], "circular"),
    "pixel_shuffle last": lambda x: F.pixel_shuffle(x[..., :4], 2, "NHWC"),
    "index_put": lambda x: paddle.index_put(
        x, (paddle.to_tensor([1, 0]), paddle.to_tensor([5, 5])), x[0, 0, :1], False),
    "index_put add": lambda x: paddle.index_put(
        x, (paddle.to_tensor([1, 1, 1]),), x[:1], accumulate=True),
    "sequence_mask": lambda x: F.sequence_mask(paddle.argmax(x, 1), 4, "float32"),
    "bilinear": lambda x: F.bilinear(x[0, 0], x[1, :, 2], x[0, :2], x[0, 0, :1, :2]),
    "places of maxima": lambda x: F.max_pool2d(x, 3, 2, 1, return_mask=True),
    "places of maxima 3-D": lambda x: F.max_pool3d(x.reshape([2, 2, 3, 6, 6]), 2, 1,
                                                   return_mask=True),
    "max_unpool2d": lambda x: F.max_unpool2d(
        x[:, :, :3, :3], 4 * paddle.argsort(x.flatten(2)[:, :, :9], 2).astype("int32").reshape(
            [2, 6, 3, 3]), 2, output_size=[2, 6, 6, 6]),
    "conv3d_transpose": lambda x: F.conv3d_transpose(
        x.unsqueeze(0), x.reshape([2, 6, 6, 3, 2])[:, :, :2], None, 2, [1, 0, 1], [0, 1, 0], 1,
        [1, 2, 1]),
    "affine_grid 3-D": lambda x: F.affine_grid(x[:, 0, :3, :4], [2, 1, 3, 4, 5]),
}


@pytest.mark.parametrize("shape", [[6, 6, 6], [6, 6]], ids=str)
def test_layer_norm_over_several_axes(shape, tmp_path):
    norm = nn.LayerNorm(shape, 1e-3)
    norm.weight.set_value(paddle.rand(norm.weight.shape))
    norm.bias.set_value(paddle.rand(norm.bias.shape))
    written_equals_model(lambda x, norm: norm(x), [normal(2, 6, 6, 6)], tmp_path, norm=norm)


@pytest.mark.parametrize("case", FUNCTIONS)
def test_functions_that_the_converter_does_not_have(case, tmp_path):
    written_equals_model(FUNCTIONS[case], [normal(2, 6, 6, 6)], tmp_path, dynamic=())


@pytest.mark.parametrize("case", ["trunc", "meshgrid", "channel_shuffle"])
def test_functions_of_dynamic_sizes(case, tmp_path):
    written_equals_model(FUNCTIONS[case], [normal(2, 6, 6, 6)], tmp_path, dynamic=(0, 2, 3))
