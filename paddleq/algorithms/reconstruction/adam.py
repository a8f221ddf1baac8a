"""Adam for one tensor whose gradient is computed by hand."""

import paddle

_FIRST, _SECOND, _EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """Adam (arXiv:1412.6980) with the default decay rates.

    Args:
        value: float32 tensor that :meth:`step` changes in place.
    """

    def __init__(self, value: paddle.Tensor) -> None:
        self._value = value
        self._moments = [paddle.zeros_like(value) for _ in range(2)]
        self._steps = 0

    def step(self, gradient: paddle.Tensor, learning_rate: float) -> None:
        """Update the value with its gradient; call it under ``paddle.no_grad()``."""
        self._steps += 1
        first, second = self._moments
        first.scale_(_FIRST).add_(gradient.scale(1.0 - _FIRST))
        second.scale_(_SECOND).add_(gradient.square().scale_(1.0 - _SECOND))
        correction = (1.0 - _SECOND ** self._steps) ** 0.5 / (1.0 - _FIRST ** self._steps)
        self._value.subtract_(
            (first / (second.sqrt() + _EPSILON)).scale_(learning_rate * correction))
