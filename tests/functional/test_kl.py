"""The vectorized KL search against the definition, written out as plain loops.

The definition: for every cut i from (B - 1) // 2 to B - 1, P = the first i bins with all beyond
added to the last; the histogram without those outliers is merged into Q groups of i // Q bins
(the last takes the rest) and spread evenly back over the bins where P is not zero. The first i
with the smallest divergence wins.

Two cases that the definition leaves open are settled so: where a cut keeps fewer bins than there
are levels, i // Q would be 0, and each bin is a separate group (there are enough integers for
all of them); where no cut is a candidate, the last bin that is filled up to the first cut wins.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddleq.functional import kl


def literal_divergence(hist, cut, levels):
    """Return the divergence of one cut; None if the last kept bin is empty (no candidate)."""
    p = hist[:cut]
    if p[cut - 1] == 0:
        return None
    p[cut - 1] += sum(hist[cut:])
    size = max(cut // levels, 1)
    groups = min(levels, cut)
    q = [0.0] * cut
    for group in range(groups):
        start = group * size
        stop = cut if group == groups - 1 else start + size
        filled = [i for i in range(start, stop) if p[i] > 0]
        mass = sum(hist[start:stop])
        for i in filled:
            q[i] = mass / len(filled)
    p_sum, q_sum = sum(p), sum(q)
    return sum(a * (math.log(q_sum * a) - math.log(p_sum * b))
               for a, b in zip(p, q) if a > 0) / p_sum


def literal_search(hist, levels):
    """({cut: divergence}, chosen cut)"""
    hist = [float(h) for h in hist]
    bins = len(hist)
    found, best = {}, None
    for cut in range(max((bins - 1) // 2, 1), bins):
        divergence = literal_divergence(list(hist), cut, levels)
        if divergence is not None:
            found[cut] = divergence
            if best is None or divergence < found[best]:
                best = cut
    if best is None:
        best = (bins - 1) // 2
        while best > 0 and hist[best] == 0:
            best -= 1
    return found, best


def draw(kind, bins, seed):
    rng = np.random.RandomState(seed)
    if kind == "random":
        return rng.randint(0, 1000, bins).astype(float)
    if kind == "sparse":
        return np.where(rng.rand(bins) < 0.1, rng.randint(1, 50, bins), 0).astype(float)
    if kind == "spiky":
        hist = rng.poisson(2.0, bins).astype(float)
        hist[rng.randint(0, bins, max(bins // 20, 1))] += 1e5
        return hist
    if kind == "long tail":
        values = np.abs(rng.standard_t(2, 200 * bins))
        return np.histogram(values, bins, (0, values.max()))[0].astype(float)
    if kind == "first half":
        hist = np.zeros(bins)
        hist[:(bins - 1) // 2] = rng.randint(0, 100, (bins - 1) // 2)
        return hist
    if kind == "one outlier":
        hist = np.zeros(bins)
        hist[:max(bins // 4, 1)] = rng.randint(1, 1000, max(bins // 4, 1))
        hist[-1] = 1.0
        return hist
    # Streaming results in fractional counts.
    return rng.exponential(1.0, bins) * np.exp(-np.arange(bins) / (bins / 8.0))


KINDS = ["random", "sparse", "spiky", "long tail", "first half", "one outlier", "fractions"]


def check(hist, levels):
    expected, cut = literal_search(hist, levels)
    cuts, divergences = kl.kl_divergences(hist, levels)
    bins = len(hist)
    assert cuts.tolist() == list(range(max((bins - 1) // 2, 1), bins))
    for each, divergence in zip(cuts.tolist(), divergences.tolist()):
        if each in expected:
            assert divergence == pytest.approx(expected[each], abs=1e-9)
        else:
            assert divergence == math.inf
    chosen = kl.kl_threshold(hist, float(bins), levels) - 0.5
    rivals = [c for c, d in expected.items() if d - expected[cut] <= 1e-9] if expected else [cut]
    # Divergences closer than that differ by the rounding of the sums only.
    assert chosen in rivals
    if len(rivals) == 1:
        assert chosen == cut


@pytest.mark.parametrize("levels", [1, 7, 127])
@pytest.mark.parametrize("bins", [2, 3, 4, 5, 8, 15, 16, 99, 128, 254, 255, 256, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_kl_threshold_equals_the_definition(kind, bins, levels):
    check(draw(kind, bins, seed=bins + levels), levels)


@pytest.mark.parametrize("bins, levels", [(1024, 127), (1000, 7), (2048, 127)])
@pytest.mark.parametrize("kind", ["long tail", "fractions", "spiky"])
def test_kl_threshold_equals_the_definition_at_full_size(kind, bins, levels):
    check(draw(kind, bins, seed=1), levels)


@given(st.lists(st.one_of(st.just(0), st.integers(0, 5), st.integers(0, 10**6)),
                min_size=2, max_size=40), st.integers(1, 20))
def test_kl_threshold_equals_the_definition_on_random_histograms(hist, levels):
    check(np.array(hist, dtype=float), levels)


def test_empty_histogram_keeps_the_first_bin():
    assert kl.kl_threshold(np.zeros(8), 1.0, 127) == 0.5 / 8


@pytest.mark.parametrize("bins", [2, 3, 16, 1024])
def test_all_counts_in_the_first_bin(bins):
    hist = np.zeros(bins)
    hist[0] = 7.0
    assert kl.kl_threshold(hist, 1.0, 127) == pytest.approx(
        (literal_search(hist, 127)[1] + 0.5) / bins)


def test_threshold_is_invariant_to_scaled_counts():
    hist = draw("long tail", 1024, seed=3)
    _, once = kl.kl_divergences(hist, 127)
    _, thrice = kl.kl_divergences(hist * 1e6, 127)
    np.testing.assert_allclose(once, thrice, atol=1e-9)


def test_outlier_does_not_determine_the_range():
    hist = draw("one outlier", 1024, seed=0)
    assert kl.kl_threshold(hist, 1.0, 127) < 0.51


def test_input_is_not_modified():
    hist = draw("random", 64, seed=0)
    kept = hist.copy()
    kl.kl_threshold(hist, 1.0, 7)
    np.testing.assert_array_equal(hist, kept)
