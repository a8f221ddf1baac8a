"""Linears in Paddle Inference's int8 mode, which derives wrong scales for their weights."""

import numpy as np
import paddle
import pytest
from paddle import nn
from runtimes import INT8_WEIGHT_BITS, paddle_inference, relative_error

import paddleq
from paddleq.deploy import Predictor, to_paddle_int8
from paddleq.errors import ConfigError, ConfigTypeError, FormatError
from paddleq.export.pir_to_program import load_program
from paddleq.export.program.passes.float_operators import remove_rounding
from paddleq.golden_stick import PTQ, PTQConfig
from paddleq.paddleslim import AbsmaxQuantizer
from paddleq.spec import PerChannel, PerTensor

WIDE = 48


class Layers(nn.Layer):
    """Two Linears whose columns differ in magnitude, as in a trained transformer."""

    def __init__(self, bias=True):
        super().__init__()
        attributes = {} if bias else {"bias_attr": False}
        self.norm = nn.LayerNorm(WIDE)
        self.up = nn.Linear(WIDE, 2 * WIDE, **attributes)
        self.down = nn.Linear(2 * WIDE, 10, **attributes)
        rng = np.random.RandomState(0)
        for layer in (self.up, self.down):
            rows, columns = layer.weight.shape
            sizes = np.exp(rng.randn(columns))
            layer.weight.set_value((rng.randn(rows, columns) * sizes).astype("float32"))
            if bias:
                layer.bias.set_value(rng.randn(columns).astype("float32"))

    def forward(self, x):
        return self.down(nn.functional.gelu(self.up(self.norm(x))))


def exported(net, x, path, weight_quantizer=paddleq.paddleslim.PerChannelAbsmaxQuantizer):
    ptq = paddleq.PTQ("AbsmaxQuantizer", weight_quantizer(INT8_WEIGHT_BITS))
    net.eval()
    net = ptq.quantize(net)
    ptq.calibrate(net, [x])
    ptq.save_quantized_model(net, path, [paddle.static.InputSpec([None, *x.shape[1:]], "float32")])
    with paddle.no_grad():
        return net, net(x).numpy()


def odd_columns(bias=True):
    net = Layers(bias)
    weight = net.up.weight.numpy()
    weight[:, 3] = 0.0  # zero column: only the bias
    weight[:, 5] *= 1e-9  # tiny column: the bias in steps exceeds 32 bits
    weight[:, 7] *= 1e-42  # below the smallest normal number
    net.up.weight.set_value(weight)
    return net


NETS = {
    "bias": (Layers, [40, WIDE], {}),
    "no bias": (lambda: Layers(bias=False), [40, WIDE], {}),
    "tokens": (Layers, [6, 7, WIDE], {}),
    "four dimensions": (lambda: Layers(bias=False), [3, 2, 5, WIDE], {}),
    "one step for a weight": (Layers, [40, WIDE], {"weight_quantizer": AbsmaxQuantizer}),
    "odd columns": (odd_columns, [40, WIDE], {}),
    "odd columns, no bias": (lambda: odd_columns(bias=False), [40, WIDE], {}),
}


@pytest.mark.parametrize("name", NETS)
def test_predictor_equals_the_simulation(name, tmp_path):
    make, shape, quantizers = NETS[name]
    x = paddle.to_tensor(np.random.RandomState(1).randn(*shape).astype("float32"))
    path = str(tmp_path / "m")
    _, expected = exported(make(), x, path, **quantizers)
    with Predictor(path, runtime="paddle") as predictor:
        (found,) = predictor.run([x.numpy()])
    # Four-dimensional products run in float kernels: only the weights are rounded.
    assert relative_error(found, expected) < (0.05 if len(shape) == 4 else 3e-3)
    assert relative_error(paddle_inference(path, [x.numpy()])[0], expected) < 1e-6


@pytest.mark.parametrize("name", NETS)
def test_plain_paddle_inference_equals_the_simulation(name, tmp_path):
    make, shape, quantizers = NETS[name]
    x = paddle.to_tensor(np.random.RandomState(1).randn(*shape).astype("float32"))
    path = str(tmp_path / "m")
    _, expected = exported(make(), x, path, **quantizers)
    found = paddle_inference(path, [x.numpy()], ir_optim=True, int8=True)[0]
    assert relative_error(found, expected) < 1e-5


def test_linears_without_rounding_are_wrong_in_paddle_inference(tmp_path):
    """The reason for ``float_operators``; once this fails it can be removed for that Paddle."""
    x = paddle.to_tensor(np.random.RandomState(1).randn(40, WIDE).astype("float32"))
    path = str(tmp_path / "m")
    _, expected = exported(Layers(), x, path)
    program = load_program(path + ".pdmodel", path + ".pdiparams")
    assert remove_rounding(program) and not remove_rounding(program)
    program.save(path + ".pdmodel", path + ".pdiparams", workarounds=False)
    assert relative_error(paddle_inference(path, [x.numpy()])[0], expected) < 1e-6
    found = paddle_inference(path, [x.numpy()], ir_optim=True, int8=True)[0]
    assert relative_error(found, expected) > 0.05


def test_copy_runs_in_a_user_predictor(tmp_path):
    x = paddle.to_tensor(np.random.RandomState(1).randn(40, WIDE).astype("float32"))
    path, copy = str(tmp_path / "m"), str(tmp_path / "int8" / "m")
    _, expected = exported(Layers(), x, path)
    before = load_program(f"{path}.pdmodel", f"{path}.pdiparams").arrays
    assert to_paddle_int8(path, copy) == 2
    found = paddle_inference(copy, [x.numpy()], ir_optim=True, int8=True)[0]
    assert relative_error(found, expected) < 3e-3
    after = load_program(f"{path}.pdmodel", f"{path}.pdiparams").arrays
    assert before.keys() == after.keys()
    stored = load_program(f"{copy}.pdmodel", f"{copy}.pdiparams").arrays
    kept = [name for name, array in before.items() if array.dtype == np.int8]
    assert kept and all(np.array_equal(before[name], stored[name]) for name in kept)


def test_copy_matches_float64_reference(tmp_path):
    """float64: integers of both operands, their product, the steps, the bias."""
    x = np.random.RandomState(1).randn(40, WIDE).astype("float32")
    path = str(tmp_path / "m")
    net = nn.Sequential(Layers().up)
    quantized, _ = exported(net, paddle.to_tensor(x), path)
    weight = net[0].weight.numpy().astype(np.float64)
    abs_max, levels = np.abs(weight).max(axis=0), 2 ** (INT8_WEIGHT_BITS - 1) - 1
    step = quantized[0].activation_quantizer.abs_max.item() / 127
    integers = np.clip(np.rint(x / step), -128, 127) @ np.rint(weight / abs_max * levels)
    expected = integers * step * abs_max / levels + net[0].bias.numpy()
    with Predictor(path, runtime="paddle") as predictor:
        assert relative_error(predictor.run([x])[0], expected) < 1e-4


def square(names=("first", "second"), size=WIDE):
    """Linears with as many inputs as outputs, whose columns differ in magnitude."""
    net = nn.Sequential(*((name, nn.Sequential(nn.Linear(size, size), nn.Tanh()))
                          for name in names))
    rng = np.random.RandomState(3)
    for part in net:
        part[0].weight.set_value((rng.randn(size, size) * np.exp(rng.randn(size)) / size).astype(
            "float32"))
        part[0].bias.set_value(rng.randn(size).astype("float32"))
    return net


def in_float64(net, x):
    """Output of ``square()`` whose weights are rounded to nearest with a step per column."""
    y = x.astype(np.float64)
    for part in net:
        weight = part[0].weight.numpy().astype(np.float64)
        step = np.abs(weight).max(axis=0) / 127
        y = np.tanh(y @ (np.rint(weight / step) * step) + part[0].bias.numpy())
    return y


@pytest.mark.parametrize("door", ["Golden Stick", "AMCT", "quant_post_dynamic"])
@pytest.mark.parametrize("shape", [[40, WIDE], [3, 7, WIDE]])
def test_square_weights_alone(door, shape, tmp_path):
    """Paddle Inference looks for the axis of the scales by its size; here both axes have it."""
    x = paddle.to_tensor(np.random.RandomState(1).randn(*shape).astype("float32"))
    net, spec = square(), [paddle.static.InputSpec([None, *shape[1:]], "float32")]
    expected, path = in_float64(net, x.numpy()), str(tmp_path / "quantized_model" / "model")
    if door == "quant_post_dynamic":
        net = paddleq.quant_post_dynamic(net, str(tmp_path), input_spec=spec)
    elif door == "AMCT":
        paddleq.amct.quantize(net, {"algorithm": "minmax", "batch_num": 1, "quant_cfg": {
            "weights": {"type": "int8", "symmetric": True, "strategy": "channel"}}})
        net(x)
        paddleq.amct.convert(net)
    else:
        net = PTQ(PTQConfig()).apply(net, datasets=[x])
    if door != "quant_post_dynamic":
        paddleq.save_quantized_model(net, path, spec)
    assert relative_error(paddle_inference(path, [x.numpy()])[0], net(x).numpy()) < 1e-7
    assert relative_error(net(x).numpy(), expected) < 1e-5
    for prefix in (path, path + "_int8"):
        found = paddle_inference(prefix, [x.numpy()], ir_optim=True, int8=True)[0]
        assert relative_error(found, expected) < 1e-5
        to_paddle_int8(path, path + "_int8")


def test_square_weights_of_attention(tmp_path):
    paddle.seed(2)
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDE, 4, WIDE, dropout=0.0), 2)
    for layer in net.sublayers():
        if isinstance(layer, nn.Linear):
            layer.weight.set_value(layer.weight * paddle.exp(paddle.randn([1, WIDE])))
    net.eval()
    x, path = paddle.randn([3, 7, WIDE]), str(tmp_path / "m")
    net = PTQ(PTQConfig(precision_recovery="gptq")).apply(net, datasets=[x])
    paddleq.save_quantized_model(net, path, [paddle.static.InputSpec([None, 7, WIDE])])
    found = paddle_inference(path, [x.numpy()], ir_optim=True, int8=True)[0]
    assert relative_error(found, net(x).numpy()) < 1e-5


def test_square_weights_with_a_scale_per_token(tmp_path):
    x, path = paddle.randn([40, WIDE]), str(tmp_path / "m")
    net = PTQ(PTQConfig(act_quant_dtype="int8", act_quant_granularity="per_token")).apply(
        square(), datasets=[x])
    paddleq.save_quantized_model(net, path, [paddle.static.InputSpec([None, WIDE])])
    expected = net(x).numpy()
    assert relative_error(paddle_inference(path, [x.numpy()])[0], expected) < 1e-7
    if INT8_WEIGHT_BITS == 8:  # its kernels do not saturate
        found = paddle_inference(path, [x.numpy()], ir_optim=True, int8=True)[0]
        assert relative_error(found, expected) < 0.05
        assert to_paddle_int8(path, path + "_int8") == 2
        found = paddle_inference(path + "_int8", [x.numpy()], ir_optim=True, int8=True)[0]
        assert relative_error(found, expected) < 3e-3


def test_model_without_linears_is_copied(tmp_path):
    x = paddle.rand([2, 3, 8, 8])
    path, copy = str(tmp_path / "m"), str(tmp_path / "c")
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    net = ptq.quantize(nn.Sequential(nn.Conv2D(3, 4, 3)))
    ptq.calibrate(net, [x])
    ptq.save_quantized_model(net, path)
    assert to_paddle_int8(path, copy, vnni=True) == 0
    assert (tmp_path / "c.pdmodel").read_bytes() == (tmp_path / "m.pdmodel").read_bytes()


@pytest.mark.parametrize("arguments, error, words", [
    ((3, "out"), ConfigTypeError, "path"), (("m", None), ConfigTypeError, "out"),
    (("m", "m.pdmodel"), ConfigError, "another"),
    (("m", "out", 1), ConfigTypeError, "vnni"), (("nothing", "out"), FormatError, "nothing"),
])
def test_invalid_arguments(arguments, error, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        to_paddle_int8(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_granularities_of_the_test_models():
    for quantizers, kind in (({}, PerChannel),
                             ({"weight_quantizer": "AbsmaxQuantizer"}, PerTensor)):
        ptq = paddleq.PTQ("AbsmaxQuantizer", **quantizers)
        net = ptq.quantize(Layers())
        assert isinstance(net.up.weight_quantizer.spec.granularity, kind)
