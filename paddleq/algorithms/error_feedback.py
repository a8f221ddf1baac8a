"""How the rounding errors of some rows of a weight are best made up for by the next row."""

import logging

import paddle

from ..errors import CalibrationError

_log = logging.getLogger(__name__)

_HOPELESS = 1e4  # Of a matrix without negative eigenvalues even 1 is enough in float32.


def feedback_matrix(hessian, damping, order=None):
    """The strictly lower triangular F of the error feedback that GPTQ amounts to.

    Rows are quantized one after the other, and row j is rounded not at w[j] but at

        t[j] = w[j] + sum over k < j of F[j, k] * (w[k] - q[k]),

    the value that together with the rows before it loses least of x @ W, provided that those
    after it will be real numbers. With H = (I + F)^T D (I + F), D diagonal, that loss is the sum of
    D[j] * (t[j] - q[j]) ** 2. Row j of GPTQ's updated weights is t[j] (arXiv:2210.17323 by way of
    arXiv:2307.13304, theorem 6): one Cholesky decomposition, and H is never inverted.

    Args:
        hessian: float32 [K, K], mean of x xT. It is left as it is.
        damping: is added to the diagonal, in units of its mean. Where the decomposition fails it is
            raised tenfold, as often as it takes, with a warning.
        order: int64 [K], the rows of the weight in the order in which they are quantized, or None
            for the order that they have. F's rows and columns go in that order.

    Returns:
        float32 [K, K].

    Raises:
        CalibrationError: no damping helps; the Hessian holds something else than numbers.

    Examples:
        >>> import paddle
        >>> from paddleq.algorithms.error_feedback import feedback_matrix
        >>> hessian = paddle.to_tensor([[2.0, 1.0], [1.0, 2.0]])
        >>> feedback_matrix(hessian, damping=1.0).tolist()
        [[0.0, 0.0], [0.25, 0.0]]
    """
    # Backwards, because a Cholesky decomposition starts with the first row and this with the last.
    if order is None:
        hessian = hessian.flip([0, 1])
    else:
        backwards = order.flip([0])
        # (Of columns gather() is three times as fast as index_select(), of rows half.)
        hessian = paddle.gather(hessian.index_select(backwards), backwards, axis=1)
    diagonal = paddle.diagonal(hessian).clone()
    mean = diagonal.sum() / (diagonal > 0.0).astype("float32").sum().clip(min=1.0)
    # A feature that was always 0 tells nothing, and has no part in the feedback.
    dead = diagonal <= 0.0
    diagonal = paddle.where(dead, paddle.ones_like(diagonal), diagonal / mean)
    if mean.item() > 0.0:
        hessian.divide_(mean)
    factor = _damped_cholesky(hessian, diagonal, damping)
    del hessian
    factor.divide_(paddle.diagonal(factor).clone().unsqueeze(1))
    return factor.flip([0, 1]).fill_diagonal_(0.0)


def _damped_cholesky(matrix, diagonal, damping):
    while damping < _HOPELESS:
        factor = _cholesky(matrix.fill_diagonal_tensor_(diagonal + damping))
        if factor is not None:
            return factor
        _log.warning("the Hessian is not positive definite with a damping of %g of its mean "
                     "diagonal; trying %g", damping, 10.0 * damping)
        damping = 10.0 * damping
    raise CalibrationError("the Hessian of the calibration data cannot be decomposed, whatever the "
                           "damping: it holds NaN, infinity or negative eigenvalues")


def _cholesky(matrix):
    """The upper factor, or None: Paddle raises or returns NaN, which depends on the device."""
    try:
        factor = paddle.linalg.cholesky(matrix, upper=True)
    except (ValueError, RuntimeError):
        return None
    return factor if bool(paddle.isfinite(paddle.diagonal(factor)).all()) else None
