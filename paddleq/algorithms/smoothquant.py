"""SmoothQuant (arXiv:2211.10438): move outliers from the activations to the weights."""

from dataclasses import dataclass
from functools import reduce

import paddle

from .._checks import check_float
from .base import Smoother, checked_statistics, checked_weight, register_algorithm

_MIN_FACTOR = 1e-5


@register_algorithm("smoothquant")
@dataclass(frozen=True)
class SmoothQuant(Smoother):
    """Compute a smoothing factor s per input feature; the layer computes (x / s) @ (W * s).

    s = max|x| ** strength / max|W| ** (1 - strength), with max|W| over the row of the feature in
    all weights with this input. Features that are always 0 have the factor 1.

    Args:
        strength: share of the outliers' magnitude that moves to the weights, in [0, 1]. Use a
            larger value for larger outliers in the activations. Default 0.5.

    Raises:
        ConfigError, ConfigTypeError: strength is out of range or not a number.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.algorithms import SmoothQuant
        >>> from paddleq.observers import ChannelStats
        >>> stats = ChannelStats({"abs_max"})
        >>> stats.update(paddle.to_tensor([[1.0, -64.0]]))
        >>> weight = paddle.to_tensor([[1.0, -0.5], [0.25, 0.125]])
        >>> SmoothQuant(0.5).scales([weight], stats, QuantSpec()).tolist()
        [1.0, 16.0]
    """

    strength: float = 0.5

    name = "SmoothQuant"
    needs = frozenset({"abs_max"})

    def __post_init__(self):
        check_float("strength", self.strength, 0.0, 1.0)

    def scales(self, weights, stats, spec):
        weights = [checked_weight(weight, spec) for weight in weights]
        x_max = checked_statistics(stats.abs_max, weights[0], "abs_max")
        with paddle.no_grad():
            w_max = reduce(paddle.maximum, (weight.abs().max(axis=1) for weight in weights))
            dead = (x_max == 0.0).logical_or(w_max == 0.0)
            s = x_max ** self.strength / w_max.clip(min=_MIN_FACTOR) ** (1.0 - self.strength)
            return paddle.where(dead, paddle.ones_like(s), s.clip(min=_MIN_FACTOR))
