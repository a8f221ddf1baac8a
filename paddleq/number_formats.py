"""Low-precision number formats: their codes, values and rounding, as plain numbers.

An element format has a value for each code. A data type (:data:`DATA_TYPES`) is the name that a
:class:`~paddleq.QuantSpec` takes: an element format, and for the MX formats the rule of the scale
that a block shares. This module does not touch tensors.
"""

import math
from dataclasses import dataclass
from typing import Dict, Optional, Tuple

HALF_AWAY, TIES_TO_EVEN, LOWER = "half_away", "ties_to_even", "lower"


@dataclass(frozen=True)
class ElementFormat:
    """Format of one number of 4 or 8 bits.

    Attributes:
        name: as in the data types of ``ml_dtypes`` where they have it.
        bits: width of a code.
        values: value of each code.
        largest: the largest finite value.
        target: the value to which a scale maps the largest magnitude of a tensor; ``largest``
            except for formats whose precision is best below it.
        ties: the value that a number in the middle of two is rounded to.
        exponent_bits, mantissa_bits, bias: of formats with fixed fields; 0 for others.
        has_infinity, has_nan: True if there are codes for them.

    Examples:
        >>> from paddleq.number_formats import FLOAT4_E2M1FN
        >>> FLOAT4_E2M1FN.values[:8]
        (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    """

    name: str
    bits: int
    values: Tuple[float, ...]
    largest: float
    target: int
    ties: str = TIES_TO_EVEN
    exponent_bits: int = 0
    mantissa_bits: int = 0
    bias: int = 0
    has_infinity: bool = False
    has_nan: bool = False

    @property
    def smallest_exponent(self) -> int:
        """Exponent of the smallest normal number of a format with fixed fields."""
        return 1 - self.bias


def _minifloat(name, exponent_bits, mantissa_bits, infinity=False, nan=False):
    """Return the format with a sign bit and these fields, biased as IEEE 754 does.

    With ``infinity``, the highest exponent holds infinities and NaN, as in IEEE 754; with ``nan``
    alone, only the code of the largest magnitude is NaN ("fn": finite, NaN).
    """
    bias, half = 2 ** (exponent_bits - 1) - 1, 2 ** (exponent_bits + mantissa_bits)
    magnitudes = []
    for code in range(half):
        exponent, mantissa = divmod(code, 2 ** mantissa_bits)
        if infinity and exponent == 2 ** exponent_bits - 1:
            magnitudes.append(math.nan if mantissa else math.inf)
        elif nan and not infinity and code == half - 1:
            magnitudes.append(math.nan)
        else:
            share = mantissa / 2 ** mantissa_bits
            magnitudes.append(math.ldexp(share + (exponent > 0), max(exponent, 1) - bias))
    largest = max(value for value in magnitudes if math.isfinite(value))
    return ElementFormat(name, 1 + exponent_bits + mantissa_bits,
                         (*magnitudes, *(-value for value in magnitudes)), largest, int(largest),
                         exponent_bits=exponent_bits, mantissa_bits=mantissa_bits, bias=bias,
                         has_infinity=infinity, has_nan=nan)


def _hifloat8_magnitude(code):
    """Return the value of the lower seven bits of a HiFloat8: dot, exponent and mantissa."""
    if code >> 3 == 0:  # denormal: three bits of an exponent, from -22 on; 0 is zero
        return math.ldexp(1.0, code - 23) if code else 0.0
    # (bits of the exponent, bits of the mantissa), by the prefix of the dot field.
    exponent_bits, mantissa_bits = ((4, 1) if code >> 5 == 3 else (3, 2) if code >> 5 == 2 else
                                    (2, 3) if code >> 5 == 1 else (1, 3) if code >> 4 == 1 else
                                    (0, 3))
    share = 1.0 + (code & (2 ** mantissa_bits - 1)) / 2 ** mantissa_bits
    if not exponent_bits:
        return share
    # Sign and magnitude, of which the highest bit is 1 and is not stored.
    field = code >> mantissa_bits & (2 ** exponent_bits - 1)
    stored = 2 ** (exponent_bits - 1)
    exponent = stored + (field & (stored - 1))
    return math.ldexp(share, -exponent if field & stored else exponent)


def _hifloat8():
    magnitudes = [_hifloat8_magnitude(code) for code in range(128)]
    magnitudes[0x6F] = math.inf
    values = (*magnitudes, math.nan, *(-value for value in magnitudes[1:]))
    return ElementFormat("hifloat8", 8, values, 32768.0, 16, HALF_AWAY, has_infinity=True,
                         has_nan=True)


FLOAT8_E4M3FN = _minifloat("float8_e4m3fn", 4, 3, nan=True)
"""4 bits of exponent, 3 of mantissa; 448 is the largest, no infinities (OCP OFP8 1.0)."""
FLOAT8_E5M2 = _minifloat("float8_e5m2", 5, 2, infinity=True, nan=True)
"""5 bits of exponent, 2 of mantissa; 57344 is the largest (OCP OFP8 1.0)."""
FLOAT4_E2M1FN = _minifloat("float4_e2m1fn", 2, 1)
"""2 bits of exponent, 1 of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6; no infinities, no NaN."""
HIFLOAT8 = _hifloat8()
"""Huawei's HiF8 (arXiv:2409.16626): 3 bits of mantissa near 1, 1 at 2**15, 0 below 2**-15.

One zero, one NaN and both infinities. Numbers in the middle are rounded away from zero. A scale
maps the largest magnitude to 16, the end of the range with 3 bits of mantissa, as AMCT does.
"""
NF4 = ElementFormat(
    "nf4", 4,
    (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
     -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
     0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
     0.7229568362236023, 1.0), 1.0, 1, LOWER)
"""The 16 levels of NormalFloat4 (QLoRA, arXiv:2305.14314), quantiles of a normal distribution."""


@dataclass(frozen=True)
class DataType:
    """Data type of a quantized tensor.

    Attributes:
        name: the name in a :class:`~paddleq.QuantSpec`.
        element: format of one number.
        block: number of input features that share a scale, of the MX formats; None: any
            granularity.
        group: the default number of input features that share a scale; None: the whole tensor.
        round_up_above: MX formats: the shared exponent is floor(log2(max|x|)) minus the exponent of
            the largest number; it is one more where max|x| / 2**floor(log2(max|x|)) exceeds this.

    Examples:
        >>> from paddleq.number_formats import DATA_TYPES
        >>> DATA_TYPES["mxfp4_e2m1"].element.name, DATA_TYPES["mxfp4_e2m1"].block
        ('float4_e2m1fn', 32)
    """

    name: str
    element: ElementFormat
    block: Optional[int] = None
    group: Optional[int] = None
    round_up_above: float = 2.0

    @property
    def largest_exponent(self) -> int:
        """floor(log2()) of the largest number of the element format."""
        return math.frexp(self.element.largest)[1] - 1


_MX_BLOCK = 32
DATA_TYPES: Dict[str, DataType] = {each.name: each for each in (
    DataType("float8_e4m3fn", FLOAT8_E4M3FN),
    DataType("float8_e5m2", FLOAT8_E5M2),
    DataType("hifloat8", HIFLOAT8),
    DataType("float4_e2m1", FLOAT4_E2M1FN),
    DataType("nf4", NF4, group=64),
    DataType("mxfp8_e4m3fn", FLOAT8_E4M3FN, _MX_BLOCK),
    DataType("mxfp8_e5m2", FLOAT8_E5M2, _MX_BLOCK),
    DataType("mxfp4_e2m1", FLOAT4_E2M1FN, _MX_BLOCK),
    # The largest magnitude of a block saturates at up to 3/4 of it in MXFP4 by the rule of OCP's
    # specification. This rule rounds it to the nearest power of two times 4 or 6 instead.
    DataType("mxfp4_e2m1_nearest", FLOAT4_E2M1FN, _MX_BLOCK, round_up_above=1.75),
)}
"""Data types by name."""

E8M0_VALUES = (*(math.ldexp(1.0, code - 127) for code in range(255)), math.nan)
"""Value of each code of a shared scale, float8_e8m0fnu."""
