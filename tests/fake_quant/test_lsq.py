"""LSQ and LSQ+: forward and backward against the formulas in float64, and as part of a model.

With v / s the value in steps, z the zero point, g = 1 / sqrt(N * qmax), dy the upstream gradient:

    y       = (clip(round(v / s) + z, qmin, qmax) - z) * s
    dv      = dy inside, 0 outside
    ds      = g * sum of dy * (round(v / s) - v / s) inside, dy * qmin below, dy * qmax above
    doffset = g * sum of dy outside

Steps that are powers of two make float32 exact, so that values on borders can be compared too.
"""

import copy

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nets import SmallNet, train_steps, warmed
from paddle import nn
from runtimes import openvino, paddle_inference, relative_error

import paddleq
from paddleq import LSQ, PACT, QAT, FakeQuantize, LSQPlus, PerChannel, QuantSpec, State
from paddleq.errors import (
    CalibrationError,
    ConfigError,
    ConfigTypeError,
    ExportError,
    ModelError,
    NonFiniteError,
)
from paddleq.functional import EPS, fake_quantize, learned_fake_quantize
from paddleq.functional.lsq import learned_abs_max, learned_zero_point
from paddleq.observers import (
    CurrentAbsMaxObserver,
    DeviationObserver,
    KLObserver,
    MeanMagnitudeObserver,
    MinMaxObserver,
    MSEObserver,
)

F = np.float32
AFFINE = {"dtype": "quint4", "qscheme": "per_tensor_affine"}
SPEC = [paddle.static.InputSpec([None, 1, 8, 8], "float32")]

LEARNED = {
    "lsq": {"weight_quantize_type": "lsq", "activation_quantize_type": "lsq"},
    "channel_wise_lsq": {"weight_quantize_type": "channel_wise_lsq",
                         "activation_quantize_type": "lsq"},
    "lsq_plus": {"weight_quantize_type": "lsq_plus", "activation_quantize_type": "lsq_plus"},
    "channel_wise_lsq_plus": {"weight_quantize_type": "channel_wise_lsq_plus",
                              "activation_quantize_type": "lsq_plus"},
    "lsq_plus_weights": {"weight_quantize_type": "channel_wise_lsq_plus",
                         "activation_quantize_type": "lsq"},
}
EXPORTABLE = ["lsq", "channel_wise_lsq", "lsq_plus_weights"]
EVERY = pytest.mark.parametrize("kind", list(LEARNED))


def quantized(kind, seed=0, bits=4):
    paddle.seed(seed)
    net = SmallNet()
    config = {**LEARNED.get(kind, {}), "weight_bits": bits, "activation_bits": bits}
    return QAT(config).quantize(net)


def quantizers(net):
    return [(name, layer) for name, layer in net.named_sublayers() if isinstance(layer, LSQ)]


# --- the reference -----------------------------------------------------------------------------

def aligned(numbers, ndim, axis):
    shape = [1] * ndim
    if axis is not None:
        shape[axis] = -1
    return np.asarray(numbers, np.float64).reshape(shape)


def reference(x, dy, step, zero, spec):
    """Return (y, dx, ds, doffset) in float64; ``zero`` is None without an offset."""
    axis = spec.channel_axis
    x, dy = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    s, z = aligned(step, x.ndim, axis), aligned(0 if zero is None else zero, x.ndim, axis)
    t = x / s
    rounded = np.floor(t + 0.5) if spec.rounding == "half_up" else np.rint(t)
    y = (np.clip(rounded + z, spec.quant_min, spec.quant_max) - z) * s
    if zero is None:  # values on a border count as outside, as in the paper
        below, above = t <= spec.quant_min, t >= spec.quant_max
    else:
        below, above = t < spec.quant_min - z, t > spec.quant_max - z
    inside = ~(below | above)
    slope = np.where(inside, rounded - t, np.where(below, spec.quant_min, spec.quant_max))
    others = None if axis is None else tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    g = 1 / np.sqrt(x.size / np.size(step) * spec.quant_max)
    return (y, np.where(inside, dy, 0), (dy * slope).sum(axis=others).reshape(-1) * g,
            (dy * ~inside).sum(axis=others).reshape(-1) * g)


def trained(x, dy, step, spec, offset=None, exact=True, call=learned_fake_quantize):
    """Return (y, dx, ds, doffset or None) of paddleq."""
    tensors = [paddle.to_tensor(np.asarray(each, F), stop_gradient=False)
               for each in (x, step, *([] if offset is None else [offset]))]
    y = call(tensors[0], tensors[1], spec, *tensors[2:], exact=exact)
    (y * paddle.to_tensor(dy)).sum().backward()
    grads = [each.grad.numpy() for each in tensors]
    return (y.numpy(), *grads, *([] if offset is not None else [None]))


def compare(x, dy, step, spec, offset=None, exact=True, call=learned_fake_quantize):
    zero, scale = None, np.abs(step)
    if offset is not None:
        abs_max = learned_abs_max(paddle.to_tensor(step), spec)
        zero = learned_zero_point(paddle.to_tensor(offset), abs_max, spec).numpy()
    y, dx, ds, doffset = trained(x, dy, step, spec, offset, exact, call)
    expected = reference(x, dy, scale, zero, spec)
    np.testing.assert_allclose(y, expected[0], rtol=1e-6, atol=0)
    np.testing.assert_array_equal(dx, expected[1].astype(F))
    # Cancellation: the float32 error of a sum is relative to its largest terms.
    g = (x.size / np.size(step) * spec.quant_max) ** -0.5
    spread = np.abs(dy).sum() * (spec.quant_max - spec.quant_min) * g
    np.testing.assert_allclose(ds, expected[2] * np.where(step < 0, -1, 1), rtol=1e-5,
                               atol=1e-6 * spread)
    if offset is not None:
        np.testing.assert_allclose(doffset, expected[3], rtol=1e-5, atol=1e-6 * spread)


@st.composite
def cases(draw):
    """Draw (x, dy, step, spec, offset or None)."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=6))
    axis = draw(st.sampled_from([None, *range(-1, len(shape))]))
    affine = draw(st.booleans())
    spec = QuantSpec(
        draw(st.integers(2, 8)), signed=draw(st.booleans()), symmetric=not affine,
        narrow_range=draw(st.booleans()), rounding=draw(st.sampled_from(["half_even", "half_up"])),
        **({} if axis is None else {"granularity": PerChannel(axis)}))
    channels = 1 if axis is None else shape[axis]
    rng = np.random.RandomState(draw(st.integers(0, 2**31 - 1)))
    kind = draw(st.sampled_from(["inside", "outside", "borders", "constant", "zeros", "positive",
                                 "negative", "huge", "tiny"]))
    exact = kind == "borders" or draw(st.booleans())
    step = 2.0 ** rng.randint(-9, 6, channels) if exact else np.exp(rng.uniform(-9, 5, channels))
    step = (step * rng.choice([-1, 1], channels)).astype(F)
    s = aligned(np.abs(step), len(shape), axis)
    wide = spec.quant_max - spec.quant_min
    t = rng.randint(-2 * wide, 2 * wide + 1, shape) + rng.choice([-0.4, -0.2, 0.1, 0.3], shape)
    if kind == "inside":
        top = max(spec.quant_max, spec.quant_min + 2)
        t = rng.randint(spec.quant_min + 1, top, shape) + (t - np.rint(t))
    elif kind == "borders":
        t = rng.randint(spec.quant_min - 2, spec.quant_max + 3, shape) + rng.choice([0, 0.5], shape)
    elif kind == "constant":
        t = np.full(shape, t.flat[0])
    elif kind == "zeros":
        t = np.zeros(shape)
    elif kind in ("positive", "negative"):
        t = np.abs(t) * (1 if kind == "positive" else -1)
    x = {"huge": rng.choice([-3e38, 3e38], shape), "tiny": rng.choice([-1e-37, 1e-37], shape)}.get(
        kind, t * s)
    offset = None
    if affine:
        zero = rng.randint(spec.quant_min - 3, spec.quant_max + 4, channels) + 0.2
        offset = (-zero * np.abs(step)).astype(F)
    # Sums of multiples of 1/8 are exact.
    dy = (rng.randint(-32, 33, shape) / 8).astype(F)
    return np.asarray(x, F), dy, step, spec, offset


@given(cases(), st.booleans())
def test_forward_and_backward_match_float64_reference(case, exact):
    compare(*case, exact=exact)


@given(cases())
def test_forward_equals_fake_quantize_exactly(case):
    x, _, step, spec, offset = case
    step, offset = (None if each is None else paddle.to_tensor(each) for each in (step, offset))
    abs_max = learned_abs_max(step, spec)
    zero = None if offset is None else learned_zero_point(offset, abs_max, spec)
    expected = fake_quantize(paddle.to_tensor(x), abs_max, spec, zero_point=zero).numpy()
    for wants_gradient in False, True:
        given_x = paddle.to_tensor(x, stop_gradient=not wants_gradient)
        y = learned_fake_quantize(given_x, step, spec, offset)
        np.testing.assert_array_equal(y.numpy(), expected)
        np.testing.assert_array_equal(given_x.numpy(), x)  # the input is unchanged


class Simulated(nn.Layer):
    def __init__(self, spec):
        super().__init__()
        self.spec = spec

    def forward(self, x, step, offset=None):
        return learned_fake_quantize(x, step, self.spec, offset)


@pytest.mark.parametrize("spec, offset", [
    (QuantSpec(4), None), (QuantSpec(3, granularity=PerChannel(1)), None),
    (QuantSpec(8, signed=False), None), (QuantSpec(4, signed=False, symmetric=False), [-1.3]),
    (QuantSpec(3, symmetric=False, granularity=PerChannel(-1)), [0.4, -0.1, 9.0, -9.0, 0.0])])
def test_traced_program_equals_dynamic_mode(spec, offset):
    traced = paddle.jit.to_static(Simulated(spec), full_graph=True)
    channels = 1 if spec.channel_axis is None else 5
    step = np.exp(np.linspace(-2, 0, channels)).astype(F) * np.array([-1, 1, 1, 1, 1], F)[:channels]
    x = (np.random.RandomState(0).randn(7, 5) * spec.quant_max * 0.4).astype(F)
    dy = np.random.RandomState(1).randn(7, 5).astype(F)
    compare(x, dy, step, spec, None if offset is None else np.array(offset, F),
            call=lambda x, step, _, *offset, exact: traced(x, step, *offset))


def test_step_gradient_scale():
    # One value above the range of 4 bits, upstream 1: ds = 7 / sqrt(N * 7).
    for shape, axis, shared in (([6], None, 6), ([2, 3, 5], None, 30), ([4, 3], 1, 4),
                                ([4, 3, 2], 0, 6)):
        spec = QuantSpec(4) if axis is None else QuantSpec(4, granularity=PerChannel(axis))
        x, channels = np.zeros(shape, F), 1 if axis is None else shape[axis]
        x.flat[0] = 100.0
        ds = trained(x, np.ones(shape, F), np.ones(channels, F), spec)[2]
        np.testing.assert_allclose(ds, [7 / np.sqrt(shared * 7)] + [0] * (channels - 1), rtol=1e-6)


def test_gradients_of_shared_and_frozen_inputs():
    x, step = (paddle.to_tensor([v], stop_gradient=False) for v in (0.25, 1.0))
    (learned_fake_quantize(x, step, QuantSpec(2)) + 2 * learned_fake_quantize(x, step, QuantSpec(2))
     ).sum().backward()
    assert x.grad.tolist() == [3.0] and step.grad.tolist() == [-0.75]
    frozen = paddle.to_tensor([1.0])
    learned_fake_quantize(x, frozen, QuantSpec(2)).sum().backward()
    assert x.grad.tolist() == [4.0] and frozen.grad is None
    learned_fake_quantize(paddle.to_tensor([0.25]), step, QuantSpec(2)).sum().backward()
    assert step.grad.tolist() == [-1.0]
    with paddle.no_grad():
        assert learned_fake_quantize(x, step, QuantSpec(2)).stop_gradient
    assert learned_fake_quantize(paddle.zeros([0, 3]), step, QuantSpec(2)).shape == [0, 3]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_output_keeps_the_input_dtype(dtype):
    x = paddle.to_tensor([0.25, 3.0, -9.0]).astype(dtype)
    step = paddle.to_tensor([1.0], stop_gradient=False)
    x.stop_gradient = False
    y = learned_fake_quantize(x, step, QuantSpec(2))
    assert y.dtype == x.dtype and y.astype("float32").tolist() == [0.0, 1.0, -2.0]
    y.astype("float32").sum().backward()
    assert x.grad.dtype == x.dtype and x.grad.astype("float32").tolist() == [1.0, 0.0, 0.0]
    assert step.grad.item() == pytest.approx((-0.25 + 1 - 2) / 3 ** 0.5)


def test_in_place_operators_on_output_and_input():
    values, step = paddle.to_tensor([0.25, 3.0], stop_gradient=False), paddle.to_tensor([1.0])
    step.stop_gradient = False
    x = values * 1.0
    y = learned_fake_quantize(x, step, QuantSpec(2))
    y.add_(paddle.full([2], 5.0))
    y.sum().backward()
    assert step.grad.item() == pytest.approx((-0.25 + 1) / 2 ** 0.5)
    x = values * 1.0
    y = learned_fake_quantize(x, step, QuantSpec(2))
    x.add_(paddle.full([2], 5.0))
    with pytest.raises(Exception, match="ModelError.*changed in place"):  # Paddle wraps the error
        y.sum().backward()


def best_step(x, spec, offset=0.0):
    """Return the step of least squared error by grid search."""
    steps = np.linspace(0.02, 2.0, 400) * np.abs(x).max() / spec.quant_max
    errors = [np.square(reference(x - offset, x, s, None, spec)[0] - (x - offset)).mean()
              for s in steps]
    return steps[np.argmin(errors)]


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("start", [0.3, 3.0])
def test_gradient_descent_finds_the_step_of_least_error(bits, start):
    x, spec = np.random.RandomState(0).randn(4000).astype(F), QuantSpec(bits)
    best = best_step(x, spec)
    step = paddle.create_parameter([1], "float32",
                                   default_initializer=nn.initializer.Constant(best * start))
    optimizer = paddle.optimizer.Adam(0.02, parameters=[step])
    for i in range(300):
        if i == 200:
            optimizer.set_lr(0.002)
        error = learned_fake_quantize(paddle.to_tensor(x), step, spec) - paddle.to_tensor(x)
        error.square().mean().backward()
        optimizer.step()
        optimizer.clear_grad()
    assert step.item() == pytest.approx(best, rel=0.06)


def test_gradient_descent_finds_the_offset():
    # Values of [-1, 14] on 16 levels; the initial range is [0, 15].
    x = paddle.to_tensor(np.linspace(-1, 14, 500).astype(F))
    quantizer = LSQPlus(**AFFINE)
    quantizer.set_qparams(1.0, 0)
    optimizer = paddle.optimizer.Adam(0.02, parameters=quantizer.parameters())
    first = (quantizer(x) - x).square().mean().item()
    for _ in range(200):
        (quantizer(x) - x).square().mean().backward()
        optimizer.step()
        optimizer.clear_grad()
    assert quantizer.zero_point.item() == 1
    assert (quantizer(x) - x).square().mean().item() < 0.095 < first


# --- the first step ----------------------------------------------------------------------------

@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_initial_step_matches_the_paper(axis, bits):
    x = (np.random.RandomState(0).randn(6, 5, 4) + 0.3).astype(F)
    spec = QuantSpec(bits) if axis is None else QuantSpec(bits, granularity=PerChannel(axis))
    channels = 1 if axis is None else x.shape[axis]
    others = None if axis is None else tuple(i for i in range(3) if i != axis % 3)
    wide, qmax = x.astype(np.float64), 2 ** (bits - 1) - 1
    mean, deviation = wide.mean(axis=others), wide.std(axis=others)
    expected = {
        LSQ: 2 * np.abs(wide).mean(axis=others) / np.sqrt(qmax),
        LSQPlus: np.maximum(np.abs(mean - 3 * deviation), np.abs(mean + 3 * deviation))
        / 2 ** (bits - 1)}
    for cls, steps in expected.items():
        quantizer = cls(spec=spec, channel_len=channels)
        assert not quantizer.initialized and quantizer.step.tolist() == [0.0] * channels
        quantizer(paddle.to_tensor(x))
        assert quantizer.initialized
        np.testing.assert_allclose(quantizer.scale.numpy(), np.reshape(steps, [-1]), rtol=1e-5)
        first = quantizer.step.tolist()
        quantizer(paddle.to_tensor(x * 10))  # from here on only the gradient changes it
        assert quantizer.step.tolist() == first and quantizer.observer.num_batches == 1


def test_initial_step_and_offset_of_affine_lsq_plus_match_the_range():
    quantizer = LSQPlus(**AFFINE)
    quantizer(paddle.to_tensor([-0.4, 1.1]))
    assert quantizer.step.item() == pytest.approx(0.1) and quantizer.zero_point.tolist() == [4]
    assert quantizer.offset.item() == pytest.approx(-0.4)
    low, high = quantizer.range()
    assert (low.item(), high.item()) == pytest.approx((-0.4, 1.1))
    quantizer.set_qparams(0.5, 3)
    assert quantizer(paddle.to_tensor([-9.0, 0.3, 99.0])).tolist() == [-1.5, 0.5, 6.0]


@pytest.mark.parametrize("cls, arguments", [(LSQ, {}), (LSQPlus, {}), (LSQPlus, AFFINE)])
@pytest.mark.parametrize("value", [0.0, 0.75, -3.0])
def test_constant_batches(cls, arguments, value):
    quantizer, x = cls(**arguments), paddle.full([4, 5], value)
    x.stop_gradient = False
    y = quantizer(x)
    y.sum().backward()
    assert quantizer.initialized and quantizer.scale.item() > 0
    for found in (y, x.grad, quantizer.step.grad):
        assert np.isfinite(found.numpy()).all()
    quantizer.eval()
    assert quantizer(paddle.zeros([3])).tolist() == [0.0] * 3
    if value == 0.0:
        assert y.abs().max().item() == 0.0 and quantizer.abs_max.item() >= 0.99 * EPS


def test_zero_channels_get_a_step():
    quantizer = LSQ(qscheme="per_channel_symmetric", channel_len=3)
    y = quantizer(paddle.to_tensor([[0.0, 0.0], [1.0, -1.0], [0.0, 0.0]]))
    assert (quantizer.scale.numpy() > 0).all() and np.isfinite(y.numpy()).all()


def test_empty_batch_does_not_initialize_the_step():
    for quantizer in (LSQ(), LSQPlus(**AFFINE)):
        assert quantizer(paddle.zeros([0, 4])).shape == [0, 4]
        assert not quantizer.initialized
        quantizer(paddle.ones([1, 4]))
        assert quantizer(paddle.zeros([0, 4])).shape == [0, 4] and quantizer.initialized


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_first_batch_is_rejected(bad):
    for quantizer in (LSQ(label="here"), LSQPlus(label="here")):
        with pytest.raises(NonFiniteError, match="here.*sets the step.*1 NaN or infinite"):
            quantizer(paddle.to_tensor([1.0, bad]))
        assert not quantizer.initialized


def test_loading_an_untrained_state_reinitializes_the_step():
    for kind in "lsq", "lsq_plus", "abs_max":
        net, x = quantized(kind), paddle.rand([4, 1, 8, 8])
        before = {name: value.clone() for name, value in net.state_dict().items()}
        first = [train_steps(net, x, steps=2), net(x).numpy()][1]
        net.set_state_dict(before)
        assert not net.fc.activation_quantizer.initialized
        assert np.isfinite(net(x).numpy()).all()
        train_steps(net, x, steps=2)
        np.testing.assert_array_equal(net(x).numpy(), first)


def test_evaluation_does_not_initialize_the_step():
    quantizer, x = LSQ(), paddle.to_tensor([0.123])
    quantizer.eval()
    assert quantizer(x) is x and not quantizer.initialized


@pytest.mark.parametrize("cls", [MeanMagnitudeObserver, DeviationObserver])
@pytest.mark.parametrize("axis", [None, 1])
def test_observers_merge(cls, axis):
    spec = QuantSpec(4) if axis is None else QuantSpec(4, granularity=PerChannel(axis))
    batches = [(np.random.RandomState(i).randn(3, 4) * (i + 1) + i).astype(F) for i in range(4)]
    whole, left, right = (cls(spec, 4) for _ in range(3))
    for i, batch in enumerate(batches):
        whole.update(paddle.to_tensor(batch))
        (left if i < 2 else right).update(paddle.to_tensor(batch))
    left.merge(right)
    left.update(paddle.zeros([0, 4]))
    assert left.num_batches == 5
    together = np.concatenate(batches).astype(np.float64)
    axes = None if axis is None else 0
    expected = {
        MeanMagnitudeObserver: np.abs(together).mean(axis=axes) * 2 * 7 ** 0.5,
        DeviationObserver: (np.abs(together.mean(axis=axes)) + 3 * together.std(axis=axes)) * 7 / 8}
    np.testing.assert_allclose(whole.abs_max().numpy(), np.reshape(expected[cls], [-1]),
                               rtol=1e-5)
    left.batches.set_value(left.batches - 1)  # except for the empty one
    np.testing.assert_allclose(left.abs_max().numpy(), whole.abs_max().numpy(), rtol=1e-6)


# --- as a FakeQuantize -------------------------------------------------------------------------

def test_abs_max_follows_the_parameter():
    quantizer = LSQPlus(**AFFINE)
    quantizer(paddle.to_tensor([-1.0, 6.5])).sum().backward()
    optimizer = paddle.optimizer.SGD(0.05, parameters=quantizer.parameters())
    quantizer.step.grad.set_value(paddle.ones([1]))
    quantizer.offset.grad.set_value(paddle.full([1], 10.0))
    optimizer.step()
    assert quantizer.step.item() == pytest.approx(0.45)
    assert quantizer.abs_max.item() == pytest.approx(0.45 * 15)
    assert quantizer.scale.item() == pytest.approx(0.45)
    assert quantizer.zero_point.item() == 3  # 1.5 / 0.45
    quantizer.eval()
    assert quantizer(paddle.to_tensor([-9.0])).item() == pytest.approx(-3 * 0.45)


def test_negative_step_is_used_by_magnitude():
    quantizer = LSQ(dtype="qint4")
    quantizer.set_qparams(0.5)
    optimizer = paddle.optimizer.SGD(1.0, parameters=quantizer.parameters())
    x = paddle.to_tensor([1e3])  # above the range: ds = 7 / sqrt(7), so the step becomes negative
    quantizer(x).sum().backward()
    optimizer.step()
    optimizer.clear_grad()
    expected = 7 / 7 ** 0.5 - 0.5
    assert quantizer.step.item() == pytest.approx(-expected)
    assert quantizer.scale.item() == pytest.approx(expected)
    assert quantizer.abs_max.item() == pytest.approx(7 * expected)
    # Gradient descent still reduces the magnitude for either sign of the parameter.
    quantizer(x).sum().backward()
    assert quantizer.step.grad.item() == pytest.approx(-7 / 7 ** 0.5)
    quantizer.step.set_value(paddle.to_tensor([1e-30]))
    assert quantizer.abs_max.item() == pytest.approx(EPS)
    assert np.isfinite(quantizer(x).numpy()).all()


def test_states():
    x = paddle.to_tensor([0.3, -2.0])
    quantizer = LSQ()
    paddleq.disable_fake_quant(quantizer)
    assert quantizer(x) is x and quantizer.initialized
    quantizer = LSQ()
    paddleq.disable_observer(quantizer)
    assert quantizer(x) is x and not quantizer.initialized
    quantizer.eval()
    paddleq.set_fake_quantize(quantizer, State.CALIBRATION)
    for scale in (1.0, 3.0):
        assert quantizer(x * scale).tolist() == (x * scale).tolist()
    quantizer.finalize()
    paddleq.set_fake_quantize(quantizer, State.VALIDATION)
    assert quantizer.scale.item() == pytest.approx(2 * 1.15 * 2 / 127 ** 0.5)
    assert quantizer(x).tolist() == fake_quantize(x, quantizer.abs_max, quantizer.spec).tolist()
    with pytest.raises(CalibrationError, match="no data"):
        LSQ().finalize()


def test_set_qparams_and_representation():
    quantizer = LSQ(qscheme="per_channel_symmetric", channel_len=2)
    quantizer.set_qparams([0.5, 0.25])
    assert quantizer.initialized and quantizer.scale.tolist() == [0.5, 0.25]
    assert quantizer.zero_point.tolist() == [0, 0]
    assert [limit.tolist() for limit in quantizer.range()] == [[-64.0, -32.0], [63.5, 31.75]]
    assert "int8 per_channel(0)" in repr(quantizer) and "MeanMagnitude" in repr(quantizer)
    assert [name for name, _ in quantizer.named_parameters()] == ["step"]


def test_unsigned_values():
    quantizer = LSQ(dtype="quint4")
    quantizer.set_qparams(1.0)
    x = paddle.to_tensor([-3.0, 0.0, 7.75, 99.0], stop_gradient=False)
    y = quantizer(x)
    y.sum().backward()
    assert y.tolist() == [0.0, 0.0, 8.0, 15.0] and x.grad.tolist() == [0.0, 0.0, 1.0, 0.0]
    assert quantizer.step.grad.item() == pytest.approx((0.25 + 15) / 60 ** 0.5)


def test_learning_rate_factor():
    steps = []
    for rate in (1.0, 0.1):
        quantizer = LSQ(dtype="qint4", learning_rate=rate)
        quantizer.set_qparams(0.5)
        quantizer(paddle.to_tensor([10.0])).sum().backward()
        paddle.optimizer.SGD(0.01, parameters=quantizer.parameters()).step()
        steps.append(0.5 - quantizer.step.item())
    assert steps[0] == pytest.approx(0.01 * 7 / 7 ** 0.5, rel=1e-4)
    assert steps[1] == pytest.approx(steps[0] / 10, rel=1e-4)


# (callable, error, part of the message)
WRONG = [
    (lambda: LSQ(spec=QuantSpec(1)), ConfigError, ["LSQ", "two bits", "int1"]),
    (lambda: LSQ(**AFFINE), ConfigError, ["LSQ is symmetric", "LSQPlus"]),
    (lambda: LSQ(spec=QuantSpec(), dtype="qint4"), ConfigError, ["spec says", "dtype"]),
    (lambda: LSQ(dtype="int4"), ConfigError, ["dtype", "'int4'", "'qint4'"]),
    (lambda: LSQ(bins=3), ConfigError, ["'bins'"]),
    (lambda: LSQ(learning_rate=-1.0), ConfigError, ["learning_rate", "-1.0"]),
    (lambda: LSQ(learning_rate="1"), ConfigTypeError, ["learning_rate", "'1'"]),
    (lambda: LSQ(fast_training=1), ConfigTypeError, ["fast_training", "1"]),
    (lambda: LSQ(channel_len=0), ConfigError, ["channel_len", "0"]),
    (lambda: LSQ(observer=CurrentAbsMaxObserver), ConfigError,
     ["CurrentAbsMaxObserver", "each tensor"]),
    (lambda: LSQ(observer="mean"), ConfigTypeError, ["observer", "'mean'"]),
    (lambda: LSQ().set_qparams(-1.0), ConfigError, ["scale", "-1.0"]),
    (lambda: LSQ(qscheme="per_channel_symmetric", label="w")(paddle.rand([3, 4])), ModelError,
     ["w has 1 steps", "axis 0", "channel_len=3"]),
    (lambda: QAT({"weight_quantize_type": "lsq+"}), ConfigError,
     ["weight_quantize_type", "'lsq+'", "did you mean 'lsq"]),
    (lambda: QAT({"activation_quantize_type": "channel_wise_lsq"}), ConfigError,
     ["activation_quantize_type", "'channel_wise_lsq'", "'lsq_plus'"]),
    (lambda: QAT({"weight_quantize_type": "channel_wise_lsq", "weight_bits": 1}), ConfigError,
     ["config['weight_bits']", "at least 2", "'channel_wise_lsq'", "1"]),
    (lambda: QAT({"activation_quantize_type": "lsq_plus", "activation_bits": 1}), ConfigError,
     ["config['activation_bits']", "at least 2", "'lsq_plus'"]),
    (lambda: QAT({"weight_bits": 1}, weight_quantize=LSQ), ConfigError, ["LSQ", "two bits"]),
    (lambda: QAT(act_quantize=LSQ.with_args(**AFFINE)), ConfigError, ["LSQ is symmetric"]),
    (lambda: QAT(act_quantize=LSQ()), ConfigTypeError, ["act_quantize", "not an instance"]),
]


@pytest.mark.parametrize("call, error, words", WRONG)
def test_invalid_arguments(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert [word for word in words if word not in str(caught.value)] == [], caught.value


# --- in a model --------------------------------------------------------------------------------

def test_bits_and_channels_from_the_configuration():
    net = quantized("channel_wise_lsq_plus", bits=3)
    weight, activation = net.fc.weight_quantizer, net.conv1.activation_quantizer
    assert type(weight) is LSQPlus and str(weight.spec) == "int3 per_channel(1)"
    assert weight.step.shape == [10] and weight.offset is None
    assert type(activation) is LSQPlus and str(activation.spec) == "uint3 per_tensor"
    assert not activation.spec.symmetric and activation.offset is not None
    net = quantized("lsq", bits=5)
    for name in "weight_quantizer", "activation_quantizer":
        part = getattr(net.fc, name)
        assert type(part) is LSQ and str(part.spec) == "int5 per_tensor"
        assert part.label == f"fc.{name}" and part.spec.rounding == "half_even"
    assert "no scale yet" in paddleq.summary(net)
    train_steps(net, paddle.rand([2, 1, 8, 8]))
    assert f"scale {net.fc.weight_quantizer.scale.item():.4g}" in paddleq.summary(net)


def test_hooks_inherit_unset_options_from_the_configuration():
    net = QAT({"weight_bits": 4, "activation_bits": 3}, weight_quantize=LSQ,
              act_quantize=LSQPlus.with_args(learning_rate=0.5)).quantize(SmallNet())
    assert str(net.conv1.weight_quantizer.spec) == "int4 per_channel(0)"
    assert str(net.fc.weight_quantizer.spec) == "int4 per_channel(1)"
    assert net.fc.weight_quantizer.step.shape == [10]
    assert str(net.fc.activation_quantizer.spec) == "uint3 per_tensor"
    assert net.fc.activation_quantizer.step.optimize_attr["learning_rate"] == 0.5
    net = QAT({"weight_bits": 4}, weight_quantize=LSQ.with_args(dtype="qint2"),
              act_quantize=LSQ.with_args(spec=QuantSpec(6, signed=False))).quantize(SmallNet())
    assert str(net.conv1.weight_quantizer.spec) == "int2 per_tensor"
    assert str(net.conv1.activation_quantizer.spec) == "uint6 per_tensor"
    net = QAT(weight_quantize=LSQ.with_args(dtype="qint4", qscheme="per_channel_symmetric"),
              act_quantize=LSQPlus.with_args(dtype="qint4")).quantize(SmallNet())
    assert str(net.fc.weight_quantizer.spec) == "int4 per_channel(1)"
    assert str(net.fc.activation_quantizer.spec) == "int4 per_tensor"
    assert net.fc.activation_quantizer.offset is None


def test_user_defined_subclass():
    class Own(LSQ):
        def __init__(self):
            super().__init__(dtype="qint3", learning_rate=0.1)

    class Renamed(LSQ):
        """Subclass without __init__, constructed with the layer's information like LSQ."""

    net = QAT(weight_quantize=Renamed, act_quantize=Own).quantize(SmallNet())
    assert type(net.fc.weight_quantizer) is Renamed and net.fc.weight_quantizer.step.shape == [10]
    assert str(net.fc.activation_quantizer.spec) == "int3 per_tensor"
    train_steps(net, paddle.rand([2, 1, 8, 8]))
    assert all(quantizer.initialized for _, quantizer in quantizers(net))


@EVERY
def test_steps_train_with_the_model(kind):
    net, x = quantized(kind), paddle.rand([4, 1, 8, 8])
    net.train()
    net(x)
    before = {name: p.numpy().copy() for name, p in net.named_parameters() if "quantizer" in name}
    assert len(before) == 8 + 4 * (LEARNED[kind]["activation_quantize_type"] == "lsq_plus")
    train_steps(net, x, steps=2, lr=1e-2)
    same = [name for name, p in net.named_parameters()
            if name in before and (p.numpy() == before[name]).all()]
    assert [name for name in same if not name.endswith("offset")] == []
    assert set(paddleq.extra_state_keys(net)) > set(before)
    missing, _ = net.set_state_dict(SmallNet().state_dict())  # a float checkpoint
    assert set(missing) == set(paddleq.extra_state_keys(net))


def test_shared_weights_share_a_step():
    class Tied(nn.Layer):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x))

    net = QAT(LEARNED["lsq"]).quantize(Tied())
    assert net.first.weight_quantizer is net.second.weight_quantizer
    net(paddle.rand([3, 4])).sum().backward()
    assert net.first.weight_quantizer.step.grad is not None


@EVERY
def test_deepcopy_and_state_dict(kind, tmp_path):
    x, net = paddle.rand([4, 1, 8, 8]), quantized(kind)
    train_steps(net, x)
    expected = net(x).numpy()
    copied = copy.deepcopy(net)
    copied.eval()
    np.testing.assert_array_equal(copied(x).numpy(), expected)
    path = str(tmp_path / "model.pdparams")
    paddle.save(net.state_dict(), path)
    fresh = quantized(kind, seed=1)
    missing, unexpected = fresh.set_state_dict(paddle.load(path))
    assert not missing and not unexpected
    fresh.eval()
    assert all(quantizer.initialized for _, quantizer in quantizers(fresh))
    np.testing.assert_array_equal(fresh(x).numpy(), expected)
    train_steps(copied, x * 5)
    np.testing.assert_array_equal(net(x).numpy(), expected)


@EVERY
def test_resumed_training_is_identical(kind, tmp_path):
    x, path = paddle.rand([4, 1, 8, 8]), str(tmp_path / "x")

    def adam(net):
        return paddle.optimizer.Adam(1e-3, parameters=net.parameters())

    with paddle.utils.unique_name.guard():
        net = quantized(kind)
        optimizer = train_steps(net, x, steps=3, optimizer=adam(net))
        paddle.save(net.state_dict(), path + ".pdparams")
        paddle.save(optimizer.state_dict(), path + ".pdopt")
        train_steps(net, x, steps=3, optimizer=optimizer)
    with paddle.utils.unique_name.guard():  # parameter names restart at 0, as in a new process
        again = quantized(kind, seed=1)
        other = adam(again)
        again.set_state_dict(paddle.load(path + ".pdparams"))
        other.set_state_dict(paddle.load(path + ".pdopt"))
        train_steps(again, x, steps=3, optimizer=other)
    np.testing.assert_array_equal(again(x).numpy(), net(x).numpy())


@EVERY
def test_amp_o1(kind):
    x = paddle.rand([4, 1, 8, 8])
    net, plain = quantized(kind, bits=8), quantized(kind, bits=8)
    with paddle.amp.auto_cast(level="O1", dtype="bfloat16"):
        output = net(x)
        output.astype("float32").square().mean().backward()
    assert relative_error(output.astype("float32").numpy(), plain(x).numpy()) < 0.05
    for _, quantizer in quantizers(net):
        assert quantizer.step.dtype == paddle.float32 == quantizer.step.grad.dtype
        assert np.isfinite(quantizer.step.grad.numpy()).all()


@pytest.mark.parametrize("full_graph", [True, pytest.param(False, marks=pytest.mark.one_version)])
@pytest.mark.parametrize("kind", [
    pytest.param(kind, marks=[] if kind in ("lsq", "channel_wise_lsq_plus") else [
        pytest.mark.nightly]) for kind in LEARNED])
def test_to_static_training_equals_dynamic_training(kind, full_graph):
    def make():
        paddle.seed(1)
        return QAT(LEARNED[kind]).quantize(
            nn.Sequential(nn.Linear(5, 6), nn.Sigmoid(), nn.Linear(6, 2)))

    dynamic, static = make(), make()
    traced = paddle.jit.to_static(static, full_graph=full_graph)
    for net, call in ((dynamic, dynamic), (static, traced)):
        # A small rate: with larger ones a rounding error grows a hundredfold per step.
        optimizer = paddle.optimizer.SGD(2e-3, parameters=net.parameters())
        for i in range(4):
            x = paddle.to_tensor(np.random.RandomState(i).randn(16, 5).astype(F))
            (call(x) - x[:, :2]).square().mean().backward()
            if i == 3:
                assert all(p.grad is not None for p in net.parameters())
            optimizer.step()
            optimizer.clear_grad()
    for (name, a), (_, b) in zip(quantizers(dynamic), quantizers(static)):
        # In a program the observer is updated; bytecode of Paddle 2.6 does not trace quantizers.
        assert b.initialized and (b.observer.num_batches == 4 or not full_graph)
        for held in "abs_max", "zero_point":
            np.testing.assert_allclose(getattr(b, held).numpy(), getattr(a, held).numpy(),
                                       rtol=1e-4, err_msg=f"{name}.{held}")
    for layer in 0, 2:
        np.testing.assert_allclose(static[layer].weight.numpy(), dynamic[layer].weight.numpy(),
                                   rtol=1e-4, atol=1e-5)
    # A step initialized by a program is used in dynamic mode.
    kept = make()
    kept.set_state_dict(static.state_dict())
    kept.eval()
    static.eval()
    np.testing.assert_allclose(kept(x).numpy(), traced(x).numpy(), rtol=1e-5, atol=1e-6)


def test_steps_can_be_initialized_by_calibration():
    x = [paddle.rand([8, 1, 8, 8]) for _ in range(3)]
    paddle.seed(0)
    net = warmed(SmallNet(), x[0])
    QAT({"weight_bits": 4}, weight_quantize=LSQ.with_args(qscheme="per_tensor_symmetric",
                                                          observer=MSEObserver),
        act_quantize=LSQ.with_args(dtype="qint4", observer=KLObserver)).quantize(net)
    net.train()
    net(x[0])  # not yet: a histogram is searched on request only
    assert not any(quantizer.initialized for _, quantizer in quantizers(net))
    paddleq.calibrate(net, x)
    first = {name: quantizer.step.item() for name, quantizer in quantizers(net)}
    observer = net.conv2.activation_quantizer.observer
    assert first["conv2.activation_quantizer"] == pytest.approx(observer.abs_max().item() / 7)
    net.train()
    paddleq.set_fake_quantize(net, State.QAT)
    train_steps(net, x[0], steps=1, lr=1e-3)
    for name, quantizer in quantizers(net):
        assert quantizer.step.item() == pytest.approx(first[name], rel=0.3)
        assert quantizer.step.item() != first[name]


def test_saving_in_validation_state_keeps_trained_steps(tmp_path):
    net, x = quantized("lsq"), paddle.rand([4, 1, 8, 8])
    train_steps(net, x)
    steps = [quantizer.step.item() for _, quantizer in quantizers(net)]
    paddleq.set_fake_quantize(net, State.VALIDATION)
    QAT().save_quantized_model(net, str(tmp_path / "m"), SPEC)
    assert [quantizer.step.item() for _, quantizer in quantizers(net)] == steps


@pytest.mark.parametrize("alpha", [0.4, 100.0])
def test_trained_step_is_kept_after_pact(alpha, tmp_path):
    class Clipped(PACT):
        def __init__(self):
            super().__init__(init=alpha, learning_rate=0.0)

    x = paddle.rand([4, 1, 8, 8])
    net = quantized("lsq")
    paddle.seed(0)
    net = SmallNet()
    qat = QAT({**LEARNED["lsq"], "activation_bits": 4}, act_preprocess=Clipped)
    qat.quantize(net)
    train_steps(net, x)
    quantizer, seen = net.conv3.activation_quantizer, []
    net.conv3.activation_quantizer.register_forward_post_hook(lambda _, i, o: seen.append((*i, o)))
    net(x)
    (given_x, y), = seen
    assert given_x.max().item() == pytest.approx(alpha) or alpha == 100.0
    np.testing.assert_array_equal(
        y.numpy(), fake_quantize(given_x, quantizer.abs_max, quantizer.spec).numpy())
    qat.save_quantized_model(net, str(tmp_path / "m"), SPEC)
    found = paddle_inference(str(tmp_path / "m"), [x.numpy()])[0]
    assert relative_error(found, net(x).numpy()) < 1e-6


# --- exported ----------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", EXPORTABLE)
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("onnx_format", [True, False])
def test_export_equals_simulation(kind, bits, onnx_format, tmp_path):
    x, path = paddle.rand([8, 1, 8, 8]), str(tmp_path / "m")
    net = quantized(kind, bits=bits)
    train_steps(net, x, steps=5)
    net.conv3.weight_quantizer.step.set_value(-net.conv3.weight_quantizer.step)
    expected = net(x).numpy()
    assert np.abs(expected).max() > 0
    QAT().save_quantized_model(net, path, SPEC, onnx_format=onnx_format)
    np.testing.assert_array_equal(net(x).numpy(), expected)
    assert relative_error(paddle_inference(path, [x.numpy()])[0], expected) < 1e-6
    if onnx_format:
        assert relative_error(openvino(path, [x.numpy()])[0], expected) < 1e-2


@pytest.mark.parametrize("hook, words", [
    ({"act_quantize": LSQ.with_args(dtype="quint4")}, ["[0, 15]", "signed"]),
    ({"weight_quantize": LSQ.with_args(dtype="quint8")}, ["[0, 255]", "signed"]),
    ({"act_quantize": LSQPlus}, ["zero point", "symmetric=True", "'lsq'"]),
])
def test_settings_unsupported_by_pdmodel_are_rejected(hook, words, tmp_path):
    qat = QAT(**hook)
    net = qat.quantize(SmallNet())
    train_steps(net, paddle.rand([4, 1, 8, 8]))
    with pytest.raises(ExportError) as caught:
        qat.save_quantized_model(net, str(tmp_path / "m"), SPEC)
    assert [word for word in words if word not in str(caught.value)] == []
    assert not list(tmp_path.iterdir())


def test_untrained_step_is_rejected(tmp_path):
    net = quantized("lsq")
    with pytest.raises(ExportError, match=r"conv1\.activation_quantizer.*conv1\.weight_quantizer"):
        QAT().save_quantized_model(net, str(tmp_path / "m"), SPEC)


def test_learned_quantizer_is_a_fake_quantizer():
    assert issubclass(LSQPlus, LSQ) and issubclass(LSQ, FakeQuantize)
    assert isinstance(LSQ(observer=MinMaxObserver(QuantSpec(4))).observer, MinMaxObserver)
    assert str(LSQ(observer=MinMaxObserver(QuantSpec(4))).spec) == "int4 per_tensor"
