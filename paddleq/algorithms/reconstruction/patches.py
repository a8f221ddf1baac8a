"""Convolutions and Linears as matrix products on sampled output positions.

A layer with G groups computes y[p, g] = x[p, g] @ w[g] + b[g] for each output position p, where
x[p, g] [K] holds the inputs that p reads (im2col) and w[g] is [K, N]. A few thousand positions are
enough to choose a rounding, and their product is cheaper than the convolution of whole maps.
"""

import abc
import math
from typing import Any, Dict, List, Literal, Optional, Sequence

import numpy as np
import paddle
from paddle import nn

from ..._paddle_compat import (
    convolution_geometry,
    convolution_groups,
    data_format,
)

_CONVOLUTIONS = (nn.Conv1D, nn.Conv2D, nn.Conv3D)
_TRANSPOSED = (nn.Conv1DTranspose, nn.Conv2DTranspose, nn.Conv3DTranspose)
_PAD_MODES: Dict[str, Literal["constant", "reflect", "edge", "wrap"]] = {
    "zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def product_of(layer: nn.Layer, cls: type) -> Optional["Product"]:
    """Return the :class:`Product` of a layer of class ``cls``, None for other layers."""
    if cls is nn.Linear:
        return LinearProduct(layer)
    if cls in _CONVOLUTIONS:
        return ConvolutionProduct(layer)
    return TransposedProduct(layer) if cls in _TRANSPOSED else None


class Product(abc.ABC):
    """A layer as a matrix product on positions. Each kind of layer has a subclass.

    Attributes:
        groups: number of groups G.
    """

    groups = 1

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    @abc.abstractmethod
    def matrix(self, weight: np.ndarray) -> np.ndarray:
        """Return a tensor of the weight's shape as [G, K, N]."""

    @abc.abstractmethod
    def weight(self, matrix: np.ndarray) -> np.ndarray:
        """Return [G, K, N] in the shape of the weight; the inverse of :meth:`matrix`."""

    def bias(self, bias: np.ndarray) -> np.ndarray:
        """Return values of output channels [G * N] as [G, 1, N]."""
        return bias.reshape([self.groups, 1, -1])

    @abc.abstractmethod
    def positions(self, y: np.ndarray) -> int:
        """Return the number of positions of an output."""

    @abc.abstractmethod
    def outputs(self, y: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """Return the output at the ``chosen`` positions, [G, P, N]."""

    @abc.abstractmethod
    def inputs(self, x: np.ndarray, y_shape: Sequence[int], chosen: np.ndarray) -> np.ndarray:
        """Return the inputs that the ``chosen`` positions read, [G, P, K]."""

    def by_groups(self, columns: np.ndarray) -> np.ndarray:
        """Return [P, G * N] as [G, P, N]."""
        return np.ascontiguousarray(
            columns.reshape([len(columns), self.groups, -1]).transpose(1, 0, 2))


class LinearProduct(Product):
    """A Linear; its positions are the rows of its input."""

    def matrix(self, weight):
        return weight[None]

    def weight(self, matrix):
        return matrix[0]

    def positions(self, y):
        return math.prod(y.shape[:-1])

    def outputs(self, y, chosen):
        return y.reshape([-1, y.shape[-1]])[chosen][None]

    def inputs(self, x, y_shape, chosen):
        return x.reshape([-1, x.shape[-1]])[chosen][None]


class ConvolutionProduct(Product):
    """A convolution; a position is one element of one channel of its output."""

    def __init__(self, layer):
        super().__init__(layer)
        self.groups = convolution_groups(layer)
        self.last = data_format(layer).endswith("C")
        self.geometry = convolution_geometry(layer)

    def matrix(self, weight):
        # [out, in / G, *kernel] -> [G, kernel * in / G, out / G]
        grouped = weight.reshape([self.groups, -1, *weight.shape[1:]])
        moved = np.moveaxis(grouped, 2, -1)  # [G, N, *kernel, in / G]
        return np.ascontiguousarray(
            moved.reshape([*moved.shape[:2], -1]).transpose(0, 2, 1))

    def weight(self, matrix):
        shape = self.layer.weight.shape
        channels, kernel = shape[1], shape[2:]
        moved = matrix.transpose(0, 2, 1).reshape([self.groups, -1, *kernel, channels])
        return np.ascontiguousarray(np.moveaxis(moved, -1, 2)).reshape(shape)

    def _channels_last(self, x):
        return x if self.last else np.moveaxis(x, 1, -1)

    def positions(self, y):
        shape = list(y.shape)
        del shape[-1 if self.last else 1]
        return math.prod(shape)

    def outputs(self, y, chosen):
        moved = self._channels_last(y)
        index = np.unravel_index(chosen, moved.shape[:-1])
        return self.by_groups(moved[index])

    def inputs(self, x, y_shape, chosen):
        geometry, kernel = self.geometry, self.layer.weight.shape[2:]
        moved = self._channels_last(x)
        sizes = list(y_shape)
        del sizes[-1 if self.last else 1]
        index = np.unravel_index(chosen, sizes)
        padding = geometry.padding_of(moved.shape[1:-1], kernel)
        padded = np.pad(moved, [(0, 0), *padding, (0, 0)], _PAD_MODES[geometry.padding_mode])
        return self._gather(padded, index, kernel, geometry.stride)

    def _gather(self, padded, index, kernel, stride):
        """Return [G, P, kernel * C / G] of ``padded``, [batch, *sizes, C]."""
        rank, dilation = len(kernel), self.geometry.dilation
        where = [index[0].reshape([-1] + [1] * rank)]
        for axis, size in enumerate(kernel):
            offsets = np.arange(size) * dilation[axis]
            shape = [1] * (rank + 1)
            shape[axis + 1] = size
            starts = index[axis + 1].reshape([-1] + [1] * rank) * stride[axis]
            where.append(starts + offsets.reshape(shape))
        patches = padded[tuple(where)]  # [P, *kernel, C]
        count, channels = len(patches), patches.shape[-1]
        grouped = patches.reshape([count, -1, self.groups, channels // self.groups])
        return np.ascontiguousarray(grouped.transpose(2, 0, 1, 3)).reshape([self.groups, count, -1])


class TransposedProduct(ConvolutionProduct):
    """A transposed convolution: a convolution of the input with zeros between its elements."""

    def matrix(self, weight):
        # [in, out / G, *kernel] -> [G, kernel * in / G, out / G], with the kernel flipped.
        kernel = tuple(range(2, weight.ndim))
        flipped = np.flip(weight, kernel)
        grouped = flipped.reshape([self.groups, -1, *weight.shape[1:]])  # [G, C, N, *kernel]
        moved = np.moveaxis(grouped, (1, 2), (-2, -1))
        return np.ascontiguousarray(moved.reshape([self.groups, -1, weight.shape[1]]))

    def weight(self, matrix):
        shape = self.layer.weight.shape
        kernel = shape[2:]
        moved = matrix.reshape([self.groups, *kernel, -1, shape[1]])
        grouped = np.moveaxis(moved, (-2, -1), (1, 2))
        flipped = grouped.reshape(shape)
        return np.ascontiguousarray(np.flip(flipped, tuple(range(2, len(shape)))))

    def inputs(self, x, y_shape, chosen):
        geometry, kernel = self.geometry, self.layer.weight.shape[2:]
        moved = self._channels_last(x)
        sizes = list(y_shape)
        del sizes[-1 if self.last else 1]
        index = np.unravel_index(chosen, sizes)
        padding = geometry.padding_of(moved.shape[1:-1], kernel)
        spread = np.zeros([len(moved), *((size - 1) * step + 1 for size, step in zip(
            moved.shape[1:-1], geometry.stride)), moved.shape[-1]], moved.dtype)
        spread[(slice(None), *(slice(None, None, step) for step in geometry.stride))] = moved
        sides: List[Any] = []
        for axis, size in enumerate(kernel):
            reach = geometry.dilation[axis] * (size - 1)
            before = reach - padding[axis][0]
            # All of the output, including output_padding.
            after = sizes[axis + 1] + reach - before - spread.shape[axis + 1]
            sides.append((before, after))
        for axis, (before, after) in enumerate(sides):
            cut = [slice(None)] * spread.ndim
            cut[axis + 1] = slice(max(0, -before), spread.shape[axis + 1] - max(0, -after))
            spread = spread[tuple(cut)]
        padded = np.pad(spread, [(0, 0), *((max(0, a), max(0, b)) for a, b in sides), (0, 0)])
        return self._gather(padded, index, kernel, [1] * len(kernel))


def product(x: paddle.Tensor, w: paddle.Tensor, bias: Optional[paddle.Tensor]) -> paddle.Tensor:
    """Compute [G, P, K] @ [G, K, N] + [G, 1, N]."""
    if w.shape[0] == 1:
        y = paddle.matmul(x[0], w[0]).unsqueeze(0)
    elif w.shape[2] == 1:  # depthwise: elementwise products are faster than G small ones
        y = (x * w.reshape([w.shape[0], 1, w.shape[1]])).sum(-1, keepdim=True)
    else:
        y = paddle.matmul(x, w)
    return y if bias is None else y + bias
