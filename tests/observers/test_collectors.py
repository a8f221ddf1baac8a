"""Collectors of statistics: merging and state, against float64 numpy."""

import numpy as np
import paddle
import pytest

from paddleq.errors import CalibrationError
from paddleq.observers import ChannelStats, HessianCollector, KVRange

FEATURES = 6


def inputs(seed, *shape):
    """Values whose mean and magnitude differ by feature."""
    rng = np.random.RandomState(seed)
    return (rng.randn(*shape) * np.linspace(0.1, 9.0, shape[-1]) + rng.randn(shape[-1])
            ).astype("float32")


class Channels:
    """Inputs [..., K]; the batches have different numbers of tokens."""

    batches = [(inputs(seed, *shape, FEATURES),)
               for seed, shape in enumerate([(3, 5), (40,), (2, 2, 2), (1,), (7,)])]

    @staticmethod
    def make():
        return ChannelStats({"abs_max", "mean_abs", "hessian", "range"})

    @staticmethod
    def reference(batches):
        x = np.concatenate([x.reshape(-1, FEATURES) for x, in batches]).astype(np.float64)
        return {"abs_max": np.abs(x).max(0), "mean_abs": np.abs(x).mean(0),
                "hessian": x.T @ x / len(x), "range": [[x.min()], [x.max()]]}


class Hessian(Channels):
    make = HessianCollector

    @staticmethod
    def reference(batches):
        return {"hessian": Channels.reference(batches)["hessian"]}


class KV:
    """Keys and values [batch, tokens, heads, head_dim]."""

    batches = [(inputs(seed, batch, tokens, 2, 4), inputs(100 + seed, batch, tokens, 2, 4))
               for seed, (batch, tokens) in enumerate([(1, 9), (3, 1), (2, 5), (1, 1), (2, 2)])]

    @staticmethod
    def make():
        return KVRange(token_axis=1)

    @staticmethod
    def reference(batches):
        return {name: np.max([np.abs(each[i]).max((0, 1)) for each in batches], axis=0)
                for i, name in enumerate(("k", "v"))}


EVERY = pytest.mark.parametrize("case", [Channels, Hessian, KV])


def watch(collector, batches):
    for batch in batches:
        collector.update(*map(paddle.to_tensor, batch))
    return collector


def results(collector):
    """Return name -> array of a collector's result."""
    result = collector.result()
    if isinstance(collector, HessianCollector):
        result = {"hessian": result}
    elif isinstance(collector, KVRange):
        result = dict(zip(("k", "v"), result))
    return {name: np.array([each.numpy() for each in value] if isinstance(value, tuple)
                           else value.numpy()) for name, value in result.items()}


def check(case, collector, batches):
    found, expected = results(collector), case.reference(batches)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
    if not isinstance(collector, KVRange):
        assert collector.tokens == sum(x.size // FEATURES for x, in batches)


@EVERY
@pytest.mark.parametrize("cut", range(6))
def test_merged_collectors_equal_one_that_saw_all_data(case, cut):
    first = watch(case.make(), case.batches[:cut])
    second = watch(case.make(), case.batches[cut:])
    first.merge(second)
    check(case, first, case.batches)
    if case.batches[cut:]:
        check(case, second, case.batches[cut:])  # unchanged


@EVERY
def test_merging_into_an_empty_collector_copies(case):
    full, empty = watch(case.make(), case.batches[:2]), case.make()
    empty.merge(full)
    watch(empty, case.batches[2:])
    check(case, empty, case.batches)
    check(case, full, case.batches[:2])


@EVERY
def test_state_dict_round_trip_continues(case, tmp_path):
    first = watch(case.make(), case.batches[:3])
    paddle.save(first.state_dict(), str(tmp_path / "state.pdparams"))
    second = case.make()
    second.load_state_dict(paddle.load(str(tmp_path / "state.pdparams")))
    for name, value in results(first).items():
        np.testing.assert_array_equal(results(second)[name], value)
    check(case, watch(second, case.batches[3:]), case.batches)
    watch(first, case.batches[3:])
    for name, value in results(first).items():
        np.testing.assert_array_equal(results(second)[name], value)


@EVERY
def test_loaded_state_is_a_copy(case):
    first, second = watch(case.make(), case.batches[:3]), case.make()
    second.load_state_dict(first.state_dict())
    watch(second, case.batches[3:])
    check(case, first, case.batches[:3])


@EVERY
def test_state_of_an_empty_collector_replaces_the_statistics(case):
    collector = watch(case.make(), case.batches[:3])
    collector.load_state_dict(case.make().state_dict())
    check(case, watch(collector, case.batches[3:]), case.batches[3:])


def test_merging_other_kinds_is_an_error():
    collector = watch(ChannelStats({"abs_max"}), Channels.batches)
    before = collector.abs_max.tolist()
    with pytest.raises(CalibrationError, match="hessian.*abs_max"):
        collector.merge(watch(HessianCollector(), Channels.batches))
    assert collector.abs_max.tolist() == before


def test_hessian_of_scaled_inputs_is_a_hessian_collector():
    s = np.linspace(0.5, 3.0, FEATURES).astype("float32")
    quotient = watch(HessianCollector(), Channels.batches).divided_by(paddle.to_tensor(s))
    check(Hessian, quotient, [(x / s,) for x, in Channels.batches])


def test_kv_range_without_data_has_no_result():
    collector = KVRange(token_axis=2)
    collector.update(paddle.zeros([1, 2, 0, 4]), paddle.zeros([1, 2, 0, 4]))
    assert collector.result() is None and collector.state_dict() == {}
