"""Training in two processes that ``paddle.distributed`` connects, with gloo on the CPU.

The processes divide each batch. The reference is one process with the whole batches.
"""

import distributed_worker
import numpy as np
import pytest
from distributed_worker import shard
from ranks import run_ranks

import paddleq
from paddleq.errors import ConfigError

EQUAL = [
    "moving_average", "batch_abs_max", "window", "pact", "learned:lsq", "learned:lsq_plus",
    "observed_by:min_max", "observed_by:moving_average_min_max", "observed_by:avg",
    "observed_by:hist", "observed_by:emd", "observed_by:mean_magnitude", "observed_by:deviation",
    "accumulate", "recomputed", "half_precision", "nan_in_one_process", "empty_in_one_process"]
# Others are checked one by one.
OTHERS = ["one_bit", "moving_average_mean", "local", "evaluation_of_one_process", "cost",
          "other_order:max", "other_order:mean", "nan_in_first_batch_of_lsq",
          "observer_of_one_process"]
ROUNDING = 1e-6  # of sums in another order; weights and scales are of magnitude 1


class Results:
    """Arrays that the processes wrote."""

    def __init__(self, folder, scenarios):
        for code, output in run_ranks(folder, *scenarios):
            assert code == 0, output
        self.folder = folder

    def of(self, scenario):
        """The arrays of both processes by name."""
        return [dict(np.load(self.folder / f"{scenario}.{rank}.npz")) for rank in (0, 1)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return Results(tmp_path_factory.mktemp("ranks"), [*EQUAL, *OTHERS])


def assert_equal_to_one_process(results, scenario):
    first, second = results.of(scenario)
    expected = distributed_worker.run(scenario, 0, 1)
    assert first.keys() == second.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        scale = max(1.0, np.abs(value).max(initial=0.0))
        np.testing.assert_allclose(first[name], value, rtol=0, atol=ROUNDING * scale,
                                   err_msg=name)


@pytest.mark.parametrize("scenario", EQUAL)
def test_processes_train_as_one_process_with_the_whole_batches(results, scenario):
    assert_equal_to_one_process(results, scenario)


def test_mean_magnitude_of_one_bit_activations_is_that_of_all_processes(results):
    first, second = results.of("one_bit")
    expected = distributed_worker.run("one_bit", 0, 1)
    scales = [name for name in expected if "activation_quantizer" in name]
    assert scales
    for name in scales:
        np.testing.assert_allclose(first[name], expected[name], rtol=1e-6, err_msg=name)
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_mean_reduction_averages_the_maxima_of_the_processes(results):
    first, second = results.of("moving_average_mean")
    name = "conv.activation_quantizer.observer.accum"
    accum = 1.0
    for x, _ in distributed_worker.batches():
        maxima = [np.abs(shard(x, rank, 2).numpy()).max().astype("float64") for rank in (0, 1)]
        accum = accum * 0.9 + np.mean(maxima)
    np.testing.assert_allclose(first[name], accum, rtol=1e-5)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_without_reduction_each_process_has_its_scale(results):
    first, second = results.of("local")
    name = "conv.activation_quantizer.observer.accum"
    for rank, found in enumerate((first, second)):
        accum = 1.0
        for x, _ in distributed_worker.batches():
            accum = accum * 0.9 + np.abs(shard(x, rank, 2).numpy()).max().astype("float64")
        np.testing.assert_allclose(found[name], accum, rtol=1e-5)
    assert (first["fc.weight"] == second["fc.weight"]).all()  # gradients are averaged all the same


def test_nan_in_one_process_is_a_skipped_batch_of_all(results):
    for found in results.of("nan_in_one_process"):
        assert found["skipped"] == 1


def test_one_process_may_evaluate_and_observe_by_itself(results):
    first, second = results.of("evaluation_of_one_process")
    assert first["abs_max"] > 0 and second["abs_max"] == 0


def test_each_quantizer_costs_one_operation_of_a_few_bytes(results):
    for found in results.of("cost"):
        assert len(found["calls"]) == found["quantizers"] == 3
        assert (found["calls"] == 3 * 4).all()  # maximum, and twice the identification


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_quantizers_in_another_order_are_an_error_of_all_processes(results, reduce):
    for rank, found in enumerate(results.of(f"other_order:{reduce}")):
        text = str(found["error"])
        assert text.startswith("DistributedError: " + ("first", "second")[rank])
        assert "same order" in text


def test_nan_in_the_batch_that_sets_a_learned_step_names_the_layer_in_all_processes(results):
    first, second = (str(found["error"]) for found in
                     results.of("nan_in_first_batch_of_lsq"))
    assert first.startswith("NonFiniteError: fc.activation_quantizer: ")
    assert "another process" in first
    assert second.startswith("NonFiniteError: fc.activation_quantizer: ")
    assert "1 NaN" in second


def test_observers_that_cannot_be_reduced_are_an_error(results):
    for found in results.of("observer_of_one_process"):
        text = str(found["error"])
        assert text.startswith("ConfigError: reduce must be None for a Unknown")


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["by_fleet", "by_fleet:sharding"])
def test_models_of_fleet_train_as_one_process_with_the_whole_batches(tmp_path, scenario):
    assert_equal_to_one_process(Results(tmp_path, [scenario]), scenario)


@pytest.mark.parametrize("create", [
    lambda: paddleq.FakeQuantize(reduce="sum"), lambda: paddleq.LSQ(reduce="sum"),
    lambda: paddleq.QAT({"reduce_type": "sum"}),
    lambda: paddleq.config.QuantizerConfig(reduce="sum")],
    ids=["FakeQuantize", "LSQ", "QAT", "QuantizerConfig"])
def test_unknown_reductions_are_refused(create):
    with pytest.raises(ConfigError, match="reduce.*'sum'"):
        create()


def test_quantizers_of_weights_do_not_reduce():
    for kind in ("channel_wise_abs_max", "moving_average_abs_max", "lsq"):
        net = paddleq.QAT({"weight_quantize_type": kind}).quantize(distributed_worker.Net())
        for name, quantizer in paddleq.engine.fake_quantizers(net):
            assert quantizer.reduce == (None if "weight" in name else "max"), name
