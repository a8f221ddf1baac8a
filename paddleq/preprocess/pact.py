"""PACT: a trainable clipping range in front of a quantizer."""

import math

import paddle
from paddle import nn
from paddle.autograd import PyLayer

from .._checks import check_float
from ..functional import EPS
from ..functional.numerics import as_dtype


class _Clip(PyLayer):
    @staticmethod
    def forward(ctx, x, alpha, limit):
        ctx.limit = limit
        # Paddle insists on None for what wants no gradient: a batch of images, a frozen alpha.
        ctx.constant = x.stop_gradient, alpha.stop_gradient
        clipped = x.clip(-limit, limit)
        ctx.save_for_backward(clipped)
        return clipped

    @staticmethod
    def backward(ctx, grad):
        (clipped,) = ctx.saved_tensor()
        # -1 and +1 where something was clipped, 0 elsewhere. A tensor divides; a number would be
        # multiplied with as its reciprocal, and limit * (1 / limit) may be below 1.
        side = paddle.trunc_(clipped / paddle.full([1], ctx.limit))
        x_constant, alpha_constant = ctx.constant
        d_alpha = None
        if not alpha_constant:
            d_alpha = paddle.dot(grad.reshape([-1]), side.reshape([-1])).reshape([1])
        # In place: a fresh tensor of this size costs more than all of the arithmetic on it.
        return None if x_constant else side.abs_().scale_(-1.0, 1.0).multiply_(grad), d_alpha


class PACT(nn.Layer):
    """Clips to [-alpha, alpha] with a trainable alpha (arXiv:1805.06085).

    The gradient with respect to alpha is +1 for values at or above alpha and -1 for values at
    or below -alpha. When the model is exported, alpha goes into the quantizer's threshold.

    Args:
        init: first alpha. Default 100.
        learning_rate: factor on the optimizer's learning rate. Default 1000, PaddleSlim's, for
            alpha is large where weights are small.
        l2: weight decay of alpha, or None (default), which leaves it to the optimizer.

    Raises:
        ConfigError, ConfigTypeError: ``init`` is not positive, or another is negative.

    Examples:
        >>> import paddle
        >>> from paddleq.preprocess import PACT
        >>> pact = PACT(init=1.0)
        >>> y = pact(paddle.to_tensor([-2.0, 0.5, 3.0, 4.0]))
        >>> y.tolist()
        [-1.0, 0.5, 1.0, 1.0]
        >>> y.sum().backward()
        >>> pact.alpha.grad.tolist()  # two clipped above, one below
        [1.0]
    """

    def __init__(self, init=100.0, learning_rate=1000.0, l2=None):
        super().__init__()
        check_float("init", init, 0.0, math.inf, open_low=True, open_high=True)
        check_float("learning_rate", learning_rate, 0.0, math.inf, open_high=True)
        if l2 is not None:
            check_float("l2", l2, 0.0, math.inf, open_high=True)
        attr = paddle.ParamAttr(
            initializer=nn.initializer.Constant(init), learning_rate=learning_rate,
            regularizer=None if l2 is None else paddle.regularizer.L2Decay(l2))
        self.alpha = self.create_parameter(shape=[1], attr=attr, dtype="float32")

    def forward(self, x):
        """Clipped ``x``, same shape and dtype."""
        dtype = x.dtype
        x = as_dtype(x, paddle.float32)
        if paddle.in_dynamic_mode():
            clipped = _Clip.apply(x, self.alpha, self.alpha.item())
        else:
            relu = nn.functional.relu
            clipped = x - relu(x - self.alpha) + relu(-self.alpha - x)
        return as_dtype(clipped, dtype)

    def clip_or_pass(self, x):
        """(clipped x, None), or (x itself, (alpha, max|x|)) where alpha clips nothing.

        Then the layer is the identity and alpha's gradient is zero. The caller hands the pair to
        :class:`paddleq.FakeQuantize` as ``idle``, which gives alpha that gradient and need not
        look for the maximum again: one reading of ``x`` instead of six passes over it.
        """
        if paddle.in_dynamic_mode() and 0 not in x.shape:
            with paddle.no_grad():
                largest = as_dtype(paddle.maximum(x.max(), -x.min()), paddle.float32)
            if largest.item() < self.alpha.item():
                return x, (self.alpha, largest)
        return self(x), None

    def bound(self):
        """The largest magnitude that passes: a float32 tensor of shape [1]."""
        return self.alpha.detach().clip(min=EPS)
