"""quant_post_dynamic on saved programs and on live layers."""

import os
import pathlib

import numpy as np
import paddle
import pytest
from nets import SmallNet, save_float, warmed
from paddle import nn
from runtimes import openvino, paddle_inference, relative_error

import paddleq
from paddleq.errors import ConfigError, ConfigTypeError, FormatError, ModelError
from paddleq.export.pir_to_program import load_program
from paddleq.export.program.program import Program

ALL = ["conv2d", "depthwise_conv2d", "conv2d_transpose", "mul", "lookup_table_v2"]


class Mixed(nn.Layer):
    """Every type of weight, one with a channel of zeros."""

    def __init__(self):
        super().__init__()
        self.conv, self.depthwise = nn.Conv2D(3, 6, 3), nn.Conv2D(6, 6, 3, groups=6)
        self.up, self.fc = nn.Conv2DTranspose(6, 5, 2), nn.Linear(5, 4)
        self.conv1d, self.table = nn.Conv1D(4, 4, 1), nn.Embedding(9, 4)
        with paddle.no_grad():
            weight = self.conv.weight.numpy()
            weight[1] = 0
            self.conv.weight.set_value(weight)

    def forward(self, x):
        x = self.up(nn.functional.relu(self.depthwise(self.conv(x)))).mean([2, 3])
        x = self.fc(x) + self.table(paddle.full([1], 3, "int64"))
        return self.conv1d(x.unsqueeze(-1))


@pytest.fixture
def saved(tmp_path):
    net = Mixed()
    save_float(net, str(tmp_path / "float" / "net"), [3, 8, 8])
    return net, str(tmp_path / "float"), str(tmp_path / "out")


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", ["abs_max", "channel_wise_abs_max"])
def test_saved_model_and_live_layer_agree(saved, bits, kind):
    net, folder, out = saved
    x = paddle.randn([2, 3, 8, 8])
    expected = net(x).numpy()
    options = {"weight_bits": bits, "weight_quantize_type": kind, "quantizable_op_type": ALL}
    paddleq.quant_post_dynamic(folder, out, generate_test_model=True, **options)
    live = paddleq.quant_post_dynamic(net, **options)
    path = f"{out}/quantized_model/model"
    found = paddle_inference(path, [x.numpy()])[0]
    assert relative_error(found, expected) < (0.05 if bits == 8 else 2e-4)
    assert relative_error(found, expected) > 1e-7
    np.testing.assert_allclose(live(x).numpy(), found, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        paddle_inference(f"{out}/test_model/model", [x.numpy()])[0], found, rtol=1e-5, atol=1e-7)
    stored = Program.load(path + ".pdmodel", path + ".pdiparams").arrays
    weights = [value for value in stored.values() if value.dtype.name == f"int{bits}"]
    assert len(weights) == 6
    # The values against the definition in float64.
    name = net.fc.weight.name
    weight = net.fc.weight.numpy().astype(np.float64)
    top = np.abs(weight).max(axis=0 if kind != "abs_max" else None, keepdims=True)
    levels = 2 ** (bits - 1) - 1
    np.testing.assert_array_less(np.abs(stored[name] - weight / top * levels), 0.5 + 1e-2)
    assert (stored[net.conv.weight.name][1] == 0).all()


def test_live_layer_holds_integers_and_the_original_is_unchanged():
    net = warmed(SmallNet(), paddle.rand([4, 1, 8, 8]))
    small = paddleq.quant_post_dynamic(net)
    state = small.state_dict()
    assert state["conv1.weight"].dtype == paddle.int8 and state["fc.weight"].dtype == paddle.int8
    assert net.conv1.weight.dtype == paddle.float32 and type(net.conv1) is nn.Conv2D
    again = paddleq.quant_post_dynamic(SmallNet())
    missing, unexpected = again.set_state_dict(state)
    assert not missing and not unexpected
    x = paddle.rand([2, 1, 8, 8])
    np.testing.assert_array_equal(again(x).numpy(), small(x).numpy())


def test_live_layer_is_saved(tmp_path):
    net = warmed(SmallNet(), paddle.rand([4, 1, 8, 8]))
    spec = [paddle.static.InputSpec([None, 1, 8, 8], "float32")]
    small = paddleq.quant_post_dynamic(net, str(tmp_path), input_spec=spec)
    x = paddle.rand([3, 1, 8, 8])
    path = str(tmp_path / "quantized_model" / "model")
    assert relative_error(paddle_inference(path, [x.numpy()])[0], small(x).numpy()) < 1e-6
    assert relative_error(openvino(path, [x.numpy()])[0], small(x).numpy()) < 1e-5
    assert type(net.conv1) is nn.Conv2D and not net.training


@pytest.mark.parametrize("bits", [8, 16])
def test_runtime_optimizations_preserve_the_output(bits, tmp_path):
    x = paddle.rand([3, 1, 8, 8])
    net = warmed(SmallNet(), x)
    save_float(net, str(tmp_path / "f" / "net"), [1, 8, 8])
    paddleq.quant_post_dynamic(str(tmp_path / "f"), str(tmp_path / "q"), weight_bits=bits)
    path = str(tmp_path / "q" / "quantized_model" / "model")
    found = paddle_inference(path, [x.numpy()], ir_optim=True)[0]
    assert relative_error(found, paddle_inference(path, [x.numpy()])[0]) < 1e-5


def test_linear_and_depthwise_are_quantized_by_default(saved):
    net, folder, out = saved
    paddleq.quant_post_dynamic(folder, out)
    path = f"{out}/quantized_model/model"
    stored = Program.load(path + ".pdmodel", path + ".pdiparams").arrays
    for layer in (net.conv, net.depthwise, net.up, net.fc, net.conv1d):
        assert stored[layer.weight.name].dtype == np.int8
    assert stored[net.table.weight.name].dtype == np.float32


def test_file_shrinks(tmp_path):
    net = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
    save_float(net, str(tmp_path / "f" / "net"), [256])
    size = os.path.getsize(tmp_path / "f" / "net.pdiparams")
    for bits, limit in ((8, 0.27), (16, 0.52)):
        out = str(tmp_path / f"q{bits}")
        paddleq.quant_post_dynamic(str(tmp_path / "f"), out, weight_bits=bits)
        assert os.path.getsize(f"{out}/quantized_model/model.pdiparams") < limit * size


def test_named_files_and_separate_parameters(saved, tmp_path):
    net, folder, out = saved
    x = paddle.randn([2, 3, 8, 8])
    (model,) = {name for name in os.listdir(folder) if name in ("net.pdmodel", "net.json")}
    paddleq.quant_post_dynamic(folder, out, model, "net.pdiparams", "q.pdmodel", "q.pdiparams")
    expected = paddle_inference(f"{out}/quantized_model/q", [x.numpy()])[0]
    # The layout before Paddle 2: __model__ and a file for each parameter.
    from paddleq.export.program import pdiparams as params
    old = tmp_path / "old"
    old.mkdir()
    program = load_program(f"{folder}/{model}", f"{folder}/net.pdiparams")
    (old / "__model__").write_bytes(program.desc.SerializeToString())
    for name, value in program.arrays.items():
        params.write(str(old / name), {name: value}, {})
    paddleq.quant_post_dynamic(str(old), out + "2")
    np.testing.assert_array_equal(
        paddle_inference(f"{out}2/quantized_model/model", [x.numpy()])[0], expected)


@pytest.mark.parametrize("change, error, text", [
    ({"weight_bits": 4}, ConfigError, "weight_bits must be one of 8, 16, but is 4"),
    ({"weight_bits": "8"}, ConfigTypeError, "weight_bits must be an int"),
    ({"weight_quantize_type": "range_abs_max"}, ConfigError, "weight_quantize_type"),
    ({"quantizable_op_type": ["conv_2d"]}, ConfigError, "'conv_2d'.*did you mean 'conv2d'"),
    ({"quantizable_op_type": "conv2d"}, ConfigTypeError, "quantizable_op_type must be a list"),
    ({"generate_test_model": 1}, ConfigTypeError, "generate_test_model must be a bool"),
    ({"model_filename": "no.pdmodel"}, FormatError, "there is no file .*no.pdmodel"),
    ({"params_filename": "no"}, FormatError, "cannot read the parameters"),
    ({"save_model_dir": None}, ConfigError, "save_model_dir must be a folder"),
    ({"model_dir": 3}, ConfigTypeError, "model_dir must be the folder"),
    ({"model_dir": "/nowhere/at/all"}, FormatError, "model_dir must be a folder"),
    ({"equalize": True}, ConfigError, "equalize is an argument of quant_post_static"),
    ({"activation_bits": 8}, ConfigError, "activation_bits is an argument of quant_post_static"),
    ({"weight_bit": 8}, ConfigError, "quant_post_dynamic does not know.*'weight_bits'"),
    ({"quantizable_op_type": ["conv3d"]}, ModelError, "no weight of the op types conv3d"),
])
def test_invalid_arguments_write_nothing(saved, change, error, text):
    _, folder, out = saved
    arguments = {"model_dir": folder, "save_model_dir": out, **change}
    with pytest.raises(error, match=text):
        paddleq.quant_post_dynamic(**arguments)
    assert not os.path.exists(out)


@pytest.mark.parametrize("damage", ["truncated", "longer", "garbage", "other model"])
def test_damaged_files_are_rejected(saved, damage, tmp_path):
    _, folder, out = saved
    path = pathlib.Path(folder, "net.pdiparams")
    data = path.read_bytes()
    if damage == "truncated":
        data = data[:-7]
    elif damage == "longer":
        data += b"1234"
    elif damage == "garbage":
        data = os.urandom(len(data))
    else:
        save_float(SmallNet(), str(tmp_path / "other" / "net"), [1, 8, 8])
        data = (tmp_path / "other" / "net.pdiparams").read_bytes()
    path.write_bytes(data)
    with pytest.raises(FormatError, match="net.pdiparams"):
        paddleq.quant_post_dynamic(folder, out)
    assert not os.path.exists(out)


def test_program_without_a_model_is_rejected(tmp_path):
    (tmp_path / "x.pdmodel").write_bytes(b"\x0f garbage")
    with pytest.raises(FormatError, match="x.pdmodel is no ProgramDesc"):
        paddleq.quant_post_dynamic(str(tmp_path), str(tmp_path / "out"))
