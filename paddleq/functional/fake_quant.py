"""Quantize, dequantize and differentiable fake quantize.

The operations are those of Paddle's ``quantize_linear`` and ``dequantize_linear`` operators, in
the same order, so that a simulated model and its exported graph agree to the bit:

    q = clip(round((quant_max * (1 / abs_max)) * x), quant_min, quant_max)
    y = (q * abs_max) / quant_max

``abs_max`` is the quantity that Paddle's operators call scale: abs_max = scale * quant_max, the
largest magnitude of a symmetric spec.

Numbers of a float data type have no such operators; they are rounded as
:func:`~paddleq.functional.round_to_format` does, with scale = abs_max / quant_max:

    y = round_to_format(x / scale) * scale

With an integer zero point z, q is round(...) + z, and y is computed from q - z. This equals the
formula without a zero point and with the limits quant_min - z and quant_max - z.
"""

import numpy as np
import paddle
from paddle.autograd import PyLayer

from .._paddle_compat import scalar
from ..spec import HALF_EVEN
from .float_formats import round_to_format
from .qparams import ROUNDING_MAGIC, as_dtype, constant, scale_of


def aligned(numbers, x, spec):
    """Reshape one number, or one for each channel, so that it broadcasts over ``x``."""
    axis = spec.channel_axis
    if axis is None:
        return numbers
    shape = [1] * len(x.shape)
    shape[axis] = -1
    numbers = numbers.reshape(shape)
    # Products with an expanded tensor are several times faster than broadcast ones, unless whole
    # rows share a factor.
    rows = axis % len(x.shape) == 0
    return numbers if rows or not paddle.in_dynamic_mode() else numbers.expand(x.shape)


def _zero(zero_point, x, spec):
    """Return the zero point as a number, or as a float32 tensor that broadcasts over ``x``."""
    if zero_point is None:
        return 0
    if spec.channel_axis is None and paddle.in_dynamic_mode():
        return zero_point.item()
    return aligned(zero_point.astype("float32"), x, spec)


def _plus(t, number):
    return t.scale_(1.0, number) if paddle.in_dynamic_mode() else paddle.scale(t, 1.0, number)


def round_and_clip_(t, spec, zero=0):
    """Round and clip ``t``, which is in steps from the zero point; in dynamic mode in place.

    (Not in place for a float data type.)
    """
    if spec.element is not None:
        return round_to_format(t, spec.element)
    if spec.binary:
        return paddle.scale((t >= 0).astype("float32"), 2.0, -1.0)
    dynamic = paddle.in_dynamic_mode()
    if spec.rounding == HALF_EVEN:
        t = _plus(_plus(t, ROUNDING_MAGIC), -ROUNDING_MAGIC)
    else:
        t = _plus(t, 0.5)
        t = t.floor_() if dynamic else paddle.floor(t)
    low, high = spec.quant_min - zero, spec.quant_max - zero
    if not isinstance(zero, int):
        return paddle.minimum(paddle.maximum(t, low), high)
    return t.clip_(low, high) if dynamic else paddle.clip(t, low, high)


def _steps(x, abs_max, spec, zero, in_place=False):
    """Return ``x`` in steps from the zero point, rounded and clipped."""
    if spec.element is not None:
        # A true division, so that numbers in the middle of two remain there.
        return round_to_format(x.detach() / _scale(abs_max, x, spec), spec.element)
    factor = aligned(float(spec.quant_max) * paddle.reciprocal(abs_max), x, spec)
    if not paddle.in_dynamic_mode():
        return round_and_clip_(x * factor, spec, zero)
    with paddle.no_grad():
        # scale() with a tensor factor is ten times faster than a broadcast multiplication.
        if spec.channel_axis is None:
            t = x.scale_(factor) if in_place else paddle.scale(x, factor)
        else:
            t = x.multiply_(factor) if in_place else x * factor
        return t if 0 in t.shape else round_and_clip_(t, spec, zero)


def _scale(abs_max, x, spec):
    return aligned(scale_of(abs_max, spec), x, spec)


def quantize(x, abs_max, spec, zero_point=None):
    """Quantize ``x`` to integers, as a float32 tensor of the same shape.

    With a float data type, to its numbers.

    Args:
        x: any float tensor.
        abs_max: float32, shape [1], or [channels] when ``spec`` is per channel.
        spec: a :class:`~paddleq.QuantSpec`.
        zero_point: integers of the shape of ``abs_max``, or None for 0.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.functional import quantize
        >>> x = paddle.to_tensor([-3.0, -1.0, 0.0, 0.5, 1.0])
        >>> quantize(x, paddle.to_tensor([1.0]), QuantSpec(bits=8)).tolist()
        [-128.0, -127.0, 0.0, 64.0, 127.0]
    """
    x = as_dtype(x, paddle.float32)
    zero = _zero(zero_point, x, spec)
    steps = _steps(x, abs_max, spec, zero)
    return steps if zero_point is None else steps + zero


def dequantize(q, abs_max, spec, zero_point=None):
    """Dequantize integers ``q``: ((q - zero_point) * abs_max) / quant_max.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.functional import dequantize
        >>> dequantize(paddle.to_tensor([127.0]), paddle.to_tensor([2.0]), QuantSpec()).tolist()
        [2.0]
    """
    if spec.element is not None:
        return q * _scale(abs_max, q, spec)
    if zero_point is not None:
        q = q - _zero(zero_point, q, spec)
    levels = paddle.full([], float(spec.quant_max), dtype="float32")
    return (q * aligned(abs_max, q, spec)) / levels


def dequantize_(q, abs_max, spec):
    """:func:`dequantize` in place, in dynamic mode and without a zero point; ``q`` is float32."""
    if spec.element is not None:
        _times_(q, scale_of(abs_max, spec), spec)
        return q
    _times_(q, abs_max, spec)
    if spec.quant_max != 1:
        # A true division: multiplication by 1/127 differs from dequantize_linear by one unit in the
        # last place, enough to move values across the rounding boundary of the next layer.
        q.divide_(paddle.full([], float(spec.quant_max), dtype="float32"))
    return q


def _times_(q, factor, spec):
    axis = spec.channel_axis
    if axis is None:
        q.scale_(factor)
    else:
        # In place, broadcasting a vector along the last axis is faster than expanding it.
        last = axis % len(q.shape) == len(q.shape) - 1
        q.multiply_(factor if last else aligned(factor, q, spec))


def _of_numbers(spec, zero):
    """Return True if two numbers are the clipping limits of the whole tensor."""
    return (spec.channel_axis is None and not spec.binary and spec.element is None
            and isinstance(zero, int))


def _simulate(x, abs_max, spec, zero, exact=True, in_place=False):
    if not exact and spec.rounding == HALF_EVEN and _of_numbers(spec, zero):
        return simulate_in_three_passes(x, abs_max, spec, zero, in_place=in_place)
    q = _steps(x, abs_max, spec, zero, in_place)
    if not paddle.in_dynamic_mode():
        return dequantize(q, abs_max, spec)
    if exact or spec.element is not None:
        q = dequantize_(q, abs_max, spec)
    else:
        _times_(q, abs_max * (1.0 / spec.quant_max), spec)
    return paddle.assign(q, x) if in_place and q is not x else q


def simulate_in_three_passes(x, abs_max, spec, zero=0, bound=None, in_place=False):
    """Quantize and dequantize ``x``, first clipped to ``bound``, to one unit in the last place."""
    # The first pass adds ROUNDING_MAGIC and the last pass subtracts it.
    factor = float(spec.quant_max) * paddle.reciprocal(abs_max)
    t = (x.scale_ if in_place else x.scale)(factor, ROUNDING_MAGIC)
    low, high = spec.quant_min - zero, spec.quant_max - zero
    if bound is not None:
        # Rounding is monotonic: clipping to the rounded bound equals clipping before rounding.
        most = scalar(paddle.scale(bound, factor, ROUNDING_MAGIC)) - ROUNDING_MAGIC
        low, high = max(low, -most), min(high, most)
    t.clip_(ROUNDING_MAGIC + low, ROUNDING_MAGIC + high)
    return t.scale_(abs_max * (1.0 / spec.quant_max), -ROUNDING_MAGIC, bias_after_scale=False)


def representable_range(abs_max, spec, zero_point=None):
    """Return the (lowest, highest) value that is not clipped, each of the shape of ``abs_max``.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.functional import representable_range
        >>> [t.tolist() for t in representable_range(paddle.to_tensor([127.0]), QuantSpec())]
        [[-128.0], [127.0]]
    """
    step = abs_max / float(spec.quant_max)
    if spec.element is not None:
        return step * -spec.element.largest, step * spec.element.largest
    zero = 0.0 if zero_point is None else zero_point.astype("float32")
    return step * (spec.quant_min - zero), step * (spec.quant_max - zero)


def inside_range(x, abs_max, spec, zero_point, with_limits=True):
    """Return a mask of the values in the representable range, by default with its limits."""
    low, high = (aligned(each, x, spec)
                 for each in representable_range(abs_max, spec, zero_point))
    return (x >= low) & (x <= high) if with_limits else (x > low) & (x < high)


def _clipped_to_range(x, abs_max, spec, zero):
    """Clip ``x`` to the representable range with ``paddle.clip``, whose backward is one pass."""
    # The gradient is zero at the limits too. They are moved outwards by one unit in the last place
    # to keep the gradient there.
    step = np.float32(abs_max.item()) / np.float32(spec.quant_max)
    if not np.isfinite(step):  # weights with NaN; clip() raises an error, the result has to be NaN
        return x.clone()
    low, high = (step * np.float32(limit - zero) for limit in (spec.quant_min, spec.quant_max))
    return x.clip(float(np.nextafter(low, np.float32(-np.inf))),
                  float(np.nextafter(high, np.float32(np.inf))))


class BitMask:
    """Boolean tensor, not empty, of which bit ``i`` stores the ``i``-th eighth."""

    def __init__(self, mask):
        self.shape = mask.shape
        flat = mask.reshape([-1])
        self.count = flat.shape[0]
        if self.count % 8:
            flat = paddle.concat([flat, paddle.zeros([-self.count % 8], dtype="bool")])
        parts = flat.astype("uint8").reshape([8, -1])
        self.packed = parts[0]
        for bit in range(1, 8):
            self.packed = self.packed.bitwise_or(paddle.scale(parts[bit], 1 << bit))

    def unpacked(self):
        """The boolean tensor."""
        parts = [self.packed.bitwise_and(paddle.full([1], 1 << bit, dtype="uint8")).astype("bool")
                 for bit in range(8)]
        return paddle.concat(parts)[:self.count].reshape(self.shape)


def masked(mask, grad):
    """Return ``grad`` where the boolean tensor ``mask`` is set and 0 elsewhere, as a new tensor."""
    # where() costs three times as much. In place: a fresh tensor costs more than the arithmetic.
    return mask.astype(grad.dtype).multiply_(grad)


class _FakeQuantize(PyLayer):
    """Quantize and dequantize; pass the gradient through uncopied, or zero outside of a mask."""

    @staticmethod
    def forward(ctx, x, simulate, mask, idle=None):
        ctx.idle = None if idle is None else (
            idle.shape, idle.dtype, x.stop_gradient, idle.stop_gradient)
        ctx.mask = mask()
        return simulate(x)

    @staticmethod
    def backward(ctx, grad):
        if ctx.mask is not None:
            mask = ctx.mask.unpacked() if isinstance(ctx.mask, BitMask) else ctx.mask
            grad = masked(mask, grad)
        if ctx.idle is None:
            return grad
        shape, dtype, x_is_constant, idle_is_constant = ctx.idle
        return (None if x_is_constant else grad,
                None if idle_is_constant else paddle.zeros(shape, dtype))


def fake_quantize(x, abs_max, spec, saturate=False, idle=None, exact=True, zero_point=None,
                  pack=False, in_place=False):
    """Quantize and dequantize ``x`` with a straight-through gradient.

    Args:
        x: float tensor of any shape. Half-precision inputs are computed in float32 and the
            result is returned in the dtype of ``x``.
        abs_max: float32, shape [1], or [channels] when ``spec`` is per channel.
        spec: a :class:`~paddleq.QuantSpec`.
        saturate: zero the gradient of values outside the representable range. Default False,
            the straight-through estimator that Paddle's own operators use.
        idle: a parameter without effect on ``x``, such as a clipping range that clips nothing.
            It receives a zero gradient, so that regularization applies to it, without another
            pass over ``x``.
        exact: match ``dequantize_linear`` to the bit. False needs half the passes over ``x``, for
            training: the integers are the same (except ties on a device that fuses
            multiplication and addition), the results may differ by one unit in the last place.
        zero_point: integers of the shape of ``abs_max``, or None for 0.
        pack: store the mask of ``saturate`` as bits instead of bytes.
        in_place: reuse the memory of ``x``, which must be float32, in dynamic mode.

    Returns:
        A tensor of the shape and dtype of ``x``.

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
    if paddle.in_dynamic_mode() and 0 in x.shape:
        return x  # Paddle 2.6 neither broadcasts an empty tensor nor writes it in place
    x = as_dtype(x, paddle.float32)
    zero = _zero(zero_point, x, spec)
    if not paddle.in_dynamic_mode():
        y = _simulate(x, abs_max, spec, zero)
        # x - x is exactly zero: the sum has the value of y and the gradient of x.
        nothing = paddle.subtract(x, constant(x))
        if saturate:
            inside = inside_range(x, abs_max, spec, zero_point)
            nothing = paddle.multiply(nothing, inside.astype("float32"))
        y = paddle.add(constant(y), nothing)
    elif (x.stop_gradient and idle is None) or not paddle.is_grad_enabled():
        # As with a gradient, so that recompute, whose first pass has none, gives the same values.
        y = _simulate(x, abs_max, spec, zero, exact, in_place)
    else:
        # Closures: PyLayer treats every tensor argument, even inside a tuple, as a differentiable
        # input.
        def simulate(x):
            return _simulate(x, abs_max, spec, zero, exact, in_place)

        def mask():
            if not saturate:
                return None
            inside = inside_range(x, abs_max, spec, zero_point)
            return BitMask(inside) if pack else inside

        if saturate and not exact and not in_place and _of_numbers(spec, zero):
            # clip() replaces the mask and returns a new tensor, which may be overwritten.
            x, saturate, in_place = _clipped_to_range(x, abs_max, spec, zero), False, True
        y = _FakeQuantize.apply(x, simulate, mask, *([] if idle is None else [idle]))
    return as_dtype(y, dtype)
