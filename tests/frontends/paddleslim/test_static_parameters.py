"""A row for each parameter of PaddleSlim's quant_post_static: effective, or refused by name."""

import pathlib

import numpy as np
import paddle
import pytest
from paddle import nn
from paths import TESTS

import paddleq
from paddleq.algorithms import AdaRound
from paddleq.errors import ConfigError, PaddleqError

pytestmark = pytest.mark.one_version

# The parameters of PaddleSlim 2.6.
PARAMETERS = {
    "executor", "model_dir", "quantize_model_path", "batch_generator", "sample_generator",
    "data_loader", "model_filename", "params_filename", "save_model_filename",
    "save_params_filename", "batch_size", "batch_nums", "scope", "algo", "round_type",
    "hist_percent", "bias_correction", "quantizable_op_type", "is_full_quantize", "weight_bits",
    "activation_bits", "activation_quantize_type", "weight_quantize_type", "optimize_model",
    "onnx_format", "skip_tensor_list", "is_use_cache_file", "cache_dir", "deploy_backend"}
IMAGES = (np.random.RandomState(0).gamma(2.0, size=[12, 1, 8, 8]) - 1.0).astype("float32")
IMAGES *= np.linspace(1.0, 2.0, 12, dtype="float32").reshape([12, 1, 1, 1])
BATCHES = [IMAGES[:4], IMAGES[4:8], IMAGES[8:]]


def samples():
    return ([image] for image in IMAGES)


# (parameter, arguments with it, arguments without: {} for the batches alone). The files differ.
EFFECTIVE = [
    ("batch_generator", {"batch_generator": lambda: iter(BATCHES[:1])}, {}),
    ("sample_generator", {"sample_generator": lambda: ([image] for image in IMAGES[:4])}, {}),
    ("data_loader", {"data_loader": BATCHES[:1]}, {}),
    ("batch_size", {"sample_generator": samples, "batch_size": 5},
     {"sample_generator": samples, "batch_size": 1}),
    ("batch_nums", {"batch_nums": 1}, {}),
    *(("algo", {"algo": first}, {"algo": second}) for first, second in (
        ("KL", "hist"), ("avg", "abs_max"), ("mse", "abs_max"), ("emd", "abs_max"),
        ("ptf", "min_max"), ("min_max", "hist"))),
    *(("round_type", {"round_type": value, "weight_bits": 3}, {"weight_bits": 3}) for value in (
        AdaRound(iterations=50),)),
    ("hist_percent", {"hist_percent": 0.9}, {}),
    ("bias_correction", {"bias_correction": True}, {}),
    ("quantizable_op_type", {"quantizable_op_type": ["conv2d"]}, {}),
    ("is_full_quantize", {"is_full_quantize": True}, {"quantizable_op_type": ["conv2d"]}),
    ("weight_bits", {"weight_bits": 4}, {}),
    ("activation_bits", {"activation_bits": 4}, {}),
    ("weight_quantize_type", {"weight_quantize_type": "abs_max"}, {}),
    ("optimize_model", {"optimize_model": False}, {}),
    ("onnx_format", {"onnx_format": False}, {}),
    ("skip_tensor_list", {"skip_tensor_list": ["first"]}, {}),
]
# No effect on the files: those of static graphs, of which a warning is logged.
IDLE = {
    "executor": lambda: paddle.static.Executor(paddle.CPUPlace()),
    "scope": paddle.static.global_scope,
    "activation_quantize_type": lambda: "moving_average_abs_max",
    "is_use_cache_file": lambda: True,
    "cache_dir": lambda: "/tmp/cache",
    "deploy_backend": lambda: "tensorrt",
}
NAMES = ("model_dir", "quantize_model_path", "model_filename", "params_filename",
         "save_model_filename", "save_params_filename")
REFUSED = [
    ("model_dir", 3), ("quantize_model_path", None), ("batch_generator", 3),
    ("sample_generator", 3), ("data_loader", 3), ("model_filename", "missing.pdmodel"),
    ("params_filename", "missing.pdiparams"), ("batch_size", 0), ("batch_nums", 0),
    ("algo", "kl2"), ("round_type", "up"), ("hist_percent", 1.5), ("bias_correction", "half"),
    ("quantizable_op_type", ["conv9d"]), ("is_full_quantize", 1), ("weight_bits", 1),
    ("activation_bits", 9), ("activation_quantize_type", "max"), ("weight_quantize_type", "max"),
    ("optimize_model", 1), ("onnx_format", 1), ("skip_tensor_list", "conv"),
    ("is_use_cache_file", 2), ("deploy_backend", "cuda"),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    paddle.seed(0)
    net = nn.Sequential(nn.Conv2D(1, 4, 3, weight_attr=paddle.ParamAttr("first")),
                        nn.BatchNorm2D(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    net(paddle.to_tensor(IMAGES))
    net.eval()
    folder = tmp_path_factory.mktemp("float")
    with paddle.utils.unique_name.guard():
        paddle.jit.save(net, str(folder / "net"),
                        [paddle.static.InputSpec([None, 1, 8, 8], "float32", "x")])
    return folder


def written(folder):
    return b"".join((folder / name).read_bytes() for name in ("model.pdmodel", "model.pdiparams"))


def quantize(source, folder, arguments):
    data = {"data_loader", "batch_generator", "sample_generator"}
    given = {} if data & set(arguments) else {"data_loader": BATCHES}
    paddleq.quant_post_static(source, folder, **{"batch_size": 1, **given, **arguments})
    return written(folder)


def test_every_parameter_has_a_row():
    rows = {name for name, *_ in EFFECTIVE} | set(IDLE) | set(NAMES)
    assert rows == PARAMETERS
    refused = {name for name, _ in REFUSED}
    # Any executor, scope, folder for a cache and name of a file to write is accepted.
    assert PARAMETERS - refused == {
        "executor", "scope", "cache_dir", "save_model_filename", "save_params_filename"}


@pytest.mark.parametrize("ending", ["md", "zh.md"])
def test_page_names_every_parameter(ending):
    page = pathlib.Path(TESTS).parent / "docs" / f"migration_from_paddleslim.{ending}"
    text = page.read_text(encoding="utf-8")
    table = text[text.index("quant_post_static(model_dir"):]
    missing = [name for name in PARAMETERS if f"`{name}`" not in table
               and "filename" not in name]
    assert missing == []


@pytest.mark.parametrize("number", range(len(EFFECTIVE)))
def test_parameter_changes_the_files(number, source, tmp_path):
    name, with_it, without = EFFECTIVE[number]
    assert quantize(source, tmp_path / "a", with_it) != quantize(source, tmp_path / "b", without)


@pytest.mark.parametrize("name", IDLE)
def test_parameter_of_static_graphs_is_accepted_with_a_warning(name, source, tmp_path, caplog):
    expected = quantize(source, tmp_path / "a", {})
    assert quantize(source, tmp_path / "b", {name: IDLE[name]()}) == expected
    assert [name for record in caplog.records if f"does not need {name}" in record.message]


def test_equalization_changes_the_files(source, tmp_path):
    given = {"weight_quantize_type": "abs_max", "quantizable_op_type": ["conv2d"]}
    assert quantize(source, tmp_path / "a", {**given, "equalize": True}) != quantize(
        source, tmp_path / "b", given)
    with pytest.raises(PaddleqError, match="equalize"):
        quantize(source, tmp_path / "c", {"equalize": "yes"})


def test_names_of_files_are_used(source, tmp_path):
    paddleq.quant_post_static(
        model_dir=source, quantize_model_path=tmp_path, data_loader=BATCHES,
        model_filename="net.pdmodel" if (source / "net.pdmodel").exists() else "net.json",
        params_filename="net.pdiparams", save_model_filename="m.pdmodel",
        save_params_filename="p.bin")
    assert {"m.pdmodel", "p.bin"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("name, value", REFUSED)
def test_wrong_value_is_refused_by_name(name, value, source, tmp_path):
    given = {"model_dir": source, "quantize_model_path": tmp_path / "out", name: value}
    if name not in ("data_loader", "batch_generator", "sample_generator"):
        key = "sample_generator" if name == "batch_size" else "data_loader"
        given[key] = samples if key == "sample_generator" else BATCHES
    with pytest.raises(PaddleqError) as caught:
        paddleq.quant_post_static(**given)
    assert name in str(caught.value) or str(value) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_unknown_parameter_is_refused(source, tmp_path):
    with pytest.raises(ConfigError, match="'skip_tensor_list'"):
        paddleq.quant_post_static(source, tmp_path / "out", BATCHES, skip_tensors=[])
    with pytest.raises(ConfigError, match="did you mean 'equalize'"):
        paddleq.quant_post_static(source, tmp_path / "out", BATCHES, equalise=True)
