"""Batches that do not fit a model: data types, shapes, layouts, and batches without items."""

import numpy as np
import paddle
import pytest
from paddle import nn

import paddleq
from paddleq.errors import ConfigError, ConfigTypeError
from paddleq.recipes import Recipe, run

Spec = paddle.static.InputSpec
IMAGES = np.random.RandomState(0).rand(2, 3, 8, 8).astype("float32")


def cnn():
    net = nn.Sequential(nn.Conv2D(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    net.eval()
    return net


class TwoInputs(nn.Layer):
    def __init__(self):
        super().__init__()
        self.embed, self.fc = nn.Embedding(10, 4), nn.Linear(4, 2)

    def forward(self, ids, mask):
        return self.fc(self.embed(ids) * mask)


class OneDict(TwoInputs):
    def forward(self, batch):
        return super().forward(batch["ids"], batch["mask"])


def calibrate(net, data):
    paddleq.calibrate(paddleq.PTQ("AbsmaxQuantizer").quantize(net), data)


def from_file(net, data, folder):
    paddle.jit.save(net, f"{folder}/float/net", [Spec([None, 3, 8, 8], "float32", "input")])
    paddleq.quant_post_static(f"{folder}/float", f"{folder}/int8", data)


DOORS = {
    "calibrate": lambda net, data, folder: calibrate(net, data),
    "quant_post_static": from_file,
    "layer_errors": lambda net, data, folder: paddleq.analysis.layer_errors(
        paddleq.quant_post_dynamic(net), data, net),
}

# name -> (batch, error, found in the message for any position of the batch)
WRONG = {
    "float64": (IMAGES.astype("float64"), ConfigTypeError, "must be float32.* is float64"),
    "uint8": ((255 * IMAGES).astype("uint8"), ConfigTypeError, "must be float32.* is uint8"),
    "int64": (np.ones([2, 3, 8, 8], "int64"), ConfigTypeError, "must be float32.* is int64"),
    "other size": (np.zeros([1, 3, 9, 9], "float32"), ConfigError, r"\[.*\].* \[1, 3, 9, 9\]"),
    "other channels": (IMAGES[:, :1], ConfigError, r"\[any, 3, .* \[2, 1, 8, 8\]"),
    "no batch axis": (IMAGES[0], ConfigError, r"\[any, 3, .* \[3, 8, 8\]"),
    "channels last": (IMAGES.transpose(0, 2, 3, 1), ConfigError,
                      r"\[any, 3, .* has \[2, 8, 8, 3\] \(transpose it: .*\[0, 3, 1, 2\]"),
    "no item": (IMAGES[:0], ConfigError, r"at least one item.*\[0, 3, 8, 8\]"),
}


@pytest.mark.parametrize("position", [0, 2])
@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("door", DOORS)
def test_wrong_batch_is_refused_with_number_input_and_both_sides(door, name, position, tmp_path):
    batch, error, words = WRONG[name]
    with pytest.raises(error, match=f"batch {position} of data.*(?s:.*){words}") as raised:
        DOORS[door](cnn(), [IMAGES] * position + [batch], tmp_path)
    if name != "other size" or position or door == "quant_post_static":  # else of a hidden layer
        assert "the input 'input'" in str(raised.value) or name == "no item"
    assert not (tmp_path / "int8").exists()


def test_wrong_batch_leaves_the_model_in_its_state():
    net = paddleq.QAT().quantize(cnn())
    net.train()
    with pytest.raises(ConfigTypeError):
        paddleq.calibrate(net, [IMAGES, IMAGES.astype("float64")])
    assert net.training and net[0].activation_quantizer.state is paddleq.State.QAT


ids, mask = paddle.arange(10).reshape([2, 5]), paddle.ones([2, 5, 1])


@pytest.mark.parametrize("make, batches, error, words", [
    (TwoInputs, [(ids, mask), (ids.astype("float32"), mask)], ConfigTypeError,
     "batch 1 .*'ids' must be int64 .*batch 0 .* is float32"),
    (TwoInputs, [(ids.astype("float32"), mask)], ConfigTypeError,
     "batch 0 .*'ids' of a .*Embedding must be int64 or int32, but is float32"),
    (TwoInputs, [{"ids": ids, "mask": mask}, {"ids": ids, "mask": mask[:, :3]}], ConfigError,
     r"batch 1 .*'mask' must have the shape \[any, 5, 1\] .* has \[2, 3, 1\]"),
    (TwoInputs, [(ids, mask[:0])], ConfigError, "batch 0 .*'mask'"),
    (OneDict, [{"ids": ids, "mask": mask}, {"ids": ids, "mask": mask.astype("float64")}],
     ConfigTypeError, r"batch 1 .*batch\['mask'\].* must be float32"),
    (OneDict, [{"ids": ids[:0], "mask": mask[:0]}], ConfigError, r"batch 0 .*batch\['ids'\]"),
    (TwoInputs, [(ids, mask), (ids,)], ConfigError, "batch 1 of data must hold the 2 arguments"),
    (TwoInputs, [(ids, mask), {"ids": ids}], ConfigError, "batch 1 of data .* needs 'mask'"),
    (lambda: nn.Sequential(nn.Linear(4, 2)), [paddle.ones([2, 4]), paddle.ones([2, 5])],
     ConfigError, r"batch 1 .*\[any, 4\].*\[\.\.\., 4\], but has \[2, 5\]"),
])
def test_inputs_of_several_kinds_are_named(make, batches, error, words):
    with pytest.raises(error, match=words):
        calibrate(make(), batches)


class Failing(nn.Layer):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        if x.max() > 5:
            raise ValueError("my own error")
        return self.fc(x)


def test_errors_of_the_user_are_not_changed():
    with pytest.raises(ValueError, match="^my own error$") as error:
        calibrate(Failing(), [np.ones([2, 4], "float32"), 9 * np.ones([2, 4], "float32")])
    assert type(error.value) is ValueError


def test_batches_of_several_sizes_that_a_model_takes_are_used():
    net = nn.Sequential(nn.Conv2D(3, 4, 3), nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(4, 2))
    calibrate(net, [IMAGES, IMAGES[:1, :, :5, :6], IMAGES[:, :, 1:]])


@pytest.mark.parametrize("name", ["float64", "other size", "channels last", "no item"])
def test_predictor_refuses_what_does_not_fit(name, tmp_path):
    batch, error, words = WRONG[name]
    net = paddleq.quant_post_dynamic(cnn())
    spec = [Spec([None, 3, 8, 8], "float32", "image")]
    paddleq.save_quantized_model(net, tmp_path / "net", spec)
    predictor = paddleq.deploy.Predictor(tmp_path / "net", "paddle", threads=1)
    with predictor, pytest.raises(error, match=f"(?s)the input 'image' .*{words}"):
        predictor.run(batch)


MODEL = """
import numpy as np
from paddle import nn

def build():
    return nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4)))

def data():
    yield np.ones([2, 4], "float32")
    yield np.ones([2, 4], "float64")
"""
RECIPE = """
paddleq: 1
model: {build: "model.py:build", input_spec: [{shape: [null, 4], name: x}]}
data: {calibration: {source: "model.py:data"}}
quantize: {method: %s}
export: [{path: net}]
"""


@pytest.mark.parametrize("method", [
    "ptq", "golden_stick, config: {weight_quant_dtype: int8, outliers_suppression: smooth}",
    "amct, config: {batch_num: 2, algorithm: minmax, quant_cfg: {weights: {type: int8, "
    "symmetric: true, strategy: channel}}}"], ids=["ptq", "golden_stick", "amct"])
def test_recipe_names_batch_and_input(method, tmp_path):
    (tmp_path / "model.py").write_text(MODEL)
    recipe = Recipe.parse(RECIPE % method, folder=str(tmp_path))
    with pytest.raises(ConfigTypeError, match="batch 1 .*'input' must be float32.* is float64"):
        run(recipe)
