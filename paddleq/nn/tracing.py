"""Markers in place of the quantization of tensors in layers while an export is traced.

A marker is a ``scale`` operator with a reserved factor and its number as bias. All Paddle versions
trace it into programs and PIR, where the export replaces it by quantize and dequantize operators.
"""

import abc
import threading
from contextlib import contextmanager
from typing import Any

import numpy as np
import paddle

MARKER_FACTOR = float(np.float32(0.7390851))

_current = threading.local()


class Recorder(abc.ABC):
    """Insert markers in place of the quantizers while an export is traced.

    Attributes:
        marks: meaning of each marker; marker number n is ``marks[n - 1]``.
    """

    def __init__(self):
        self.marks = []

    def mark(self, x, meaning):
        """Return ``x`` behind a new marker for ``meaning``."""
        self.marks.append(meaning)
        return paddle.scale(x, scale=MARKER_FACTOR, bias=float(len(self.marks)))

    @abc.abstractmethod
    def activation(self, x, layer, slot):
        """Return the tensor to trace for input number ``slot`` of ``layer``."""

    @abc.abstractmethod
    def output(self, y, layer):
        """Return the tensor to trace for the output of ``layer``."""

    @abc.abstractmethod
    def weight(self, weight, layer, name):
        """Return the tensor to trace for the parameter ``name`` of ``layer``."""

    @abc.abstractmethod
    def stored_weight(self, layer, name="weight"):
        """Return the tensor to trace for a weight that is stored as integers.

        None: the operators that dequantize the integers are traced.
        """


@contextmanager
def recording(recorder):
    """While open, quantized layers of this thread insert markers with ``recorder``."""
    _current.recorder = recorder
    try:
        yield recorder
    finally:
        _current.recorder = None


def recorder() -> Any:
    """Return the recorder of this thread, or None if no export is traced."""
    return getattr(_current, "recorder", None)
