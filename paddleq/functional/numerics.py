"""Quantize, dequantize and fake-quantize tensors, with the gradient of the latter.

The formula is that of Paddle's ``quantize_linear`` and ``dequantize_linear`` operators,
operation by operation, so that a simulated model and its exported graph agree to the bit:

    q = clip(round((levels * (1 / threshold)) * x), qmin, qmax)
    y = (q * threshold) / levels

``threshold`` is what Paddle calls the scale: the largest magnitude that is represented,
not the step. ``threshold / levels`` is the step.
"""

import paddle
from paddle.autograd import PyLayer

from ..spec import HALF_EVEN

EPS = 1e-8
"""Smallest threshold. A channel of zeros gets it, so nothing is ever divided by zero."""

# Adding and subtracting 1.5 * 2**23 rounds a float32 of magnitude below 2**22 to the nearest
# integer, ties to even, on every device. paddle.round rounds ties away from zero on Paddle 2.6
# and to even on 3.x; two in-place additions cost no more than it does.
_ROUNDING_MAGIC = 12582912.0


def as_dtype(x, dtype):
    """``x`` in ``dtype``, itself where it is that already (Paddle 2.6's astype would copy it)."""
    return x if x.dtype == dtype else x.astype(dtype)


def per_channel_shape(ndim, axis):
    """Shape that lets a vector along ``axis`` broadcast over an ``ndim``-dimensional tensor."""
    shape = [1] * ndim
    shape[axis] = -1
    return shape


def _aligned(threshold, x, spec):
    axis = spec.channel_axis
    if axis is None:
        return threshold
    threshold = threshold.reshape(per_channel_shape(len(x.shape), axis))
    # Products with an expanded tensor are several times faster than broadcast ones, unless whole
    # rows share a factor.
    rows = axis % len(x.shape) == 0
    return threshold if rows or not paddle.in_dynamic_mode() else threshold.expand(x.shape)


def abs_max(x, spec):
    """Largest magnitude of ``x``, or of each channel when ``spec`` is per channel.

    For a one-bit spec it is the mean magnitude instead, which minimizes the error of the
    levels -s and +s (XNOR-Net, arXiv:1603.05279).

    Returns:
        A float32 tensor of shape [1] or [channels], at least :data:`EPS`.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec, PerChannel
        >>> from paddleq.functional import abs_max
        >>> x = paddle.to_tensor([[1.0, -4.0], [0.5, 2.0]])
        >>> abs_max(x, QuantSpec()).tolist()
        [4.0]
        >>> abs_max(x, QuantSpec(granularity=PerChannel(0))).tolist()
        [4.0, 2.0]
    """
    x = as_dtype(x, paddle.float32)
    axis = spec.channel_axis
    dynamic = paddle.in_dynamic_mode()
    if dynamic and 0 in x.shape:
        return paddle.full([1 if axis is None else x.shape[axis]], EPS, dtype="float32")
    if axis is None:
        found = (x.abs().mean() if spec.binary else paddle.maximum(x.max(), -x.min())).reshape([1])
    elif dynamic and not spec.binary:
        found = _channel_max(x, axis % len(x.shape))
    else:
        others = [i for i in range(len(x.shape)) if i != axis % len(x.shape)]
        x = x.abs()
        found = x if not others else x.mean(axis=others) if spec.binary else x.max(axis=others)
    return found.clip(min=EPS)


def _channel_max(x, axis):
    """max|x| of each channel; Paddle's reductions along a first axis are ten times slower."""
    with paddle.no_grad():
        if len(x.shape) == 1:
            return x.abs()
        if axis == 0:
            return paddle.norm(x.reshape([x.shape[0], -1]), p=float("inf"), axis=1)
        if axis != len(x.shape) - 1:
            x = paddle.norm(x.reshape([*x.shape[:axis + 1], -1]), p=float("inf"), axis=-1)
        x = x.reshape([-1, x.shape[-1]]).abs()  # one row for each of the other axes
        # Halves against each other: elementwise maxima of contiguous rows.
        odd = []
        while x.shape[0] > 1:
            half = x.shape[0] // 2
            if x.shape[0] % 2:
                odd.append(x[2 * half:])
            x = paddle.maximum(x[:half], x[half:2 * half])
        return paddle.concat([x, *odd]).max(axis=0) if odd else x[0]


def _levels_inplace(t, spec):
    """Round and clip ``t``, which already counts in steps and which nobody else holds."""
    if spec.binary:
        return (t >= 0).astype("float32").scale_(2.0, -1.0)
    if spec.rounding == HALF_EVEN:
        t.scale_(1.0, _ROUNDING_MAGIC)
        t.scale_(1.0, -_ROUNDING_MAGIC)
    else:
        t.scale_(1.0, 0.5)
        t.floor_()
    return t.clip_(float(spec.qmin), float(spec.qmax))


def _levels(t, spec):
    if spec.binary:
        return paddle.scale((t >= 0).astype("float32"), 2.0, -1.0)
    if spec.rounding == HALF_EVEN:
        t = paddle.scale(paddle.scale(t, 1.0, _ROUNDING_MAGIC), 1.0, -_ROUNDING_MAGIC)
    else:
        t = paddle.floor(paddle.scale(t, 1.0, 0.5))
    return paddle.clip(t, float(spec.qmin), float(spec.qmax))


def quantize(x, threshold, spec):
    """Integers that represent ``x``, as a float32 tensor of the same shape.

    Args:
        x: any float tensor.
        threshold: float32, shape [1], or [channels] when ``spec`` is per channel.
        spec: a symmetric :class:`~paddleq.QuantSpec`.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.functional import quantize
        >>> x = paddle.to_tensor([-3.0, -1.0, 0.0, 0.5, 1.0])
        >>> quantize(x, paddle.to_tensor([1.0]), QuantSpec(bits=8)).tolist()
        [-128.0, -127.0, 0.0, 64.0, 127.0]
    """
    x = as_dtype(x, paddle.float32)
    factor = _aligned(float(spec.levels) * (1.0 / threshold), x, spec)
    per_tensor = spec.channel_axis is None
    if not paddle.in_dynamic_mode():
        return _levels(x * factor, spec)
    with paddle.no_grad():
        # scale() with a tensor factor is ten times faster than a broadcast multiplication.
        t = paddle.scale(x, factor) if per_tensor else x * factor
        return _levels_inplace(t, spec)


def dequantize(q, threshold, spec):
    """Real values of integers ``q``: (q * threshold) / levels.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.functional import dequantize
        >>> dequantize(paddle.to_tensor([127.0]), paddle.to_tensor([2.0]), QuantSpec()).tolist()
        [2.0]
    """
    levels = paddle.full([], float(spec.levels), dtype="float32")
    return (q * _aligned(threshold, q, spec)) / levels


def _simulate(x, threshold, spec, exact=True):
    if not exact and spec.rounding == HALF_EVEN and spec.channel_axis is None and not spec.binary:
        return _simulate_in_three_passes(x, threshold, spec)
    q = quantize(x, threshold, spec)
    if not paddle.in_dynamic_mode():
        return dequantize(q, threshold, spec)
    if 0 in q.shape:
        return q  # Paddle 2.6 takes no empty tensor in place
    factor = threshold if exact else threshold * (1.0 / spec.levels)
    if spec.channel_axis is None:
        q.scale_(factor)
    else:
        q.multiply_(_aligned(factor, q, spec))
    if exact and spec.levels != 1:
        # A true division: multiplying by 1/127 would be one unit in the last place off what
        # dequantize_linear computes, enough to move values across the next rounding border.
        q.divide_(paddle.full([], float(spec.levels), dtype="float32"))
    return q


def _simulate_in_three_passes(x, threshold, spec, bound=None):
    # What rounds is added by the first and taken off by the last.
    factor = float(spec.levels) * (1.0 / threshold)
    t = paddle.scale(x, factor, _ROUNDING_MAGIC)
    if 0 in t.shape:
        return t
    low, high = float(spec.qmin), float(spec.qmax)
    if bound is not None:
        # Rounding keeps the order: clipping to the bound's own integer is clipping to the bound.
        most = paddle.scale(bound, factor, _ROUNDING_MAGIC).item() - _ROUNDING_MAGIC
        low, high = max(low, -most), min(high, most)
    t.clip_(_ROUNDING_MAGIC + low, _ROUNDING_MAGIC + high)
    return t.scale_(threshold * (1.0 / spec.levels), -_ROUNDING_MAGIC, bias_after_scale=False)


def _bounds(x, threshold, spec):
    """Lowest and highest value that is not clipped."""
    step = _aligned(threshold, x, spec) / float(spec.levels)
    return step * float(spec.qmin), step * float(spec.qmax)


def _with_idle(idle, grad):
    """Gradients of (x, idle parameter)."""
    if idle is None:
        return grad
    shape, dtype, x_is_constant, idle_is_constant = idle
    return (None if x_is_constant else grad,
            None if idle_is_constant else paddle.zeros(shape, dtype))


class _StraightThrough(PyLayer):
    """Forward: quantize and dequantize. Backward: the gradient as it comes, uncopied."""

    @staticmethod
    def forward(ctx, x, simulate, idle=None):
        ctx.idle = None if idle is None else (
            idle.shape, idle.dtype, x.stop_gradient, idle.stop_gradient)
        return simulate(x)

    @staticmethod
    def backward(ctx, grad):
        return _with_idle(ctx.idle, grad)


class _Saturating(PyLayer):
    """As :class:`_StraightThrough`, but the gradient is zero where values were clipped."""

    @staticmethod
    def forward(ctx, x, simulate, bounds, idle=None):
        ctx.idle = None if idle is None else (
            idle.shape, idle.dtype, x.stop_gradient, idle.stop_gradient)
        low, high = bounds()
        ctx.inside = (x >= low) & (x <= high)
        return simulate(x)

    @staticmethod
    def backward(ctx, grad):
        grad = paddle.where(ctx.inside, grad, paddle.zeros_like(grad))
        return _with_idle(ctx.idle, grad)


class _Clip(PyLayer):
    @staticmethod
    def forward(ctx, x, alpha, simulate):
        ctx.limit = alpha.item()
        # Paddle insists on None for what wants no gradient: a batch of images, a frozen alpha.
        ctx.constant = x.stop_gradient, alpha.stop_gradient
        ctx.save_for_backward(x)
        return simulate(x, ctx.limit)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensor()
        # -1 and +1 where something was clipped, 0 elsewhere. A tensor divides; a number would be
        # multiplied with as its reciprocal, and limit * (1 / limit) may be below 1. All but the
        # first in place: a fresh tensor of this size costs more than all of the arithmetic on it.
        side = x.clip(-ctx.limit, ctx.limit).divide_(paddle.full([1], ctx.limit)).trunc_()
        x_constant, alpha_constant = ctx.constant
        d_alpha = None
        if not alpha_constant:
            d_alpha = paddle.dot(grad.reshape([-1]), side.reshape([-1])).reshape([1])
        return None if x_constant else side.abs_().scale_(-1.0, 1.0).multiply_(grad), d_alpha


def clip(x, alpha):
    """``x`` clipped to [-alpha, alpha], with PACT's gradient for ``alpha`` (arXiv:1805.06085).

    Args:
        x: float32 tensor.
        alpha: float32 parameter of shape [1]. Its gradient is +1 for values at or above alpha, -1
            for values at or below -alpha; ``x`` gets none there.

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
        relu = paddle.nn.functional.relu
        return x - relu(x - alpha) + relu(-alpha - x)
    return _Clip.apply(x, alpha, lambda x, limit: x.clip(-limit, limit))


def clip_and_fake_quantize(x, alpha, threshold, spec):
    """What training makes of :func:`clip` and then :func:`fake_quantize`, in half the passes.

    The integers are the same, and so are the gradients; results may be one unit in the last place
    off, as those of ``fake_quantize(..., exact=False)``. In dynamic mode only.

    Args:
        x, alpha: as for :func:`clip`.
        threshold: float32, shape [1].
        spec: a per-tensor :class:`~paddleq.QuantSpec` of two bits or more that rounds half to
            even.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.functional import clip_and_fake_quantize
        >>> x, alpha = paddle.to_tensor([-9.0, 0.1, 9.0]), paddle.to_tensor([2.0])
        >>> clip_and_fake_quantize(x, alpha, paddle.to_tensor([3.0]), QuantSpec(bits=3)).tolist()
        [-2.0, 0.0, 2.0]
    """
    bound = alpha.detach()
    return _Clip.apply(x, alpha, lambda x, _: _simulate_in_three_passes(x, threshold, spec, bound))


def fake_quantize(x, threshold, spec, saturate=False, idle=None, exact=True):
    """Quantize and dequantize ``x``; gradients pass as if nothing had happened to it.

    Args:
        x: float tensor of any shape. Half-precision inputs are computed in float32 and the
            result is returned in the dtype of ``x``.
        threshold: float32, shape [1], or [channels] when ``spec`` is per channel.
        spec: a symmetric :class:`~paddleq.QuantSpec`.
        saturate: zero the gradient of values outside the representable range. Default False,
            the straight-through estimator that Paddle's own operators use.
        idle: a parameter that turned out to have no effect on ``x`` (a clipping range that
            clips nothing). It receives a zero gradient here, so that regularization reaches it
            and nobody has to pass over ``x`` to say so.
        exact: give the bits of ``dequantize_linear``. False, for training steps, where nothing is
            compared bit for bit: the integers are the same (but for ties on a device that fuses
            multiplication and addition), while the results may be one unit in the last place
            off, in half the passes over ``x``.

    Returns:
        A tensor like ``x``.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.functional import fake_quantize
        >>> x = paddle.to_tensor([-3.0, 0.1, 0.5], stop_gradient=False)
        >>> y = fake_quantize(x, paddle.to_tensor([1.0]), QuantSpec(bits=2), saturate=True)
        >>> y.tolist()
        [-2.0, 0.0, 0.0]
        >>> y.sum().backward()
        >>> x.grad.tolist()
        [0.0, 1.0, 1.0]
    """
    dtype = x.dtype
    x = as_dtype(x, paddle.float32)
    if not paddle.in_dynamic_mode():
        y = _simulate(x, threshold, spec)
        # x - x is exactly zero, so that the sum has the bits of y and the gradient of x.
        zero = x - x.detach()
        if saturate:
            low, high = _bounds(x, threshold, spec)
            zero = zero * ((x >= low) & (x <= high)).astype("float32")
        y = y.detach() + zero
    elif (x.stop_gradient and idle is None) or not paddle.is_grad_enabled():
        y = _simulate(x, threshold, spec)
    else:
        # Functions, because PyLayer takes every tensor among its arguments, even inside a tuple,
        # for an input that wants a gradient.
        def simulate(x):
            return _simulate(x, threshold, spec, exact)

        def bounds():
            return _bounds(x, threshold, spec)

        inputs = [] if idle is None else [idle]
        y = (_Saturating.apply(x, simulate, bounds, *inputs) if saturate
             else _StraightThrough.apply(x, simulate, *inputs))
    return as_dtype(y, dtype)
