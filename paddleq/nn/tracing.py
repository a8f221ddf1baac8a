"""How a quantized layer runs a tensor through its quantizer, and what it does instead while an
export is traced: it leaves a marker.

A marker is a ``scale`` op with a factor that nobody else uses and a bias that numbers it. Every
Paddle version traces that op, into the old program as into PIR; the export finds it there and
puts the quantize and dequantize ops in its place.
"""

import abc
import threading
from contextlib import contextmanager

import numpy as np
import paddle

from ..fake_quant import PACT
from ..fake_quant.fake_quantize import FakeQuantize

MARKER_FACTOR = float(np.float32(0.7390851))

_current = threading.local()


class Recorder(abc.ABC):
    """Takes the place of the quantizers while an export is traced, and leaves markers.

    Attributes:
        marks: what each marker stands for; marker number n is ``marks[n - 1]``.
    """

    def __init__(self):
        self.marks = []

    def mark(self, x, meaning):
        """``x`` behind a marker for ``meaning``."""
        self.marks.append(meaning)
        return paddle.scale(x, scale=MARKER_FACTOR, bias=float(len(self.marks)))

    @abc.abstractmethod
    def activation(self, x, layer, slot):
        """Input number ``slot`` of ``layer``, as it is to be traced."""

    @abc.abstractmethod
    def output(self, y, layer):
        """What leaves ``layer``, as it is to be traced."""

    @abc.abstractmethod
    def weight(self, weight, layer, name):
        """The parameter ``name`` of ``layer``, as it is to be traced."""

    @abc.abstractmethod
    def stored_weight(self, layer, name="weight"):
        """The float weight of a layer that holds integers, or None.

        None: the operators that make it of the integers are to be traced.
        """


@contextmanager
def recording(recorder):
    """While this context is open, quantized layers of this thread leave markers."""
    _current.recorder = recorder
    try:
        yield recorder
    finally:
        _current.recorder = None


def recorder():
    """The recorder of this thread, None where no export is traced."""
    return getattr(_current, "recorder", None)


def run_activation(x, preprocess, quantizer, layer, slot):
    """Input number ``slot`` of ``layer`` on its way through preprocess and quantizer."""
    if recorder() is not None:
        return recorder().activation(x, layer, slot)
    if (PACT.clips(preprocess) and isinstance(quantizer, FakeQuantize)
            and quantizer.bounded and quantizer.spec.symmetric):
        if layer.training:
            clipping = preprocess.clipping(x)
            if quantizer.takes(clipping):
                return quantizer(x, clipping)
            return quantizer(preprocess(x), bound=preprocess.bound())
        # Outside of training alpha is part of the threshold: that is what is exported.
        return quantizer.clipped(x, preprocess.bound())
    if preprocess is not None:
        x = preprocess(x)
    return x if quantizer is None else quantizer(x)


def run_output(y, quantizer, layer):
    """The output ``y`` of ``layer``, or of the block it begins, on its way through the quantizer.
    """
    return quantizer(y) if recorder() is None else recorder().output(y, layer)


def run_weight(weight, preprocess, quantizer, layer, name):
    """The parameter ``name`` of ``layer`` on its way through preprocess and quantizer."""
    if recorder() is not None:
        return recorder().weight(weight, layer, name)
    if preprocess is not None:
        weight = preprocess(weight)
    return weight if quantizer is None else quantizer(weight)
