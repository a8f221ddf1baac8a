"""Checkpoints of simulated models: bits, float layers and states by layer, equal exports."""

import hashlib
import json
import re

import numpy as np
import paddle
import pytest
from nets import save_float
from paddle import nn
from runtimes import paddle_inference, relative_error

import paddleq
from paddleq.engine import fake_quantizers, quantized_layers
from paddleq.errors import FormatError, ModelError

SHAPE = [1, 8, 8]


class Net(nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2D(1, 4, 3), nn.BatchNorm2D(4)
        self.hidden, self.out = nn.Linear(144, 32), nn.Linear(32, 3)

    def forward(self, x):
        x = nn.functional.relu(self.norm(self.conv(x))).flatten(1)
        return self.out(nn.functional.relu(self.hidden(x)))


@pytest.fixture
def net():
    paddle.seed(0)
    net = Net()
    net.eval()
    return net


DATA = [paddle.to_tensor(batch) for batch in
        np.random.default_rng(0).normal(size=[2, 8, *SHAPE]).astype("float32")]
PTQ = paddleq.PTQ("AbsmaxQuantizer")


def exported(model, folder):
    """Return the files of all exports by name."""
    spec = [paddle.static.InputSpec([None, *SHAPE])]
    for name, options in (("qdq", {}), ("fake", {"onnx_format": False}),
                          ("net", {"format": "onnx"})):
        with paddle.utils.unique_name.guard():  # Paddle 2.6 counts variables on
            PTQ.save_quantized_model(model, str(folder / name), spec, **options)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without_notes(content):
    """The notes on layers tell of the rule, or of the checkpoint."""
    return re.sub(rb"(?m)\bwhy: .*$", b"", content)


def round_trip(model, fresh, folder):
    paddleq.save_checkpoint(model, folder / "checkpoint")
    assert paddleq.load_checkpoint(fresh, folder / "checkpoint") is fresh
    with paddle.no_grad():
        np.testing.assert_array_equal(fresh(DATA[0]).numpy(), model(DATA[0]).numpy())
    before, after = exported(model, folder / "before"), exported(fresh, folder / "after")
    assert before.keys() == after.keys()
    for name, content in before.items():
        assert without_notes(content) == without_notes(after[name]), name
    (found,) = paddle_inference(str(folder / "after" / "qdq"), [DATA[0].numpy()])
    with paddle.no_grad():
        assert relative_error(found, model(DATA[0]).numpy()) < 1e-5


@pytest.mark.parametrize("choices", [
    [(8, 8), (4, 8)], [(8, 8), (8, 16), (4, 8)], [(8, 8), (3, 8), None]], ids=str)
@pytest.mark.parametrize("fuse, saved", [(False, False), (True, False), (True, True)])
def test_mixed_bits_survive(net, choices, fuse, saved, tmp_path):
    """The fresh model has 8 bits in all layers."""
    model = net
    if saved:
        save_float(net, str(tmp_path / "float" / "net"), SHAPE)
        model = paddleq.SavedModel(tmp_path / "float")
    budget = {"max_drop": 0.012} if None in choices else {"max_cost": 0.2}
    mixed, report = PTQ.quantize_with_bits(model, DATA, choices, cost="bytes", fuse=fuse, **budget)
    assert len(set(report.layers.values())) > 1
    fresh = PTQ.quantize(model, fuse=fuse, inputs=DATA[0] if fuse else None)
    round_trip(mixed, fresh, tmp_path)
    floats = [name for name, choice in report.layers.items() if choice is None]
    assert not set(floats) & set(dict(quantized_layers(fresh)))
    for name, quantizer in fake_quantizers(fresh):
        layer, _, side = name.rpartition(".")
        assert quantizer.spec.bits == report.layers[layer][side.startswith("activation")]
        assert quantizer.state is paddleq.State.VALIDATION


def test_layers_that_the_accuracy_search_left_float_survive(net, tmp_path):
    net.hidden.weight.set_value(net.hidden.weight * paddle.to_tensor(
        [[300.0]] + [[1.0]] * 143))
    found, report = PTQ.quantize_with_accuracy(net, DATA, "error", max_drop=0.02)
    assert report.left_float
    round_trip(found, PTQ.quantize(net), tmp_path)


def test_layers_that_calibration_did_not_reach_survive(net, tmp_path):
    net.idle = nn.Linear(2, 2)
    model = PTQ.quantize(net)
    PTQ.calibrate(model, DATA)
    round_trip(model, PTQ.quantize(net), tmp_path)


@pytest.mark.parametrize("bits", [4, 8])
def test_integers_replace_simulated_layers(net, bits, tmp_path):
    quantizer = paddleq.paddleslim.PerChannelAbsmaxQuantizer(bits)
    ptq = paddleq.PTQ("AbsmaxQuantizer", quantizer)
    model = ptq.quantize(net)
    ptq.calibrate(model, DATA)
    paddleq.freeze(model)
    paddleq.save_checkpoint(model, tmp_path / "net")
    loaded = paddleq.load_checkpoint(PTQ.quantize(net), tmp_path / "net")
    np.testing.assert_array_equal(loaded(DATA[0]).numpy(), model(DATA[0]).numpy())


def test_learned_steps_of_other_bits_survive(net, tmp_path):
    def qat(bits):
        return paddleq.QAT({"weight_bits": bits, "activation_bits": bits},
                           weight_quantize=paddleq.LSQ, act_quantize=paddleq.LSQ)

    model, fresh = (qat(bits).quantize(net, inplace=False) for bits in (4, 8))
    for trained, batches in ((model, DATA), (fresh, DATA[1:])):
        trained.train()
        for batch in batches:
            trained(batch)
        trained.eval()
    paddleq.save_checkpoint(model, tmp_path / "net")
    paddleq.load_checkpoint(fresh, tmp_path / "net")
    np.testing.assert_array_equal(fresh(DATA[0]).numpy(), model(DATA[0]).numpy())


def test_other_quantization_is_refused(net, tmp_path):
    """Granularity and symmetry must agree; a float model has no quantizers. Nothing changes."""
    model = PTQ.quantize(net)
    PTQ.calibrate(model, DATA)
    paddleq.save_checkpoint(model, tmp_path / "net")
    with pytest.raises(ModelError, match="'conv' simulates quantization"):
        paddleq.load_checkpoint(Net(), tmp_path / "net")
    other = paddleq.PTQ("min_max", paddleq.paddleslim.AbsmaxQuantizer(4)).quantize(net)
    other.calibrated = PTQ.quantize(nn.Linear(2, 2))  # float in the checkpoint
    before = {key: value.numpy() for key, value in other.state_dict().items()}
    with pytest.raises(ModelError, match="'conv' is int4 .* differ in more than the bits"):
        paddleq.load_checkpoint(other, tmp_path / "net")
    assert len(quantized_layers(other)) == 4
    assert other.conv.weight_quantizer.spec.bits == 4
    for key, value in other.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[key])


def rewritten(path, change):
    """Change the description of a checkpoint, and its digest."""
    def text(content):
        return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()

    content = json.loads(path.with_suffix(".json").read_text())
    change(content)
    del content["sha256"]
    content["sha256"] = hashlib.sha256(text(content)).hexdigest()
    path.with_suffix(".json").write_bytes(text(content))


def test_files_without_descriptions_of_quantizers_load(net, tmp_path):
    """Earlier files have neither these nor the provenance."""
    model, fresh = PTQ.quantize(net), PTQ.quantize(net)
    PTQ.calibrate(model, DATA)
    paddleq.save_checkpoint(model, tmp_path / "net")
    rewritten(tmp_path / "net", lambda content: (content.pop("provenance"),
                                                 content["layers"].clear()))
    paddleq.load_checkpoint(fresh, tmp_path / "net")
    PTQ.convert(fresh)
    np.testing.assert_array_equal(fresh(DATA[0]).numpy(), model(DATA[0]).numpy())


@pytest.mark.parametrize("entry", [
    3, {"spec": 3, "state": "validation"}, {"state": "validation"}, {"spec": None, "state": "qat"},
    {"spec": {}, "state": "validation"}, "state"], ids=str)
def test_invalid_descriptions_of_quantizers_are_refused(net, entry, tmp_path):
    model, fresh = PTQ.quantize(net), PTQ.quantize(net)
    PTQ.calibrate(model, DATA)
    paddleq.save_checkpoint(model, tmp_path / "net")

    def change(content):
        described = content["layers"]["conv"]["description"]
        if entry == "state":
            described["weight_quantizer"]["state"] = "other"
        else:
            described["weight_quantizer"] = entry

    rewritten(tmp_path / "net", change)
    with pytest.raises((FormatError, ModelError)):
        paddleq.load_checkpoint(fresh, tmp_path / "net")
    assert all(quantizer.state is paddleq.State.CALIBRATION
               for _, quantizer in fake_quantizers(fresh))
