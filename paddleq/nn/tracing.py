"""Markers in place of the quantization of tensors in layers while an export is traced.

A marker is a ``scale`` operator with a reserved factor and its number as bias. All Paddle versions
trace it into programs and PIR, where the export replaces it by quantize and dequantize operators.
"""

import threading
from contextlib import contextmanager
from typing import Any

import numpy as np

MARKER_FACTOR = float(np.float32(0.7390851))

_current = threading.local()


@contextmanager
def recording(recorder):
    """While open, quantized layers of this thread insert markers with ``recorder``.

    Args:
        recorder: its methods return the tensor to trace: ``activation(x, layer, slot)`` for input
            number ``slot``, ``output(y, layer)``, ``weight(weight, layer, name)`` for a parameter,
            and ``stored_weight(layer, name)`` for a weight that is stored as integers; None if the
            operators that dequantize the integers are traced.
    """
    _current.recorder = recorder
    try:
        yield recorder
    finally:
        _current.recorder = None


def recorder() -> Any:
    """Return the recorder of this thread, or None if no export is traced."""
    return getattr(_current, "recorder", None)
