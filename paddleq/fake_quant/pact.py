"""PACT: trainable clipping range before a quantizer."""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import paddle
from paddle import nn

from .._checks import check_float
from .._paddle_compat import scalar
from ..functional import clip
from ..functional.pact import clipping_bound
from ..functional.qparams import as_dtype

if TYPE_CHECKING:
    from typing_extensions import TypeGuard


class Clipping(NamedTuple):
    """Clipping of a tensor by :class:`PACT`."""

    alpha: paddle.Tensor
    bound: paddle.Tensor  # magnitude of alpha, float32 of one element
    largest: paddle.Tensor  # max|x|, float32 of one element
    idle: bool  # no value is clipped


class PACT(nn.Layer):
    """Clip to [-alpha, alpha] with a trainable alpha (arXiv:1805.06085).

    The gradient with respect to alpha is +1 for values at or above alpha and -1 for values at
    or below -alpha. In exports, alpha is part of the quantizer's abs_max. If alpha becomes
    negative, its magnitude is used.

    Args:
        init: initial alpha. Default 100.
        learning_rate: factor on the optimizer's learning rate. Default 1000, as in PaddleSlim,
            because alpha is large compared to weights.
        l2: weight decay of alpha. Default None: that of the optimizer.

    Raises:
        ConfigError, ConfigTypeError: ``init`` is not positive, or another argument is negative.

    Examples:
        >>> import paddle
        >>> from paddleq.fake_quant import PACT
        >>> pact = PACT(init=1.0)
        >>> y = pact(paddle.to_tensor([-2.0, 0.5, 3.0, 4.0]))
        >>> y.tolist()
        [-1.0, 0.5, 1.0, 1.0]
        >>> y.sum().backward()
        >>> pact.alpha.grad.tolist()  # two clipped above, one below
        [1.0]
    """

    def __init__(self, init=100.0, learning_rate=1000.0, l2=None):
        super().__init__()
        check_float("init", init, 0.0, math.inf, open_low=True, open_high=True)
        check_float("learning_rate", learning_rate, 0.0, math.inf, open_high=True)
        if l2 is not None:
            check_float("l2", l2, 0.0, math.inf, open_high=True)
        attr = paddle.ParamAttr(
            initializer=nn.initializer.Constant(init), learning_rate=learning_rate,
            regularizer=None if l2 is None else paddle.regularizer.L2Decay(l2))
        self.alpha = self.create_parameter(shape=[1], attr=attr, dtype="float32")

    def forward(self, x):
        """Clip ``x``; shape and data type are kept."""
        dtype = x.dtype
        x = as_dtype(x, paddle.float32)
        return as_dtype(clip(x, self.alpha), dtype)

    def clipping(self, x):
        """Return the :class:`Clipping` of ``x``, or None while tracing and for empty tensors.

        With it, :class:`paddleq.FakeQuantize` need not compute the maximum again, and clips in the
        pass that quantizes, or not at all if no value is clipped.
        """
        if not paddle.in_dynamic_mode() or 0 in x.shape:
            return None
        with paddle.no_grad():
            largest = as_dtype(paddle.maximum(x.max(), -x.min()), paddle.float32)
        bound = self.bound()
        return Clipping(self.alpha, bound, largest, scalar(largest) < scalar(bound))

    @classmethod
    def clips(cls, preprocess: Any) -> "TypeGuard[PACT]":
        """Return True if ``preprocess`` is a PACT whose ``forward`` is not overridden."""
        return isinstance(preprocess, cls) and type(preprocess).forward is cls.forward

    def bound(self):
        """Return the largest magnitude that is not clipped, float32 [1]."""
        return clipping_bound(self.alpha)
