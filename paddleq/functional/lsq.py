"""Learned step size (LSQ, arXiv:1902.08153), optionally with an offset (LSQ+, arXiv:2004.09576).

With v / s the value in steps, z the zero point and g = 1 / sqrt(N * qmax), N the number of elements
that share the step:

    y       as :func:`~paddleq.functional.fake_quantize`, abs_max |s| * levels
    dx      dy inside of the range, 0 outside
    ds      g * sum of dy * (round(v / s) - v / s) inside, dy * qmin below, dy * qmax above
    doffset g * sum of dy outside, 0 inside

If |s| * levels is below EPS, EPS is used, with the same gradient.
"""

import operator
from dataclasses import dataclass
from typing import Any

import paddle
from paddle.autograd import PyLayer

from ..errors import ModelError
from ..spec import HALF_EVEN
from .fake_quant import (
    aligned,
    dequantize,
    fake_quantize,
    inside_range,
    masked,
    quantize,
    simulate_in_three_passes,
)
from .qparams import EPS, ROUNDING_MAGIC, as_dtype, constant, reduce_channels


def learned_abs_max(step, spec):
    """Compute abs_max of a trained step, whose magnitude is used if it became negative."""
    return (constant(step).abs() * float(spec.quant_max)).clip(min=EPS)


def learned_zero_point(offset, abs_max, spec):
    """Return the zero point within the limits nearest to the real number of the integer 0."""
    steps = constant(offset) * (-float(spec.quant_max)) / abs_max
    steps = steps.clip(float(spec.quant_min), float(spec.quant_max))
    return ((steps + ROUNDING_MAGIC) - ROUNDING_MAGIC).astype("int64")


def _inside(x, abs_max, spec, zero_point):
    # As in the paper, the limits are excluded. With an offset they are included: zeros after a ReLU
    # lie on the lower limit and stay zero for every offset.
    return inside_range(x, abs_max, spec, zero_point, with_limits=zero_point is not None)


def _signs(step):
    return paddle.where(step < 0, paddle.full_like(step, -1.0), paddle.ones_like(step))


def sum_of_products(a, b):
    """Sum ``a * b`` to shape [1] without a tensor of their size."""
    return paddle.dot(a.reshape([-1]), b.reshape([-1])).reshape([1])


# Paddle 2.6's bytecode translator fails on this attribute, but does not translate attrgetter.
_version = operator.attrgetter("inplace_version")


@dataclass
class _Rule:
    """Quantization parameters that forward and backward pass share."""

    abs_max: Any
    spec: Any
    zero_point: Any
    exact: bool
    batches: int = 1

    def simulate(self, x):
        spec = self.spec
        if self.exact or spec.channel_axis is not None or spec.rounding != HALF_EVEN:
            with paddle.no_grad():
                return fake_quantize(x, self.abs_max, spec, zero_point=self.zero_point)
        zero = 0 if self.zero_point is None else self.zero_point.item()
        return simulate_in_three_passes(x, self.abs_max, spec, zero)

    def gradients(self, x, y, grad):
        """Return (dx, ds, doffset or None)."""
        axis, steps = self.spec.channel_axis, self.abs_max / float(self.spec.quant_max)
        inside = _inside(x, self.abs_max, self.spec, self.zero_point)
        # The only new tensor of this size: allocating one costs more than the arithmetic.
        dx = masked(inside, grad)
        # round(v / s) - v / s is (y - x) / s, and outside of the range y / s + z is the limit.
        if axis is None:
            total = sum_of_products(grad, y) - sum_of_products(dx, x)
        else:
            total = reduce_channels(paddle.sum, (grad * y).subtract_(dx * x), axis)
        ds = total / steps
        rate = (x.size * self.batches / steps.size * self.spec.quant_max) ** -0.5
        if self.zero_point is None:
            return dx, ds * rate, None
        beyond = (reduce_channels(paddle.sum, grad, axis)
                  - reduce_channels(paddle.sum, dx, axis))
        return dx, (ds + self.zero_point.astype("float32") * beyond) * rate, beyond * rate


class _Learned(PyLayer):
    @staticmethod
    def forward(ctx, x, rule, step, offset=None):
        y = rule.simulate(x)
        ctx.rule, ctx.signs = rule, _signs(step)
        # Paddle requires None as the gradient of inputs with stop_gradient.
        ctx.constant = [x.stop_gradient, step.stop_gradient]
        if offset is not None:
            ctx.constant.append(offset.stop_gradient)
        # Saving y itself would create a reference cycle with its gradient node, which is freed
        # only by a backward pass.
        ctx.save_for_backward(x, y.detach())
        ctx.versions = _version(x), _version(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensor()
        if _version(x) != ctx.versions[0]:
            raise ModelError("the input of a learned quantizer was changed in place before the "
                             "backward pass, which needs it as it was; change a copy")
        if _version(y) != ctx.versions[1]:
            y = ctx.rule.simulate(x)
        dx, ds, doffset = ctx.rule.gradients(x, y, grad)
        found = (dx, ds * ctx.signs, doffset)[:len(ctx.constant)]
        return tuple(None if constant else each for constant, each in zip(ctx.constant, found))


def _in_static_mode(x, rule, step, offset):
    spec = rule.spec
    x_value, step_value = constant(x), constant(step)
    # fake_quantize() would detach.
    y = dequantize(quantize(x_value, rule.abs_max, spec, rule.zero_point), rule.abs_max, spec,
                   rule.zero_point)
    inside = _inside(x_value, rule.abs_max, spec, rule.zero_point).astype("float32")
    count = paddle.numel(x_value).astype("float32")
    rate = (count * (spec.quant_max / rule.abs_max.shape[0])) ** -0.5
    error = paddle.subtract(y, paddle.multiply(inside, x_value))
    slope = error / aligned(rule.abs_max / float(spec.quant_max), x, spec)
    # The added terms are exactly zero and carry the gradient.
    if offset is not None:
        beyond = 1.0 - inside
        slope = paddle.add(slope, beyond * aligned(rule.zero_point.astype("float32"), x, spec))
        y = paddle.add(y, paddle.multiply(aligned(offset - constant(offset), x, spec),
                                          beyond * rate))
    nothing = (step - step_value) * _signs(step_value)
    y = paddle.add(y, paddle.multiply(paddle.subtract(x, x_value), inside))
    return paddle.add(y, paddle.multiply(aligned(nothing, x, spec), slope * rate))


def learned_fake_quantize(x, step, spec, offset=None, exact=True, batches=1):
    """Quantize and dequantize ``x`` with a trainable step and, optionally, a trainable offset.

    Args:
        x: float tensor of any shape. Half-precision inputs are computed in float32 and the
            result is returned in the dtype of ``x``.
        step: float32 tensor to train, shape [1], or [channels] when ``spec`` is per channel.
        spec: a :class:`~paddleq.QuantSpec` of two bits or more.
        offset: float32 tensor of the step's shape, the real number that the integer 0 represents,
            rounded to whole steps. For an asymmetric spec only.
        exact: see :func:`~paddleq.functional.fake_quantize`.
        batches: number of processes that have a batch of this size and average the gradients.

    Returns:
        The result of :func:`~paddleq.functional.fake_quantize` with that abs_max and zero point.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.functional import learned_fake_quantize
        >>> x = paddle.to_tensor([-3.0, 0.25, 0.875, 9.0], stop_gradient=False)
        >>> step = paddle.to_tensor([1.0], stop_gradient=False)
        >>> y = learned_fake_quantize(x, step, QuantSpec(bits=2))
        >>> y.tolist()
        [-2.0, 0.0, 1.0, 1.0]
        >>> y.sum().backward()
        >>> x.grad.tolist()
        [0.0, 1.0, 1.0, 0.0]
        >>> step.grad.tolist()  # (-2 - 0.25 + 0.125 + 1) / sqrt(4)
        [-0.5625]
    """
    abs_max = learned_abs_max(step, spec)
    zero_point = None if offset is None else learned_zero_point(offset, abs_max, spec)
    dtype = x.dtype
    if paddle.in_dynamic_mode() and 0 in x.shape:
        return x
    x = as_dtype(x, paddle.float32)
    trained = [step] if offset is None else [step, offset]
    if not paddle.in_dynamic_mode():
        y = _in_static_mode(x, _Rule(abs_max, spec, zero_point, exact), step, offset)
    elif not paddle.is_grad_enabled() or all(t.stop_gradient for t in (x, *trained)):
        y = fake_quantize(x, abs_max, spec, zero_point=zero_point)
    else:
        y = _Learned.apply(x, _Rule(abs_max, spec, zero_point, exact, batches), *trained)
    return as_dtype(y, dtype)
