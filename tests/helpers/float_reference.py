"""Low-precision number formats by ``ml_dtypes``, or by tables of their definitions, in numpy."""

import ml_dtypes
import numpy as np

from paddleq.number_formats import DATA_TYPES, HIFLOAT8, NF4
from paddleq.spec import PerBlock, PerChannel, PerGroup, PerTensor

REFERENCE = {"float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2,
             "float4_e2m1fn": ml_dtypes.float4_e2m1fn}

# Published table of QLoRA's NormalFloat4, as float32 decimals.
NF4_LEVELS = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0])


def hifloat8_magnitudes():
    """All finite magnitudes, from the table of exponents and bits of mantissa in AMCT's document.

    3 bits for exponents up to 3, 2 up to 7, 1 up to 15, none from -22 to -16. The largest exponent
    with the mantissa 1 is infinity.
    """
    found = [0.0, *(2.0 ** exponent for exponent in range(-22, -15))]
    for exponent in range(-15, 16):
        bits = 3 if abs(exponent) <= 3 else 2 if abs(exponent) <= 7 else 1
        found += [(1 + part / 2 ** bits) * 2.0 ** exponent for part in range(2 ** bits)]
    return np.array(found)[:-1]


def levels(element):
    """Finite values of a format in ascending order, float64, from another source than the code."""
    if element is NF4:
        return NF4_LEVELS
    if element is HIFLOAT8:
        found = hifloat8_magnitudes()
        return np.concatenate([-found[:0:-1], found])
    codes = np.arange(2 ** element.bits, dtype=np.uint8)
    found = codes.view(REFERENCE[element.name]).astype(np.float64)
    return np.unique(found[np.isfinite(found)])


def nearest(x, element):
    """Nearest value in float64; ties away from zero for HiFloat8, to the lower level for NF4."""
    values = levels(element)
    x = np.clip(x.astype(np.float64), 2 * values[0], 2 * values[-1])
    distances = np.abs(values[None] - x[:, None])
    if element is NF4:
        return values[distances.argmin(axis=1)]
    tied = distances == distances.min(axis=1, keepdims=True)
    return np.where(x < 0, values[tied.argmax(axis=1)],
                    values[len(values) - 1 - tied[:, ::-1].argmax(axis=1)])


def rounded(x, element):
    """Nearest numbers of a format as float32, saturated, of a float32 array."""
    if element.name in REFERENCE:
        return np.clip(x, -element.largest, element.largest).astype(
            REFERENCE[element.name]).astype(np.float32)
    return nearest(x.reshape(-1), element).reshape(x.shape).astype(np.float32)


def shared_exponent(largest, name):
    """Exponent of the scale of an MX block: OCP Microscaling 1.0, section 6.3, and AMCT's rule."""
    largest = largest.astype(np.float64)
    with np.errstate(divide="ignore"):
        exponent = np.floor(np.log2(largest))
    if name.endswith("_nearest"):
        exponent = np.where(largest > 1.75 * 2.0 ** exponent, exponent + 1, exponent)
    emax = {"mxfp8_e4m3fn": 8, "mxfp8_e5m2": 15}.get(name, 2)  # table 1
    return np.maximum(exponent - emax, -126)


def scale_of(largest, name):
    """float32 scales for float32 maxima: a power of two, or the quotient by the target."""
    data_type = DATA_TYPES[name]
    if data_type.block:
        return (2.0 ** shared_exponent(largest, name)).astype(np.float32)
    target = {"float8_e4m3fn": 448, "float8_e5m2": 57344, "hifloat8": 16, "float4_e2m1": 6,
              "nf4": 1}[name]
    return np.maximum(largest, np.float32(1e-8)) / np.float32(target)


def scales_of_weight(weight, spec):
    """float32 scale of each element of a weight [K, N], and the scales as they are stored."""
    rows, columns = weight.shape
    granularity = spec.granularity
    height = {PerGroup: "size", PerBlock: "rows"}.get(type(granularity))
    height = getattr(granularity, height) if height else rows
    width = (granularity.columns if isinstance(granularity, PerBlock) else
             columns if isinstance(granularity, PerTensor) else 1)
    stored = np.array([[np.abs(weight[i:i + height, j:j + width]).max()
                        for j in range(0, columns, width)] for i in range(0, rows, height)])
    stored = scale_of(stored.astype(np.float32), spec.dtype)
    full = np.repeat(np.repeat(stored, height, axis=0), width, axis=1)[:rows, :columns]
    assert isinstance(granularity, (PerTensor, PerChannel, PerGroup, PerBlock))
    return full, stored
