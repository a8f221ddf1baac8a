"""Exported quantized transformers in Paddle Inference and OpenVINO.

Bounds, as relative L2 distance from the model in dygraph:

- Paddle Inference, IR optimization off: 1e-6, whatever is quantized.
- Paddle Inference with its optimizations, and OpenVINO: 1e-5 where activations are float. Where
  they are quantized, sums in another order move a value across a border of rounding now and then,
  and that is a whole step of int8: 1e-2.
- int8 kernels: Paddle Inference requantizes the results of layers, and OpenVINO by default
  the inputs of a product with integer weights: 0.1.
"""

import os
import subprocess
import sys

import numpy as np
import paddle
import pytest
from deployed import deploy
from paddle import nn
from paddle.static import InputSpec
from paths import HELPERS, ROOT
from runtimes import compiled, openvino, paddle_inference, predictor, relative_error

import paddleq
from demo.text.models import Llama
from paddleq import PerChannel, PerGroup, PerToken, QuantSpec
from paddleq.deploy import has_vnni, to_paddle_int8
from paddleq.errors import ConfigTypeError, ExportError, ModelError
from paddleq.export.pir_to_program import load_program
from paddleq.nn import Int8KVCache, IntegerLinear
from paddleq.nn.class_swap import replace_layers

AFFINE = {"signed": False, "symmetric": False}
W8 = QuantSpec(8, granularity=PerChannel(1))
W4 = QuantSpec(4, granularity=PerGroup(16))
STATIC, TOKEN = QuantSpec(8), QuantSpec(8, granularity=PerToken())
WORDS = 23

SCHEMES = {
    "W8 tensor": {"weight": QuantSpec(8)},
    "W8 channel": {"weight": W8},
    "W8 channel affine": {"weight": QuantSpec(8, granularity=PerChannel(1), **AFFINE)},
    "W8 g20, ragged": {"weight": QuantSpec(8, granularity=PerGroup(20))},
    "W6 channel": {"weight": QuantSpec(6, granularity=PerChannel(1))},
    "W4 tensor": {"weight": QuantSpec(4)},
    "W4 channel": {"weight": QuantSpec(4, granularity=PerChannel(1))},
    "W4 g16": {"weight": W4},
    "W4 g16 affine": {"weight": QuantSpec(4, granularity=PerGroup(16), **AFFINE)},
    "W4 g20, ragged, permuted": {"weight": QuantSpec(4, granularity=PerGroup(20)),
                                 "permuted": True},
    "W3 g16": {"weight": QuantSpec(3, granularity=PerGroup(16))},
    "W8 channel, A8": {"weight": W8, "activation": STATIC},
    "W8 tensor, A8, smoothed": {"weight": QuantSpec(8), "activation": STATIC, "smoothed": True},
    "W8 channel, A8 token": {"weight": W8, "activation": TOKEN},
    "W8 channel, A8 token, smoothed": {"weight": W8, "activation": TOKEN, "smoothed": True},
    "W4 g16, A8 token": {"weight": W4, "activation": TOKEN},
    "W4 g16, A8": {"weight": W4, "activation": STATIC},
}


class Encoder(nn.Layer):
    """Encoder of Paddle, on vectors."""

    spec = (InputSpec([None, None, 32], "float32", "x"),)

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 7)

    def forward(self, x):
        return self.head(self.encoder(x))

    @staticmethod
    def inputs(batch, tokens):
        return [paddle.randn([batch, tokens, 32])]


class Block(nn.Layer):
    def __init__(self, width=32, heads=4):
        super().__init__()
        self.heads, self.dim = heads, width // heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x, mask):
        qkv = self.qkv(self.norm1(x)).reshape([0, 0, 3 * self.heads, self.dim])
        q, k, v = qkv.transpose([0, 2, 1, 3]).chunk(3, axis=1)
        scores = paddle.matmul(q, k, transpose_y=True) * self.dim ** -0.5 + mask
        mixed = paddle.matmul(nn.functional.softmax(scores), v)
        x = x + self.out(mixed.transpose([0, 2, 1, 3]).flatten(2))
        return x + self.down(nn.functional.relu(self.up(self.norm2(x))))


class Decoder(nn.Layer):
    """Decoder with one Linear for q, k and v, and a mask as input."""

    spec = (InputSpec([None, None], "int64", "ids"),
            InputSpec([None, None], "float32", "mask"))

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 32)
        self.blocks = nn.LayerList([Block(), Block()])
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, WORDS, bias_attr=False)

    def forward(self, ids, mask):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))

    @staticmethod
    def inputs(batch, tokens):
        return [paddle.randint(0, WORDS, [batch, tokens]),
                paddle.triu(paddle.full([tokens, tokens], -1e4), 1)]


class SmallLlama(Llama):
    """Llama of the demo: RMSNorm, rotary positions, grouped queries, SwiGLU."""

    spec = (InputSpec([None, None], "int64", "tokens"),)

    def __init__(self):
        super().__init__(layers=2, width=32, hidden=48, heads=4, kv_heads=2, context=24)

    @staticmethod
    def inputs(batch, tokens):
        return [paddle.randint(0, WORDS, [batch, tokens])]


MODELS = (Encoder, Decoder, SmallLlama)


def quantized(kind, **scheme):
    paddle.seed(11)
    return deploy(kind(), inputs=[kind.inputs(2, 9)], **scheme)


def saved(model, path, **arguments):
    paddleq.save_quantized_model(model, path, list(type(model).spec), **arguments)
    return str(path)


def in_dygraph(model, inputs):
    model.eval()
    with paddle.no_grad():
        return model(*inputs).numpy()


def arrays(kind, inputs):
    values = [value.numpy() for value in inputs]
    return values if len(values) == 1 else dict(zip((spec.name for spec in kind.spec), values))


FEW = ("W8 channel", "W4 g20, ragged, permuted", "W8 tensor, A8, smoothed",
       "W8 channel, A8 token, smoothed")
SHORT = [(Encoder, scheme) for scheme in SCHEMES] + [
    (kind, scheme) for kind in (Decoder, SmallLlama) for scheme in FEW]
ALL = [pytest.param(kind, scheme, marks=() if (kind, scheme) in SHORT else pytest.mark.slow,
                    id=f"{kind.__name__}, {scheme}") for kind in MODELS for scheme in SCHEMES]


@pytest.mark.parametrize("kind, scheme", ALL)
def test_file_equals_model(kind, scheme, tmp_path):
    model = quantized(kind, **SCHEMES[scheme])
    path = saved(model, tmp_path / "model")
    loose = 1e-5 if SCHEMES[scheme].get("activation") is None else 1e-2
    runtimes = [(predictor(path), 1e-6), (compiled(path), loose),
                (predictor(path, ir_optim=True), loose)]
    for batch, tokens in ((2, 9), (1, 1), (3, 14)):
        inputs = kind.inputs(batch, tokens)
        expected = in_dygraph(model, inputs)
        for run, bound in runtimes:
            assert relative_error(run(arrays(kind, inputs))[0], expected) <= bound


@pytest.mark.parametrize("kind, scheme", [
    (Encoder, "W8 channel, A8"), (Encoder, "W8 channel, A8 token"), (Encoder, "W4 g16"),
    (Encoder, "W4 g16, A8"), (SmallLlama, "W8 channel, A8"), (Decoder, "W8 channel, A8")])
def test_int8_kernels_are_close(kind, scheme, tmp_path):
    model = quantized(kind, **SCHEMES[scheme])
    path, inputs = saved(model, tmp_path / "model"), kind.inputs(2, 9)
    to_paddle_int8(path, path + "_int8")
    runs = [compiled(path, as_is=False), predictor(path + "_int8", ir_optim=True, int8=True)]
    if has_vnni():  # without it, the kernels saturate in the model as it is
        runs.append(predictor(path, ir_optim=True, int8=True))
    for run in runs:
        found = run(arrays(kind, inputs))[0]
        assert relative_error(found, in_dygraph(model, inputs)) <= 0.1


INT8 = """
import sys
sys.path[:0] = sys.argv[1:3]
import zlib, runtimes
runtimes.predictor(sys.argv[3], ir_optim=True, int8=True)
"""


def test_paddle_inference_runs_its_int8_kernels(tmp_path):
    """Paddle Inference logs their number to standard error when it builds the predictor."""
    path = saved(quantized(Encoder, **SCHEMES["W8 channel, A8"]), tmp_path / "model",
                 target="paddle_int8")
    told = subprocess.run([sys.executable, "-c", INT8, str(HELPERS), str(ROOT), path],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True)
    assert b"quantized 13 fc ops" in told.stdout  # all: 6 in each of 2 layers, and the head


def test_openvino_keeps_the_integers(tmp_path):
    """It computes with the int8 weights of the file and float inputs.

    Weights with as many inputs as outputs are multiplied by their scales in the file, since Paddle
    Inference mistakes their axis: OpenVINO makes floats of them when it reads it.
    """
    import openvino as ov

    path = saved(quantized(Encoder, **SCHEMES["W8 channel, A8"]), tmp_path / "model")
    made = ov.Core().compile_model(f"{path}.pdmodel", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    made(arrays(Encoder, Encoder.inputs(2, 9)))
    weights = [op.inputs()[1].get_element_type().get_type_name()
               for op in made.get_runtime_model().get_ops()
               if op.get_rt_info()["layerType"].astype(str) == "FullyConnected"]
    assert sorted(weights) == ["f32"] * 8 + ["i8"] * 5


def parameters(path):
    """Return name -> array of a file."""
    return load_program(f"{path}.pdmodel", f"{path}.pdiparams").arrays


@pytest.mark.parametrize("weight, bound", [
    (QuantSpec(4, granularity=PerGroup(64)), 0.16),
    (QuantSpec(4, granularity=PerGroup(64), **AFFINE), 0.16),
    (QuantSpec(8, granularity=PerChannel(1)), 0.27),
])
def test_file_size(weight, bound, tmp_path):
    paddle.seed(0)
    model = nn.Sequential(*(nn.Linear(256, 256, bias_attr=False) for _ in range(4)))
    floats = 4 * 256 * 256 * 4
    deploy(model, weight)
    paddleq.save_quantized_model(model, tmp_path / "model", [InputSpec([None, 256], "float32")])
    assert os.path.getsize(tmp_path / "model.pdiparams") <= bound * floats
    held = parameters(tmp_path / "model")
    integers = [array for array in held.values() if array.dtype.kind in "iu" and array.ndim == 2
                and array.shape[1] == 256 and array.shape[0] >= 128]
    assert sum(array.size for array in integers) == 4 * 256 * 256 * (
        1 if weight.bits == 8 else 0.5)


def test_model_is_unchanged(tmp_path):
    model = quantized(Encoder, **SCHEMES["W8 channel, A8 token"])
    model.train()
    state = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    attributes = {name: sorted(layer.__dict__) for name, layer in
                  model.named_sublayers(include_self=True)}
    saved(model, tmp_path / "model")
    assert model.training
    assert attributes == {name: sorted(layer.__dict__) for name, layer in
                          model.named_sublayers(include_self=True)}
    for name, value in model.state_dict().items():
        assert np.array_equal(value.numpy(), state[name]), name


@pytest.mark.parametrize("granularity", ["per_token", "per_channel"])
def test_int8_kv_cache(granularity, tmp_path):
    model = quantized(SmallLlama, weight=W8, activation=TOKEN)
    for layer in model.layers:
        old = layer.self_attn.kv_cache
        new = Int8KVCache(granularity, token_axis=2)
        if granularity == "per_channel":
            new = Int8KVCache.from_abs_max(paddle.full([2, 8], 2.5), paddle.full([2, 8], 1.5),
                                           token_axis=2)
        replace_layers(model, [(old, new)])
    path, inputs = saved(model, tmp_path / "model"), SmallLlama.inputs(2, 9)
    expected, given = in_dygraph(model, inputs), arrays(SmallLlama, inputs)
    assert relative_error(paddle_inference(path, given)[0], expected) <= 1e-6
    assert relative_error(openvino(path, given)[0], expected) <= 1e-2


def test_ties_are_rounded_to_even(tmp_path):
    """With scale 1: 0.5, 1.5, 2.5 ... of a token with maximum 127."""
    values = np.concatenate([np.arange(-126.5, 127.0), [127.0]]).astype(np.float32)
    linear = nn.Linear(len(values), len(values), bias_attr=False)
    linear.weight.set_value(paddle.eye(len(values)))
    for activation in (TOKEN, STATIC):
        model = deploy(nn.Sequential(linear), QuantSpec(2, granularity=PerChannel(1)), activation,
                       [(paddle.to_tensor(values[None]),)])
        x = paddle.to_tensor(values[None])
        expected = np.rint(values[None])
        assert np.array_equal(in_dygraph(model, [x]), expected)
        paddleq.save_quantized_model(model, tmp_path / "model",
                                     [InputSpec([None, len(values)], "float32")])
        path = str(tmp_path / "model")
        assert np.array_equal(paddle_inference(path, [values[None]])[0], expected)
        assert np.array_equal(openvino(path, [values[None]])[0], expected)


def test_affine_activation_is_refused_by_name(tmp_path):
    model = quantized(Encoder, weight=W8, activation=QuantSpec(8, **AFFINE))
    with pytest.raises(ExportError, match=r"encoder.*zero point.*symmetric"):
        saved(model, tmp_path / "model")
    assert os.listdir(tmp_path) == []


def test_partial_range_is_refused(tmp_path):
    model = quantized(Encoder, weight=W8, activation=QuantSpec(8, narrow_range=True))
    with pytest.raises(ExportError, match=r"head|encoder"):
        saved(model, tmp_path / "model")


def test_input_spec(tmp_path):
    with pytest.raises(ModelError, match="quantized"):
        paddleq.save_quantized_model(Encoder(), tmp_path / "model", list(Encoder.spec))
    with pytest.raises(ConfigTypeError, match="input_spec"):
        paddleq.save_quantized_model(quantized(Encoder, weight=W8), tmp_path / "model")


def test_layer_called_twice(tmp_path):
    class Twice(nn.Layer):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(32, 32)

        def forward(self, x):
            return self.linear(paddle.tanh(self.linear(x)))

    for scheme in ("W8 channel, A8", "W4 g16"):
        model = deploy(Twice(), inputs=[(paddle.randn([4, 32]),)], **SCHEMES[scheme])
        x = paddle.randn([4, 32])
        path = str(tmp_path / "model")
        paddleq.save_quantized_model(model, path, [x])
        expected = in_dygraph(model, [x])
        assert relative_error(paddle_inference(path, [x.numpy()])[0], expected) <= 1e-6
        assert relative_error(openvino(path, [x.numpy()])[0], expected) <= 1e-2


def test_simulated_and_integer_layers_in_one_model(tmp_path):
    """A simulated convolution and an IntegerLinear."""
    net = nn.Sequential(nn.Conv2D(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    net = ptq.quantize(net, quantizable_layer_type=["Conv2D"])
    images = paddle.rand([4, 1, 8, 8])
    ptq.calibrate(net, [images])
    deploy(net, W4)
    assert type(net[3]) is IntegerLinear
    expected = in_dygraph(net, [images])
    for name, spec in (("given", [InputSpec([None, 1, 8, 8], "float32")]), ("seen", None)):
        path = str(tmp_path / name)
        paddleq.save_quantized_model(net, path, spec)
        assert relative_error(paddle_inference(path, [images.numpy()])[0], expected) <= 1e-6


@pytest.mark.needs_pir
@pytest.mark.parametrize("scheme", ["W8 channel, A8 token", "W4 g16", "W8 tensor, A8, smoothed"])
def test_pir_file_equals_model(scheme, tmp_path):
    model = quantized(Encoder, **SCHEMES[scheme])
    path, inputs = saved(model, tmp_path / "model", format="pir"), Encoder.inputs(2, 9)
    loaded = paddle.jit.load(path)
    loaded.eval()
    assert relative_error(loaded(*inputs).numpy(), in_dygraph(model, inputs)) <= 1e-6
