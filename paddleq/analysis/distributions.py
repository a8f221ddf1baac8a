"""How the values are distributed that quantizers meet, and what they clip of them."""

import math
from dataclasses import dataclass
from typing import Optional, Tuple

import numpy as np
import paddle

from ..engine import quantized_layers
from ..errors import NonFiniteError
from ..fake_quant import PACT
from ..fake_quant.fake_quantize import FakeQuantize
from ..functional import representable_range
from ..nn.quantized_layer import quantizer_name, slot_name
from .scale_history import part_of, qparams_now
from .sqnr import tensors_in

BINS = 4096  # of a streamed histogram; a multiple of 4


class Histogram:
    """Counts of values in bins of equal width around 0, over a range that grows with the data.

    The range is [-top, top), top a power of two. When it grows, neighbouring bins are joined: the
    counts are those that a histogram over the last range would have from the start.

    Attributes:
        counts: int64 [bins].
        top: end of the range; 0 before there are values.
        low, high: smallest and largest value.
        total: number of values.
    """

    def __init__(self, bins=BINS):
        self.counts = np.zeros(bins, np.int64)
        self.top, self.total = 0.0, 0
        self.low, self.high = math.inf, -math.inf

    def add(self, values):
        """Take in an array of finite numbers."""
        if not values.size:
            return
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        largest = max(-self.low, self.high)
        if largest >= self.top:
            self._widen(2.0 ** math.frexp(largest)[1])
        span = self.top or 1.0
        self.counts += np.histogram(values, len(self.counts), (-span, span))[0]
        self.total += values.size

    def _widen(self, top):
        if self.top:
            self.counts, self.top = _over(self.counts, self.top, top)
            return
        # Only zeros so far.
        zeros, self.top = self.counts.sum(), top
        self.counts[:] = 0
        self.counts[len(self.counts) // 2] = zeros

    def shown(self, low, high, bars):
        """(counts, edges) in at most ``bars`` equal bins over the values and low and high.

        ``low`` and ``high`` may be None.
        """
        low = self.low if low is None else min(low, self.low)
        high = self.high if high is None else max(high, self.high)
        counts, top = _over(self.counts, self.top or 1.0, max(-low, high))
        edges = np.linspace(-top, top, len(counts) + 1)
        first = max(int(np.searchsorted(edges, low, "right")) - 1, 0)
        last = min(int(np.searchsorted(edges, high, "right")), len(counts))
        width = -(-(last - first) // bars)
        last = min(first + -(-(last - first) // width) * width, len(counts))
        starts = np.arange(first, last, width)
        return np.add.reduceat(counts[:last], starts), np.append(edges[starts], edges[last])


def _over(counts, top, wanted):
    """(counts, top) of a histogram over [-top, top), joined until that covers ``wanted``."""
    bins = len(counts)
    while top < wanted:
        joined, counts = counts.reshape(-1, 2).sum(1), np.zeros(bins, np.int64)
        counts[bins // 4:3 * bins // 4] = joined
        top *= 2.0
    return counts, top


@dataclass
class Distribution:
    """The values that one quantizer met.

    Attributes:
        name: of the quantizer, such as ``conv1.activation_quantizer``.
        histogram: a :class:`Histogram` of them, before any preprocess.
        low, high: the clipping range; where each channel has its own, the widest. None where the
            quantizer has no scale yet.
        narrowest: the narrowest such range, as (low, high).
        clipped: number of values outside of the range of their channel.
        fixed: the range is not that of each tensor anew, so that there may be such values.
    """

    name: str
    histogram: Histogram
    low: Optional[float] = None
    high: Optional[float] = None
    narrowest: Tuple[float, ...] = ()
    clipped: int = 0
    fixed: bool = True

    @property
    def share(self):
        """Share of the values that are clipped."""
        return self.clipped / max(self.histogram.total, 1)

    @property
    def part(self):
        """Which part of the layer it is of: "activation", "weight", "activation 1"..."""
        return part_of(self.name)[1]


class Distributions:
    """Distributions of a model's weights, and of its activations as its layers see them.

    Args:
        model: a quantized model.

    Attributes:
        layers: name -> quantized layer.
        found: name -> list of :class:`Distribution`, one for each FakeQuantize that met values.
    """

    def __init__(self, model):
        self.layers = dict(quantized_layers(model))
        self.found = {name: [] for name in self.layers}

    def see_weights(self):
        """Take in the weights of all layers."""
        for name, layer in self.layers.items():
            for weight in layer._paddleq_kind.weights:
                self.add(name, quantizer_name(weight), layer.weight_to_quantize(weight))

    def see(self, name, args, kwargs, output):
        """Take in a call of the layer ``name``, for :func:`.running.capture_calls`."""
        layer = self.layers[name]
        for slot, position in enumerate(layer._paddleq_kind.inputs):
            attribute = slot_name("activation_quantizer", slot)
            argument = layer._paddleq_arguments[position]
            if position < len(args):
                self.add(name, attribute, args[position])
            elif argument in kwargs:
                self.add(name, attribute, kwargs[argument])
        if layer._paddleq_block is None:
            # (What ends a block leaves it elsewhere.)
            self.add(name, "output_quantizer", output)

    def add(self, name, attribute, value):
        """Take in what goes into the quantizer ``attribute`` of the layer ``name``.

        Raises:
            NonFiniteError: NaN or infinity; names the quantizer.
        """
        layer = self.layers[name]
        quantizer = getattr(layer, attribute, None)
        if not isinstance(quantizer, FakeQuantize):
            return
        label = f"{name}.{attribute}" if name else attribute
        distribution = next((each for each in self.found[name] if each.name == label), None)
        if distribution is None:
            distribution = Distribution(label, Histogram(), fixed=not quantizer.observer.dynamic)
            self.found[name].append(distribution)
        for tensor in tensors_in(value):
            values = tensor.detach().astype("float32").numpy()
            if not np.isfinite(values).all():
                self.not_finite(label)
                continue
            distribution.histogram.add(values)
            limits = _limits(layer, attribute, quantizer)
            if limits is not None:
                _count_clipped(distribution, values, *limits, quantizer.spec.channel_axis)
            self.added(label, values)

    def added(self, label, values):
        """Called with each array that was taken in."""

    def not_finite(self, label):
        """Called instead where an array has NaN or infinity in it."""
        raise NonFiniteError(f"{label} meets NaN or infinite values; remove that batch or mend the "
                             "model")


def _limits(layer, attribute, quantizer):
    """(low, high) of what is not clipped, arrays; None where there is no scale, or none that is a
    number, as after a step that overflowed.
    """
    found = qparams_now(layer, attribute, quantizer)
    if found is None:
        return None
    threshold, zero_point = found
    low, high = representable_range(threshold, quantizer.spec, zero_point)
    preprocess = getattr(layer, attribute.replace("_quantizer", "_preprocess"), None)
    if PACT.clips(preprocess):
        bound = preprocess.bound()
        low, high = paddle.maximum(low, -bound), paddle.minimum(high, bound)
    low, high = low.detach().numpy(), high.detach().numpy()
    return (low, high) if np.isfinite(low).all() and np.isfinite(high).all() else None


def _count_clipped(distribution, values, low, high, axis):
    distribution.low, distribution.high = float(low.min()), float(high.max())
    distribution.narrowest = float(low.max()), float(high.min())
    shape = [1] * values.ndim
    if low.size > 1:
        shape[axis] = -1
    hair = 1.0 + 1e-6  # the largest value, divided by a step and multiplied again
    below, above = low.reshape(shape) * hair, high.reshape(shape) * hair
    distribution.clipped += int(((values < below) | (values > above)).sum())
