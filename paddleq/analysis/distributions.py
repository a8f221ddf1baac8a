"""Distributions of the inputs of quantizers, and the share of values that they clip."""

import math
from dataclasses import dataclass
from typing import Any, Optional, Tuple

import numpy as np
import paddle

from ..engine import quantized_layers
from ..errors import NonFiniteError
from ..fake_quant import PACT
from ..fake_quant.fake_quantize import FakeQuantize
from ..nn.call_numbers import last_call
from ..nn.input_slots import slot_name, slots_of_call
from ..nn.weight_parts import quantizer_name
from .scale_history import current_qparams, full_name, split_quantizer_name
from .sqnr import float_tensors

BINS = 4096  # of a streaming histogram, a multiple of 4


class Histogram:
    """Streaming histogram over a symmetric range that grows with the data.

    The range is [-top, top), where top is a power of two. When it grows, neighbouring bins are
    merged, so the counts equal those of a histogram over the final range.
    """

    def __init__(self, bins: int = BINS):
        self.counts = np.zeros(bins, np.int64)
        self.top, self.total = 0.0, 0
        self.low, self.high = math.inf, -math.inf

    def add(self, values: np.ndarray) -> None:
        """Add an array of finite numbers."""
        if not values.size:
            return
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        largest = max(-self.low, self.high)
        if largest >= self.top:
            top = 2.0 ** math.frexp(largest)[1]
            self.counts, self.top = _merge_bins(self.counts, self.top or top, top)
        self.counts += np.histogram(values, len(self.counts), (-self.top, self.top))[0]
        self.total += values.size

    def rebin(self, low: Optional[float], high: Optional[float],
              bins: int) -> Tuple[np.ndarray, np.ndarray]:
        """Return (counts, edges) of at most ``bins`` equal bins over values, ``low``, ``high``."""
        low = self.low if low is None else min(low, self.low)
        high = self.high if high is None else max(high, self.high)
        counts, top = _merge_bins(self.counts, self.top, max(-low, high))
        edges = np.linspace(-top, top, len(counts) + 1)
        first = max(int(np.searchsorted(edges, low, "right")) - 1, 0)
        last = min(int(np.searchsorted(edges, high, "right")), len(counts))
        width = -(-(last - first) // bins)
        last = min(first + -(-(last - first) // width) * width, len(counts))
        starts = np.arange(first, last, width)
        return np.add.reduceat(counts[:last], starts), np.append(edges[starts], edges[last])


def _merge_bins(counts, top, wanted):
    """Widen the range [-top, top) of a histogram to ``wanted``. Return (counts, new top)."""
    bins = len(counts)
    while top < wanted:
        merged, counts = counts.reshape(-1, 2).sum(1), np.zeros(bins, np.int64)
        counts[bins // 4:3 * bins // 4] = merged
        top *= 2.0
    return counts, top


@dataclass
class Distribution:
    """Inputs of one quantizer."""

    name: str  # of the quantizer, such as conv1.activation_quantizer
    histogram: Histogram  # of the values before any preprocessing
    low: Optional[float] = None  # clipping limits, the widest of all channels; None without a scale
    high: Optional[float] = None
    narrowest: Tuple[float, ...] = ()  # (lower, upper) clipping limit of all channels
    clipped: int = 0  # number of values
    fixed: bool = True  # False if each tensor has its own range, so that nothing is clipped

    @property
    def clipped_share(self) -> float:
        """Share of the values that are clipped."""
        return self.clipped / max(self.histogram.total, 1)

    @property
    def part(self) -> str:
        """Part of the layer that is quantized: "activation", "weight", "activation 1"..."""
        return split_quantizer_name(self.name)[1]

    def count_clipped(self, values: np.ndarray, low: np.ndarray, high: np.ndarray,
                      axis: Optional[int]) -> None:
        """Set the limits, one or one for each channel along ``axis``, and count ``values``."""
        self.low, self.high = float(low.min()), float(high.max())
        self.narrowest = float(low.max()), float(high.min())
        shape = [1] * values.ndim
        if axis is not None:
            shape[axis] = -1
        tolerance = 1.0 + 1e-6  # the scale is rounded
        below, above = low.reshape(shape) * tolerance, high.reshape(shape) * tolerance
        self.clipped += int(((values < below) | (values > above)).sum())


class Distributions:
    """Distributions of the weights and activations of a quantized model."""

    def __init__(self, model: paddle.nn.Layer):
        self.layers = dict(quantized_layers(model))
        self.found = {name: [] for name in self.layers}  # a Distribution for each FakeQuantize

    def add_weights(self) -> None:
        """Add the weights of all layers."""
        for name, layer in self.layers.items():
            for weight in layer._paddleq.kind.weights:
                self._add(name, quantizer_name(weight), layer.weight_to_quantize(weight))

    def add_call(self, name: str, args: tuple, kwargs: dict, output: Any) -> None:
        """Add a call of the layer ``name``. Callback of :func:`paddleq.engine.capture_calls`."""
        state = self.layers[name]._paddleq
        call = 0 if state.kind.weights else last_call(self.layers[name])
        for slot in slots_of_call(self.layers[name], call):
            position = state.kind.inputs[slot]
            value = (args[position] if position < len(args)
                     else kwargs.get(state.arguments[position]))
            self._add(name, slot_name("activation_quantizer", slot), value)
        if state.block is None:
            # The output of a fused block is quantized by its last layer.
            self._add(name, slot_name("output_quantizer", call), output)

    def _add(self, name, attribute, value):
        layer = self.layers[name]
        quantizer = getattr(layer, attribute, None)
        if not isinstance(quantizer, FakeQuantize):
            return
        label = full_name(name, attribute)
        for tensor in float_tensors(value):
            if 0 in tensor.shape:
                continue
            values = tensor.detach().astype("float32").numpy()
            if not np.isfinite(values).all():
                self.on_non_finite(label)
                continue
            distribution = next((each for each in self.found[name] if each.name == label), None)
            if distribution is None:
                distribution = Distribution(label, Histogram(),
                                            fixed=not quantizer.observer.dynamic)
                self.found[name].append(distribution)
            distribution.histogram.add(values)
            limits = _limits(layer, attribute, quantizer)
            if limits is not None:
                distribution.count_clipped(values, *limits, quantizer.spec.channel_axis)
            self.on_values(label, values)

    def on_values(self, label: str, values: np.ndarray) -> None:
        """Handle an array that was added. Does nothing by default."""

    def on_non_finite(self, label: str) -> None:
        """Handle an array with NaN or infinite values."""
        raise NonFiniteError(f"{label} receives NaN or infinite values; remove that batch or "
                             "correct the model")


def _limits(layer, attribute, quantizer):
    """Return the arrays (low, high) of the clipping limits, or None without a finite scale.

    A training step that overflowed leaves scales that are not finite.
    """
    found = current_qparams(layer, attribute, quantizer)
    if found is None:
        return None
    scale, zero_point = found
    zero = 0.0 if zero_point is None else zero_point.astype("float32")
    low, high = (scale * (limit - zero) for limit in (quantizer.quant_min, quantizer.quant_max))
    preprocess = getattr(layer, attribute.replace("_quantizer", "_preprocess"), None)
    if PACT.clips(preprocess):
        bound = preprocess.bound()
        low, high = paddle.maximum(low, -bound), paddle.minimum(high, bound)
    low, high = low.detach().numpy(), high.detach().numpy()
    return (low, high) if np.isfinite(low).all() and np.isfinite(high).all() else None
