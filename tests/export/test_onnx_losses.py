"""Losses, products, running extremes and selections in their exact ONNX forms."""

import numpy as np
import paddle
import pytest
from onnx_exports import normal, written_equals_model
from paddle import nn

from paddleq.errors import UnsupportedOperatorError

F = nn.functional


@pytest.fixture(autouse=True)
def _seeded():
    np.random.seed(5)
    paddle.seed(5)


def share(x):
    return F.sigmoid(x)


def signs(x):
    """Values of both signs, and zeros."""
    return paddle.round(x) * paddle.to_tensor([1.0, 1.0, -1.0, 2.0])


def square(x):
    """Positive definite matrices."""
    return paddle.matmul(x, x, transpose_y=True) + paddle.eye(3) * 0.5


LOSSES = {
    "smooth_l1 0.3": lambda x, y: F.smooth_l1_loss(x, y, "none", 0.3),
    "smooth_l1 sum": lambda x, y: F.smooth_l1_loss(x, y, "sum", 1.5),
    **{f"kl_div {how}": lambda x, y, how=how: F.kl_div(F.log_softmax(x), F.relu(y), how)
       for how in ("none", "sum", "mean", "batchmean")},
    "log_loss": lambda x, y: F.log_loss(share(x).reshape([-1, 1]), share(y).reshape([-1, 1]), 1e-3),
    "binary_cross_entropy": lambda x, y: F.binary_cross_entropy(
        share(x), share(y), reduction="none"),
    "binary_cross_entropy weighted": lambda x, y: F.binary_cross_entropy(
        share(x), share(y), share(x + 1)),
    "with_logits": lambda x, y: F.binary_cross_entropy_with_logits(
        30 * x, share(y), reduction="none"),
    "dist": lambda x, y: paddle.dist(x, y, 3.0),
}
OTHERS = {
    "angle": lambda x, y: paddle.angle(x), "conj": lambda x, y: paddle.conj(x) + y,
    "rrelu": lambda x, y: F.rrelu(x, 0.1, 0.4, training=False),
    "copysign": lambda x, y: paddle.copysign(x, signs(y)),
    "signbit": lambda x, y: paddle.signbit(signs(x)).astype("float32"),
    **{f"matrix_power {n}": lambda x, y, n=n: paddle.linalg.matrix_power(
        paddle.matmul(x, y, transpose_y=True) / 3, n) for n in (0, 1, 2, 5)},
    "multi_dot": lambda x, y: paddle.linalg.multi_dot([x[0], y[0].T, x[1]]),
    "cholesky": lambda x, y: paddle.linalg.cholesky(square(x)),
    "cholesky upper": lambda x, y: paddle.linalg.cholesky(square(x), upper=True),
    "renorm 1": lambda x, y: paddle.renorm(x, 1.0, 1, 1.2),
    "renorm 3": lambda x, y: paddle.renorm(x, 3.0, -1, 0.5),
    "cummax": lambda x, y: paddle.cummax(paddle.round(x), 1),
    "cummin int32": lambda x, y: paddle.cummin(paddle.round(2 * x), -1, "int32"),
    "cummax flat": lambda x, y: paddle.cummax(x.astype("int32")),
    "nanmedian": lambda x, y: paddle.nanmedian(paddle.where(x > 1, x * np.nan, x), 1),
    "nanmedian keepdim": lambda x, y: paddle.nanmedian(x, -1, True),
    "histogram": lambda x, y: paddle.histogram(x, 5, -1, 1).astype("float32"),
    "multiplex": lambda x, y: paddle.multiplex(
        [x, y, x + y], paddle.to_tensor([[2], [0]], "int32")),
    "broadcast_tensors": lambda x, y: paddle.broadcast_tensors([x[:, :1], y[0, :, :1]]),
    "max_unpool3d": lambda x, y: F.max_unpool3d(*F.max_pool3d(
        x.reshape([1, 2, 2, 3, 2]), [2, 1, 2], return_mask=True), [2, 1, 2]),
    "lp_pool2d": lambda x, y: F.lp_pool2d(x.unsqueeze(0).abs(), 3.0, [2, 2], 1, 1),
    "lp_pool1d": lambda x, y: F.lp_pool1d(x, 2.0, 3, 2),
}


def _installed(names):
    missing = {"copysign", "signbit", "lp_pool2d", "lp_pool1d"} if paddle.__version__ < "3" else ()
    return [name for name in names if name not in missing]


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, tmp_path):
    def flat(x, y):
        return LOSSES[name](x, y).reshape([-1])

    # Paddle's kl_div divides by the batch size of the trace, which is -1 for an open one.
    written_equals_model(flat, [normal(2, 3, 4), normal(2, 3, 4)], tmp_path,
                         dynamic=() if "batchmean" in name else (0,))


def test_weighted_logits_are_refused_by_name(tmp_path):
    def weighted(x, y):
        return F.binary_cross_entropy_with_logits(x, share(y), pos_weight=share(x[0, 0]))

    with pytest.raises(UnsupportedOperatorError, match="sigmoid_cross_entropy_with_logits"):
        written_equals_model(weighted, [normal(2, 3, 4), normal(2, 3, 4)], tmp_path)


@pytest.mark.parametrize("name", _installed(OTHERS))
def test_functions_of_matrices(name, tmp_path):
    written_equals_model(OTHERS[name], [normal(2, 3, 4), normal(2, 3, 4)], tmp_path, dynamic=())
