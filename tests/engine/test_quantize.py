"""``paddleq.quantize`` with a QuantConfig, compared with the front ends."""

import numpy as np
import paddle
import pytest
from paddle import nn

import paddleq
from paddleq import LayerConfig, PerChannel, QuantConfig, QuantSpec
from paddleq.algorithms import GPTQ, SmoothQuant
from paddleq.config import SkipKind
from paddleq.engine.select import select
from paddleq.errors import ConfigError, ConfigTypeError, ExportError, ModelError


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
    paddleq.amct.quantize(net[1], {
        "batch_num": 1, "algorithm": "minmax", "quant_cfg": {
            "weights": {"type": "int8", "symmetric": True, "strategy": "channel"}}})
    net[1](paddle.rand([2, 4], dtype="float64"))
    paddleq.amct.convert(net[1])
    with pytest.raises(ExportError, match="float64.*float32"):
        save(net, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
