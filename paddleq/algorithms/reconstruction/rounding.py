"""Optimization of the rounding of one weight by Adam."""

from typing import Any, Callable, Optional

import numpy as np
import paddle

from ...fake_quant.fake_quantize import FakeQuantize
from ...fake_quant.learned_rounding import (
    LearnedRounding,
    fixed_quantizer,
    grid_positions,
    lower_integers,
)
from ...functional.fake_quant import aligned, round_and_clip_
from ...functional.qparams import as_dtype
from ...functional.soft_rounding import (
    inverse_rectified_sigmoid,
    rectified_sigmoid,
    regularizer_slope,
    slope,
)
from .adam import Adam

# Weights this close to the end of the range, in steps, define it and keep their integers.
_AT_END = 1e-3
_SURE = 30.0  # v of which h is 0 or 1 whatever the gradient


def _unchanged(array: np.ndarray) -> np.ndarray:
    return array


class SoftRounding:
    """Weight w = (floor(w / s) + h(v)) * s with a learned v for each element.

    Args:
        weight: float tensor.
        quantizer: its FakeQuantize, with its scale.
        to_matrix: function that gives an array of the weight's shape another layout, in which
            the weight is optimized. Default: none.
        from_matrix: the inverse function.
    """

    def __init__(self, weight: paddle.Tensor, quantizer: FakeQuantize,
                 to_matrix: Callable = _unchanged, from_matrix: Callable = _unchanged) -> None:
        self.spec, self._from_matrix = quantizer.spec, from_matrix
        self.spec.require_integers("learned rounding")
        with paddle.no_grad():
            value = as_dtype(weight.detach(), paddle.float32)
            abs_max, zero_point = quantizer.qparams_of(value)
            self.abs_max, self.zero_point = abs_max.detach().clone(), zero_point
            positions = grid_positions(value, abs_max, self.spec)
            zero = paddle.zeros_like(abs_max) if zero_point is None else (
                zero_point.astype("float32"))

            def matrix(tensor):
                return paddle.to_tensor(np.ascontiguousarray(to_matrix(
                    np.broadcast_to(tensor.numpy(), value.shape))))

            def limit(integer):
                return matrix(aligned(float(integer) - zero, value, self.spec))

            lowest, highest = limit(self.spec.quant_min), limit(self.spec.quant_max)
            self._low = matrix(lower_integers(value, abs_max, self.spec))
            self._step = matrix(aligned(abs_max / float(self.spec.quant_max), value, self.spec))
            self._limits = lowest, highest
            share = matrix(positions) - self._low
            # Their gradient is zero: they are outside of the range, or define it.
            at_end = ((matrix(positions).abs() >= highest - _AT_END) if self.spec.symmetric
                      else paddle.zeros_like(share).astype("bool"))
            fixed = at_end | (self._low >= highest) | (self._low + 1.0 <= lowest)
            sure = paddle.where(share >= 0.5, paddle.full_like(share, _SURE),
                                paddle.full_like(share, -_SURE))
            self._free = 1.0 - fixed.astype("float32")
            self._v = paddle.where(fixed, sure, inverse_rectified_sigmoid(share))
            self._nearest = matrix(self._nearest_integers(positions, zero))
            self._adam = Adam(self._v)
            self._leaf: Any = None

    def _nearest_integers(self, positions, zero):
        offset = 0 if self.zero_point is None else aligned(zero, positions, self.spec)
        return round_and_clip_(positions.clone(), self.spec, offset)

    def h(self) -> paddle.Tensor:
        """Return the share of a step that is added to each lower integer."""
        return rectified_sigmoid(self._v)

    def _weight(self, h):
        low, high = self._limits
        return paddle.minimum(paddle.maximum(self._low + h, low), high) * self._step

    def leaf(self) -> paddle.Tensor:
        """Return the weight of the current v, whose gradient :meth:`step` uses."""
        with paddle.no_grad():
            self._leaf = self._weight(self.h())
        self._leaf.stop_gradient = False
        return self._leaf

    def step(self, learning_rate: float, regularization: float, beta: Optional[float]) -> None:
        """Update v by Adam with the gradient of the leaf and, unless ``beta`` is None, of the
        regularizer."""
        with paddle.no_grad():
            h = self.h()
            gradient = self._leaf.grad * self._step
            if beta is not None:
                gradient = gradient + regularization * regularizer_slope(h, beta)
            gradient = gradient * slope(self._v) * self._free
            self._adam.step(gradient, learning_rate)

    def hard(self) -> paddle.Tensor:
        """Return the weight with each h rounded to 0 or 1, in the layout of :meth:`leaf`."""
        with paddle.no_grad():
            return self._weight((self.h() >= 0.5).astype("float32"))

    def nearest(self) -> paddle.Tensor:
        """Return the weight rounded to nearest, in the layout of :meth:`leaf`."""
        with paddle.no_grad():
            return self._nearest * self._step

    def make_parts(self, label: str) -> tuple:
        """Return (preprocess, quantizer) that replace those of the layer's weight."""
        up = self._from_matrix((self.h() >= 0.5).numpy())
        rounding = LearnedRounding(paddle.to_tensor(up.astype("int8")), self.abs_max, self.spec,
                                   self.zero_point)
        return rounding, fixed_quantizer(self.abs_max, self.spec, self.zero_point, label)
