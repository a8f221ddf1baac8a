"""Rounding to low-precision number formats, and their codes.

The operations are exact: scaling by powers of two, and rounding of a number below 2**22 to an
integer. NormalFloat4, whose levels are no such numbers, is searched in a table.
"""

import numpy as np
import paddle

from .._checks import wrong_value
from ..errors import ConfigError
from ..number_formats import E8M0_VALUES, HALF_AWAY, NF4, ElementFormat
from .qparams import ROUNDING_MAGIC, as_dtype

_EXPONENT, _SIGN = 0x7F800000, -(1 << 31)  # fields of a float32
SMALLEST_SCALE = 2.0 ** -126
"""Smallest shared scale. (2**-127 is no normal float32, so that devices may flush it to 0.)"""


def _masked(bits, mask):
    return paddle.bitwise_and(bits, paddle.full([1], mask, dtype="int32"))


def _bits(x):
    return x.contiguous().view("int32")


def power_of_two(x):
    """Compute 2**floor(log2|x|) of float32 numbers; 0 for 0 and for subnormal numbers.

    Infinity for infinity and NaN.

    Examples:
        >>> import paddle
        >>> from paddleq.functional.float_formats import power_of_two
        >>> power_of_two(paddle.to_tensor([-7.9, 0.3])).tolist()
        [4.0, 0.25]
    """
    return _masked(_bits(x), _EXPONENT).view("float32")


def round_to_format(x, element: ElementFormat, saturate=True):
    """Round to the nearest number of a format.

    Signs of zeros are kept where the format has them. Infinities of a format with tapered
    precision, HiFloat8, remain infinite.

    Args:
        x: float tensor of any shape.
        element: an :class:`~paddleq.number_formats.ElementFormat`.
        saturate: numbers above the largest of the format, infinities included, become the largest.
            Default True. False: they become infinity, or NaN if the format has no infinity; a
            number does so if it would be rounded up with an unlimited exponent. Without effect on
            formats without either, and on HiFloat8, whose conversion saturates.

    Returns:
        float32 of the shape of ``x``. NaN remain NaN.

    Examples:
        >>> import paddle
        >>> from paddleq.functional import round_to_format
        >>> from paddleq.number_formats import FLOAT8_E4M3FN
        >>> round_to_format(paddle.to_tensor([0.3, 1000.0, 17.0]), FLOAT8_E4M3FN).tolist()
        [0.3125, 448.0, 16.0]
    """
    if not paddle.in_dynamic_mode():
        raise ConfigError(f"quantization to {element.name} runs in dynamic mode only; call the "
                          "model without paddle.jit.to_static")
    with paddle.no_grad():
        x = as_dtype(x.detach(), paddle.float32)
        if 0 in x.shape:
            return x
        if element.name == NF4.name:
            return paddle.where(paddle.isnan(x), x, _gathered(_nearest(x, element), element.values))
        bits = _bits(x)
        magnitude = x.abs().clip(max=element.largest)
        step = _step(power_of_two(magnitude), element)
        rounded = paddle.divide(magnitude, step)
        if element.ties == HALF_AWAY:
            # Not floor(t + 0.5), which is 1 for the largest float32 below 0.5.
            whole = paddle.floor(rounded)
            rounded = whole.add_((rounded.subtract_(whole) >= 0.5).astype("float32"))
        else:
            rounded = rounded.scale_(1.0, ROUNDING_MAGIC).scale_(1.0, -ROUNDING_MAGIC)
        rounded = rounded.multiply_(step)
        rounded = _with_overflow(rounded, x, element, saturate)
        if element.has_infinity or element.has_nan:
            # The sign is a bit: -x of a NaN or zero is not required to have the other sign.
            rounded = paddle.where(paddle.isnan(x), x, rounded)
        if element.ties == HALF_AWAY:  # one zero
            return paddle.where(bits < 0, 0.0 - rounded, rounded)
        return paddle.bitwise_or(_bits(rounded), _masked(bits, _SIGN)).view("float32")


def _step(power, element):
    """Return the distance of neighbours at magnitudes of which ``power`` is the power of two."""
    if element.ties != HALF_AWAY:
        least = 2.0 ** element.smallest_exponent
        return power.clip(min=least).scale_(2.0 ** -element.mantissa_bits)
    # HiFloat8: 3 bits of mantissa for exponents up to 3, 2 up to 7, 1 up to 15; then powers of two.
    power = power.clip(min=2.0 ** -22)
    share = paddle.full_like(power, 1.0)
    for exponent, bits in ((15, 1), (7, 2), (3, 3)):
        inside = (power >= 2.0 ** -exponent) & (power <= 2.0 ** exponent)
        share = paddle.where(inside, paddle.full_like(power, 2.0 ** -bits), share)
    return power.multiply_(share)


def _with_overflow(rounded, x, element, saturate):
    tapered = element.ties == HALF_AWAY
    if not (tapered or element.has_infinity or element.has_nan) or (saturate and not tapered):
        return rounded
    if tapered:
        over = paddle.isinf(x)
    else:
        # The middle between the largest number and the next one with an unlimited exponent. The
        # largest of e4m3fn is even, that of e5m2 odd: a tie is rounded down and up.
        last = 2.0 ** (np.floor(np.log2(element.largest)) - element.mantissa_bits)
        middle = element.largest + last / 2
        odd = round(element.largest / last) % 2
        over = x.abs() >= middle if odd else x.abs() > middle
    beyond = float("inf") if element.has_infinity else float("nan")
    return paddle.where(over, paddle.full_like(rounded, beyond), rounded)


def encode(x, element: ElementFormat, saturate=True):
    """Compute the codes of the nearest numbers of a format.

    Args:
        x, element, saturate: see :func:`round_to_format`.

    Returns:
        uint8 of the shape of ``x``; codes of 4 bits are 0..15.

    Raises:
        ConfigError: ``x`` contains NaN and the format has no code for it.

    Examples:
        >>> import paddle
        >>> from paddleq.functional import decode, encode
        >>> from paddleq.number_formats import FLOAT4_E2M1FN
        >>> codes = encode(paddle.to_tensor([0.6, -6.0, 100.0]), FLOAT4_E2M1FN)
        >>> codes.tolist(), decode(codes, FLOAT4_E2M1FN).tolist()
        ([1, 15, 7], [0.5, -6.0, 6.0])
    """
    with paddle.no_grad():
        x = as_dtype(x.detach(), paddle.float32)
        if 0 in x.shape:
            return x.astype("uint8")
        if not element.has_nan and bool(paddle.isnan(x).any()):
            raise wrong_value("x", "NaN", f"numbers: {element.name} has no code for NaN")
        if element.name == NF4.name:
            return _nearest(x, element).astype("uint8")
        x = round_to_format(x, element, saturate)
        if element.ties == HALF_AWAY:
            return _codes_in_table(x, element)
        bits = _bits(x)
        magnitude = x.abs().clip(max=2.0 * element.largest)
        least, steps = 2.0 ** element.smallest_exponent, 2.0 ** element.mantissa_bits
        power = power_of_two(magnitude).clip(min=least)
        # The exponent field of a float32, a multiple of 2**23 below 2**31, is exact as a float32.
        field = _bits(power).astype("float32").scale_(2.0 ** -23, float(element.bias - 127))
        codes = paddle.divide(magnitude, power).scale_(steps).add_((field - 1.0).scale_(steps))
        codes = _special_codes(codes, x, element)
        sign = (bits < 0).astype("float32").scale_(2.0 ** (element.bits - 1))
        return codes.add_(sign).astype("uint8")


def _special_codes(codes, x, element):
    for has, found, wanted in ((element.has_infinity, paddle.isinf, np.isposinf),
                               (element.has_nan, paddle.isnan, np.isnan)):
        if has:
            code = int(np.flatnonzero(wanted(element.values))[0])
            if wanted is np.isnan and element.has_infinity:
                code += 1  # the quiet NaN, of which the highest bit of the mantissa is set
            codes = paddle.where(found(x), paddle.full_like(codes, float(code)), codes)
    return codes


def _codes_in_table(x, element):
    """Return the codes of numbers of a format."""
    # bucketize() puts both infinities behind the last number.
    most = 2.0 * element.largest
    values = np.clip(element.values, -most, most)
    order = np.argsort(values)[:np.isfinite(values).sum()]  # NaN are the last
    place = paddle.bucketize(x.clip(-most, most),
                             paddle.to_tensor(values[order].astype("float32")))
    codes = _gathered(place.clip(max=len(order) - 1), order.astype("float32"))
    nan = float(np.flatnonzero(np.isnan(values))[0])
    return paddle.where(paddle.isnan(x), paddle.full_like(codes, nan), codes).astype("uint8")


def _nearest(x, element):
    """Return the index of the nearest of the ascending values; of two, the lower one."""
    values = np.array(element.values)
    middles = (values[1:] + values[:-1]) / 2
    limits = middles.astype("float32")
    # The largest float32 that is not above the middle: x > limit if and only if x > middle.
    limits = np.where(limits > middles, np.nextafter(limits, np.float32(-np.inf)), limits)
    return paddle.bucketize(x, paddle.to_tensor(limits))


def _gathered(indices, values):
    table = paddle.to_tensor(np.asarray(values, "float32"))
    return paddle.gather(table, indices.reshape([-1])).reshape(indices.shape)


def decode(codes, element: ElementFormat):
    """Compute the values of codes; a traced program has a cast, a gather and reshapes.

    In a traced program, which is for weights, codes of infinity and NaN are 0.

    Args:
        codes: integers of any dtype and shape, 0..15 or 0..255.
        element: an :class:`~paddleq.number_formats.ElementFormat`.

    Returns:
        float32 of the shape of ``codes``.

    Examples:
        >>> import paddle
        >>> from paddleq.functional import decode
        >>> from paddleq.number_formats import NF4
        >>> decode(paddle.to_tensor([0, 7, 15]), NF4).tolist()
        [-1.0, 0.0, 1.0]
    """
    return _decoded(codes, element.values)


def _decoded(codes, values):
    if not paddle.in_dynamic_mode():
        # Weights are finite, and the JSON of PIR has no infinity and no NaN.
        values = np.where(np.isfinite(values), values, 0.0)
    elif 0 in codes.shape:
        return codes.astype("float32")
    return _gathered(codes.astype("int32"), values)


def to_storage(levels, spec):
    """Convert rounded numbers, or integers, to the dtype that stores them.

    Args:
        levels: float32, integers or numbers of the float format of ``spec``.
        spec: a :class:`~paddleq.QuantSpec`.

    Returns:
        Integers of the dtype ``spec.storage``, or uint8 codes.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.functional.float_formats import from_storage, to_storage
        >>> spec = QuantSpec(dtype="float8_e4m3fn")
        >>> codes = to_storage(paddle.to_tensor([1.0, -448.0]), spec)
        >>> codes.tolist(), from_storage(codes, spec).tolist()
        ([56, 254], [1.0, -448.0])
    """
    return levels.astype(spec.storage) if spec.element is None else encode(levels, spec.element)


def from_storage(stored, spec):
    """Convert the result of :func:`to_storage` to float32; float32 numbers are returned."""
    if spec.element is None or stored.dtype == paddle.float32:
        return as_dtype(stored, paddle.float32)
    return decode(stored, spec.element)


def shared_scale(largest, data_type):
    """Compute the scales of MX blocks, powers of two.

    2**(floor(log2(largest)) - e), where e is the exponent of the largest number of the element
    format (OCP Microscaling Formats 1.0, section 6.3), or twice that where ``data_type`` rounds up;
    at least 2**-126, also for a block of zeros.

    Args:
        largest: float32, the largest magnitude of each block.
        data_type: a :class:`~paddleq.number_formats.DataType` with a ``block``.

    Examples:
        >>> import paddle
        >>> from paddleq.functional.float_formats import shared_scale
        >>> from paddleq.number_formats import DATA_TYPES
        >>> shared_scale(paddle.to_tensor([4.0, 7.5]), DATA_TYPES["mxfp4_e2m1"]).tolist()
        [1.0, 1.0]
        >>> shared_scale(paddle.to_tensor([7.0, 7.5]), DATA_TYPES["mxfp4_e2m1_nearest"]).tolist()
        [1.0, 2.0]
    """
    with paddle.no_grad():
        power = power_of_two(largest)
        scale = power.scale(2.0 ** -data_type.largest_exponent)
        if data_type.round_up_above < 2.0:
            above = largest > power.scale(data_type.round_up_above)
            scale = scale.multiply_(above.astype("float32").scale_(1.0, 1.0))
        return scale.clip(min=SMALLEST_SCALE)


def encode_shared_scale(scale):
    """Compute the codes (float8_e8m0fnu) of scales of :func:`shared_scale`, as uint8."""
    with paddle.no_grad():
        return _masked(_bits(scale), _EXPONENT).astype("float32").scale_(2.0 ** -23).astype("uint8")


def decode_shared_scale(codes):
    """Compute the scales of the codes of :func:`encode_shared_scale`.

    Examples:
        >>> import paddle
        >>> from paddleq.functional.float_formats import decode_shared_scale, encode_shared_scale
        >>> codes = encode_shared_scale(paddle.to_tensor([0.25, 2.0]))
        >>> codes.tolist(), decode_shared_scale(codes).tolist()
        ([125, 128], [0.25, 2.0])
    """
    return _decoded(codes, E8M0_VALUES)
