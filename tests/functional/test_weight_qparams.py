"""Quantization parameters of Linear weights, and 4-bit packing, against float64 numpy."""

import numpy as np
import paddle
import pytest
from algorithm_reference import GRANULARITIES, numpy_grid
from hypothesis import given
from hypothesis import strategies as st

from paddleq import PerChannel, PerGroup, PerTensor, PerToken, QuantSpec
from paddleq.errors import ConfigError
from paddleq.functional import WeightQParams, compute_weight_qparams, pack_int4, unpack_int4

SPECS = [QuantSpec(bits, signed=symmetric, symmetric=symmetric, granularity=granularity)
         for bits in (3, 4, 8) for symmetric in (True, False) for granularity in GRANULARITIES]


def weights(seed, rows, columns, scale=1.0, shift=0.0):
    rng = np.random.RandomState(seed)
    return (scale * (rng.randn(rows, columns) + shift)).astype("float32")


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("rows, columns", [(100, 7), (64, 3), (1, 1), (33, 5)])
@pytest.mark.parametrize("shift", [0.0, 3.0, -3.0])
def test_weight_qparams_match_float64_reference(spec, rows, columns, shift):
    weight = weights(rows, rows, columns, 0.1, shift)
    grid = compute_weight_qparams(paddle.to_tensor(weight), spec)
    scale, zero, rows_of = numpy_grid(weight, spec)
    np.testing.assert_allclose(grid.scale.numpy(), scale, rtol=3e-7)
    if spec.symmetric:
        assert grid.zero_point is None
    else:
        assert (grid.zero_point.numpy() == zero).all()
    # The step of record is float32; from there on everything is exact but for the division.
    step, zero = grid.scale.numpy().astype("float64")[rows_of], zero[rows_of]
    steps = weight.astype("float64") / step
    integers = grid.quantize(paddle.to_tensor(weight)).numpy()
    expected = np.clip(np.rint(steps) + zero, spec.quant_min, spec.quant_max)
    tie = np.abs(steps - np.floor(steps) - 0.5) < 1e-5
    assert (integers == expected)[~tie].all() and (np.abs(integers - expected) <= 1).all()
    back = grid.dequantize(paddle.to_tensor(integers).astype(spec.storage)).numpy()
    np.testing.assert_allclose(back, (integers - zero) * step, rtol=1e-6)
    # (The zero point of an asymmetric grid is rounded: an end may be half a step outside.)
    assert (np.abs(back - weight) <= step * (0.5 if spec.symmetric else 1.0) * 1.0001).all()


@given(seed=st.integers(0, 99), rows=st.integers(1, 70), columns=st.integers(1, 5),
       size=st.integers(1, 40), scale=st.sampled_from([1e-30, 1e-6, 1.0, 1e30]),
       symmetric=st.booleans())
def test_weight_qparams_of_any_magnitude(seed, rows, columns, size, scale, symmetric):
    spec = QuantSpec(4, signed=symmetric, symmetric=symmetric, granularity=PerGroup(size))
    weight = paddle.to_tensor(weights(seed, rows, columns, scale))
    grid = compute_weight_qparams(weight, spec)
    assert list(grid.scale.shape) == [-(-rows // size), columns]
    integers = grid.quantize(weight).numpy()
    assert np.isfinite(integers).all()
    assert ((integers >= spec.quant_min) & (integers <= spec.quant_max)).all()
    assert np.isfinite(grid.dequantize(paddle.to_tensor(integers)).numpy()).all()
    # Quantized values are fixed points.
    again = grid.quantize(grid.dequantize(paddle.to_tensor(integers))).numpy()
    assert (again == integers).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_are_stored_exactly(symmetric):
    spec = QuantSpec(4, signed=symmetric, symmetric=symmetric, granularity=PerGroup(2))
    weight = paddle.to_tensor([[0.0, 0.0], [0.0, 3.0], [0.0, -1.0]])
    grid = compute_weight_qparams(weight, spec)
    back = grid.dequantize(grid.quantize(weight)).numpy()
    assert (back[weight.numpy() == 0.0] == 0.0).all()


def test_clip_shrinks_the_range():
    weight = paddle.to_tensor(weights(0, 64, 3))
    spec = QuantSpec(4, granularity=PerGroup(32))
    factor = paddle.to_tensor([[0.5, 1.0, 0.25], [1.0, 0.75, 0.5]])
    whole = compute_weight_qparams(weight, spec)
    np.testing.assert_allclose(compute_weight_qparams(weight, spec, factor).scale.numpy(),
                               (whole.scale * factor).numpy(), rtol=3e-7)
    assert compute_weight_qparams(weight, spec, factor).quantize(weight).min().item() == -8.0
    assert whole.quantize(weight).min().item() == -7.0


def test_rounding_follows_the_spec():
    weight = paddle.to_tensor([[7.0], [0.5], [1.5], [-0.5], [-1.5]])
    specs = [QuantSpec(4, rounding=rounding) for rounding in ("half_even", "half_up")]
    rounded = [compute_weight_qparams(weight, spec).quantize(weight).flatten().tolist()
               for spec in specs]
    assert rounded == [[7.0, 0.0, 2.0, 0.0, -2.0], [7.0, 1.0, 2.0, 0.0, -1.0]]


@pytest.mark.parametrize("spec, words", [
    (QuantSpec(granularity=PerToken()), "PerTensor, PerChannel(1) or PerGroup"),
    (QuantSpec(granularity=PerChannel(0)), "PerTensor, PerChannel(1) or PerGroup"),
    (QuantSpec(bits=1), "2 bits or more"),
    (QuantSpec(signed=False), "signed where it is symmetric"),
])
def test_invalid_specs_are_rejected(spec, words):
    with pytest.raises(ConfigError) as caught:
        compute_weight_qparams(paddle.ones([4, 4]), spec)
    assert words in str(caught.value) and str(spec.bits) in str(caught.value)


@pytest.mark.parametrize("shape", [[4], [2, 3, 4], [0, 4]])
def test_weights_must_be_matrices(shape):
    with pytest.raises(ConfigError, match="matrix"):
        compute_weight_qparams(paddle.zeros(shape), QuantSpec(granularity=PerTensor()))


@given(seed=st.integers(0, 99), rows=st.integers(1, 40), columns=st.integers(1, 9),
       signed=st.booleans(), dtype=st.sampled_from(["float32", "int32", "int64"]))
def test_int4_packing_round_trip(seed, rows, columns, signed, dtype):
    low = -8 if signed else 0
    integers = np.random.RandomState(seed).randint(low, low + 16, [rows, columns])
    packed = pack_int4(paddle.to_tensor(integers.astype(dtype)), signed)
    assert packed.dtype == paddle.uint8
    assert list(packed.shape) == [-(-rows // 2), columns]
    assert (unpack_int4(packed, rows, signed).numpy() == integers).all()
    # Reference layout.
    expected = np.zeros([-(-rows // 2), columns], int)
    for row in range(rows):
        expected[row // 2] += (integers[row] - low) << 4 * (row % 2)
    assert (packed.numpy() == expected).all()


@pytest.mark.parametrize("dtype, signed, value", [
    ("int8", True, 8), ("int8", True, -9), ("uint8", False, 16), ("int8", False, -1)])
def test_packing_values_beyond_four_bits_is_an_error(dtype, signed, value):
    with pytest.raises(ConfigError, match="integers must be in"):
        pack_int4(paddle.to_tensor([[value]], dtype=dtype), signed)


class Dequantizing(paddle.nn.Layer):
    """Compute x @ dequantized weight as a deployable layer does."""

    def __init__(self, grid, packed, rows):
        super().__init__()
        self.spec, self.rows = grid.spec, rows
        self.register_buffer("packed", packed)
        self.register_buffer("scale", grid.scale)
        self.register_buffer("zero_point", grid.zero_point)

    def forward(self, x):
        integers = unpack_int4(self.packed, self.rows, self.spec.signed)
        grid = WeightQParams(self.spec, self.scale, self.zero_point)
        return paddle.matmul(x, grid.dequantize(integers))


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rows", [50, 51, 64])
def test_saved_program_unpacks_and_dequantizes(tmp_path, granularity, symmetric, rows):
    spec = QuantSpec(4, signed=symmetric, symmetric=symmetric, granularity=granularity)
    weight = paddle.to_tensor(weights(0, rows, 4))
    grid = compute_weight_qparams(weight, spec)
    integers = grid.quantize(weight)
    layer = Dequantizing(grid, pack_int4(integers, spec.signed), rows)
    x, path = paddle.randn([3, rows]), str(tmp_path / "dequantizing")
    expected = layer(x).numpy()
    paddle.jit.save(layer, path, input_spec=[paddle.static.InputSpec([3, rows], "float32")])
    assert (paddle.jit.load(path)(x).numpy() == expected).all()
    np.testing.assert_allclose(expected, x.numpy() @ grid.dequantize(integers).numpy(),
                               rtol=1e-5, atol=1e-5)
