"""Saturation of int8 kernels on x86 processors without VNNI.

There, u8 x s8 kernels add products in pairs in 16 bits (``vpmaddubsw``), which saturates: a pair of
activations of 255 with weights of 127 gives 32767 instead of 64770. oneDNN (Paddle Inference,
OpenVINO) and ONNX Runtime leave it to the user to prevent that; see "Nuances of int8 computations"
in oneDNN's documentation. Weights of at most 7 bits cannot saturate: 2 * 255 * 64 < 2 ** 15.

Behavior of the runtimes, measured on AVX2:

- oneDNN halves the weights of convolutions with signed inputs, which costs one bit of them.
- Paddle Inference quantizes the weights of convolutions again, to the full range of 8 bits, so
  unsigned inputs (after relu) may saturate with weights of any bits.
- ONNX Runtime is exact with the session option ``session.x64quantprecision``.
"""

import functools
import platform
from typing import List

import numpy as np

_MAX_WEIGHT = 64  # |weight| up to which a pair of products with activations of 8 bits fits int16
_X86 = ("x86_64", "amd64", "i386", "i686", "x86")
_FLAGS = ("avx512_vnni", "avx_vnni")


@functools.lru_cache(maxsize=None)
def has_vnni() -> bool:
    """Return True if int8 kernels of this processor accumulate without saturation.

    x86 processors do with AVX512-VNNI or AVX-VNNI instructions; others than x86 always do. Where
    the processor's features cannot be read (x86 without ``/proc/cpuinfo``), it returns False, which
    costs speed but no accuracy.

    Examples:
        >>> from paddleq.deploy import has_vnni
        >>> has_vnni() in (True, False)
        True
    """
    if platform.machine().lower() not in _X86:
        return True
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line for line in file if line.startswith("flags")), "").split()
    except OSError:
        return False
    return any(flag in flags for flag in _FLAGS)


def can_saturate(weight: np.ndarray) -> bool:
    """Return True if pairs of products with ``weight`` (integers) may exceed 16 bits."""
    return bool(weight.size) and (int(weight.max()) > _MAX_WEIGHT
                                  or int(weight.min()) < -_MAX_WEIGHT)


def explain(title: str, layers: List[str]) -> str:
    """Return the reason why float kernels replace int8 kernels; "" if no layer may saturate."""
    if not layers:
        return ""
    shown = ", ".join(layers[:3]) + (", ..." if len(layers) > 3 else "")
    return (f"computed in float: on this processor, which has no VNNI instructions, int8 kernels "
            f"of {title} may saturate in {len(layers)} layers ({shown}); weights of at most 7 bits "
            "have int8 kernels in OpenVINO, and ONNX Runtime computes 8 bits without saturation")
