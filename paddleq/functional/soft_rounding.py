"""Rectified sigmoid of AdaRound (arXiv:2004.10568) and its regularizer.

A weight w with the step s is floor(w / s) + h(v), where h is the sigmoid, stretched from
[0, 1] to [gamma, zeta] and clipped back. The regularizer 1 - |2h - 1|^beta drives each h to 0 or 1.
"""

import paddle

ZETA, GAMMA = 1.1, -0.1


def rectified_sigmoid(v):
    """Compute h(v) = clip(sigmoid(v) * (zeta - gamma) + gamma, 0, 1).

    Examples:
        >>> import paddle
        >>> from paddleq.functional.soft_rounding import rectified_sigmoid
        >>> [round(h, 3) for h in rectified_sigmoid(paddle.to_tensor([-9.0, 0.0, 9.0])).tolist()]
        [0.0, 0.5, 1.0]
    """
    return paddle.scale(paddle.nn.functional.sigmoid(v), ZETA - GAMMA, GAMMA).clip(0.0, 1.0)


def inverse_rectified_sigmoid(h):
    """Compute the v of which h(v) is ``h``, in [0, 1].

    Examples:
        >>> import paddle
        >>> from paddleq.functional.soft_rounding import (
        ...     inverse_rectified_sigmoid, rectified_sigmoid)
        >>> h = paddle.to_tensor([0.0, 0.25, 1.0])
        >>> [round(x, 5) for x in rectified_sigmoid(inverse_rectified_sigmoid(h)).tolist()]
        [0.0, 0.25, 1.0]
    """
    share = (h - GAMMA) / (ZETA - GAMMA)
    return paddle.log(share / (1.0 - share))


def slope(v):
    """Compute dh/dv, which is 0 where h is clipped."""
    sigmoid = paddle.nn.functional.sigmoid(v)
    h = paddle.scale(sigmoid, ZETA - GAMMA, GAMMA)
    inside = ((h > 0.0) & (h < 1.0)).astype(v.dtype)
    return inside * sigmoid * (1.0 - sigmoid) * (ZETA - GAMMA)


def regularizer(h, beta):
    """Compute the sum of 1 - |2h - 1|^beta.

    Examples:
        >>> import paddle
        >>> from paddleq.functional.soft_rounding import regularizer
        >>> regularizer(paddle.to_tensor([0.0, 0.5, 0.75]), 2.0).item()
        1.75
    """
    return (1.0 - (2.0 * h - 1.0).abs().pow(beta)).sum()


def regularizer_slope(h, beta):
    """Compute the derivative of :func:`regularizer` with respect to each h."""
    centered = 2.0 * h - 1.0
    return -2.0 * beta * centered.abs().pow(beta - 1.0) * centered.sign()
