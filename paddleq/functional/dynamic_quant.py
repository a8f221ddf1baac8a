"""Symmetric integers in steps that broadcast: one for each token, for each head and feature, ...

:mod:`.fake_quant` follows Paddle's operators, whose scale is a threshold and lies along one axis.
What Paddle has no operator for is said in steps: q = clip(round(x / step)), y = q * step.
"""

import paddle

from .fake_quant import _levels, round_and_clip_
from .qparams import EPS, as_dtype


def token_scales(x, spec):
    """The step of each row along the last axis: max|x| / levels, so that nothing is clipped.

    Args:
        x: float tensor [..., features].
        spec: a symmetric :class:`~paddleq.QuantSpec`.

    Returns:
        float32 [..., 1]. A row of zeros gets a step that is not zero.

    Examples:
        >>> import paddle
        >>> from paddleq import PerToken, QuantSpec
        >>> from paddleq.functional import token_scales
        >>> x = paddle.to_tensor([[127.0, -254.0], [0.0, 63.5]])
        >>> token_scales(x, QuantSpec(8, granularity=PerToken())).tolist()
        [[2.0], [0.5]]
    """
    if paddle.in_dynamic_mode() and 0 in x.shape:  # Paddle 2.6 finds no maxima there
        return paddle.full([*x.shape[:-1], 1], EPS, dtype="float32")
    most = as_dtype(x, paddle.float32).abs().max(axis=-1, keepdim=True)
    # By a tensor: a division by a number is one here and a multiplication there, as Paddle likes.
    return most.clip(min=EPS) / paddle.full([1], float(spec.quant_max), dtype="float32")


def quantize_by_scale(x, step, spec):
    """How many steps each value is, rounded and clipped.

    Args:
        x: float tensor.
        step: float32, broadcasts over ``x``.
        spec: a symmetric :class:`~paddleq.QuantSpec`: its limits and its rounding.

    Returns:
        Integers as float32, shaped like ``x``.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.functional import quantize_by_scale
        >>> x, step = paddle.to_tensor([[0.5, 300.0]]), paddle.to_tensor([[0.1, 1.0]])
        >>> quantize_by_scale(x, step, QuantSpec()).tolist()
        [[5.0, 127.0]]
    """
    x = as_dtype(x, paddle.float32)
    if not paddle.in_dynamic_mode():
        return _levels(x / step, spec, 0)
    return x if 0 in x.shape else round_and_clip_(x / step, spec, 0)


def dequantize_by_scale(integers, step):
    """What the integers stand for: q * step, float32.

    Examples:
        >>> import paddle
        >>> from paddleq.functional import dequantize_by_scale
        >>> dequantize_by_scale(paddle.to_tensor([5, -2], dtype="int8"), paddle.to_tensor([0.5])).tolist()
        [2.5, -1.0]
    """
    x = integers.astype("float32")
    return x if paddle.in_dynamic_mode() and 0 in x.shape else x * step
