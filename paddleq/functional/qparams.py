"""Quantization parameters from the values or the range of a tensor."""

import paddle

EPS = 1e-8
"""Smallest abs_max: that of a channel of zeros; it prevents division by zero."""

# Adding and subtracting 1.5 * 2**23 rounds a float32 of magnitude below 2**22 to the nearest
# integer, ties to even, on every device. paddle.round rounds ties away from zero on Paddle 2.6
# and to even on 3.x; two in-place additions are as fast.
ROUNDING_MAGIC = 12582912.0
ROUNDING_MAGIC64 = 1.5 * 2 ** 52  # the same for float64
_LARGEST = 3.4028234e38  # float32


def as_dtype(x, dtype):
    """Cast ``x`` to ``dtype`` without a copy if it has that dtype (astype copies on Paddle 2.6)."""
    return x if x.dtype == dtype else x.astype(dtype)


def scale_of(abs_max, spec):
    """Compute the scale, abs_max / quant_max."""
    if spec.element is None:
        return abs_max / float(spec.quant_max)
    # Paddle may replace division by a number with multiplication.
    return paddle.divide(abs_max, paddle.full([1], float(spec.quant_max), dtype="float32"))


def constant(x):
    """Return ``x`` without a gradient, as a copy in a traced program."""
    if paddle.in_dynamic_mode():
        return x.detach()
    # detach() shares the memory, and operators of a Paddle 3 program may overwrite it in place in
    # an undefined order. On Paddle 2.6 the detached variable of a parameter is persistable but has
    # no value, so that paddle.jit.save raises an error.
    x = paddle.assign(x)
    x.stop_gradient = True
    return x


def reduce_channels(reduce, x, axis):
    """Reduce ``x`` to shape [1] if ``axis`` is None, else to one value for each index along it."""
    if axis is None:
        return reduce(x).reshape([1])
    others = [i for i in range(len(x.shape)) if i != axis % len(x.shape)]
    return reduce(x, axis=others) if others else x


def abs_max(x, spec):
    """Compute the largest magnitude of ``x``, or of each channel when ``spec`` is per channel.

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
    if spec.binary:
        found = reduce_channels(paddle.mean, x.abs(), axis)
    elif axis is None:
        found = paddle.maximum(x.max(), -x.min()).reshape([1])
    elif dynamic:
        found = _channel_max(x, axis % len(x.shape))
    else:
        found = reduce_channels(paddle.max, x.abs(), axis)
    return found.clip(min=EPS)


def _channel_max(x, axis):
    """Compute max|x| of each channel, ten times faster than reducing along the first axis."""
    with paddle.no_grad():
        if len(x.shape) == 1:
            return x.abs()
        if axis == 0:
            return paddle.norm(x.reshape([x.shape[0], -1]), p=float("inf"), axis=1)
        if axis != len(x.shape) - 1:
            x = paddle.norm(x.reshape([*x.shape[:axis + 1], -1]), p=float("inf"), axis=-1)
        x = x.reshape([-1, x.shape[-1]]).abs()  # one row for each of the other axes
        # Elementwise maxima of the two halves until one row is left.
        odd = []
        while x.shape[0] > 1:
            half = x.shape[0] // 2
            if x.shape[0] % 2:
                odd.append(x[2 * half:])
            x = paddle.maximum(x[:half], x[half:2 * half])
        return paddle.concat([x, *odd]).max(axis=0) if odd else x[0]


def affine_qparams(low, high, spec):
    """Compute abs_max and the zero point of a range for an asymmetric spec.

    The range is widened to contain 0, M = max(high, 0) and m = min(low, 0); the step is
    (M - m) / (qmax - qmin) and the zero point round(clip(qmin - m / step)), so that 0 is stored
    exactly and the range moves by less than a step (arXiv:1712.05877). A range of 0 gets the step
    1 and the zero point 0, or the lowest integer if that is above 0.

    Args:
        low, high: float32 tensors of one shape.
        spec: a :class:`~paddleq.QuantSpec`.

    Returns:
        (abs_max: step * levels, float32; zero point, int64), each of that shape.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.functional import affine_qparams
        >>> spec = QuantSpec(signed=False, symmetric=False)
        >>> abs_max, zero_point = affine_qparams(
        ...     paddle.to_tensor([-1.0]), paddle.to_tensor([3.0]), spec)
        >>> abs_max.tolist(), zero_point.tolist()  # the step is 4 / 255
        ([4.0], [64])
    """
    step, zero = affine_scale_zero_point(low, high, spec)
    # The width of a finite range may exceed float32.
    abs_max = (step * float(spec.quant_max)).clip(max=_LARGEST)
    return abs_max.astype("float32"), zero.astype("int64")


def affine_scale_zero_point(low, high, spec):
    """Compute the float64 step and zero point of a range, see :func:`affine_qparams`."""
    # In float64 because the zero point of a range around 0 lies on a rounding boundary.
    low, high = low.astype("float64").clip(max=0.0), high.astype("float64").clip(min=0.0)
    step = (high - low) / float(spec.quant_max - spec.quant_min)
    empty = step == 0.0
    step = paddle.where(empty, paddle.ones_like(step), step.clip(min=EPS / spec.quant_max))
    zero = (float(spec.quant_min) - low / step).clip(float(spec.quant_min), float(spec.quant_max))
    zero = (zero + ROUNDING_MAGIC64) - ROUNDING_MAGIC64
    return step, paddle.where(empty, paddle.full_like(zero, max(spec.quant_min, 0)), zero)
