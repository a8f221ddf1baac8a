"""A :class:`~paddleq.QuantSpec` in the words of torch-like quantizers: dtype, qscheme, limits."""

from .._checks import check_choice, check_int
from ..spec import HALF_EVEN, HALF_UP, PerChannel, PerTensor, QuantSpec

# Name -> (bits, signed).
DTYPES = {f"{'q' if signed else 'qu'}int{bits}": (bits, signed)
          for bits in range(2, 17) for signed in (True, False)}
QSCHEMES = ("per_tensor_symmetric", "per_tensor_affine", "per_channel_symmetric",
            "per_channel_affine")


def spec_of(dtype="qint8", qscheme=None, quant_min=None, quant_max=None, ch_axis=None,
            rounding=HALF_UP, per_channel=False):
    """The spec that these words describe.

    Args:
        dtype: "qint8" (default: -128..127), "qint16", or another of "q" or "qu", "int" and a
            width of 2 to 16 bits.
        qscheme: "per_tensor_symmetric", "per_tensor_affine", "per_channel_symmetric" or
            "per_channel_affine". Default: symmetric, per channel as ``per_channel`` says.
        quant_min, quant_max: limits within those of the dtype. Default: those of the dtype.
        ch_axis: axis of the channels. Default 0.
        rounding: "half_up" (default: floor(v + 0.5)) or "half_even".
        per_channel: what holds where ``qscheme`` is not given.

    Raises:
        ConfigError, ConfigTypeError: for a value out of range or of the wrong type.

    Examples:
        >>> from paddleq.fake_quant.qscheme import spec_of
        >>> spec = spec_of("quint8", "per_channel_affine", quant_max=127, ch_axis=1)
        >>> print(spec, spec.symmetric, spec.qmin, spec.qmax)
        uint8 per_channel(1) False 0 127
    """
    bits, signed = DTYPES[check_choice("dtype", dtype, DTYPES)]
    if qscheme is not None:
        check_choice("qscheme", qscheme, QSCHEMES)
        per_channel = qscheme.startswith("per_channel")
    axis = check_int("ch_axis", 0 if ch_axis is None else ch_axis)
    lowest, highest = (-2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2 ** bits - 1)
    limits = (lowest if quant_min is None else check_int("quant_min", quant_min, lowest, 0),
              highest if quant_max is None else check_int("quant_max", quant_max, 1, highest))
    narrow = limits == (lowest + 1, highest)
    return QuantSpec(
        bits, signed, symmetric=not (qscheme or "").endswith("affine"), narrow_range=narrow,
        rounding=check_choice("rounding", rounding, (HALF_EVEN, HALF_UP)),
        granularity=PerChannel(axis) if per_channel else PerTensor(),
        limits=None if narrow or limits == (lowest, highest) else limits)
