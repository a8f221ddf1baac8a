"""Learned clipping range of PACT (arXiv:1805.06085), alone and fused with fake quantization."""

import math

import paddle
from paddle.autograd import PyLayer

from .fake_quant import simulate_in_three_passes
from .lsq import constant, sum_of_products
from .qparams import EPS


def clipping_bound(alpha):
    """Return the clipping bound of a trained alpha, which may be negative: at least EPS."""
    return constant(alpha).abs().clip(min=EPS)


def clip_symmetric(x, limit):
    """Clip ``x`` to [-limit, limit], a number. NaN for a limit of NaN, which Paddle refuses.

    A training that diverged goes on with NaN, as it does without quantization.
    """
    return x * limit if math.isnan(limit) else x.clip(-limit, limit)


class _Clip(PyLayer):
    @staticmethod
    def forward(ctx, x, alpha, simulate):
        given = alpha.item()
        ctx.limit, ctx.sign = max(abs(given), EPS), -1.0 if given < 0 else 1.0
        # Paddle requires None as the gradient of inputs with stop_gradient.
        ctx.constant = x.stop_gradient, alpha.stop_gradient
        ctx.save_for_backward(x)
        return simulate(x, ctx.limit)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensor()
        # -1 or +1 at clipped values, 0 elsewhere. Paddle replaces division by a number with
        # multiplication, and limit * (1 / limit) may be below 1; hence a tensor. In place because
        # allocating a tensor of this size costs more than the arithmetic.
        side = clip_symmetric(x, ctx.limit).divide_(paddle.full([1], ctx.limit)).trunc_()
        x_constant, alpha_constant = ctx.constant
        d_alpha = None if alpha_constant else sum_of_products(grad, side) * ctx.sign
        return None if x_constant else side.abs_().scale_(-1.0, 1.0).multiply_(grad), d_alpha


def clip(x, alpha):
    """Clip ``x`` to [-alpha, alpha], with PACT's gradient for ``alpha``.

    Args:
        x: float32 tensor.
        alpha: float32 parameter of shape [1]. Its gradient is +1 for values at or above alpha and
            -1 for values at or below -alpha, where the gradient of ``x`` is 0. The magnitude of a
            negative alpha is used, see :func:`clipping_bound`.

    Examples:
        >>> import paddle
        >>> from paddleq.functional import clip
        >>> x = paddle.to_tensor([-2.0, 0.5, 1.0], stop_gradient=False)
        >>> alpha = paddle.to_tensor([1.0], stop_gradient=False)
        >>> clip(x, alpha).sum().backward()
        >>> x.grad.tolist(), alpha.grad.tolist()
        ([0.0, 1.0, 0.0], [0.0])
    """
    if not paddle.in_dynamic_mode():
        relu, alpha = paddle.nn.functional.relu, alpha.abs()
        return paddle.add(paddle.subtract(x, relu(x - alpha)),
                          relu(paddle.subtract(-alpha, x)))
    return _Clip.apply(x, alpha, clip_symmetric)


def clip_and_fake_quantize(x, alpha, abs_max, spec):
    """Fused :func:`clip` and ``fake_quantize(..., exact=False)`` in half the passes.

    Integers and gradients are the same; results may differ by one unit in the last place. Works in
    dynamic mode only.

    Args:
        x, alpha: as for :func:`clip`.
        abs_max: float32, shape [1].
        spec: a per-tensor :class:`~paddleq.QuantSpec` of two bits or more, rounding half to even.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.functional import clip_and_fake_quantize
        >>> x, alpha = paddle.to_tensor([-9.0, 0.1, 9.0]), paddle.to_tensor([2.0])
        >>> clip_and_fake_quantize(x, alpha, paddle.to_tensor([3.0]), QuantSpec(bits=3)).tolist()
        [-2.0, 0.0, 2.0]
    """
    bound = clipping_bound(alpha)
    return _Clip.apply(x, alpha, lambda x, _: simulate_in_three_passes(x, abs_max, spec,
                                                                    bound=bound))
