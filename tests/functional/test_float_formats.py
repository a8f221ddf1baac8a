"""Low-precision number formats against ``ml_dtypes`` and float64 numpy, on every value and border.

The borders are all midpoints between neighbours, the float32 numbers beside them, subnormal
numbers, saturation, infinities, NaN and both zeros.
"""

import ml_dtypes
import numpy as np
import paddle
import pytest
from float_reference import REFERENCE, levels, nearest, shared_exponent

from paddleq.errors import ConfigError
from paddleq.functional import decode, encode, round_to_format
from paddleq.functional.float_formats import (
    SMALLEST_SCALE,
    decode_shared_scale,
    encode_shared_scale,
    power_of_two,
    shared_scale,
)
from paddleq.number_formats import (
    DATA_TYPES,
    FLOAT4_E2M1FN,
    FLOAT8_E4M3FN,
    FLOAT8_E5M2,
    HIFLOAT8,
    NF4,
)

MINIFLOATS = [FLOAT8_E4M3FN, FLOAT8_E5M2, FLOAT4_E2M1FN]
ALL = [*MINIFLOATS, HIFLOAT8, NF4]
F32 = np.finfo(np.float32)


def borders(element):
    """float32 numbers at which a rounding may go wrong."""
    values = levels(element)
    middles = (values[1:] + values[:-1]) / 2
    last = values[-1] - values[-2]
    beyond = values[-1] + last * np.array([0.25, 0.5, 0.75, 1.0, 1.5, 2.0])
    exact = np.concatenate([values, middles, beyond, -beyond]).astype(np.float32)
    special = np.array([0.0, -0.0, F32.tiny, -F32.tiny, F32.max, F32.min, F32.eps], np.float32)
    found = np.concatenate([exact, special])
    with np.errstate(over="ignore"):
        found = np.concatenate([found, np.nextafter(found, np.float32(np.inf)),
                                np.nextafter(found, np.float32(-np.inf))])
    # As bits: both zeros are kept.
    return np.unique(found[np.isfinite(found)].view(np.uint32)).view(np.float32)


def random_numbers(element):
    rng = np.random.RandomState(len(element.name))
    most = np.log2(levels(element)[-1])
    return (rng.choice([-1, 1], 20000) * 2.0 ** rng.uniform(most - 36, most + 2, 20000)
            ).astype(np.float32)


def same(found, expected):
    """True if two float arrays are equal, NaN at the same places and zeros with the same sign."""
    return (np.array_equal(found, expected, equal_nan=True)
            and np.array_equal(np.signbit(found[found == 0]), np.signbit(expected[expected == 0])))


@pytest.mark.parametrize("element", MINIFLOATS, ids=lambda each: each.name)
def test_values_of_all_codes_equal_ml_dtypes(element):
    codes = np.arange(2 ** element.bits, dtype=np.uint8)
    expected = codes.view(REFERENCE[element.name]).astype(np.float32)
    assert same(decode(paddle.to_tensor(codes), element).numpy(), expected)
    assert element.largest == float(ml_dtypes.finfo(REFERENCE[element.name]).max)


@pytest.mark.parametrize("element", MINIFLOATS, ids=lambda each: each.name)
@pytest.mark.parametrize("numbers", [borders, random_numbers], ids=lambda each: each.__name__)
def test_rounding_equals_ml_dtypes(element, numbers):
    x = numbers(element)
    reference = REFERENCE[element.name]
    for saturate in (True, False):
        given = np.clip(x, -element.largest, element.largest) if saturate else x
        expected = given.astype(reference)
        found = round_to_format(paddle.to_tensor(x), element, saturate).numpy()
        assert same(found, expected.astype(np.float32))
        codes = encode(paddle.to_tensor(x), element, saturate).numpy()
        nan = np.isnan(expected.astype(np.float32))
        assert codes.dtype == np.uint8 and (codes == expected.view(np.uint8))[~nan].all()
        assert np.isnan(decode(paddle.to_tensor(codes), element).numpy()[nan]).all()
    assert len(x) > 2 ** element.bits


@pytest.mark.parametrize("element", [FLOAT8_E4M3FN, FLOAT8_E5M2], ids=lambda each: each.name)
def test_infinity_and_nan_equal_ml_dtypes(element):
    x = np.array([np.inf, -np.inf, np.nan, -np.nan], np.float32)
    expected = x.astype(REFERENCE[element.name])
    assert same(round_to_format(paddle.to_tensor(x), element, False).numpy(),
                expected.astype(np.float32))
    codes = encode(paddle.to_tensor(x), element, False).numpy()
    assert (codes == expected.view(np.uint8))[:2].all()
    assert np.isnan(codes.view(REFERENCE[element.name]).astype(np.float32)[2:]).all()
    saturated = round_to_format(paddle.to_tensor(x), element).numpy()
    assert saturated[:2].tolist() == [element.largest, -element.largest]
    assert np.isnan(saturated[2:]).all()


def test_infinity_saturates_in_e2m1_and_nan_has_no_code():
    x = paddle.to_tensor([float("inf"), -float("inf")])
    for saturate in (True, False):
        assert encode(x, FLOAT4_E2M1FN, saturate).tolist() == [7, 15]
    for element in (FLOAT4_E2M1FN, NF4):
        nan = paddle.to_tensor([1.0, float("nan")])
        assert np.isnan(round_to_format(nan, element).numpy()).tolist() == [False, True]
        with pytest.raises(ConfigError, match="no code for NaN"):
            encode(nan, element)


@pytest.mark.parametrize("element", [HIFLOAT8, NF4], ids=lambda each: each.name)
@pytest.mark.parametrize("numbers", [borders, random_numbers], ids=lambda each: each.__name__)
def test_rounding_equals_the_nearest_level_in_float64(element, numbers):
    x = numbers(element)
    expected = nearest(x, element).astype(np.float32)
    assert np.array_equal(round_to_format(paddle.to_tensor(x), element).numpy(), expected)
    codes = encode(paddle.to_tensor(x), element)
    assert np.array_equal(decode(codes, element).numpy(), expected)


def test_codes_of_hifloat8():
    """Codes of the document: dot 0001 and no exponent is 1.0; 2**15; infinities, NaN and zero."""
    expected = {0x00: 0.0, 0x08: 1.0, 0x0F: 1.875, 0x10: 2.0, 0x18: 0.5, 0x20: 4.0, 0x28: 8.0,
                0x30: 0.25, 0x38: 0.125, 0x40: 16.0, 0x4C: 128.0, 0x50: 2.0 ** -4, 0x60: 256.0,
                0x6E: 32768.0, 0x70: 2.0 ** -8, 0x7E: 2.0 ** -15, 0x01: 2.0 ** -22,
                0x07: 2.0 ** -16, 0x6F: np.inf, 0xEF: -np.inf, 0x88: -1.0, 0xEE: -32768.0}
    codes = np.array(list(expected), np.uint8)
    values = np.array(list(expected.values()), np.float32)
    assert decode(paddle.to_tensor(codes), HIFLOAT8).tolist() == values.tolist()
    assert encode(paddle.to_tensor(values), HIFLOAT8).tolist() == codes.tolist()
    all_values = decode(paddle.arange(256), HIFLOAT8).numpy()
    finite = all_values[np.isfinite(all_values)]
    assert np.array_equal(np.sort(finite), levels(HIFLOAT8)) and np.isnan(all_values[0x80])
    assert len(np.unique(finite)) == 253


def test_special_values_of_hifloat8():
    """A zero has no sign, NaN is one code, finite numbers saturate and infinities stay."""
    x = paddle.to_tensor([-0.0, -1e-9, float("nan"), float("inf"), 1e9, -1e9, 2.0 ** -23,
                          0.99 * 2.0 ** -23])
    assert encode(x, HIFLOAT8).tolist() == [0, 0, 0x80, 0x6F, 0x6E, 0xEE, 0x01, 0x00]
    assert not np.signbit(round_to_format(x, HIFLOAT8).numpy()[:2]).any()


@pytest.mark.parametrize("element", ALL, ids=lambda each: each.name)
def test_every_code_survives_a_round_trip(element):
    codes = np.arange(2 ** element.bits, dtype=np.uint8)
    values = decode(paddle.to_tensor(codes), element)
    known = ~np.isnan(values.numpy())
    again = encode(values[paddle.to_tensor(np.flatnonzero(known))], element, False).numpy()
    assert np.array_equal(again, codes[known])


@pytest.mark.parametrize("element", ALL, ids=lambda each: each.name)
def test_views_half_precision_and_empty_tensors(element):
    x = paddle.to_tensor(random_numbers(element)[:240].reshape(12, 20))
    expected = round_to_format(x, element).numpy()
    assert np.array_equal(round_to_format(x.t(), element).numpy(), expected.T)
    assert np.array_equal(encode(x[2:5, ::2], element).numpy(),
                          encode(x, element).numpy()[2:5, ::2])
    half = x.astype("bfloat16")
    assert np.array_equal(round_to_format(half, element).numpy(),
                          round_to_format(half.astype("float32"), element).numpy())
    assert list(encode(paddle.zeros([0, 3]), element).shape) == [0, 3]
    assert list(decode(paddle.zeros([0, 3], dtype="uint8"), element).shape) == [0, 3]


def test_codes_of_shared_scales_equal_ml_dtypes():
    codes = np.arange(1, 255, dtype=np.uint8)  # 0 is 2**-127, which is no normal float32
    expected = codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    assert np.array_equal(decode_shared_scale(paddle.to_tensor(codes)).numpy(), expected)
    assert np.array_equal(encode_shared_scale(paddle.to_tensor(expected)).numpy(), codes)
    assert np.array_equal(expected.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8), codes)


@pytest.mark.parametrize("name", [name for name, each in DATA_TYPES.items() if each.block])
def test_shared_scale_equals_the_rule_in_float64(name):
    data_type = DATA_TYPES[name]
    exponents = np.arange(-149, 128)
    powers = 2.0 ** exponents
    largest = np.concatenate([powers, 1.5 * powers, 1.75 * powers, 1.9 * powers, [0.0, 1.0, 448.0]])
    beside = np.float32(largest)
    with np.errstate(over="ignore"):
        largest = np.concatenate([beside, np.nextafter(beside, np.float32(np.inf)),
                                  np.nextafter(beside, np.float32(0))])
    largest = np.abs(largest[np.isfinite(largest)])
    expected = 2.0 ** shared_exponent(largest, name)
    expected[largest < F32.tiny] = SMALLEST_SCALE
    assert np.array_equal(shared_scale(paddle.to_tensor(largest), data_type).numpy(), expected)


def test_power_of_two_is_exact():
    x = np.array([1.0, -1.0, 1.9999999, 2.0, 3.0, 2.0 ** -126, F32.max], np.float32)
    assert power_of_two(paddle.to_tensor(x)).tolist() == [1.0, 1.0, 1.0, 2.0, 2.0, 2.0 ** -126,
                                                          2.0 ** 127]
