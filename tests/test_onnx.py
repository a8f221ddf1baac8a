"""ONNX: what the file holds, and that ONNX Runtime computes what the simulation computes."""

from collections import Counter

import numpy as np
import onnx
import paddle
import pytest
from nets import SmallNet, train_steps, warmed
from onnx import numpy_helper
from paddle import nn
from runtimes import onnxruntime, openvino, relative_error
from test_layers import KINDS, LAYERS

import paddleq
from paddleq.errors import ConfigError, ExportError

SPEC = paddle.static.InputSpec


def initializers(path):
    return {each.name: each for each in onnx.load(f"{path}.onnx").graph.initializer}


def kinds(path):
    """Counter of the operators of a file."""
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


def specs(inputs):
    return [SPEC([None, *x.shape[1:]], str(x.dtype).replace("paddle.", ""), f"x{i}")
            for i, x in enumerate(inputs)]


def simulated(net, inputs):
    net.eval()
    with paddle.no_grad():
        output = net(*inputs)
    return [value.numpy() for value in (output if isinstance(output, (list, tuple)) else [output])]


def calibrated(net, inputs, **kwargs):
    ptq = paddleq.PTQ("AbsmaxQuantizer", **kwargs)
    net = ptq.quantize(net, quantizable_layer_type=KINDS)
    ptq.calibrate(net, [inputs])
    return net


def written_equals_simulated(net, inputs, path, tolerance=1e-5, **options):
    """Write both forms and compare; returns what was simulated."""
    expected = simulated(net, inputs)
    for target in ("plain", "onnxruntime"):
        paddleq.export.to_onnx(net, f"{path}.onnx", specs(inputs), target=target, **options)
        onnx.checker.check_model(f"{path}.onnx", full_check=True)
        arrays = [x.numpy() for x in inputs]
        for as_is in (True, False):
            found = onnxruntime(path, arrays, as_is)
            assert len(found) == len(expected)
            for a, b in zip(found, expected):
                assert np.abs(b).max() > 0
                assert relative_error(a, b) <= tolerance, (target, as_is)
    return expected


# paddle2onnx has no form for these.
NOT_IN_ONNX = {}


@pytest.mark.parametrize("name", sorted(set(LAYERS) - set(NOT_IN_ONNX)))
def test_layer(name, tmp_path):
    make, shape = LAYERS[name]
    x = paddle.randn(shape)
    net = calibrated(nn.Sequential(make()), [x])
    written_equals_simulated(net, [x], tmp_path / "m")




def trained_qat(config=None, net=None, x=None, **hooks):
    net, x = net or SmallNet(), paddle.rand([4, 1, 8, 8]) if x is None else x
    warmed(net, x)
    quanter = paddleq.QAT(config or {}, **hooks)
    quanter.quantize(net)
    train_steps(net, x, steps=4, lr=1e-4)
    return net, x


@pytest.mark.parametrize("bits", [*range(1, 9), 12, 16])
def test_bits(bits, tmp_path):
    net, x = trained_qat({"weight_bits": bits, "activation_bits": bits})
    path = tmp_path / "m"
    written_equals_simulated(net, [x], path)
    stored = initializers(path)[net.conv1.weight.name]
    assert numpy_helper.to_array(stored).dtype == ("int8" if bits <= 8 else "int16")
    assert abs(numpy_helper.to_array(stored).astype(int)).max() == max(2 ** (bits - 1) - 1, 1)
    opset = onnx.load(f"{path}.onnx").opset_import[0].version
    assert opset == (17 if bits <= 8 else 21)


@pytest.mark.parametrize("config", [
    {"activation_preprocess_type": "PACT"},
    {"weight_preprocess_type": "PACT"},
    {"weight_quantize_type": "abs_max"},
    {"weight_quantize_type": "lsq_plus", "activation_quantize_type": "lsq_plus"},
    {"weight_quantize_type": "channel_wise_lsq_plus", "activation_quantize_type": "lsq_plus",
     "activation_bits": 4, "weight_bits": 4},
], ids=lambda config: "-".join(map(str, config.values())))
def test_qat(config, tmp_path):
    net, x = trained_qat(config)
    written_equals_simulated(net, [x], tmp_path / "m")


AFFINE = [
    {"dtype": "quint8", "qscheme": "per_tensor_affine"},
    {"dtype": "quint4", "qscheme": "per_tensor_affine"},
    {"dtype": "qint8", "qscheme": "per_tensor_affine"},
    {"dtype": "qint8", "quant_min": -100, "quant_max": 50, "qscheme": "per_tensor_affine"},
    {"dtype": "qint8", "quant_min": -127},
    {"dtype": "quint8"},
    {"dtype": "qint16"},
    {"dtype": "quint12", "qscheme": "per_tensor_affine"},
]


@pytest.mark.parametrize("words", AFFINE, ids=str)
@pytest.mark.parametrize("side", ["act_quantize", "weight_quantize"])
def test_zero_points_and_ranges(words, side, tmp_path):
    """What a .pdmodel refuses: zero points, unsigned integers, part of a range."""
    quantizer = paddleq.FakeQuantize.with_args(rounding="half_even", **words)
    net, x = trained_qat(**{side: quantizer})
    x = x - 0.3
    written_equals_simulated(net, [x], tmp_path / "m")


@pytest.mark.parametrize("words", [
    {"qscheme": "per_channel_affine", "dtype": "quint8"},
    {"qscheme": "per_channel_affine", "dtype": "qint8"},
    {"qscheme": "per_channel_symmetric", "dtype": "qint4"},
], ids=str)
def test_a_zero_point_for_each_channel_of_a_weight(words, tmp_path):
    from paddleq.observers import PerChannelMinMaxObserver

    net, x = nn.Sequential(nn.Conv2D(3, 8, 3), nn.BatchNorm2D(8), nn.ReLU()), paddle.randn(
        [4, 3, 8, 8])
    quantizer = paddleq.FakeQuantize.with_args(
        observer=PerChannelMinMaxObserver, channel_len=8, rounding="half_even", **words)
    net, x = trained_qat(net=net, x=x, weight_quantize=quantizer)
    with paddle.no_grad():
        net[1].weight.set_value(paddle.randn([8]))
    written_equals_simulated(net, [x], tmp_path / "m")


@pytest.mark.parametrize("mode", ["asymmetric", "symmetric", "narrow"])
def test_simulated_qat(mode, tmp_path):
    from paddleq import SimulatedQuantizationAwareTraining as SimQAT

    config = {"asymmetric": {}, "symmetric": {"symmetric": (True, True)},
              "narrow": {"narrow_range": (True, True), "per_channel": (False, True)}}[mode]
    x = paddle.rand([8, 1, 8, 8]) - 0.4
    net = SimQAT(config).apply(SmallNet(), x)
    train_steps(net, x, steps=4, lr=1e-4)
    written_equals_simulated(SimQAT().convert(net), [x], tmp_path / "m")
