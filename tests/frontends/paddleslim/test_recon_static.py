"""A row for each parameter that quant_recon_static adds: effective, or refused by name."""

import inspect
import pathlib

import numpy as np
import paddle
import pytest
from low_bits import smooth
from nets import save_float
from paddle import nn
from paths import TESTS

import paddleq
from paddleq.algorithms import BRECQ, AdaRound, QDrop
from paddleq.errors import ConfigError, PaddleqError
from paddleq.frontends.paddleslim.quant_recon import rounding_of
from paddleq.paddleslim.quant import quant_recon_static

pytestmark = pytest.mark.one_version

# The parameters of PaddleSlim's quant_recon_static that its quant_post_static does not have.
PARAMETERS = {"recon_level", "simulate_activation_quant", "regions", "region_weights_names",
              "epochs", "drop_prob", "lr", "limit"}
DATA = [smooth([4, 1, 8, 8], seed) for seed in range(3)]
REGIONS = {"recon_level": "region-wise"}
DROPPED = {**REGIONS, "simulate_activation_quant": True}
QUICK = {"epochs": 8, "weight_bits": 3, "activation_bits": 3}
# (parameter, arguments with it, arguments without it). The files differ.
EFFECTIVE = [
    ("recon_level", REGIONS, {}),
    ("simulate_activation_quant", {"simulate_activation_quant": True}, {}),
    ("simulate_activation_quant", DROPPED, REGIONS),
    ("epochs", {"epochs": 40}, {}),
    ("drop_prob", {**DROPPED, "drop_prob": 0.1}, DROPPED),
    ("lr", {"lr": 1.0}, {}),
    ("limit", {**REGIONS, "limit": 6}, {**REGIONS, "limit": 1}),
]
REFUSED = [("recon_level", "model-wise"), ("simulate_activation_quant", 1), ("epochs", 0),
           ("regions", [["x", "y"]]), ("region_weights_names", [["w"]]), ("drop_prob", 1.5),
           ("lr", 0.0), ("limit", 0), ("round_type", "adaround")]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    paddle.seed(0)
    net = nn.Sequential(nn.Conv2D(1, 6, 3), nn.ReLU(), nn.Conv2D(6, 6, 3), nn.ReLU(),
                        nn.Conv2D(6, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    net.eval()
    folder = tmp_path_factory.mktemp("float")
    save_float(net, str(folder / "net"), [1, 8, 8])
    return folder


def written(source, folder, arguments):
    quant_recon_static(source, folder, DATA, **{**QUICK, **arguments})
    return (folder / "model.pdiparams").read_bytes()


def test_every_parameter_has_a_row():
    assert {name for name, *_ in EFFECTIVE} | {"regions", "region_weights_names"} == PARAMETERS
    assert {name for name, _ in REFUSED} > PARAMETERS
    assert set(inspect.signature(quant_recon_static).parameters) > PARAMETERS


@pytest.mark.parametrize("ending", ["md", "zh.md"])
def test_page_names_every_parameter(ending):
    page = pathlib.Path(TESTS).parent / "docs" / f"migration_from_paddleslim.{ending}"
    text = page.read_text(encoding="utf-8")
    table = text[text.index("quant_recon_static(model_dir"):]
    assert [name for name in PARAMETERS if f"`{name}`" not in table] == []


@pytest.mark.parametrize("number", range(len(EFFECTIVE)))
def test_parameter_changes_the_files(number, source, tmp_path):
    _, with_it, without = EFFECTIVE[number]
    assert written(source, tmp_path / "a", with_it) != written(source, tmp_path / "b", without)


@pytest.mark.parametrize("name, value", REFUSED)
def test_wrong_value_is_refused_by_name(name, value, source, tmp_path):
    with pytest.raises(PaddleqError) as caught:
        quant_recon_static(source, tmp_path / "out", DATA, **{name: value})
    assert name in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name, nearest", [
    ("weight_bit", "weight_bits"), ("drop_probability", "drop_prob"), ("equalise", "equalize")])
def test_unknown_names_are_refused_as_those_of_this_function(name, nearest, source, tmp_path):
    with pytest.raises(ConfigError, match=f"quant_recon_static does not know '{name}'.*{nearest}"):
        quant_recon_static(source, tmp_path / "out", DATA, **{name: 1})


@pytest.mark.parametrize("arguments, settings", [
    ({}, AdaRound(epochs=20, learning_rate=0.1, asymmetric=False)),
    ({"simulate_activation_quant": True}, AdaRound(epochs=20, learning_rate=0.1)),
    ({**REGIONS, "limit": 8}, BRECQ(epochs=20, learning_rate=0.1, least_layers=4)),
    ({**DROPPED, "drop_prob": 0.25, "lr": 0.5, "epochs": 3},
     QDrop(drop_probability=0.25, epochs=3, learning_rate=0.5)),
])
def test_levels_choose_the_algorithm(arguments, settings):
    found = rounding_of(**{"recon_level": "layer-wise", "simulate_activation_quant": False,
                           **arguments})
    assert found == settings and type(found) is type(settings)


def test_arguments_of_regions_are_reported_for_layers(caplog):
    rounding_of("layer-wise", True, drop_prob=0.25, limit=4)
    assert [record.getMessage().split("=")[0] for record in caplog.records] == [
        "limit", "drop_prob"]


def test_epochs_are_iterations_for_each_batch():
    assert AdaRound(epochs=3).for_batches(7) == AdaRound(iterations=21)
    assert AdaRound(iterations=5).for_batches(7) == AdaRound(iterations=5)


def test_executor_and_positions_of_paddleslim_are_accepted(source, tmp_path, caplog):
    """The order is that of PaddleSlim 2.6."""
    names = quant_recon_static(
        None, source, tmp_path / "a", None, None, DATA, None, None, "model.pdmodel",
        "model.pdiparams", 1, None, None, "hist", "region-wise", True, 0.999, False, ["conv2d"],
        False, 3, 3, "range_abs_max", "channel_wise_abs_max", True, True, None, False, "cache",
        None, None, 8, 0.25, 0.2, 4)
    assert len(names) == 3
    quant_recon_static(source, tmp_path / "b", DATA, **{
        **QUICK, **DROPPED, "hist_percent": 0.999, "quantizable_op_type": ["conv2d"],
        "drop_prob": 0.25, "lr": 0.2, "limit": 4})
    files = [(tmp_path / name / "model.pdiparams").read_bytes() for name in "ab"]
    assert files[0] == files[1]
    with pytest.raises(ConfigError, match="quant_recon_static was given lr"):
        quant_recon_static(None, source, tmp_path / "c", None, None, DATA, *[None] * 25, 8, 0.5,
                           0.2, lr=0.1)


def test_region_wise_is_closer_to_float_than_rounding_to_nearest(source, tmp_path):
    def outputs(folder, prefix):
        with paddle.no_grad():
            model = paddleq.SavedModel(folder / prefix)
            return np.float64(model(paddle.to_tensor(smooth([8, 1, 8, 8], 20))).numpy())

    expected = outputs(source, "net")
    quant_recon_static(source, tmp_path / "a", DATA, epochs=40, weight_bits=3, algo="abs_max",
                       **DROPPED)
    paddleq.quant_post_static(source, tmp_path / "b", DATA, weight_bits=3, algo="abs_max")
    learned, nearest = (np.linalg.norm(outputs(tmp_path / name, "model") - expected)
                        for name in "ab")
    assert learned < 0.9 * nearest
