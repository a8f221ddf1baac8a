"""Collector of the Hessian of a Linear layer's squared output error."""

from typing import Dict, Optional

import paddle

from .._checks import wrong_value
from .._paddle_compat import scalar
from ..errors import CalibrationError, NonFiniteError
from ..functional.qparams import as_dtype
from .base import Collector


class HessianCollector(Collector):
    """Mean of x^T x over all tokens of the inputs [..., K] of a Linear layer.

    This is half of the second derivative of the squared output error with respect to each column of
    the weight. It is a running mean, so that it does not grow with the number of tokens, in
    float32 also for inputs of half precision.

    Attributes:
        tokens: number of input vectors.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import HessianCollector
        >>> collector = HessianCollector()
        >>> collector.update(paddle.to_tensor([[1.0, -2.0], [3.0, 0.0]] * 2))
        >>> collector.result().tolist()
        [[5.0, -1.0], [-1.0, 2.0]]
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._mean: Optional[paddle.Tensor] = None

    def update(self, x: paddle.Tensor) -> None:
        """Add inputs [..., K]. A tensor without tokens changes nothing.

        Raises:
            NonFiniteError: a square is not finite in float32. The statistics are unchanged.
            ConfigError: K differs from the previous inputs.
        """
        if 0 in x.shape:
            return
        with paddle.no_grad():
            x = as_dtype(x.detach(), paddle.float32).reshape([-1, x.shape[-1]])
            if self._mean is not None and self._mean.shape[0] != x.shape[1]:
                raise wrong_value("x", list(x.shape), f"[..., {self._mean.shape[0]}] as before")
            self._add(_mean_of_squares(x), x.shape[0])

    def _add(self, mean, tokens):
        self.tokens += tokens
        self._mean = running_mean(self._mean, mean, tokens / self.tokens)

    def merge(self, other: "HessianCollector") -> None:
        if other._mean is not None:
            self._add(other._mean.clone(), other.tokens)

    def state_dict(self) -> Dict[str, paddle.Tensor]:
        state = {"tokens": paddle.to_tensor([self.tokens], dtype="int64")}
        return state if self._mean is None else {**state, "mean": self._mean}

    def load_state_dict(self, state: Dict[str, paddle.Tensor]) -> None:
        self.tokens = int(scalar(state["tokens"]))
        self._mean = state["mean"].clone() if "mean" in state else None

    def result(self) -> paddle.Tensor:
        """Return the mean, float32 [K, K].

        Raises:
            CalibrationError: there were no inputs.
        """
        if self._mean is None:
            raise CalibrationError("no calibration data has reached the layer: its "
                                   "Hessian is empty")
        return self._mean

    def divided_by(self, s: paddle.Tensor) -> "HessianCollector":
        """Return the statistics of x / s for positive factors s [K]."""
        quotient = HessianCollector()
        quotient.tokens = self.tokens
        if self._mean is not None:
            with paddle.no_grad():
                quotient._mean = (self._mean / s.unsqueeze(1)).divide_(
                    s.unsqueeze(0).expand(self._mean.shape))
        return quotient


def running_mean(mean, new, share):
    """Return ``new`` with weight ``share`` averaged with ``mean``. Both are overwritten."""
    return new if mean is None else mean.scale_(1.0 - share).add_(new.scale_(share))


def _mean_of_squares(x):
    """Return the mean of x^T x over the rows of x."""
    x = x * x.shape[0] ** -0.5
    square = paddle.matmul(x, x, transpose_x=True)
    # The largest element of a positive semidefinite matrix is on its diagonal.
    if not bool(paddle.isfinite(paddle.diagonal(square)).all()):
        raise NonFiniteError("an input of the layer holds NaN, infinity or values whose square is "
                             "not finite in float32")
    return square
