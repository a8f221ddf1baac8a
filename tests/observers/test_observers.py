"""Each observer against float64 numpy, and the interface that all share."""

import copy
import math
import tracemalloc

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st

import paddleq
from paddleq import PTQ, FakeQuantize, PerChannel, QuantSpec, State
from paddleq.errors import CalibrationError, ConfigError, NonFiniteError
from paddleq.fake_quant import PACT
from paddleq.functional import EPS, histogram
from paddleq.observers import (
    AbsMaxObserver,
    AverageObserver,
    CurrentAbsMaxObserver,
    EMDObserver,
    HistogramObserver,
    KLObserver,
    MinMaxObserver,
    MovingAverageAbsMaxObserver,
    MSEObserver,
    Observer,
    PTFObserver,
    RangeAbsMaxObserver,
)

ONLINE = [AbsMaxObserver, AverageObserver, CurrentAbsMaxObserver, MinMaxObserver,
          MovingAverageAbsMaxObserver, RangeAbsMaxObserver]
HISTOGRAMS = [HistogramObserver, KLObserver, MSEObserver, PTFObserver, EMDObserver]
# The observers that support all arguments of FakeQuantize.
IN_TEST_FAKE_QUANTIZE = {
    "CurrentMinMaxObserver", "FixedScaleObserver", "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver", "PerChannelMinMaxObserver"}
IN_TEST_LSQ = {"DeviationObserver", "MeanMagnitudeObserver"}
IN_TEST_CURRENT_MSE = {"CurrentMSEObserver"}
EVERY = pytest.mark.parametrize("cls", ONLINE + HISTOGRAMS)


def make(cls, **options):
    if cls is RangeAbsMaxObserver:
        options.setdefault("window_size", 4)
    return cls(**options)


def stream(count=7, seed=0, shape=(6, 5, 4), growth=0.3):
    rng = np.random.RandomState(seed)
    return [(rng.randn(*shape) * (1 + growth * i)).astype("float32") for i in range(count)]


def watch(observer, batches):
    for batch in batches:
        observer.update(paddle.to_tensor(batch))
    return observer


# --- definitions -----------------------------------------------------------------------------

def magnitudes(batches, axis):
    """max|x| of each batch: [batches, 1 or channels], float64."""
    wide = [np.abs(b.astype(np.float64)) for b in batches]
    if axis is None:
        return np.array([[b.max()] for b in wide])
    others = tuple(i for i in range(3) if i != axis % 3)
    return np.array([b.max(axis=others) for b in wide])


def moving_average(m, rate):
    state, accum = 1.0, np.ones(m.shape[1])
    for row in m:
        state, accum = rate * state + 1.0, rate * accum + row
    return accum / state


DEFINITIONS = {
    AbsMaxObserver: lambda m: m.max(axis=0),
    AverageObserver: lambda m: m.mean(axis=0),
    CurrentAbsMaxObserver: lambda m: m[-1],
    MinMaxObserver: lambda m: m.max(axis=0) * 127 / 127.5,
    MovingAverageAbsMaxObserver: lambda m: moving_average(m, 0.9),
    RangeAbsMaxObserver: lambda m: m[-4:].max(axis=0),
}


@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1])
@pytest.mark.parametrize("cls", ONLINE)
def test_abs_max_matches_float64_reference(cls, axis):
    spec = QuantSpec() if axis is None else QuantSpec(granularity=PerChannel(axis))
    batches = stream()
    channels = None if axis is None else batches[0].shape[axis]
    observer = watch(make(cls, spec=spec, channels=channels), batches)
    expected = DEFINITIONS[cls](magnitudes(batches, axis))
    abs_max = observer.abs_max()
    assert abs_max.dtype == paddle.float32
    assert list(abs_max.shape) == [channels or 1]
    np.testing.assert_allclose(abs_max.numpy(), expected, rtol=1e-6)
    if not observer.dynamic:
        assert observer.num_batches == len(batches)


def quantized64(x, threshold, levels):
    step = threshold / levels
    return np.clip(np.rint(x / step), -levels, levels) * step


def skewed(seed, count=5):
    """Batches with a long tail on one side, of growing range."""
    rng = np.random.default_rng(seed)
    return [(rng.gamma(2.0, 1.0 + 0.2 * i, size=3000) - 1.0).astype("float32")
            for i in range(count)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_ptf_is_the_best_power_of_two(bits, seed):
    batches, levels = skewed(seed), 2 ** (bits - 1) - 1
    x = np.float64(np.concatenate(batches))
    top = np.abs(x).max()
    errors = [np.mean((quantized64(x, top * share, levels) - x) ** 2)
              for share in (0.125, 0.25, 0.5, 1.0)]
    found = watch(PTFObserver(QuantSpec(bits)), batches).abs_max().item()
    share = (0.125, 0.25, 0.5, 1.0)[int(np.argmin(errors))]
    assert found == pytest.approx(top * share, rel=0.02)  # the range is rounded up


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bits", [3, 4, 6])
def test_emd_keeps_mean_and_deviation(bits, seed):
    batches, levels = skewed(seed), 2 ** (bits - 1) - 1
    x = np.float64(np.concatenate(batches))
    top = np.abs(x).max()

    def distance(threshold):
        y = quantized64(x, threshold, levels)
        return abs(y.mean() - x.mean()) + abs(y.std() - x.std())

    least = min(distance(top * share) for share in np.arange(15, 51) / 50)
    found = watch(EMDObserver(QuantSpec(bits)), batches).abs_max().item()
    assert distance(found) <= least + 0.02 * x.std()
    assert distance(found) <= distance(top)


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_min_max_range_contains_zero(axis):
    spec = QuantSpec() if axis is None else QuantSpec(granularity=PerChannel(axis))
    batches = [b + 1.0 for b in stream()]
    batches = [np.abs(b) if axis is None else b for b in batches]
    channels = None if axis is None else batches[0].shape[axis]
    low, high = watch(MinMaxObserver(spec, channels), batches).range()
    everything = np.stack(batches).astype(np.float64)
    others = None if axis is None else tuple(
        i for i in range(4) if i != (axis % 3) + 1)
    np.testing.assert_allclose(
        low.numpy(), np.minimum(everything.min(axis=others), 0).reshape(-1), rtol=1e-6)
    np.testing.assert_allclose(
        high.numpy(), np.maximum(everything.max(axis=others), 0).reshape(-1), rtol=1e-6)


def test_range_of_a_symmetric_observer_is_plus_minus_abs_max():
    observer = watch(AbsMaxObserver(), stream())
    low, high = observer.range()
    assert (-low).tolist() == high.tolist() == observer.abs_max().tolist()


def test_one_bit_observes_the_mean_magnitude():
    batches = stream()
    observer = watch(AbsMaxObserver(QuantSpec(1)), batches)
    expected = max(np.abs(b.astype(np.float64)).mean() for b in batches)
    assert observer.abs_max().item() == pytest.approx(expected, rel=1e-5)


def test_track_batch_returns_batch_and_running_maximum():
    observer = AbsMaxObserver(track_batch=True)
    for value, expected in ((3.0, 3.0), (1.0, 1.0), (5.0, 5.0)):
        x = paddle.to_tensor([value, -0.5])
        assert observer.update_qparams(x)[0].tolist() == [expected]
    assert observer.abs_max().tolist() == [5.0]
    assert observer.num_batches == 3


@pytest.mark.parametrize("cls", [AbsMaxObserver, AverageObserver, MovingAverageAbsMaxObserver,
                                 RangeAbsMaxObserver])
def test_precomputed_maximum_gives_the_same_result(cls):
    observers = [make(cls) for _ in range(2)]
    assert observers[0].accepts_abs_max
    watch(observers[0], stream())
    watch(observers[1], [np.abs(batch).max() for batch in stream()])
    for mine, other in zip(*(observer.state_dict().values() for observer in observers)):
        np.testing.assert_array_equal(mine.numpy(), other.numpy())
    for spec in QuantSpec(bits=1), QuantSpec(granularity=PerChannel(0)):
        assert not make(cls, spec=spec).accepts_abs_max


@pytest.mark.parametrize("cls", [AbsMaxObserver, MinMaxObserver, HistogramObserver])
def test_maximum_of_an_idle_clip_does_not_change_the_result(cls):
    """PACT passes the maximum on; observers that need all of x still use all of x."""
    quantizers = [FakeQuantize(make(cls)) for _ in range(2)]
    pact = PACT(init=1000.0)
    for batch in stream(3):
        x = paddle.to_tensor(batch, stop_gradient=False)
        plain = quantizers[0](x)
        clipping = pact.clipping(x)
        assert clipping.idle
        handed = quantizers[1](x, clipping)
        np.testing.assert_array_equal(handed.numpy(), plain.numpy())
    if quantizers[1].initialized:
        handed.sum().backward()
        assert pact.alpha.grad.tolist() == [0.0]
    for mine, other in zip(*(q.state_dict().values() for q in quantizers)):
        np.testing.assert_array_equal(mine.numpy(), other.numpy())


@EVERY
def test_zeros_give_the_smallest_abs_max(cls):
    observer = watch(make(cls), [np.zeros((3, 4), "float32")] * 300)
    # 300 steps: a moving average starts at 1 and decays by 0.9 per step.
    assert observer.abs_max().item() == pytest.approx(EPS, rel=1e-5)


@EVERY
def test_observing_records_no_gradient_and_does_not_modify_the_tensor(cls):
    x = paddle.to_tensor([[0.5, -2.0]], stop_gradient=False)
    observer = make(cls)
    assert observer(x) is x
    assert observer.abs_max().stop_gradient
    assert x.tolist() == [[0.5, -2.0]] and x.grad is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@EVERY
def test_other_float_dtypes(cls, dtype):
    values = [-2.0, 0.25, 0.5, 1.0]
    narrow = watch(make(cls), [np.array(values, "float32")])
    wide = make(cls)
    wide.update(paddle.to_tensor(values, dtype="float32").astype(dtype))
    assert wide.abs_max().tolist() == narrow.abs_max().tolist()


# --- state -----------------------------------------------------------------------------------

@EVERY
def test_observation_continues_after_state_dict_round_trip(cls, tmp_path):
    batches = stream(8)
    through = watch(make(cls), batches)
    first = watch(make(cls), batches[:4])
    paddle.save(first.state_dict(), str(tmp_path / "observer.pdparams"))
    second = make(cls)
    missing, unexpected = second.set_state_dict(paddle.load(str(tmp_path / "observer.pdparams")))
    assert not missing and not unexpected
    assert second.num_batches == first.num_batches
    assert second.abs_max().tolist() == first.abs_max().tolist()
    watch(second, batches[4:])
    assert second.num_batches == through.num_batches
    assert second.abs_max().tolist() == through.abs_max().tolist()


@EVERY
def test_copies_are_independent(cls):
    original = watch(make(cls), stream(3))
    before = original.abs_max().tolist()
    copied = copy.deepcopy(original)
    assert copied.abs_max().tolist() == before
    watch(copied, [np.full((4, 4), 1e3, "float32")] * 5)
    assert copied.abs_max().tolist() != before
    assert original.abs_max().tolist() == before


@pytest.mark.parametrize("missing", ["abs_max", "_update", "_merge"])
def test_abstract_observers_cannot_be_instantiated(missing):
    methods = {name: getattr(MinMaxObserver, name) for name in ("abs_max", "_update", "_merge")}
    assert isinstance(type("Complete", (Observer,), methods)(), paddle.nn.Layer)
    del methods[missing]
    with pytest.raises(TypeError, match=missing):
        type("Incomplete", (Observer,), methods)()


@EVERY
def test_statistics_are_buffers_not_parameters(cls):
    observer = make(cls)
    assert observer.parameters() == []
    assert "batches" in observer.state_dict()


# --- merging ---------------------------------------------------------------------------------

MERGED_EXACTLY = [AbsMaxObserver, AverageObserver, MinMaxObserver]


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("cls", MERGED_EXACTLY)
def test_merged_shards_equal_one_stream(cls, axis):
    spec = QuantSpec() if axis is None else QuantSpec(granularity=PerChannel(axis))
    channels = None if axis is None else 5
    batches = stream(9)
    whole = watch(cls(spec, channels), batches)
    merged = watch(cls(spec, channels), batches[:2])
    for shard in (batches[2:6], [], batches[6:]):
        merged.merge(watch(cls(spec, channels), shard))
    assert merged.num_batches == whole.num_batches
    np.testing.assert_allclose(merged.abs_max().numpy(), whole.abs_max().numpy(), rtol=1e-6)


@EVERY
def test_merging_into_an_empty_observer_copies(cls):
    full = watch(make(cls), stream(3))
    empty = make(cls)
    empty.merge(full)
    assert empty.num_batches == 3
    assert empty.abs_max().tolist() == full.abs_max().tolist()
    watch(empty, [np.full((4, 4), 1e3, "float32")] * 5)
    assert full.abs_max().item() < 100


@EVERY
def test_merging_an_empty_observer_changes_nothing(cls):
    observer = watch(make(cls), stream(3))
    before = observer.abs_max().tolist()
    observer.merge(make(cls))
    assert observer.num_batches == 3 and observer.abs_max().tolist() == before


def test_merged_moving_windows_are_combined():
    a = watch(make(RangeAbsMaxObserver), [np.array([v], "float32") for v in (9, 1, 2, 3, 4)])
    b = watch(make(RangeAbsMaxObserver), [np.array([v], "float32") for v in (5, 1, 1, 1)])
    a.merge(b)
    assert a.abs_max().item() == 5.0
    watch(a, [np.array([0], "float32")])
    assert a.abs_max().item() == 4.0


def test_merged_moving_averages_weigh_by_batches():
    a = watch(MovingAverageAbsMaxObserver(), [np.array([2.0], "float32")] * 60)
    b = watch(MovingAverageAbsMaxObserver(), [np.array([8.0], "float32")] * 20)
    expected = (a.abs_max().item() * 60 + b.abs_max().item() * 20) / 80
    a.merge(b)
    assert a.abs_max().item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("upsample_bins", [1, 4, 64])
@pytest.mark.parametrize("factor", [0.3, 0.99, 1.0, 1.01, 1.3, 3.7])
def test_merged_histograms_equal_one_stream(factor, upsample_bins):
    """To the width of a bin: a count may sit anywhere inside the bin that it was counted in."""
    rng = np.random.RandomState(0)
    shards = [rng.randn(20000).astype("float32") * np.float32(f) for f in (1.0, factor)]
    a, b = (watch(HistogramObserver(bins=512, upsample_bins=upsample_bins), [shard])
            for shard in shards)
    slack = max(a.top.item(), b.top.item()) / 512
    a.merge(b)
    everything = np.sort(np.abs(np.concatenate(shards)).astype(np.float64))
    assert a.top.item() >= everything[-1] * (1 - 1e-6)
    edges = np.arange(1, 513) * (a.top.item() / 512)
    cumulative = np.cumsum(a.hist.numpy())
    assert cumulative[-1] == pytest.approx(len(everything), rel=1e-9)
    too_few = np.searchsorted(everything, edges - slack) - 1 - cumulative
    too_many = cumulative - np.searchsorted(everything, edges + slack) - 1
    assert too_few.max() <= 0 and too_many.max() <= 0


@pytest.mark.parametrize("cls", [HistogramObserver, MSEObserver])
def test_merged_abs_max_is_close_to_one_stream(cls):
    batches = stream(6, shape=(50, 40), growth=0.1)
    whole, merged = watch(cls(), batches), watch(cls(), batches[:3])
    merged.merge(watch(cls(), batches[3:]))
    assert merged.num_batches == whole.num_batches
    assert merged.abs_max().item() == pytest.approx(whole.abs_max().item(), rel=0.02)


@pytest.mark.parametrize("other", [
    MinMaxObserver(), AbsMaxObserver(QuantSpec(4)),
    AbsMaxObserver(QuantSpec(granularity=PerChannel(0)), 3), None,
])
def test_merging_other_types_is_an_error(other):
    with pytest.raises(CalibrationError, match="AbsMaxObserver"):
        watch(AbsMaxObserver(), stream(1)).merge(other)


@pytest.mark.parametrize("mine, other", [
    (HistogramObserver(bins=64), HistogramObserver(bins=32)),
    (RangeAbsMaxObserver(window_size=3), RangeAbsMaxObserver(window_size=5)),
])
def test_merging_other_sizes_is_an_error(mine, other):
    watch(mine, stream(2))
    watch(other, stream(2))
    before = mine.abs_max().tolist()
    with pytest.raises(CalibrationError, match=type(mine).__name__):
        mine.merge(other)
    assert mine.abs_max().tolist() == before


# --- histograms ------------------------------------------------------------------------------

class LiteralHistogram:
    """The reference's streaming histogram with all sub-bins stored."""

    def __init__(self, bins, upsample_bins):
        self.bins, self.upsample, self.top, self.hist = bins, upsample_bins, 0.0, None

    def update(self, x):
        x = np.abs(x).astype(np.float64)
        largest = x.max()
        if largest == 0.0:
            return
        if self.top == 0.0:
            self.top, self.hist = largest, np.zeros(self.bins)
        elif largest > self.top:
            part = self.top / (self.bins * self.upsample)
            group = math.ceil(largest / (self.bins * part))
            parts = np.zeros(self.bins * group)
            parts[:self.bins * self.upsample] = np.repeat(self.hist / self.upsample, self.upsample)
            self.hist = parts.reshape(self.bins, group).sum(axis=1)
            self.top = self.bins * part * group
        self.hist = self.hist + np.histogram(x, self.bins, (0.0, self.top))[0]


@pytest.mark.parametrize("bins, upsample_bins", [
    (2, 1), (16, 1), (16, 3), (100, 64), (333, 7), (1024, 64), (1024, 127)])
@pytest.mark.parametrize("growth", [[1, 1, 1], [3, 2, 1], [1, 1.001, 1.5, 2], [1, 20, 3, 50],
                                    [0, 0, 1, 0, 2]])
def test_streamed_histogram_matches_the_reference(bins, upsample_bins, growth):
    rng = np.random.RandomState(1)
    observer = HistogramObserver(bins=bins, upsample_bins=upsample_bins)
    literal = LiteralHistogram(bins, upsample_bins)
    seen = 0
    for factor in growth:
        x = (rng.randn(8, 500) * factor).astype("float32")
        seen += x.size if factor else 0
        watch(observer, [x])
        literal.update(x)
    assert observer.top.item() == pytest.approx(literal.top, rel=1e-12)
    mine = observer.hist.numpy()
    assert mine.sum() == pytest.approx(seen, rel=1e-12)
    # A value within float32's rounding of a border may be counted on its other side.
    off = np.abs(np.cumsum(mine) - np.cumsum(literal.hist)).max()
    assert off <= 2.0, off


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=30).filter(any), st.floats(1.0, 40.0),
       st.integers(1, 20))
def test_histogram_rebinning_matches_the_reference(counts, ratio, upsample_bins):
    literal = LiteralHistogram(len(counts), upsample_bins)
    literal.top, literal.hist = 2.0, np.array(counts)
    new_top = 2.0 * ratio
    part = literal.top / (literal.bins * upsample_bins)
    group = math.ceil(new_top / (literal.bins * part))
    parts = np.zeros(literal.bins * max(group, upsample_bins))
    parts[:literal.bins * upsample_bins] = np.repeat(literal.hist / upsample_bins, upsample_bins)
    expected = parts[:literal.bins * group].reshape(literal.bins, group).sum(axis=1)
    hist, top = histogram.respread(
        paddle.to_tensor(counts, dtype="float64"), 2.0, new_top, upsample_bins)
    assert top == pytest.approx(literal.bins * part * group, rel=1e-12)
    np.testing.assert_allclose(hist.numpy(), expected, atol=1e-9 * sum(counts))


@pytest.mark.parametrize("percent", [0.001, 0.5, 0.9, 0.999, 0.99999, 1 - 1e-12])
def test_percentile_threshold_is_the_first_bin_reaching_the_share(percent):
    hist = np.random.RandomState(0).randint(0, 50, 300).astype(float)
    running, k = hist[0], 0
    while running / hist.sum() < percent:
        k += 1
        running += hist[k]
    assert histogram.percentile_threshold(hist, 6.0, percent) == pytest.approx(
        max((k - 0.5) * 6.0 / 300, 0.5 * 6.0 / 300))


def test_percentile_threshold_is_never_below_half_a_bin():
    """The reference returns minus half a bin if all counts are in the first."""
    observer = HistogramObserver(bins=10, hist_percent=0.5)
    watch(observer, [np.array([0.0] * 99 + [1.0], "float32")])
    assert observer.abs_max().item() == pytest.approx(0.05)


def test_mse_threshold_minimizes_the_error():
    x = np.random.RandomState(0).standard_t(3, 20000).astype("float32")
    spec = QuantSpec(4)
    observer = watch(MSEObserver(spec), [x])

    def error(abs_max):
        step = abs_max / spec.quant_max
        back = np.clip(np.rint(np.abs(x) / step), 0, spec.quant_max) * step
        return ((back - np.abs(x)) ** 2).mean()

    found = observer.abs_max().item()
    largest = float(np.abs(x).max())
    best = min(error(largest * i / 400) for i in range(1, 401))
    assert error(found) <= 1.01 * best < error(largest)


@pytest.mark.parametrize("cls", HISTOGRAMS)
def test_memory_does_not_grow_with_the_range(cls):
    """The reference would allocate bins * 1e5 * 64 numbers: 26 GB."""
    observer = watch(cls(bins=1024, upsample_bins=64), [np.full([4, 4], 1e-3, "float32")])
    size = {name: buffer.size for name, buffer in observer.named_buffers()}
    tracemalloc.start()
    try:
        watch(observer, [np.full([4, 4], 100.0, "float32")])
        observer.abs_max()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert {name: buffer.size for name, buffer in observer.named_buffers()} == size
    assert sum(size.values()) == (2 if cls is EMDObserver else 1) * 1024 + 2
    assert peak < 8e6, peak
    assert observer.hist.sum().item() == pytest.approx(32.0)
    # The 16 small values share the first bin now, the 16 large ones the last.
    assert observer.hist.numpy()[[0, -1]].tolist() == pytest.approx([16.0, 16.0])


def test_histograms_do_not_keep_batches():
    observer = HistogramObserver(bins=256)
    x = paddle.ones([1000, 1000])
    tracemalloc.start()
    try:
        for _ in range(20):
            observer.update(x)
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < 1e5
    assert observer.hist.sum().item() == 20e6


@pytest.mark.parametrize("cls", HISTOGRAMS)
def test_empty_batch_is_ignored(cls):
    observer = watch(make(cls), stream(2))
    before = observer.hist.numpy()
    watch(observer, [np.zeros((0, 4), "float32")])
    np.testing.assert_array_equal(observer.hist.numpy(), before)


@pytest.mark.parametrize("cls", HISTOGRAMS)
def test_histograms_are_per_tensor(cls):
    with pytest.raises(ConfigError, match="granularity.*PerTensor"):
        cls(QuantSpec(granularity=PerChannel(0)), 4)


# --- in a fake-quantizer ---------------------------------------------------------------------

@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@EVERY
def test_non_finite_values_are_rejected_in_calibration(cls, value):
    if cls is CurrentAbsMaxObserver:
        quantizer = FakeQuantize(AbsMaxObserver(), label="block.fc.activation_quantizer")
    else:
        quantizer = FakeQuantize(make(cls), label="block.fc.activation_quantizer")
    quantizer.set_state(State.CALIBRATION)
    quantizer(paddle.ones([2, 3]))
    before = quantizer.observer.abs_max().tolist()
    bad = paddle.to_tensor([[1.0, value, 2.0]])
    with pytest.raises(NonFiniteError, match=r"block\.fc\.activation_quantizer.*batch 1.*1 NaN"):
        quantizer(bad)
    assert quantizer.observer.num_batches == 1
    assert quantizer.observer.abs_max().tolist() == before


def test_finite_batch_with_overflowing_sum_is_accepted():
    quantizer = FakeQuantize(AbsMaxObserver())
    quantizer.set_state(State.CALIBRATION)
    quantizer(paddle.full([4], 3e38))
    assert quantizer.observer.abs_max().item() == np.float32(3e38)


def test_calibration_names_layer_and_batch_of_a_nan(digits):
    model = paddle.nn.Sequential(
        paddle.nn.Conv2D(1, 4, 3), paddle.nn.ReLU(), paddle.nn.Flatten(),
        paddle.nn.Linear(144, 10))
    batches = digits.batches(32, 4)
    batches[2] = batches[2] * float("nan")
    ptq = PTQ("AbsmaxQuantizer")
    quantized = ptq.quantize(model)
    with pytest.raises(NonFiniteError, match=r"0\.activation_quantizer.*batch 2"):
        ptq.calibrate(quantized, batches)


@pytest.mark.parametrize("cls", HISTOGRAMS)
def test_abs_max_of_digits_is_inside_its_range(cls, digits):
    observer = make(cls)
    for batch in digits.batches(128, 5):
        observer.update(batch)
    assert 0.2 < observer.abs_max().item() <= 1.0
    assert observer.num_batches == 5


def test_every_public_observer_is_tested():
    public = {name for name in paddleq.observers.__all__
              if name.endswith("Observer") and name != "Observer"}
    assert {cls.__name__ for cls in ONLINE + HISTOGRAMS} == (
        public - IN_TEST_FAKE_QUANTIZE - IN_TEST_LSQ - IN_TEST_CURRENT_MSE)
