"""Every layer type in Paddle Inference's int8 mode."""

import logging

import numpy as np
import paddle
import pytest
from layer_cases import LAYER_TYPES, LAYERS
from nets import train_steps
from paddle import nn
from runtimes import INT8_WEIGHT_BITS, paddle_inference, relative_error

import paddleq
from paddleq.deploy import Predictor, to_paddle_int8
from paddleq.export.markers import WeightMark
from paddleq.export.paddle.markers_from_program import raise_to_markers
from paddleq.export.pir_to_program import load_program
from paddleq.export.program.inspect import inspect, program_rows
from paddleq.paddleslim import PerChannelAbsmaxQuantizer

EVERY = {**LAYERS, "embedding": (lambda: nn.Embedding(11, 6), None)}
LIMIT = 0.02


def exported(name, way, path, bits=8):
    """Save a layer at ``path``; return (input, output of the quantized model)."""
    paddle.seed(7)
    make, shape = EVERY[name]
    x = paddle.rand(shape) if shape else paddle.randint(0, 11, [4, 3])
    net, kinds = nn.Sequential(make(), nn.ReLU()), [*LAYER_TYPES, "Embedding"]
    if way == "QAT":
        quanter = paddleq.QAT({"quantizable_layer_type": kinds, "weight_bits": bits})
        quanter.quantize(net)
        train_steps(net, x, steps=4, lr=1e-6)
    else:
        quanter = paddleq.PTQ("AbsmaxQuantizer", paddleq.paddleslim.PerChannelAbsmaxQuantizer(bits))
        net = quanter.quantize(net, quantizable_layer_type=kinds)
        quanter.calibrate(net, [x])
    net.eval()
    dtype = "float32" if shape else "int64"
    spec = paddle.static.InputSpec([None, *x.shape[1:]], dtype)
    quanter.save_quantized_model(net, path, [spec])
    with paddle.no_grad():
        return x.numpy(), net(x).numpy()


@pytest.mark.parametrize("way", ["PTQ", "QAT"])
@pytest.mark.parametrize("name", EVERY)
def test_every_layer_type_runs_in_int8(name, way, tmp_path, caplog):
    path = str(tmp_path / "m")
    bits = INT8_WEIGHT_BITS
    x, expected = exported(name, way, path, bits)
    assert relative_error(paddle_inference(path, [x])[0], expected) < 1e-6
    saved = f"{path}.pdmodel", f"{path}.pdiparams"
    assert sum(array.dtype == np.int8 for array in load_program(*saved).arrays.values()) == 1
    found = paddle_inference(path, [x], ir_optim=True, int8=True)[0]
    assert relative_error(found, expected) < LIMIT
    caplog.clear()
    with Predictor(path, runtime="paddle") as runs:
        assert relative_error(runs.run([x])[0], expected) < LIMIT
    warnings = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert not warnings  # e.g. of float kernels
    to_paddle_int8(path, path + "_int8")
    found = paddle_inference(path + "_int8", [x], ir_optim=True, int8=True)[0]
    assert relative_error(found, expected) < LIMIT


@pytest.mark.parametrize("name", ["conv1d", "conv1d_groups", "conv1d_nlc"])
def test_conv1d_is_computed_with_integers(name, tmp_path, capfd):
    path = str(tmp_path / "m")
    x, _ = exported(name, "PTQ", path)
    capfd.readouterr()
    import paddle.inference as inference
    config = inference.Config(f"{path}.pdmodel", f"{path}.pdiparams")
    config.enable_mkldnn()
    config.enable_mkldnn_int8()
    inference.create_predictor(config)
    message = "".join(capfd.readouterr())
    assert "quantized 1 conv2d" in message or "quantized 1 fused_conv2d" in message


@pytest.mark.parametrize("name", EVERY)
def test_file_marks_quantized_layers(name, tmp_path):
    path = str(tmp_path / "m")
    exported(name, "PTQ", path)
    program = load_program(f"{path}.pdmodel", f"{path}.pdiparams")
    (row,) = program_rows(program)
    assert row["done"] == "quantized" and row["quantizers"]["weight"]["bits"] == 8
    (weight,) = inspect(program)["weights"]
    array = program.arrays[weight["name"]]
    assert weight["bits"] == 8 and weight["dtype"] == "int8"
    abs_max = next(value for key, value in program.arrays.items() if key.endswith(".scale")
                      and value.size > 1)
    assert abs_max.size == array.shape[weight["axis"]]
    others = tuple(axis for axis in range(array.ndim) if axis != weight["axis"])
    assert (np.abs(array.astype(int)).max(axis=others) == 127).all()
    (mark,) = [each for each in raise_to_markers(program) if isinstance(each, WeightMark)]
    np.testing.assert_array_equal(mark.integers, array)
    assert mark.spec.channel_axis == weight["axis"]
    np.testing.assert_array_equal(mark.abs_max, abs_max)


def test_other_weight_bits_and_shapes(tmp_path):
    """Weights that are dequantized in advance equal the result of dequantize_linear."""
    x = paddle.rand([2, 2, 5, 5, 5])
    for bits in (2, 3, 4, 8, 16):
        ptq = paddleq.PTQ("AbsmaxQuantizer", PerChannelAbsmaxQuantizer(quant_bits=bits))
        net = ptq.quantize(nn.Sequential(nn.Conv3D(2, 4, 3)), quantizable_layer_type=["Conv3D"])
        ptq.calibrate(net, [x])
        path = str(tmp_path / f"m{bits}")
        ptq.save_quantized_model(net, path)
        found = paddle_inference(path, [x.numpy()])[0]
        np.testing.assert_array_equal(found, net(x).numpy())
        found = paddle_inference(path, [x.numpy()], ir_optim=True, int8=True)[0]
        assert relative_error(found, net(x).numpy()) < LIMIT


@pytest.mark.parametrize("bits", [2, 4, 7])
@pytest.mark.parametrize("name", ["conv2d", "conv2d_groups", "conv1d", "conv2d_transpose",
                                  "linear"])
def test_weights_of_few_bits_keep_the_rounding_and_clipping_of_their_inputs(name, bits, tmp_path):
    make, shape = LAYERS[name]
    x = paddle.rand(shape) * 2.0 - 1.0
    ptq = paddleq.PTQ("AbsmaxQuantizer", PerChannelAbsmaxQuantizer(quant_bits=bits))
    net = ptq.quantize(nn.Sequential(make()), quantizable_layer_type=LAYER_TYPES)
    ptq.calibrate(net, [x * 0.4])
    path = str(tmp_path / "m")
    ptq.save_quantized_model(net, path)
    found = paddle_inference(path, [x.numpy()], ir_optim=True, int8=True)[0]
    assert relative_error(found, net(x).numpy()) < 1e-5
    assert to_paddle_int8(path, path + "_int8") == (name != "conv2d_transpose")
    with Predictor(path, runtime="paddle") as runs:
        assert relative_error(runs.run([x.numpy()])[0], net(x).numpy()) < LIMIT
