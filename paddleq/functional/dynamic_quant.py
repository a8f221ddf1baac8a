"""Symmetric quantization with a broadcastable scale: per token, per head and feature, ...

:mod:`.fake_quant` follows Paddle's operators, which take an absolute maximum along one axis.
This module covers the other granularities: q = clip(round(x / step)) and y = q * step. With a float
data type, q is the nearest number of its format.
"""

import paddle

from .fake_quant import round_and_clip_
from .float_formats import shared_scale
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


def quantize_dequantize_blocks(x, spec):
    """Quantize and dequantize blocks of features that share a scale, computed from their values.

    Args:
        x: float tensor [..., features]; the last block may be smaller.
        spec: a :class:`~paddleq.QuantSpec` of an MX data type.

    Returns:
        float32 of the shape of ``x``.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.functional.dynamic_quant import quantize_dequantize_blocks
        >>> x = paddle.to_tensor([[0.9, 100.0, -7.0]])
        >>> quantize_dequantize_blocks(x, QuantSpec(dtype="mxfp4_e2m1")).tolist()
        [[0.0, 96.0, -8.0]]
    """
    x = as_dtype(x, paddle.float32)
    if 0 in x.shape:
        return x
    with paddle.no_grad():
        features, size = x.shape[-1], spec.granularity.size
        rows = x.reshape([-1, features])
        if features % size:
            missing = paddle.zeros([rows.shape[0], -features % size], dtype="float32")
            rows = paddle.concat([rows, missing], axis=1)
        blocks = rows.reshape([rows.shape[0], -1, size])
        step = shared_scale(blocks.abs().max(axis=2, keepdim=True), spec.data_type)
        rounded = (round_and_clip_(blocks / step, spec) * step).reshape(rows.shape)
        return rounded[:, :features].reshape(x.shape)
