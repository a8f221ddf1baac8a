"""``paddleq.quantize`` with a QuantConfig, compared with the front ends."""

import threading

import numpy as np
import paddle
import pytest
from paddle import nn

import paddleq
from paddleq import LayerConfig, PerChannel, QuantConfig, QuantSpec
from paddleq.algorithms import GPTQ, SmoothQuant, equalize, quantize_layer_by_layer
from paddleq.config import SkipKind
from paddleq.engine.select import select
from paddleq.errors import ConfigError, ConfigTypeError, ExportError, ModelError

AMCT = {"batch_num": 1, "algorithm": "minmax", "quant_cfg": {
    "weights": {"type": "int8", "symmetric": True, "strategy": "channel"}}}


def cnn():
    paddle.seed(0)
    return nn.Sequential(nn.Conv2D(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


def rules(config):
    found = QuantConfig()
    found.add_type(nn.Conv2D, config)
    found.add_type(nn.Linear, config)
    return found


def test_quantize_calibrate_and_convert_equal_ptq_bit_for_bit():
    x = paddle.rand([4, 1, 8, 8])
    config = LayerConfig(QuantSpec(granularity=PerChannel()), QuantSpec())
    mine = paddleq.quantize(cnn(), rules(config))
    paddleq.calibrate(mine, [x])
    paddleq.convert(mine)
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    theirs = ptq.quantize(cnn())
    ptq.calibrate(theirs, [x])
    np.testing.assert_array_equal(mine(x).numpy(), theirs(x).numpy())
    assert not np.array_equal(mine(x).numpy(), cnn()(x).numpy())


def test_quantize_returns_a_copy_unless_it_is_in_place():
    net = cnn()
    config = rules(LayerConfig(QuantSpec(4)))
    quantized = paddleq.quantize(net, config)
    assert type(net[0]) is nn.Conv2D and paddleq.nn.is_quantized(quantized[0])
    assert paddleq.quantize(net, config, inplace=True) is net


def test_skipped_layers_keep_the_reason():
    config = rules(LayerConfig(QuantSpec()))
    config.add_name("3", None)
    reason = select(cnn(), config).skipped["3"]
    assert (reason.kind, reason.detail) == (SkipKind.EXCLUDED, "name '3'")
    assert paddleq.quantize(cnn(), config)[3]._paddleq.note == str(reason)


@pytest.mark.parametrize("config", [
    LayerConfig(QuantSpec(), smoother=SmoothQuant()), LayerConfig(QuantSpec(), rounder=GPTQ())])
def test_weight_algorithms_are_rejected(config):
    net = cnn()
    with pytest.raises(ConfigError, match="'0' must have no smoother and no rounder"):
        paddleq.quantize(net, rules(config))
    assert type(net[0]) is nn.Conv2D


@pytest.mark.parametrize("config, error", [
    ({}, ConfigTypeError), (None, ConfigTypeError), (QuantConfig(), ModelError)])
def test_other_configuration_types_are_rejected(config, error):
    with pytest.raises(error):
        paddleq.quantize(cnn(), config)


@pytest.mark.parametrize("quantize", [
    lambda net: paddleq.quantize(net, rules(LayerConfig(QuantSpec()))),
    lambda net: paddleq.QAT().quantize(net), lambda net: paddleq.PTQ().quantize(net),
    lambda net: paddleq.golden_stick.SimulatedQuantizationAwareTraining().apply(net),
], ids=["quantize", "QAT", "PTQ", "golden_stick"])
def test_float64_weights_are_rejected_by_name(quantize):
    net = cnn()
    net[3].to(dtype="float64")
    with pytest.raises(ModelError, match=r"must be float32.*3\.weight is float64"):
        quantize(net)


@pytest.mark.parametrize("save", [
    lambda net, path: paddleq.save_quantized_model(net, path, [paddle.rand([1, 8])]),
    lambda net, path: paddleq.export.to_onnx(net, path, [paddle.rand([1, 8])]),
], ids=["pdmodel", "onnx"])
def test_float64_transformer_layers_are_rejected_by_exporters(save, tmp_path):
    """AMCT and Golden Stick compute with float64 models; files of them run nowhere."""
    net = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2).to(dtype="float64"))
    paddleq.amct.quantize(net[1], AMCT)
    net[1](paddle.rand([2, 4], dtype="float64"))
    paddleq.amct.convert(net[1])
    with pytest.raises(ExportError, match="float64.*float32"):
        save(net, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


DOORS = {
    "PTQ": lambda model: paddleq.PTQ().quantize(model),
    "QAT of a copy": lambda model: paddleq.QAT().quantize(model, inplace=False),
    "quantize": lambda model: paddleq.quantize(model, rules(LayerConfig(QuantSpec()))),
    "quant_post_dynamic": paddleq.quant_post_dynamic,
}
IN_PLACE_DOORS = {
    "QAT": lambda model: paddleq.QAT().quantize(model),
    "amct": lambda model: paddleq.amct.quantize(model, AMCT),
    "golden_stick.PTQ": lambda model: paddleq.golden_stick.PTQ().apply(model),
    "equalize": lambda model: equalize(model, paddle.rand([1, 1, 8, 8])),
    "layer by layer": lambda model: quantize_layer_by_layer(model, None, QuantConfig()),
}


def loaded(folder):
    net = cnn()
    net.eval()
    paddle.jit.save(net, f"{folder}/net", [paddle.static.InputSpec([None, 1, 8, 8], "float32")])
    return paddle.jit.load(f"{folder}/net")


def with_attribute(value):
    net = cnn()
    net[3].extra = value
    return net


class Around(nn.Layer):
    """Model with a part that cannot be copied."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.fc = inner, nn.Linear(10, 10)

    def forward(self, x):
        return self.fc(self.inner(x))


@pytest.mark.parametrize("door", [*DOORS, *IN_PLACE_DOORS])
def test_a_program_that_jit_load_returns_is_refused_for_a_saved_model(door, tmp_path):
    with pytest.raises(ModelError, match=r"paddle.jit.load returns .* paddleq.SavedModel\(path\)"):
        {**DOORS, **IN_PLACE_DOORS}[door](loaded(tmp_path))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("make, words", [
    (lambda folder: paddle.DataParallel(cnn()), "_strategy.*model._layers.*inplace"),
    (lambda folder: with_attribute(threading.Lock()), "'3.extra'.*lock.*inplace=True"),
    (lambda folder: with_attribute(value for value in ()), "'3.extra'.*generator.*inplace=True"),
    (lambda folder: Around(loaded(folder)), "'inner.*paddleq.SavedModel.*inplace=True"),
], ids=["DataParallel", "lock", "generator", "loaded part"])
def test_a_model_that_cannot_be_copied_is_refused_with_the_part_and_the_way(
        door, make, words, tmp_path):
    with pytest.raises(ModelError, match=f"cannot be copied because of .*{words}"):
        DOORS[door](make(tmp_path))


@pytest.mark.parametrize("make", [
    lambda: paddle.DataParallel(cnn()), lambda: with_attribute(threading.Lock())])
def test_a_model_that_cannot_be_copied_is_quantized_in_place(make, tmp_path):
    net, x = make(), paddle.rand([2, 1, 8, 8])
    assert paddleq.PTQ("AbsmaxQuantizer").quantize(net, inplace=True) is net
    paddleq.calibrate(net, [x])
    paddleq.save_quantized_model(net, tmp_path / "net")
    found = paddleq.deploy.Predictor(tmp_path / "net", "paddle", threads=1).run(x)
    assert np.abs(found[0] - net(x).numpy()).max() < 0.1 * np.abs(found[0]).max()


def test_a_high_level_model_is_refused_with_its_network():
    with pytest.raises(ConfigTypeError, match="model.network is one"):
        paddleq.PTQ().quantize(paddle.Model(cnn()))


def test_float64_parameters_of_layers_that_stay_float_are_rejected():
    net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2).to(dtype="float64"))
    with pytest.raises(ModelError, match="must not be float64.*1.weight, 1.bias"):
        paddleq.PTQ().quantize(net)
