"""GPTQ, AWQ and SmoothQuant against float64 numpy, and on held-out inputs."""

import itertools
import logging

import numpy as np
import paddle
import pytest
from algorithm_reference import (
    GRANULARITIES,
    numpy_awq_losses,
    numpy_clip_losses,
    numpy_gptq,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from paddleq import PerChannel, PerGroup, PerTensor, PerToken, QuantSpec
from paddleq.algorithms import AWQ, GPTQ, RoundToNearest, SmoothQuant, quantize_linears
from paddleq.algorithms.gptq import feedback_matrix
from paddleq.config import LayerConfig
from paddleq.errors import CalibrationError, ConfigError, ConfigTypeError, ModelError
from paddleq.observers import ChannelStats

ALL = {"abs_max", "mean_abs", "hessian", "range"}
SPECS = [QuantSpec(4, signed=symmetric, symmetric=symmetric, granularity=granularity)
         for symmetric in (True, False) for granularity in GRANULARITIES]
W4G64 = QuantSpec(4, granularity=PerGroup(64))
NEAR_A_TIE = 5e-4  # in steps: the float32 rounding error


def correlated(seed, tokens, rows):
    """Return float32 inputs with correlated features of different magnitude."""
    rng = np.random.RandomState(seed)
    mix = rng.randn(rows, rows) * np.exp(-np.arange(rows) / (rows / 6.0))[:, None]
    x = rng.randn(tokens, rows) @ mix + 0.05 * rng.randn(tokens, rows)
    return (x * np.exp(0.5 * rng.randn(rows))).astype("float32")


def weights(seed, rows, columns):
    return (0.05 * np.random.RandomState(1000 + seed).randn(rows, columns)).astype("float32")


def statistics_of(*batches, needs=ALL):
    found = ChannelStats(needs)
    for batch in batches:
        found.update(paddle.to_tensor(batch))
    return found


def loss(quantized, weight, x):
    return float(((x @ (quantized.dequantize().numpy() - weight)) ** 2).mean())


# Statistics


def test_statistics_accumulate_over_batches():
    batches = [correlated(i, tokens, 12).reshape(shape)
               for i, (tokens, shape) in enumerate([(6, [2, 3, 12]), (50, [50, 12]), (1, [12])])]
    found = statistics_of(batches[0], batches[1], np.zeros([0, 12], "float32"), batches[2])
    x = np.concatenate([batch.reshape(-1, 12) for batch in batches]).astype("float64")
    assert found.tokens == 57
    assert (found.abs_max.numpy() == np.abs(x).max(0)).all()
    np.testing.assert_allclose(found.mean_abs.numpy(), np.abs(x).mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.hessian.numpy(), x.T @ x / 57, rtol=1e-5, atol=1e-5)
    assert [each.tolist() for each in found.range] == [[x.min()], [x.max()]]


def test_statistics_of_scaled_inputs():
    x = correlated(0, 40, 9)
    s = np.random.RandomState(1).uniform(0.01, 100, 9).astype("float32")
    quotient, direct = statistics_of(x).divided_by(paddle.to_tensor(s)), statistics_of(x / s)
    for name in ("abs_max", "mean_abs", "hessian"):
        np.testing.assert_allclose(getattr(quotient, name).numpy(),
                                   getattr(direct, name).numpy(), rtol=2e-5, atol=1e-6)
    for one, other in zip(quotient.range, direct.range):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-6)
    assert quotient.tokens == 40


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_accumulated_in_float32(dtype):
    x = paddle.to_tensor(300.0 * np.ones([64, 4], "float32")).astype(dtype)
    found = ChannelStats(ALL)
    for _ in range(40):
        found.update(x)
    exact = x.astype("float32")[0, 0].item()
    assert found.hessian.dtype == paddle.float32  # 90,000 exceeds the float16 range
    np.testing.assert_allclose(found.hessian.numpy(), exact ** 2, rtol=1e-5)
    np.testing.assert_allclose(found.mean_abs.numpy(), exact, rtol=1e-5)


def test_long_calibration_does_not_overflow():
    found = ChannelStats(ALL)
    for _ in range(20):  # squares of 1e38: a sum of four overflows
        found.update(paddle.full([100, 3], 1e19))
    np.testing.assert_allclose(found.hessian.numpy(), 1e38, rtol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_non_finite_inputs_are_rejected_and_not_recorded(bad):
    x = correlated(0, 10, 4)
    found = statistics_of(x)
    spoilt = x.copy()
    spoilt[3, 2] = bad
    with pytest.raises(CalibrationError, match="finite|NaN"):
        found.update(paddle.to_tensor(spoilt))
    assert found.tokens == 10
    assert (found.hessian.numpy() == statistics_of(x).hessian.numpy()).all()
    assert (found.abs_max.numpy() == np.abs(x).max(0)).all()


def test_statistics_reject_invalid_inputs():
    with pytest.raises(ConfigError, match="hesian.*did you mean 'hessian'"):
        ChannelStats({"hesian"})
    with pytest.raises(ConfigError, match="'hessian', which is asked for"):
        _ = statistics_of(np.ones([2, 3], "float32"), needs={"abs_max"}).hessian
    with pytest.raises(ConfigError, match=r"\[..., 3\]"):
        statistics_of(np.ones([2, 3], "float32"), np.ones([2, 4], "float32"))


# GPTQ


def same_but_for_ties(quantized, reference):
    """Assert equal columns where no value is near a tie; return their share."""
    integers = quantized.integers.numpy().astype(int)
    order = reference["order"]
    if quantized.permutation is None:
        integers = integers[order]
    else:
        assert (quantized.permutation.numpy() == order).all()
    steps = reference["steps"]
    clear = (np.abs(steps - np.floor(steps) - 0.5) > NEAR_A_TIE).all(axis=0)
    assert (integers == reference["integers"])[:, clear].all()
    return clear.mean()


@pytest.mark.parametrize("seed", range(20))
def test_gptq_matches_float64_reference(seed):
    """20 problems that vary the spec, the order and the groups."""
    spec, act_order, static_groups = list(itertools.product(
        SPECS, (False, True), (False, True)))[(seed * 7) % 24]
    rows, columns = (100, 24) if seed % 2 else (96, 17)
    x, weight = correlated(seed, 300, rows), weights(seed, rows, columns)
    statistics = statistics_of(x, needs=GPTQ.needs)
    gptq = GPTQ(act_order=act_order, static_groups=static_groups)
    quantized = gptq.quantize(paddle.to_tensor(weight), spec, statistics)
    hessian = np.asarray(statistics.hessian.numpy(), np.float64)
    reference = numpy_gptq(weight, hessian, spec, 0.01, act_order, static_groups)
    assert same_but_for_ties(quantized, reference) > 0.6
    # Each integer, given the integers of the preceding rows.
    order = reference["order"]
    integers = quantized.integers.numpy().astype(int)
    integers = integers if quantized.permutation is not None else integers[order]
    given_ours = numpy_gptq(weight, hessian, spec, 0.01, act_order, static_groups, given=integers)
    tie = np.abs(given_ours["steps"] - np.floor(given_ours["steps"]) - 0.5)
    assert (tie[integers != given_ours["integers"]] < NEAR_A_TIE).all()
    assert (integers != given_ours["integers"]).mean() < 1e-3
    np.testing.assert_allclose(quantized.qparams.scale.numpy(), given_ours["scale"], rtol=5e-4)
    if not spec.symmetric:
        assert (quantized.qparams.zero_point.numpy() == given_ours["zero"]).all()
    # And the dequantized weight.
    scale, zero = (given_ours[name][given_ours["group_of"]] for name in ("scale", "zero"))
    expected = np.empty_like(weight)
    expected[order] = (integers - zero) * scale
    np.testing.assert_allclose(quantized.dequantize().numpy(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec}-{spec.symmetric}")
@pytest.mark.parametrize("static_groups", [False, True])
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_with_identity_hessian_rounds_to_nearest(spec, act_order, static_groups):
    rows = 100
    statistics = statistics_of(np.eye(rows, dtype="float32"))
    weight = paddle.to_tensor(weights(3, rows, 30))
    quantized = GPTQ(act_order=act_order, static_groups=static_groups).quantize(
        weight, spec, statistics)
    order = quantized.permutation
    plain = RoundToNearest().quantize(weight if order is None else weight.index_select(order), spec)
    assert (quantized.integers.numpy() == plain.integers.numpy()).all()
    assert (quantized.qparams.scale.numpy() == plain.qparams.scale.numpy()).all()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec}-{spec.symmetric}")
@pytest.mark.parametrize("act_order", [False, True])
def test_gptq_does_not_depend_on_the_block_size(spec, act_order):
    rows = 150  # groups of 32: the last has 22
    statistics = statistics_of(correlated(5, 400, rows), needs=GPTQ.needs)
    weight = weights(5, rows, 24)
    reference = numpy_gptq(weight, statistics.hessian.numpy(), spec, act_order=act_order)
    for block_size in (1, 5, 16, 33, 64, 1000):
        quantized = GPTQ(block_size=block_size, act_order=act_order).quantize(
            paddle.to_tensor(weight), spec, statistics)
        assert same_but_for_ties(quantized, reference) > 0.6


@settings(max_examples=25)
@given(seed=st.integers(0, 999), rows=st.integers(1, 40), columns=st.integers(1, 6),
       tokens=st.integers(1, 60), dead=st.integers(0, 40), size=st.integers(1, 48),
       bits=st.sampled_from([2, 3, 4, 8]), magnitude=st.sampled_from([1e-8, 1.0, 1e8]),
       symmetric=st.booleans(), act_order=st.booleans(), static_groups=st.booleans(),
       block_size=st.sampled_from([1, 7, 16]))
def test_gptq_matches_reference_for_random_shapes(seed, rows, columns, tokens, dead, size, bits,
                                                  magnitude, symmetric, act_order, static_groups,
                                                  block_size):
    """Includes fewer tokens than features, dead features and tiny inputs."""
    spec = QuantSpec(bits, signed=symmetric, symmetric=symmetric, granularity=PerGroup(size))
    x, weight = correlated(seed, tokens, rows) * np.float32(magnitude), weights(seed, rows, columns)
    x[:, np.random.RandomState(seed).permutation(rows)[:dead]] = 0.0
    statistics = statistics_of(x, needs=GPTQ.needs)
    gptq = GPTQ(block_size, 0.05, act_order, static_groups)
    quantized = gptq.quantize(paddle.to_tensor(weight), spec, statistics)
    assert str(quantized.integers.dtype).split(".")[-1] == spec.storage
    assert list(quantized.integers.shape) == [rows, columns]
    assert np.isfinite(quantized.dequantize().numpy()).all()
    if act_order:
        # Features of equal magnitude, such as dead ones, may be in any order.
        return
    integers = quantized.integers.numpy().astype(int)
    given_ours = numpy_gptq(weight, statistics.hessian.numpy(), spec, 0.05, False, static_groups,
                            given=integers)
    different = integers != given_ours["integers"]
    tie = np.abs(given_ours["steps"] - np.floor(given_ours["steps"]) - 0.5)
    assert (tie[different] < 5e-3).all() and (np.abs(integers - given_ours["integers"]) <= 1).all()


def test_joint_quantization_of_weights_equals_separate_quantization():
    statistics = statistics_of(correlated(2, 200, 64), needs=GPTQ.needs)
    spec = QuantSpec(4, granularity=PerGroup(32))
    several = [paddle.to_tensor(weights(seed, 64, 5 + seed)) for seed in range(3)]
    clips = [None, paddle.full([2, 6], 0.75), 0.5]
    together = GPTQ().quantize_all(several, spec, statistics, clips)
    for weight, clip, quantized in zip(several, clips, together):
        alone = GPTQ().quantize(weight, spec, statistics, clip)
        assert (alone.integers.numpy() == quantized.integers.numpy()).all()
        assert (alone.qparams.scale.numpy() == quantized.qparams.scale.numpy()).all()


@pytest.mark.parametrize("static_groups", [False, True])
def test_clip_shrinks_the_range_of_its_group(static_groups):
    statistics = statistics_of(correlated(7, 300, 80), needs=GPTQ.needs)
    weight, spec = weights(7, 80, 9), QuantSpec(4, granularity=PerGroup(32))
    clip = np.random.RandomState(0).uniform(0.5, 1.0, [3, 9]).astype("float32")
    quantized = GPTQ(static_groups=static_groups).quantize(
        paddle.to_tensor(weight), spec, statistics, paddle.to_tensor(clip))
    reference = numpy_gptq(weight, statistics.hessian.numpy(), spec, static_groups=static_groups,
                           clip=clip)
    assert same_but_for_ties(quantized, reference) > 0.6


@pytest.mark.parametrize("act_order", [False, True])
def test_dead_features_are_rounded_to_nearest(act_order):
    x, weight = correlated(0, 200, 40), weights(0, 40, 12)
    dead = np.arange(40) % 4 == 1
    x[:, dead] = 0.0
    weight[0] *= 10.0  # scales do not depend on the dead rows
    spec = QuantSpec(4, granularity=PerChannel(1))
    gptq = GPTQ(act_order=act_order)
    tensor = paddle.to_tensor(weight)
    integers = gptq.quantize(tensor, spec, statistics_of(x)).integers.numpy()
    plain = RoundToNearest().quantize(tensor, spec).integers.numpy()
    assert (integers[dead] == plain[dead]).all()
    # The others are quantized as without dead ones.
    alone = gptq.quantize(paddle.to_tensor(weight[~dead]), spec, statistics_of(x[:, ~dead]))
    assert (integers[~dead] == alone.integers.numpy()).all()
    assert (integers[~dead] != plain[~dead]).any()


def test_zero_inputs_round_to_nearest():
    statistics = statistics_of(np.zeros([10, 32], "float32"))
    weight, spec = paddle.to_tensor(weights(0, 32, 4)), QuantSpec(4, granularity=PerGroup(16))
    for rounder in (GPTQ(), GPTQ(act_order=True, static_groups=True)):
        integers = rounder.quantize(weight, spec, statistics).integers.numpy()
        assert (integers == RoundToNearest().quantize(weight, spec).integers.numpy()).all()


def test_damping_increases_until_the_hessian_is_positive_definite(caplog):
    """4 tokens for 64 features: without damping the Hessian is singular."""
    x, weight = correlated(0, 4, 64), weights(0, 64, 16)
    spec, statistics = QuantSpec(4, granularity=PerChannel(1)), statistics_of(x)
    tensor = paddle.to_tensor(weight)
    with caplog.at_level(logging.WARNING, logger="paddleq"):
        quantized = GPTQ(damping=1e-12).quantize(tensor, spec, statistics)
    assert "not positive definite with a damping of 1e-12" in caplog.text
    steps = [record.args for record in caplog.records]
    assert len(steps) > 2 and all(later == 10.0 * sooner for sooner, later in steps)
    assert [later for _, later in steps[:-1]] == [sooner for sooner, _ in steps[1:]]
    assert loss(quantized, weight, x) < 0.5 * loss(RoundToNearest().quantize(tensor, spec),
                                                   weight, x)
    caplog.clear()
    GPTQ().quantize(tensor, spec, statistics)
    assert caplog.text == ""


def test_invalid_hessian_is_rejected():
    with pytest.raises(CalibrationError, match="cannot be decomposed"):
        feedback_matrix(paddle.full([3, 3], float("nan")), 0.01)


def test_feedback_matrix_decomposes_the_hessian():
    x = correlated(1, 100, 30)
    hessian = x.T.astype("float64") @ x / 100
    strict = feedback_matrix(paddle.to_tensor(hessian.astype("float32")), 0.01).numpy()
    damped = hessian + 0.01 * np.diag(hessian).mean() * np.eye(30)
    unit = np.eye(30) + strict
    inverse = np.linalg.inv(unit)
    diagonal = inverse.T @ damped @ inverse
    assert (np.triu(strict) == 0).all()
    scale = np.sqrt(np.outer(np.diag(diagonal), np.diag(diagonal)))
    np.testing.assert_allclose(diagonal / scale, np.eye(30), atol=1e-4)


# AWQ


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec}-{spec.symmetric}")
@pytest.mark.parametrize("count", [1, 3])
def test_awq_finds_the_ratio_of_least_error(spec, count):
    x = correlated(4, 200, 80)
    x[:, [3, 30, 70]] *= 20.0
    several = [weights(seed, 80, 12 + seed) for seed in range(count)]
    found = AWQ().scales([paddle.to_tensor(weight) for weight in several], statistics_of(x), spec)
    candidates = numpy_awq_losses(several, x, spec)
    losses = np.array([each for _, each in candidates])
    chosen = int(np.argmin([np.abs(found.numpy() / s - 1).max() for s, _ in candidates]))
    np.testing.assert_allclose(found.numpy(), candidates[chosen][0], rtol=1e-4)
    assert losses[chosen] <= losses.min() * (1 + 1e-3)  # the effect of one weight on a tie
    assert losses.argmin() > 0


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec}-{spec.symmetric}")
def test_awq_finds_the_clip_of_least_error(spec):
    x, weight = correlated(6, 200, 80), weights(6, 80, 12)
    weight[7, ::2] *= 8.0  # an outlier in every second column, for which clipping pays
    found = AWQ().clips(paddle.to_tensor(weight), statistics_of(x), spec).numpy()
    candidates = numpy_clip_losses(weight, x, spec)
    losses = np.stack([each for _, each in candidates])
    assert found.shape == losses.shape[1:]
    chosen = np.argmin([np.abs(found - factor) for factor, _ in candidates], axis=0)
    np.testing.assert_allclose(found, np.array([f for f, _ in candidates])[chosen], rtol=1e-6)
    taken = np.take_along_axis(losses, chosen[None], 0)[0]
    assert (taken <= losses.min(0) * (1 + 1e-2)).all()
    assert taken.sum() < losses[0].sum()


def test_awq_with_ratio_zero_rounds_to_nearest():
    x, weight = correlated(0, 100, 64), paddle.to_tensor(weights(0, 64, 8))
    spec = QuantSpec(4, granularity=PerGroup(32))
    statistics = statistics_of(x)
    outcome = quantize_linears(
        [weight], LayerConfig(spec, smoother=AWQ(grids_num=1, clip=False)), statistics)
    assert (outcome.input_scale.numpy() == 1.0).all()
    plain = RoundToNearest().quantize(weight, spec)
    assert (outcome.weights[0].integers.numpy() == plain.integers.numpy()).all()
    assert AWQ(clip=False).clips(weight, statistics, spec) is None


def test_awq_without_outliers_does_not_scale_inputs():
    x = np.random.RandomState(0).randn(2000, 64).astype("float32")
    s = AWQ().scales([paddle.to_tensor(weights(0, 64, 32))], statistics_of(x),
                     QuantSpec(4, granularity=PerGroup(32))).numpy()
    assert np.abs(np.log(s)).max() < 0.1


# SmoothQuant


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_smoothquant_matches_its_formula(strength):
    x, several = correlated(0, 50, 16), [weights(seed, 16, 5) for seed in range(2)]
    x[:, 5] = 0.0
    several[0][9] = several[1][9] = 0.0
    s = SmoothQuant(strength).scales([paddle.to_tensor(weight) for weight in several],
                                     statistics_of(x), QuantSpec()).numpy()
    x_max = np.abs(x.astype("float64")).max(0)
    w_max = np.abs(np.concatenate(several, axis=1).astype("float64")).max(1)
    alive = (x_max > 0) & (w_max > 0)
    np.testing.assert_allclose(
        s[alive], x_max[alive] ** strength / w_max[alive] ** (1 - strength), rtol=1e-5)
    assert (s[~alive] == 1.0).all() and (~alive).sum() == 2


def planted(seed, rows=256, columns=128, tokens=2048, outliers=3, factor=30.0):
    """Return (calibration inputs, held-out inputs, weight): noise with some large features."""
    rng = np.random.RandomState(seed)
    x = rng.randn(2 * tokens, rows)
    x[:, rng.choice(rows, outliers, replace=False)] *= factor
    return (*np.split(x.astype("float32"), 2), weights(seed, rows, columns))


def computed(x, outcome, activation=None):
    """Compute the output of the deployed layer in float64."""
    x = x.astype("float64")
    if outcome.input_scale is not None:
        x = x / outcome.input_scale.numpy()
    if activation is not None:
        if outcome.activation is not None:
            scale, zero = (None if each is None else each.numpy() for each in outcome.activation)
        else:
            scale, zero = np.abs(x).max(-1, keepdims=True) / activation.quant_max, None
        zero = 0.0 if zero is None else zero
        x = scale * np.clip(np.rint(x / scale), activation.quant_min - zero,
                            activation.quant_max - zero)
    return x @ outcome.weights[0].dequantize().numpy()


@pytest.mark.parametrize("granularity", [PerTensor(), PerToken()], ids=str)
@pytest.mark.parametrize("signed", [True, False])
def test_smoothquant_has_an_intermediate_best_strength(granularity, signed):
    if not signed and isinstance(granularity, PerToken):
        granularity = PerTensor()  # per token is symmetric
    calibration, held_out, weight = planted(0, factor=100.0)
    spec = QuantSpec(granularity=PerChannel(1))
    activation = QuantSpec(signed=signed, symmetric=signed, granularity=granularity)
    exact = held_out.astype("float64") @ weight

    def error(smoother):
        policy = LayerConfig(spec, activation, smoother)
        outcome = quantize_linears([paddle.to_tensor(weight)], policy,
                                   statistics_of(calibration, needs=policy.needs))
        return np.sqrt(((computed(held_out, outcome, activation) - exact) ** 2).mean()
                       / (exact ** 2).mean())

    errors = [error(SmoothQuant(strength)) for strength in (0.0, 0.25, 0.5, 0.75, 1.0)]
    best = int(np.argmin(errors))
    assert 0 < best < 4
    assert errors[best] < 0.5 * errors[0] and errors[best] < 0.5 * errors[4]
    # Down to the best one, and up from there.
    assert all(a > b for a, b in zip(errors[:best], errors[1:best + 1]))
    assert all(a < b for a, b in zip(errors[best:], errors[best + 1:]))
    assert errors[best] < 0.5 * error(None)


@pytest.mark.parametrize("smoother", [SmoothQuant(0.7), AWQ()], ids=lambda each: each.name)
def test_smoothing_preserves_the_float_output(smoother):
    x, _, weight = planted(1, tokens=64)
    s = smoother.scales([paddle.to_tensor(weight)], statistics_of(x), W4G64).numpy()
    assert s.max() > 2 * np.median(s)
    exact = x @ weight
    np.testing.assert_allclose((x / s) @ (weight * s[:, None]), exact, rtol=1e-4,
                               atol=1e-5 * np.abs(exact).max())


# On inputs that were not used for calibration


def held_out_loss(policy, calibration, held_out, weight):
    outcome = quantize_linears([paddle.to_tensor(weight)], policy,
                               statistics_of(calibration, needs=policy.needs))
    exact = held_out.astype("float64") @ weight
    return float(((computed(held_out, outcome) - exact) ** 2).mean())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gptq", [GPTQ(), GPTQ(act_order=True),
                                  GPTQ(act_order=True, static_groups=True)], ids=repr)
def test_gptq_reduces_the_error_on_correlated_inputs(seed, gptq):
    x = correlated(seed, 4096, 256)
    data = (x[:2048], x[2048:], weights(seed, 256, 128))
    plain = held_out_loss(LayerConfig(W4G64), *data)
    assert held_out_loss(LayerConfig(W4G64, rounder=gptq), *data) <= 0.2 * plain


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("clip", [True, False])
def test_awq_reduces_the_error_of_outlier_channels(seed, clip):
    data = planted(seed)
    plain = held_out_loss(LayerConfig(W4G64), *data)
    assert held_out_loss(LayerConfig(W4G64, smoother=AWQ(clip=clip)), *data) <= 0.4 * plain


@pytest.mark.parametrize("seed", range(3))
def test_white_noise_gives_no_improvement(seed):
    """Without structure in the data GPTQ loses a little, and AWQ's scales are 1."""
    data = planted(seed, outliers=0)
    plain = held_out_loss(LayerConfig(W4G64), *data)
    assert 1.0 < held_out_loss(LayerConfig(W4G64, rounder=GPTQ()), *data) / plain < 1.15
    awq = LayerConfig(W4G64, smoother=AWQ(clip=False))
    assert 0.9 < held_out_loss(awq, *data) / plain < 1.1


def test_gptq_of_a_digits_classifier(digits):
    """Real inputs, of which three pixels are always 0."""
    from sklearn.linear_model import LogisticRegression

    (x, labels), (held_out, truth) = ((images.reshape(len(images), 64), labels)
                                      for images, labels in (digits.train, digits.test))
    classifier = LogisticRegression(max_iter=300).fit(x, labels)
    weight = classifier.coef_.T.astype("float32")
    assert (x.max(0) == 0).any()
    spec = QuantSpec(3, granularity=PerChannel(1))
    statistics = statistics_of(x)

    def measured(rounder):
        approximate = rounder.quantize(paddle.to_tensor(weight), spec, statistics).dequantize()
        change = held_out @ approximate.numpy() - held_out @ weight
        scores = held_out @ approximate.numpy() + classifier.intercept_
        return (change ** 2).mean(), (scores.argmax(1) == truth).mean()

    (plain, plain_accuracy), (error, accuracy) = measured(RoundToNearest()), measured(GPTQ())
    assert error < 0.5 * plain
    assert accuracy >= plain_accuracy - 0.005


# All together


def test_quantize_linears_equals_its_steps():
    calibration, _, _ = planted(0, rows=96, tokens=200)
    several = [paddle.to_tensor(weights(seed, 96, 10)) for seed in range(3)]
    before = [weight.numpy() for weight in several]
    spec = QuantSpec(4, granularity=PerGroup(32))
    activation = QuantSpec(8, signed=False, symmetric=False)
    awq, gptq = AWQ(), GPTQ()
    policy = LayerConfig(spec, activation, awq, gptq)
    assert policy.needs == {"mean_abs", "hessian", "range"}
    statistics = statistics_of(calibration, needs=policy.needs)
    outcome = quantize_linears(several, policy, statistics)
    assert all((weight.numpy() == old).all() for weight, old in zip(several, before))
    s = awq.scales(several, statistics, spec)
    assert (outcome.input_scale.numpy() == s.numpy()).all()
    smoothed = statistics.divided_by(s)
    for weight, quantized in zip(several, outcome.weights):
        weight = weight * s.unsqueeze(1)
        expected = gptq.quantize(weight, spec, smoothed, awq.clips(weight, smoothed, spec))
        assert (expected.integers.numpy() == quantized.integers.numpy()).all()
        assert (expected.qparams.scale.numpy() == quantized.qparams.scale.numpy()).all()
    x = calibration / s.numpy()
    scale, zero = (each.numpy() for each in outcome.activation)
    np.testing.assert_allclose(scale, [(x.max() - x.min()) / 255], rtol=1e-5)
    assert zero == np.rint(-x.min() / scale) and zero.shape == (1,)


def test_static_activation_range_covers_the_largest_magnitude():
    policy = LayerConfig(QuantSpec(), QuantSpec(granularity=PerTensor()))
    statistics = statistics_of(np.array([[-12.7, 3.0]], "float32"), needs=policy.needs)
    scale, zero = quantize_linears([paddle.ones([2, 2])], policy, statistics).activation
    np.testing.assert_allclose(scale.numpy(), [0.1], rtol=1e-6)
    assert zero is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights_are_quantized_in_float32(dtype):
    weight = paddle.to_tensor(weights(0, 64, 8)).astype(dtype)
    statistics = statistics_of(correlated(0, 100, 64))
    for rounder in (RoundToNearest(), GPTQ()):
        half = rounder.quantize(weight, W4G64, statistics)
        full = rounder.quantize(weight.astype("float32"), W4G64, statistics)
        assert (half.integers.numpy() == full.integers.numpy()).all()
        assert half.dequantize().dtype == paddle.float32


@pytest.mark.parametrize("policy", [
    LayerConfig(W4G64, rounder=GPTQ()), LayerConfig(W4G64, smoother=AWQ()),
    LayerConfig(W4G64, smoother=SmoothQuant()), LayerConfig(W4G64, QuantSpec()),
], ids=["gptq", "awq", "smoothquant", "static activation"])
def test_missing_calibration_data_is_an_error(policy):
    statistics = statistics_of(np.zeros([0, 64], "float32"), needs=policy.needs)
    with pytest.raises(CalibrationError, match="no calibration data"):
        quantize_linears([paddle.ones([64, 4])], policy, statistics)


@pytest.mark.parametrize("make, error, words", [
    (lambda: SmoothQuant(1.5), ConfigError, "strength"),
    (lambda: SmoothQuant("0.5"), ConfigTypeError, "strength"),
    (lambda: AWQ(grids_num=0), ConfigError, "grids_num"),
    (lambda: AWQ(clip=1), ConfigTypeError, "clip"),
    (lambda: GPTQ(block_size=0), ConfigError, "block_size"),
    (lambda: GPTQ(damping=0.0), ConfigError, "damping"),
    (lambda: GPTQ(act_order=1), ConfigTypeError, "act_order"),
    (lambda: GPTQ(static_groups=None), ConfigTypeError, "static_groups"),
    (lambda: quantize_linears(
        [paddle.ones([2, 2])], LayerConfig(QuantSpec(granularity=PerChannel(0))), None),
     ConfigError, "weight"),
    (lambda: quantize_linears([paddle.ones([2, 2])], LayerConfig(None, QuantSpec()), None),
     ConfigError, "activation"),
    (lambda: LayerConfig(QuantSpec(), QuantSpec(granularity=PerGroup(4))), ConfigError,
     "PerTensor or PerToken"),
    (lambda: LayerConfig(QuantSpec(), QuantSpec(symmetric=False, granularity=PerToken())),
     ConfigError, "symmetric"),
    (lambda: LayerConfig(QuantSpec(), smoother=GPTQ()), ConfigTypeError, "smoother"),
    (lambda: LayerConfig(QuantSpec(), rounder=GPTQ), ConfigTypeError, "rounder"),
    (lambda: LayerConfig(W4G64, smoother=AWQ(), rounder=GPTQ(act_order=True)), ConfigError,
     "static_groups"),
    (lambda: quantize_linears([paddle.ones([2, 2])], LayerConfig(None), None), ConfigError,
     "config.weight"),
    (lambda: quantize_linears([], LayerConfig(W4G64), None), ConfigError, "weights"),
    (lambda: RoundToNearest().quantize(paddle.full([2, 2], float("nan")), W4G64), ModelError,
     "NaN"),
    (lambda: RoundToNearest().quantize(paddle.ones([2]), W4G64), ModelError, "matrix"),
    (lambda: GPTQ(act_order=True).quantize(
        paddle.ones([2, 2]), W4G64, statistics_of(np.eye(2, dtype="float32")), clip=0.5),
     ConfigError, "static_groups"),
    *((lambda algorithm=algorithm: algorithm(statistics_of(np.eye(3, dtype="float32"))),
       ConfigError, "2 input features") for algorithm in (
        lambda found: GPTQ().quantize(paddle.ones([2, 2]), W4G64, found),
        lambda found: AWQ().scales([paddle.ones([2, 2])], found, W4G64),
        lambda found: AWQ().clips(paddle.ones([2, 2]), found, W4G64),
        lambda found: SmoothQuant().scales([paddle.ones([2, 2])], found, W4G64))),
])
def test_invalid_arguments(make, error, words):
    with pytest.raises(error) as caught:
        make()
    assert words in str(caught.value)
