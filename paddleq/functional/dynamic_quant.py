"""Symmetric quantization with a broadcastable scale: per token, per head and feature, ...

:mod:`.fake_quant` follows Paddle's operators, which take an absolute maximum along one axis.
This module covers the other granularities: q = clip(round(x / step)) and y = q * step.
"""

import paddle

from .fake_quant import round_and_clip_
from .qparams import EPS, as_dtype


def token_scales(x, spec):
    """Compute the scale of each row along the last axis: max|x| / quant_max.

    Args:
        x: float tensor [..., features].
        spec: a symmetric :class:`~paddleq.QuantSpec`.

    Returns:
        float32 [..., 1]. The scale of a row of zeros is not zero.

    Examples:
        >>> import paddle
        >>> from paddleq import PerToken, QuantSpec
        >>> from paddleq.functional import token_scales
        >>> x = paddle.to_tensor([[127.0, -254.0], [0.0, 63.5]])
        >>> token_scales(x, QuantSpec(8, granularity=PerToken())).tolist()
        [[2.0], [0.5]]
    """
    if paddle.in_dynamic_mode() and 0 in x.shape:  # Paddle 2.6 has no max() of empty tensors
        return paddle.full([*x.shape[:-1], 1], EPS, dtype="float32")
    most = as_dtype(x, paddle.float32).abs().max(axis=-1, keepdim=True)
    # Divide by a tensor: Paddle may replace division by a number with multiplication.
    return most.clip(min=EPS) / paddle.full([1], float(spec.quant_max), dtype="float32")


def quantize_by_scale(x, step, spec):
    """Divide by a scale, round and clip.

    Args:
        x: float tensor.
        step: float32 scale that broadcasts over ``x``.
        spec: a symmetric :class:`~paddleq.QuantSpec`.

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
    if paddle.in_dynamic_mode() and 0 in x.shape:
        return x
    return round_and_clip_(paddle.divide(x, step), spec)


def dequantize_by_scale(integers, step):
    """Compute q * step in float32.

    Examples:
        >>> import paddle
        >>> from paddleq.functional import dequantize_by_scale
        >>> q = paddle.to_tensor([5, -2], dtype="int8")
        >>> dequantize_by_scale(q, paddle.to_tensor([0.5])).tolist()
        [2.5, -1.0]
    """
    x = integers.astype("float32")
    return x if paddle.in_dynamic_mode() and 0 in x.shape else paddle.multiply(x, step)
