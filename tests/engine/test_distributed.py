"""Training and calibration in two processes that ``paddle.distributed`` connects by gloo.

The processes divide each batch. The reference is one process with the whole batches.
"""

import signal

import distributed_calibration
import distributed_worker
import numpy as np
import pytest
from distributed_nets import Net, batches, batches_of, shard, with_observer
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
# Calibration on shares of the batches: with these observers, equal to one process.
EXTREMES = ["calibrated:abs_max", "calibrated:min_max", "frozen"]
HISTOGRAMS = ["calibrated:hist", "calibrated:KL", "calibrated:mse", "calibrated:emd",
              "calibrated_twice", "all_data_in_one_process:0", "all_data_in_one_process:1"]
LAYERWISE = [f"layerwise:{name}" for name in distributed_calibration.LAYERWISE]
CORRECTIONS = ["corrected:fast", "corrected:full"]
CALIBRATIONS = [*EXTREMES, *HISTOGRAMS, "calibrated:avg", "calibrated:moving_average_abs_max",
                "calibrated_alone", "no_data", "nan_in_calibration", "other_weights",
                "other_layers", "learned_rounding", "statistics", *LAYERWISE,
                "layerwise_without_a_share", "layerwise_resumed", "saved_by_all", *CORRECTIONS]
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
    return Results(tmp_path_factory.mktemp("ranks"), [*EQUAL, *OTHERS, *CALIBRATIONS])


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
    for x, _ in batches():
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
        for x, _ in batches():
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


@pytest.mark.parametrize("scenario", [each for each in CALIBRATIONS if "calibrated:" in each])
def test_calibration_gives_all_processes_the_same_bits(results, scenario):
    first, second = results.of(scenario)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.mark.parametrize("scenario", EXTREMES)
def test_extremes_of_shares_are_those_of_one_process_to_the_last_bit(results, scenario):
    expected = distributed_worker.run(scenario, 0, 1)
    for found in results.of(scenario):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("scenario", HISTOGRAMS)
def test_thresholds_of_merged_histograms_are_within_a_bin_of_one_process(results, scenario):
    expected = distributed_worker.run(scenario, 0, 1)
    for found in results.of(scenario):
        assert found.keys() == expected.keys()
        names = [name for name in expected if name.endswith("activation_quantizer.abs_max")]
        assert len(names) >= 3
        for name in names:
            stem = name.removesuffix("abs_max") + "observer."
            own, other = (each[stem + "hist"] for each in (found, expected))
            width = max(each[stem + "top"][0] for each in (found, expected)) / len(other)
            # With fewer values than bins, many thresholds have about the smallest divergence.
            if other.sum() > len(other) or "KL" not in scenario:
                assert abs(found[name][0] - expected[name][0]) <= width, name
            np.testing.assert_allclose(own.sum(), other.sum())
            np.testing.assert_array_equal(found[stem + "batches"], expected[stem + "batches"])


def test_the_average_over_batches_does_not_depend_on_their_process(results):
    expected = distributed_worker.run("calibrated:avg", 0, 1)
    found = results.of("calibrated:avg")[0]
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("scenario", CORRECTIONS)
def test_biases_are_corrected_by_the_means_of_all_processes(results, scenario):
    expected = distributed_worker.run(scenario, 0, 1)
    first, second = results.of(scenario)
    for name, value in expected.items():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        if name == "names":
            assert first[name].tolist() == value.tolist()
        else:
            np.testing.assert_allclose(first[name], value, rtol=0, atol=1e-6, err_msg=name)


def test_statistics_of_processes_are_those_of_all_inputs(results):
    expected = distributed_worker.run("statistics", 0, 1)
    for found in results.of("statistics"):
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("scenario", LAYERWISE)
def test_layerwise_quantization_gives_all_processes_the_same_bits(results, scenario):
    first, second = results.of(scenario)
    assert first.keys() == second.keys()
    assert any(value.dtype in (np.int8, np.uint8) for value in first.values())
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.mark.parametrize("name", ["smoothquant", "awq"])
def test_layerwise_quantization_on_shares_is_that_of_one_process(results, name):
    expected = distributed_worker.run(f"layerwise:{name}", 0, 1)
    found = results.of(f"layerwise:{name}")[0]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if value.dtype.kind != "f":
            np.testing.assert_array_equal(found[key], value, err_msg=key)
        elif key.startswith("layers.0."):  # before the int8 KV caches, which round
            np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-7, err_msg=key)


def test_gptq_on_shares_rounds_the_first_layers_as_one_process(results):
    # Sums in another order give another last bit of the Hessian, so that a weight in the middle
    # between two integers may be rounded to the other one.
    expected = distributed_worker.run("layerwise:gptq", 0, 1)
    found = results.of("layerwise:gptq")[0]
    for name in "qkv":
        weight = f"layers.0.attention.{name}.weight"
        np.testing.assert_allclose(found[weight].astype("int32"), expected[weight], atol=1)


def test_an_interrupted_layerwise_run_of_several_processes_continues(results):
    for found, again in zip(results.of("layerwise:gptq"), results.of("layerwise_resumed")):
        assert again.pop("stored").tolist() == ["process-0", "process-1"]
        del found["folded"], again["folded"]  # omitted for layers that were loaded
        for name, value in found.items():
            np.testing.assert_array_equal(again[name], value, err_msg=name)


def test_an_export_of_all_processes_is_that_of_one_process(results, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed_calibration, "FOLDER", str(tmp_path))
    expected = distributed_worker.run("saved_by_all", 0, 1)
    assert any(value.dtype == np.int8 for value in expected.values())
    for found in results.of("saved_by_all"):
        assert len(found) == len(expected)
        # Names contain numbers that count the layers of a process.
        for value, (name, reference) in zip(found.values(), expected.items()):
            if reference.dtype == np.int8:
                np.testing.assert_array_equal(value, reference, err_msg=name)
            else:
                np.testing.assert_allclose(value, reference, rtol=0, atol=1e-6, err_msg=name)


def test_layerwise_quantization_needs_a_share_in_each_process(results):
    for found in results.of("layerwise_without_a_share"):
        assert "1, 0 batches" in str(found["error"])


def test_learned_rounding_on_shares_of_the_data_is_refused(results):
    for found in results.of("learned_rounding"):
        assert str(found["error"]).startswith("DistributedError: learned rounding runs in one")


def test_moving_averages_are_weighted_by_the_batches_of_the_processes(results):
    found = results.of("calibrated:moving_average_abs_max")[0]
    expected = 0.0
    for rank, count in ((0, 3), (1, 2)):
        state = accum = 1.0
        shares = batches_of(rank, 2)
        for x in shares:
            state = state * 0.9 + 1
            accum = accum * 0.9 + float(x.abs().max())
        assert len(shares) == count
        expected += accum / state * count / 5
    np.testing.assert_allclose(found["conv.activation_quantizer.abs_max"], expected, rtol=1e-6)


def test_a_process_may_calibrate_by_itself(results):
    for rank, found in enumerate(results.of("calibrated_alone")):
        assert found["conv.activation_quantizer.abs_max"] == rank + 1


def test_calibration_without_data_in_any_process_is_an_error_of_all(results):
    for found in results.of("no_data"):
        assert str(found["error"]).startswith("CalibrationError: data must yield at least one")


def test_nan_in_one_process_ends_the_calibration_of_all_and_changes_nothing(results):
    first, second = results.of("nan_in_calibration")
    cause = "conv.activation_quantizer: calibration batch 1 has 1 NaN"
    assert str(second["error"]).startswith(f"NonFiniteError: {cause}")
    assert str(first["error"]).startswith("DistributedError: ")
    assert f"process 1: NonFiniteError: {cause}" in str(first["error"])
    expected = with_observer("min_max")
    paddleq.calibrate(expected, batches_of(0, 1, 6))
    for found in (first, second):
        assert found["changed"].size == 0, found["changed"]
        for name, value in expected.state_dict().items():
            np.testing.assert_array_equal(found[name], value.numpy(), err_msg=name)


def test_other_weights_in_one_process_are_an_error_that_names_the_first(results):
    for found in results.of("other_weights"):
        text = str(found["error"])
        assert text.startswith("DistributedError: 1 parameters differ") and "'fc.weight'" in text


def test_other_quantizers_in_one_process_are_an_error_of_all(results):
    for found in results.of("other_layers"):
        text = str(found["error"])
        assert text.startswith("DistributedError: the processes have different models before")
        assert "process 1" in text


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "place"), [
    ("killed_in_calibration", "paddleq.errors.DistributedError: calibration"),
    ("killed_in_training", "paddleq.errors.DistributedError: fc.activation_quantizer")])
def test_a_killed_process_ends_the_others_with_the_place(tmp_path, scenario, place):
    (first, output), (second, _) = run_ranks(tmp_path, scenario, timeout=120)
    assert second == -signal.SIGKILL
    assert first == 1 and place in output and "another process has ended" in output, output


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
        net = paddleq.QAT({"weight_quantize_type": kind}).quantize(Net())
        for name, quantizer in paddleq.engine.fake_quantizers(net):
            assert quantizer.reduce == (None if "weight" in name else "max"), name
