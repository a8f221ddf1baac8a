"""Lowest and highest value."""

import paddle

from ..functional.numerics import as_dtype
from .base import Observer


class MinMaxObserver(Observer):
    """Running minimum and maximum; the range always contains 0.

    Examples:
        >>> import paddle
        >>> from paddleq.observers import MinMaxObserver
        >>> observer = MinMaxObserver()
        >>> observer.observe(paddle.to_tensor([1.0, 4.0]))
        >>> [t.tolist() for t in observer.range()], observer.threshold().tolist()
        ([[0.0], [4.0]], [4.0])
    """

    def __init__(self, spec=None, channels=None):
        super().__init__(spec, channels)
        self._float_buffer("min")
        self._float_buffer("max")

    def _update(self, x):
        x = as_dtype(x, paddle.float32)
        axis = self.spec.channel_axis
        if axis is None:
            low, high = x.min().reshape([1]), x.max().reshape([1])
        else:
            others = [i for i in range(len(x.shape)) if i != axis % len(x.shape)]
            low, high = x.min(axis=others), x.max(axis=others)
        self._assign("min", paddle.minimum(self.min, low))
        self._assign("max", paddle.maximum(self.max, high))

    def _merge(self, other):
        self._assign("min", paddle.minimum(self.min, other.min))
        self._assign("max", paddle.maximum(self.max, other.max))

    def range(self):
        return self.min, self.max

    def threshold(self):
        return self._floored(paddle.maximum(-self.min, self.max))
