"""paddleq.functional against the formula, and against Paddle's own operators, to the bit.

The reference below is written from the documented formula, in numpy, one float32 operation at a
time:

    q = clip(round((levels * (1 / abs_max)) * x), qmin, qmax)
    y = (q * abs_max) / levels
"""

import copy

import numpy as np
import paddle
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from paddle import nn

import paddleq
from paddleq import PerChannel, QuantSpec
from paddleq.fake_quant import PACT
from paddleq.functional import (
    EPS,
    abs_max,
    clip_and_fake_quantize,
    dequantize,
    fake_quantize,
    quantize,
)

F = np.float32


# --- the reference ---------------------------------------------------------------------------

def limits(bits, signed=True, narrow=False):
    """(qmin, qmax, levels)"""
    if bits == 1:
        return -1, 1, 1
    top = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    bottom = -top - 1 if signed else 0
    return bottom + int(narrow), top, top


def along(abs_max, x, axis):
    abs_max = np.asarray(abs_max, F)
    if axis is None:
        return abs_max.reshape([1] * x.ndim)
    return abs_max.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


def reference_quantize(x, abs_max, spec):
    qmin, qmax, levels = limits(spec.bits, spec.signed, spec.narrow_range)
    if spec.bits == 1:
        return np.where(x >= 0, F(1), F(-1)).astype(F)
    with np.errstate(over="ignore"):
        t = (F(levels) * (F(1) / along(abs_max, x, spec.channel_axis))) * x.astype(F)
        t = np.floor(t + F(0.5)) if spec.rounding == "half_up" else np.rint(t)
    return np.clip(t, F(qmin), F(qmax)).astype(F)


def reference_dequantize(q, abs_max, spec):
    levels = limits(spec.bits, spec.signed, spec.narrow_range)[2]
    return ((q * along(abs_max, q, spec.channel_axis)) / F(levels)).astype(F)


def reference_fake(x, abs_max, spec):
    return reference_dequantize(reference_quantize(x, abs_max, spec), abs_max, spec)


# --- strategies ------------------------------------------------------------------------------

def floats(low, high):
    return st.floats(low, high, width=32, allow_nan=False, allow_subnormal=False)


# From the smallest abs_max there is to one whose product with 2**15 still fits a float32.
ABS_MAX = st.one_of(floats(0.0625, 16.0), floats(float(F(1e-7)), float(F(1e-3))),
                       floats(1024.0, float(F(1e30))), st.just(float(F(EPS))), st.just(1.0))


@st.composite
def specs(draw, ndim=None, **fixed):
    axes = st.just(None) if ndim is None else st.sampled_from([None, *range(min(ndim, 2))])
    axis = draw(axes)
    values = {"bits": draw(st.integers(1, 16)), "signed": draw(st.booleans()),
              "narrow_range": draw(st.booleans()),
              "rounding": draw(st.sampled_from(["half_even", "half_up"]))}
    values.update(fixed)
    if axis is not None:
        values["granularity"] = PerChannel(axis)
    return QuantSpec(**values)


@st.composite
def cases(draw, **fixed):
    """Draw (x, abs_max, spec): values inside, far outside, and exactly on the borders."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5))
    spec = draw(specs(len(shape), **fixed))
    axis = spec.channel_axis
    channels = 1 if axis is None else shape[axis]
    abs_max = np.array(draw(st.lists(ABS_MAX, min_size=channels, max_size=channels)), F)
    kind = draw(st.sampled_from(["inside", "borders", "huge", "tiny", "zeros", "positive"]))
    rng = np.random.RandomState(draw(st.integers(0, 2**31 - 1)))
    unit = rng.uniform(-1.5, 1.5, shape).astype(F)
    by_channel = along(abs_max, unit, axis)
    if kind == "inside":
        x = unit * by_channel
    elif kind == "borders":
        # k + 1/2 steps: rounding borders inside, clipping borders at the ends.
        levels = limits(spec.bits, spec.signed)[2]
        k = rng.randint(-levels - 3, levels + 4, shape)
        x = (((k + 0.5).astype(F) * by_channel) / F(levels)).astype(F)
    elif kind == "huge":
        x = (unit * F(2e38)).astype(F)
    elif kind == "tiny":
        x = (unit * F(1e-30)).astype(F)
    elif kind == "zeros":
        x = np.zeros(shape, F)
    else:
        x = (np.abs(unit) * by_channel).astype(F)
    return x, abs_max, spec


def tensor(x):
    return paddle.to_tensor(x)


# --- properties ------------------------------------------------------------------------------

@given(cases())
def test_quantize_matches_the_formula_exactly(case):
    x, abs_max, spec = case
    q = quantize(tensor(x), tensor(abs_max), spec)
    assert q.dtype == paddle.float32
    np.testing.assert_array_equal(q.numpy(), reference_quantize(x, abs_max, spec))


@given(cases())
def test_dequantize_matches_the_formula_exactly(case):
    x, abs_max, spec = case
    q = reference_quantize(x, abs_max, spec)
    y = dequantize(tensor(q), tensor(abs_max), spec).numpy()
    np.testing.assert_array_equal(y, reference_dequantize(q, abs_max, spec))


@given(cases(), st.booleans(), st.booleans())
def test_fake_quantize_matches_the_formula_for_both_gradients(case, trainable, saturate):
    x, abs_max, spec = case
    # Of one bit the sign decides, which a subnormal quotient loses where they are flushed to zero.
    quotients = np.abs(x) / along(abs_max, x, spec.channel_axis)
    assume(spec.bits > 1 or (quotients[x != 0] >= np.finfo(F).tiny).all())
    given_x = paddle.to_tensor(x, stop_gradient=not trainable)
    y = fake_quantize(given_x, tensor(abs_max), spec, saturate=saturate)
    np.testing.assert_array_equal(y.numpy(), reference_fake(x, abs_max, spec))
    # Internal in-place operations must not modify the caller's tensors.
    np.testing.assert_array_equal(given_x.numpy(), x)


@given(cases())
def test_quantized_values_are_fixed_points(case):
    x, abs_max, spec = case
    once = fake_quantize(tensor(x), tensor(abs_max), spec)
    np.testing.assert_array_equal(
        fake_quantize(once, tensor(abs_max), spec).numpy(), once.numpy())


@given(cases(signed=True, narrow_range=False))
def test_error_is_at_most_half_a_step_inside_the_range(case):
    x, abs_max, spec = case
    y = fake_quantize(tensor(x), tensor(abs_max), spec).numpy().astype(np.float64)
    wide = along(abs_max, x, spec.channel_axis).astype(np.float64) + 0 * x
    inside = np.abs(x) <= wide
    # One bit has no zero: the farthest value from -s and +s is 0.
    bound = wide if spec.bits == 1 else 0.5 * wide / spec.quant_max
    # float32 itself is 2**-24 off at the abs_max, twice (factor and result).
    assert (np.abs(y - x)[inside] <= (bound + 2.0**-22 * wide)[inside]).all()


@given(cases())
def test_straight_through_gradient_is_identity(case):
    x, abs_max, spec = case
    given_x = paddle.to_tensor(x, stop_gradient=False)
    upstream = np.random.RandomState(0).randn(*x.shape).astype(F)
    (fake_quantize(given_x, tensor(abs_max), spec) * tensor(upstream)).sum().backward()
    np.testing.assert_array_equal(given_x.grad.numpy(), upstream)


@given(cases())
def test_saturating_gradient_is_zero_exactly_outside_the_range(case):
    x, abs_max, spec = case
    given_x = paddle.to_tensor(x, stop_gradient=False)
    upstream = np.random.RandomState(0).uniform(0.5, 1.0, x.shape).astype(F)
    y = fake_quantize(given_x, tensor(abs_max), spec, saturate=True)
    (y * tensor(upstream)).sum().backward()
    qmin, qmax, levels = limits(spec.bits, spec.signed, spec.narrow_range)
    step = along(abs_max, x, spec.channel_axis).astype(np.float64) / levels
    inside = (x >= qmin * step) & (x <= qmax * step)
    # A value within float32 precision of a limit may count as either.
    clear = np.minimum(np.abs(x - qmin * step), np.abs(x - qmax * step)) > 2.0**-20 * (
        step * levels)
    got = given_x.grad.numpy()
    np.testing.assert_array_equal(got[clear], np.where(inside, upstream, F(0))[clear])
    assert np.isin(got, np.concatenate([upstream.ravel(), [F(0)]])).all()


def test_saturating_gradient_passes_at_range_limits():
    x = paddle.to_tensor([-129.0, -128.0, -127.0, 0.0, 127.0, 128.0], stop_gradient=False)
    fake_quantize(x, paddle.to_tensor([127.0]), QuantSpec(), saturate=True).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("x_trains", [False, True])
def test_idle_parameter_gets_a_zero_gradient(saturate, x_trains):
    x = paddle.to_tensor([-0.5, 0.25, 0.75], stop_gradient=not x_trains)
    idle = paddle.create_parameter([1], "float32")
    y = fake_quantize(x, paddle.to_tensor([1.0]), QuantSpec(), saturate=saturate, idle=idle)
    y.sum().backward()
    assert idle.grad.tolist() == [0.0]
    if x_trains:
        assert x.grad.tolist() == [1.0, 1.0, 1.0]
    else:
        assert x.grad is None
    expected = reference_fake(x.numpy(), [1.0], QuantSpec())
    np.testing.assert_array_equal(y.numpy(), expected)


def test_no_gradient_is_recorded_under_no_grad():
    x = paddle.to_tensor([0.5], stop_gradient=False)
    with paddle.no_grad():
        assert fake_quantize(x, paddle.to_tensor([1.0]), QuantSpec()).stop_gradient


# --- abs_max ---------------------------------------------------------------------------------

@given(cases())
def test_abs_max_is_the_largest_magnitude(case):
    x, _, spec = case
    axis = spec.channel_axis
    others = tuple(i for i in range(x.ndim) if i != axis)
    found = abs_max(tensor(x), spec)
    assert found.dtype == paddle.float32
    assert list(found.shape) == [1 if axis is None else x.shape[axis]]
    magnitude = np.abs(x.astype(np.float64))
    if spec.bits == 1:
        # The mean magnitude; its sum may overflow float32 where the values are near its end.
        if magnitude.sum() > 1e38:
            return
        expected = magnitude.mean(axis=None if axis is None else others)
        np.testing.assert_allclose(
            found.numpy(), np.maximum(expected, EPS).reshape(-1), rtol=1e-5)
    else:
        expected = magnitude.max(axis=None if axis is None else others)
        np.testing.assert_array_equal(
            found.numpy(), np.maximum(expected.astype(F), F(EPS)).reshape(-1))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_zero_channels_get_the_smallest_abs_max_and_stay_zero(axis):
    x = np.random.RandomState(0).randn(4, 4).astype(F)
    x[2, :] = 0
    x[:, 2] = 0
    spec = QuantSpec(granularity=PerChannel(axis))
    largest = abs_max(tensor(x), spec)
    assert largest.numpy()[2] == F(EPS)
    y = fake_quantize(tensor(x), largest, spec).numpy()
    assert np.isfinite(y).all()
    assert (y[2, :] == 0).all() and (y[:, 2] == 0).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_sided_values(sign):
    x = sign * np.linspace(0.5, 4.0, 12, dtype=F).reshape(3, 4)
    assert abs_max(tensor(x), QuantSpec()).tolist() == [4.0]
    assert abs_max(tensor(x), QuantSpec(granularity=PerChannel(0))).tolist() == (
        np.abs(x).max(axis=1).tolist())


# --- dtypes, shapes and modes ----------------------------------------------------------------

@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("trainable", [False, True])
def test_output_keeps_the_input_dtype(dtype, trainable):
    given_x = paddle.to_tensor(np.random.randn(6, 5).astype(F)).astype(dtype)
    given_x.stop_gradient = not trainable
    x = given_x.detach().astype("float32").numpy()
    largest = abs_max(given_x, QuantSpec())
    assert largest.dtype == paddle.float32
    y = fake_quantize(given_x, largest, QuantSpec())
    assert y.dtype == given_x.dtype
    expected = tensor(reference_fake(x, largest.numpy(), QuantSpec())).astype(dtype)
    np.testing.assert_array_equal(y.astype("float32").numpy(), expected.astype("float32").numpy())
    if trainable:
        y.astype("float32").sum().backward()
        assert given_x.grad.dtype == given_x.dtype
        assert (given_x.grad.astype("float32").numpy() == 1.0).all()


@pytest.mark.parametrize("bits", [1, 8])
def test_zero_dimensional_tensor(bits):
    x = paddle.to_tensor(0.3)
    assert x.shape == []
    y = fake_quantize(x, paddle.to_tensor([1.0]), QuantSpec(bits))
    assert y.shape == []
    assert y.item() == reference_fake(np.full([], 0.3, F), [1.0], QuantSpec(bits)).item()


def test_empty_tensor():
    # A detector without detections passes an empty batch to its head.
    y = fake_quantize(paddle.zeros([0, 4]), paddle.to_tensor([1.0]), QuantSpec())
    assert y.shape == [0, 4]


class Simulated(paddle.nn.Layer):
    def __init__(self, spec):
        super().__init__()
        self.spec = spec

    def forward(self, x, abs_max):
        return fake_quantize(x, abs_max, self.spec)


FULL_GRAPH = pytest.mark.parametrize("full_graph", [True, False])  # translated from AST, bytecode


# In one process, in order: the bytecode translator reuses programs of earlier calls.
@pytest.mark.xdist_group("bytecode")
@FULL_GRAPH
@pytest.mark.parametrize("bits", [1, 2, 8, 16])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_traced_program_is_bit_exact(bits, axis, full_graph):
    spec = QuantSpec(bits) if axis is None else QuantSpec(bits, granularity=PerChannel(axis))
    x = tensor((3 * np.random.randn(7, 5)).astype(F))
    largest = abs_max(x, spec) * 0.7
    traced = paddle.jit.to_static(Simulated(spec), full_graph=full_graph)
    np.testing.assert_array_equal(
        traced(x, largest).numpy(), fake_quantize(x, largest, spec).numpy())


@FULL_GRAPH
def test_traced_program_clips_far_outliers(full_graph):
    x = tensor(np.array([[1e9, -1e6, 33.3, 0.5]], F))
    traced = paddle.jit.to_static(Simulated(QuantSpec()), full_graph=full_graph)
    y = traced(x, paddle.to_tensor([1.0]))
    np.testing.assert_array_equal(y.numpy(), reference_fake(x.numpy(), [1.0], QuantSpec()))


@FULL_GRAPH
def test_traced_program_straight_through_gradient(full_graph):
    x = paddle.to_tensor([[5.0, -0.3, 0.7]], stop_gradient=False)
    traced = paddle.jit.to_static(Simulated(QuantSpec()), full_graph=full_graph)
    traced(x, paddle.to_tensor([1.0])).sum().backward()
    assert x.grad.tolist() == [[1.0, 1.0, 1.0]]


# --- Paddle's own operators ------------------------------------------------------------------

def paddle_round_trip(x, abs_max, bits, axis):
    """Return (integers, values) of the operators of an exported model."""
    ops = paddle._legacy_C_ops
    scale = tensor(abs_max)
    zero = paddle.zeros(scale.shape)
    attributes = ("quant_axis", -1 if axis is None else axis, "bit_length", bits,
                  "qmin", -(2 ** (bits - 1)), "qmax", 2 ** (bits - 1) - 1)
    q = ops.quantize_linear(tensor(x), scale, zero, *attributes)
    return q.numpy(), ops.dequantize_linear(q, scale, zero, *attributes).numpy()


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("bits", range(2, 17))
def test_paddle_operators_are_bit_exact(bits, axis):
    rng = np.random.RandomState(bits)
    shape, levels = (6, 7, 50), 2 ** (bits - 1) - 1
    abs_max = np.exp(rng.uniform(-8, 8, 1 if axis is None else shape[axis])).astype(F)
    wide = along(abs_max, np.zeros(shape, F), axis)
    inside = rng.uniform(-1.3, 1.3, shape).astype(F) * wide
    borders = ((rng.randint(-levels - 2, levels + 3, shape) + 0.5).astype(F) * wide) / F(levels)
    spec = QuantSpec(bits) if axis is None else QuantSpec(bits, granularity=PerChannel(axis))
    for x in (inside, borders.astype(F), np.zeros(shape, F), inside * F(1e25)):
        q, y = paddle_round_trip(x, abs_max, bits, axis)
        np.testing.assert_array_equal(quantize(tensor(x), tensor(abs_max), spec).numpy(), q)
        np.testing.assert_array_equal(
            dequantize(tensor(q), tensor(abs_max), spec).numpy(), y)
        np.testing.assert_array_equal(
            fake_quantize(tensor(x), tensor(abs_max), spec).numpy(), y)


# --- PACT's clipping range ---------------------------------------------------------------------

@pytest.mark.parametrize("saturate", [False, True])
def test_frozen_idle_parameter_gets_no_gradient(saturate):
    x = paddle.to_tensor([-0.5, 0.25], stop_gradient=False)
    idle = paddle.create_parameter([1], "float32")
    idle.stop_gradient = True
    fake_quantize(x, paddle.to_tensor([1.0]), QuantSpec(), saturate=saturate,
                  idle=idle).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0] and idle.grad is None


@pytest.mark.parametrize("x_trains", [False, True])
@pytest.mark.parametrize("alpha_trains", [False, True])
def test_gradients_of_clipping_pact(x_trains, alpha_trains):
    """Images reach a model's first layer as constants; a user may freeze alpha."""
    pact = PACT(init=1.0)
    pact.alpha.stop_gradient = not alpha_trains
    x = paddle.to_tensor([-2.0, 0.5, 3.0, 4.0], stop_gradient=not x_trains)
    y = pact(x)
    assert y.tolist() == [-1.0, 0.5, 1.0, 1.0]
    if x_trains or alpha_trains:
        y.sum().backward()
    assert (x.grad is None) == (not x_trains)
    assert (pact.alpha.grad is None) == (not alpha_trains)
    if x_trains:
        assert x.grad.tolist() == [0.0, 1.0, 0.0, 0.0]
    if alpha_trains:
        assert pact.alpha.grad.tolist() == [1.0]


@pytest.mark.parametrize("alpha", [1.0, 0.3, 41.0, 47.0, 1.6969642639160156])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pact_gradients_match_float64_reference(alpha, dtype):
    """41 * (1 / 41) is below 1 in float32: a side found with a reciprocal is lost."""
    rng = np.random.RandomState(0)
    x = tensor((rng.randn(64, 999) * alpha).astype(F)).astype(dtype)
    x.stop_gradient = False
    upstream = tensor(rng.randn(64, 999).astype(F)).astype(dtype)
    pact = PACT(init=alpha)
    (pact(x) * upstream).astype("float32").sum().backward()
    values, g = (t.detach().astype("float32").numpy().astype(np.float64) for t in (x, upstream))
    alpha = float(F(alpha))
    side = np.where(values >= alpha, 1.0, np.where(values <= -alpha, -1.0, 0.0))
    assert (side > 0).any() and (side < 0).any()
    np.testing.assert_allclose(pact.alpha.grad.numpy(), [(g * side).sum()], rtol=1e-4)
    np.testing.assert_array_equal(x.grad.astype("float32").numpy(), g * (side == 0))


@pytest.mark.parametrize("alpha", [-1.5, 0.0])
def test_negative_pact_alpha_is_used_by_magnitude(alpha):
    """In training, in evaluation and in a program of to_static."""
    values = tensor(np.random.RandomState(0).randn(16, 8).astype(F) * 2)
    found = []
    for start in alpha, max(abs(alpha), EPS):
        paddle.seed(0)
        net = paddleq.QAT(act_preprocess=lambda value=start: pact_at(value)).quantize(
            nn.Sequential(nn.Linear(8, 3)))
        trained = net(values)
        trained.sum().backward()
        clip_to = net[0].activation_preprocess
        gradient = clip_to.alpha.grad.item()
        net.eval()
        traced = paddle.jit.to_static(copy.deepcopy(clip_to), full_graph=True)
        found.append([trained.numpy(), net(values).numpy(), traced(values).numpy(),
                      -gradient if start < 0 else gradient])
    for mine, expected in zip(*found):
        np.testing.assert_allclose(mine, expected, rtol=1e-6, atol=1e-7)


def pact_at(alpha):
    pact = PACT()
    pact.alpha.set_value(tensor(np.array([alpha], F)))
    return pact


def test_pact_of_an_empty_tensor():
    x = paddle.zeros([0, 4])
    assert PACT().clipping(x) is None and PACT()(x).shape == [0, 4]


@pytest.mark.parametrize("alpha", [0.003, 0.3, 1.0, 1.6969642639160156, 41.0])
@pytest.mark.parametrize("abs_max", [0.2, 1.0, 37.3])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_fused_clip_equals_clip_then_quantize(alpha, abs_max, bits):
    spec, values = QuantSpec(bits=bits), np.random.RandomState(0).randn(64, 99) * alpha * 2
    borders = (np.arange(-130, 131) + 0.5) * abs_max / spec.quant_max
    values = np.concatenate([values.ravel(), borders, [alpha, -alpha, 0.0]]).astype(F)
    upstream = tensor(np.random.RandomState(1).randn(values.size).astype(F))
    results = []
    for fused in True, False:
        x, pact = paddle.to_tensor(values, stop_gradient=False), PACT(init=alpha)
        y = (clip_and_fake_quantize(x, pact.alpha, tensor([abs_max]), spec) if fused else
             fake_quantize(pact(x), tensor([abs_max]), spec, exact=False))
        (y * upstream).sum().backward()
        results.append([y.numpy(), x.grad.numpy(), pact.alpha.grad.numpy()])
    for found, expected in zip(*results):
        np.testing.assert_array_equal(found, expected)
    # The formula in float64, but for values so near a border that float32 decides.
    clipped = values.astype(np.float64).clip(-float(F(alpha)), float(F(alpha)))
    steps = clipped * spec.quant_max / float(F(abs_max))
    clear = np.abs(steps - np.floor(steps) - 0.5) > 1e-4
    integers = np.rint(steps).clip(spec.quant_min, spec.quant_max)
    expected = integers * float(F(abs_max)) / spec.quant_max
    np.testing.assert_allclose(results[0][0][clear], expected[clear], rtol=1e-6)
    side = np.sign(values) * (np.abs(values) >= F(alpha))
    np.testing.assert_allclose(results[0][2], [(upstream.numpy().astype(np.float64) * side).sum()],
                               rtol=1e-4)


class _OneSided(PACT):
    def forward(self, x):
        return x.clip(0.0, 1e9)


def test_pact_subclass_with_overridden_forward_is_a_plain_hook():
    net = nn.Sequential(nn.Linear(4, 3))
    paddleq.QAT(act_preprocess=_OneSided).quantize(net)
    net.train()
    x = paddle.to_tensor([[-4.0, 1.0, 2.0, -1.0]])
    net(x)
    net.eval()
    np.testing.assert_array_equal(net(x).numpy(), net(x.clip(0.0)).numpy())


# --- training steps: fewer passes, the same integers -------------------------------------------

@given(cases())
def test_fast_path_returns_integers_times_the_step(case):
    x, abs_max, spec = case
    q = quantize(tensor(x), tensor(abs_max), spec).numpy().astype(np.float64)
    given_x = tensor(x)
    given_x.stop_gradient = False
    got = fake_quantize(given_x, tensor(abs_max), spec, exact=False).numpy()
    exact = dequantize(tensor(q.astype(F)), tensor(abs_max), spec).numpy()
    np.testing.assert_allclose(got, exact, rtol=4e-7, atol=0)
    shape = [1] * x.ndim
    if spec.channel_axis is not None:
        shape[spec.channel_axis] = -1
    step = abs_max.astype(np.float64).reshape(shape) / spec.quant_max
    np.testing.assert_array_equal(np.round(got / step), q)


@pytest.mark.parametrize("factor", [0.37, 1.0, 90.7])
def test_fast_path_rounds_ties_like_the_exact_path(factor):
    spec, abs_max = QuantSpec(), np.array([127.0 / factor], F)
    half = (np.arange(-130, 130) + 0.5) * abs_max / 127
    x = np.concatenate([np.nextafter(half, half + d).astype(F) for d in (-1.0, 0.0, 1.0)])
    got = fake_quantize(paddle.to_tensor(x, stop_gradient=False), tensor(abs_max), spec,
                        exact=False).numpy()
    exact = fake_quantize(tensor(x), tensor(abs_max), spec).numpy()
    np.testing.assert_allclose(got, exact, rtol=4e-7, atol=0)
