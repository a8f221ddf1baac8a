"""PaddleSlim's arguments of quant_post_static: executor, generators, batch sizes, static mode."""

import logging
import os

import numpy as np
import paddle
import pytest
from paddle import nn
from runtimes import paddle_inference

import paddleq
from paddleq.errors import CalibrationError, ConfigError, ConfigTypeError
from paddleq.export.program.program import Program

pytestmark = pytest.mark.one_version

Spec = paddle.static.InputSpec
IMAGES = np.random.RandomState(0).randn(10, 1, 8, 8).astype("float32") * np.linspace(
    1.0, 2.0, 10, dtype="float32").reshape([10, 1, 1, 1])
LABELS = np.arange(10).reshape([10, 1])


class TwoInputs(nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2D(1, 4, 3), nn.Linear(5, 4)

    def forward(self, image, text):
        return self.conv(image).mean([2, 3]) + self.fc(text)


def save(net, folder, *specs):
    net.eval()
    with paddle.utils.unique_name.guard():
        paddle.jit.save(net, f"{folder}/net", list(specs))
    return str(folder)


@pytest.fixture
def source(tmp_path):
    paddle.seed(0)
    net = nn.Sequential(nn.Conv2D(1, 4, 3), nn.BatchNorm2D(4), nn.ReLU(), nn.Flatten(),
                        nn.Linear(144, 3))
    return save(net, tmp_path / "float", Spec([None, 1, 8, 8], "float32", "x"))


def files(folder):
    return {name: (folder / name).read_bytes() for name in ("model.pdmodel", "model.pdiparams")}


# Forms in which PaddleSlim's scripts yield samples.
SAMPLES = {
    "lists": lambda: ([image] for image in IMAGES),
    "with labels": lambda: zip(IMAGES, LABELS),
    "with a leading axis": lambda: (image[np.newaxis] for image in IMAGES),
    "arrays": lambda: iter(IMAGES),
    "flat": lambda: ([image.reshape(-1)] for image in IMAGES),
    "float64": lambda: ([image.astype("float64")] for image in IMAGES),
    "dicts": lambda: ({"x": image} for image in IMAGES),
    "tensors": lambda: ([paddle.to_tensor(image)] for image in IMAGES),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_the_same_as_their_batches(name, source, tmp_path):
    batches = [IMAGES[:4], IMAGES[4:8]]  # the last two samples are no full batch
    paddleq.quant_post_static(source, tmp_path / "expected", batches, algo="avg")
    paddleq.quant_post_static(source, tmp_path / "found", sample_generator=SAMPLES[name],
                              batch_size=4, algo="avg")
    assert files(tmp_path / "found") == files(tmp_path / "expected")


# Samples with the batch axis, as loaders yield them to PaddleOCR's quant_kl.py.
ROWS = {
    "batches": lambda: iter([IMAGES[:6], IMAGES[6:]]),
    "single rows and batches": lambda: iter([IMAGES[:1], IMAGES[1:2], IMAGES[2:]]),
    "tensors": lambda: map(paddle.to_tensor, [IMAGES[:3], IMAGES[3:]]),
    "float64": lambda: iter([IMAGES.astype("float64")]),
}


@pytest.mark.parametrize("name", ROWS)
def test_each_row_of_an_array_with_the_batch_axis_is_a_sample(name, source, tmp_path):
    paddleq.quant_post_static(source, tmp_path / "expected", [IMAGES[:4], IMAGES[4:8]], algo="avg")
    paddleq.quant_post_static(source, tmp_path / "found", sample_generator=ROWS[name],
                              batch_size=4, algo="avg")
    assert files(tmp_path / "found") == files(tmp_path / "expected")


@pytest.mark.one_version
def test_rows_of_inputs_with_open_dimensions_are_samples(tmp_path):
    """A detector of open height and width, and batches of different sizes."""
    paddle.seed(0)
    source = save(nn.Sequential(nn.Conv2D(1, 4, 3), nn.ReLU()), tmp_path / "float",
                  Spec([None, 1, None, None], "float32", "x"))
    wide = np.random.RandomState(2).randn(3, 1, 8, 12).astype("float32")
    rows = [*IMAGES[:4, np.newaxis], *wide[:, np.newaxis]]
    paddleq.quant_post_static(source, tmp_path / "expected", rows, algo="avg")
    paddleq.quant_post_static(source, tmp_path / "found",
                              sample_generator=lambda: iter([IMAGES[:4], wide]), algo="avg")
    assert files(tmp_path / "found") == files(tmp_path / "expected")


@pytest.mark.parametrize("size, nums, used", [(1, None, range(10)), (1, 3, range(3)),
                                              (3, 2, range(6)), (10, None, range(10))])
def test_batch_size_and_batch_nums_count_samples(size, nums, used, source, tmp_path):
    batches = [IMAGES[i:i + size] for i in used[::size]]
    paddleq.quant_post_static(source, tmp_path / "expected", batches, algo="avg")
    paddleq.quant_post_static(source, tmp_path / "found", sample_generator=SAMPLES["lists"],
                              batch_size=size, batch_nums=nums, algo="avg")
    assert files(tmp_path / "found") == files(tmp_path / "expected")


@pytest.mark.parametrize("generator", [
    lambda: ([batch] for batch in (IMAGES[:4], IMAGES[4:])), lambda: iter([IMAGES[:4], IMAGES[4:]]),
    [IMAGES[:4], IMAGES[4:]]], ids=["lists", "arrays", "iterable"])
def test_batch_generator(generator, source, tmp_path):
    paddleq.quant_post_static(source, tmp_path / "expected", [IMAGES[:4], IMAGES[4:]], algo="avg")
    paddleq.quant_post_static(source, tmp_path / "found", batch_generator=generator, algo="avg")
    assert files(tmp_path / "found") == files(tmp_path / "expected")


def test_samples_of_several_inputs(tmp_path):
    source = save(TwoInputs(), tmp_path / "float", Spec([None, 1, 8, 8], "float32", "image"),
                  Spec([None, 5], "float32", "text"))
    text = np.random.RandomState(1).randn(10, 5).astype("float32")
    paddleq.quant_post_static(source, tmp_path / "expected", [[IMAGES[:5], text[:5]],
                                                              [IMAGES[5:], text[5:]]])
    paddleq.quant_post_static(source, tmp_path / "found", batch_size=5,
                              sample_generator=lambda: zip(IMAGES, text, LABELS))
    assert files(tmp_path / "found") == files(tmp_path / "expected")
    with pytest.raises(ConfigError, match="sample 0 .* 2 inputs image, text, but has 1 entries"):
        paddleq.quant_post_static(source, tmp_path / "no", sample_generator=SAMPLES["lists"])


def test_script_of_paddleslim_runs_in_static_mode(source, tmp_path, caplog):
    """As PaddleSeg's deploy/slim/quant/ptq.py and PaddleSlim's demos call it."""
    paddleq.quant_post_static(source, tmp_path / "expected", [IMAGES[:4], IMAGES[4:8]])
    paddle.enable_static()
    try:
        executor = paddle.static.Executor(paddle.CPUPlace())
        with caplog.at_level(logging.WARNING, logger="paddleq"):
            paddleq.quant_post_static(
                executor=executor, model_dir=source, quantize_model_path=str(tmp_path / "found"),
                sample_generator=SAMPLES["with a leading axis"], model_filename=None,
                params_filename=None, batch_size=4, batch_nums=10, algo="hist",
                hist_percent=0.99999, scope=paddle.static.global_scope(), round_type="round",
                bias_correction=False, is_full_quantize=False, is_use_cache_file=False,
                activation_quantize_type="range_abs_max", onnx_format=True, optimize_model=True,
                save_model_filename="model.pdmodel", save_params_filename="model.pdiparams")
        assert not paddle.in_dynamic_mode()
    finally:
        paddle.disable_static()
    assert files(tmp_path / "found") == files(tmp_path / "expected")
    (warning,) = [record for record in caplog.records if "does not need" in record.message]
    for name in ("executor", "scope", "is_use_cache_file", "activation_quantize_type"):
        assert name in warning.message


def test_positional_arguments_in_paddleslims_order(source, tmp_path):
    executor = paddle.static.Executor(paddle.CPUPlace())
    paddleq.quant_post_static(source, tmp_path / "expected", [IMAGES[:4], IMAGES[4:8]])
    paddleq.quant_post_static(executor, source, str(tmp_path / "found"), None,
                              SAMPLES["lists"], None, None, None, "model.pdmodel",
                              "model.pdiparams", 4, optimize_model=True)
    assert files(tmp_path / "found") == files(tmp_path / "expected")
    with pytest.raises(ConfigError, match="model_dir by position and by name"):
        paddleq.quant_post_static(executor, source, "x", model_dir=source)


def test_static_mode_is_restored_after_an_error(source, tmp_path):
    paddle.enable_static()
    try:
        with pytest.raises(ConfigError, match="batch 0 of data_loader"):
            paddleq.quant_post_static(source, tmp_path / "out", [IMAGES[:, :, 1:]])
        assert not paddle.in_dynamic_mode()
    finally:
        paddle.disable_static()


@pytest.mark.parametrize("onnx_format", [True, False])
def test_full_quantization_in_both_formats(onnx_format, source, tmp_path, caplog):
    names = paddleq.quant_post_static(
        source, tmp_path / "out", [IMAGES], quantizable_op_type=["conv2d"], is_full_quantize=True,
        onnx_format=onnx_format)
    assert len(names) == 2 and not [r for r in caplog.records if r.levelname == "WARNING"]
    program = Program.load(str(tmp_path / "out" / "model.pdmodel"), None)
    types = {op.type for op in program.desc.blocks[0].ops}
    assert ("quantize_linear" in types) is onnx_format
    assert any(kind.startswith("fake_") for kind in types) is not onnx_format
    found = paddle_inference(tmp_path / "out" / "model", [IMAGES])[0]
    expected = paddleq.SavedModel(source)(IMAGES).numpy()
    assert 0.0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("return_list", [False, True])
def test_data_loader_of_a_static_graph(return_list, source, tmp_path):
    class Images(paddle.io.Dataset):
        def __getitem__(self, index):
            return (IMAGES[index],)

        def __len__(self):
            return 8

    paddleq.quant_post_static(source, tmp_path / "expected", [IMAGES[:4], IMAGES[4:8]])
    paddle.enable_static()
    try:
        program = paddle.static.Program()
        with paddle.static.program_guard(program):
            x = paddle.static.data("x", [None, 1, 8, 8])
        loader = paddle.io.DataLoader(
            Images(), feed_list=[x], places=[paddle.CPUPlace()], batch_size=4, drop_last=True,
            return_list=return_list)
        paddleq.quant_post_static(source, tmp_path / "found", data_loader=loader)
    finally:
        paddle.disable_static()
    assert files(tmp_path / "found") == files(tmp_path / "expected")


@pytest.mark.parametrize("arguments, error, words", [
    ({}, ConfigError, "exactly one of data_loader, batch_generator and sample_generator .* none"),
    ({"data_loader": [IMAGES], "sample_generator": SAMPLES["lists"]}, ConfigError,
     "data_loader and sample_generator is"),
    ({"sample_generator": 3}, ConfigTypeError, "sample_generator must be a function"),
    ({"batch_generator": 3}, ConfigTypeError, "batch_generator must be a function"),
    ({"sample_generator": SAMPLES["lists"], "batch_size": 0}, ConfigError, "batch_size"),
    ({"sample_generator": SAMPLES["lists"], "batch_size": 11}, CalibrationError,
     "yields 10 samples, fewer than one batch of batch_size=11"),
    ({"sample_generator": lambda: [[IMAGES[0]], [IMAGES[0, :, 1:]]], "batch_size": 2}, ConfigError,
     "one shape"),
    ({"sample_generator": lambda: [{"y": IMAGES[0]}]}, ConfigError, "sample 0 .* lacks x"),
    ({"data_loader": [IMAGES], "round_type": "adaronud"}, ConfigError, "round_type"),
    ({"data_loader": [IMAGES], "bias_correction": "slow"}, ConfigError, "bias_correction"),
    ({"data_loader": [IMAGES], "skip_tensors": []}, ConfigError, "'skip_tensor_list'"),
    ({"data_loader": [IMAGES], "onnx_format": 1}, ConfigTypeError, "onnx_format"),
])
def test_wrong_arguments_are_refused(arguments, error, words, source, tmp_path):
    with pytest.raises(error, match=words):
        paddleq.quant_post_static(source, tmp_path / "out", **arguments)
    assert not os.path.exists(tmp_path / "out")
