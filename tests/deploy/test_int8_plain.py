"""Files for every runtime in plain Paddle Inference with ``enable_mkldnn_int8()``."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from paddle.static import InputSpec
from runtimes import INT8_WEIGHT_BITS, openvino, paddle_inference, relative_error

import paddleq
from paddleq.deploy import to_paddle_int8
from paddleq.errors import ConfigError
from paddleq.export.pir_to_program import load_program
from paddleq.export.program.inspect import inspect, program_rows
from paddleq.export.program.passes.activation_steps import restore_quantizers
from paddleq.export.program.passes.runtime_workarounds import apply_runtime_workarounds
from paddleq.paddleslim import AbsmaxQuantizer, PerChannelAbsmaxQuantizer

WIDTH = 24
EXACT = 1e-4  # float kernels add in another order, which moves few values by a step of 16 bits
ROUNDING = 0.05  # integer kernels of convolutions round further tensors


class Attention(nn.Layer):
    """Self-attention with a residual connection."""

    def __init__(self):
        super().__init__()
        self.queries, self.pairs = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.out, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias_attr=False)

    def forward(self, x):
        keys, values = paddle.split(self.pairs(x), 2, -1)
        queries, keys, values = (each.reshape([0, 0, 4, -1]).transpose([0, 2, 1, 3])
                                 for each in (self.queries(x), keys, values))
        weights = F.softmax(paddle.matmul(queries, keys, transpose_y=True))
        mixed = paddle.matmul(weights, values).transpose([0, 2, 1, 3]).reshape([0, 0, WIDTH])
        return F.relu(self.last(x + self.out(mixed)))


class Repeated(nn.Layer):
    """Two Linears that are called three times."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias_attr=False)

    def forward(self, x):
        for _ in range(3):
            x = F.tanh(self.one(x)) + 0.5 * self.other(x)
        return x


class Upsampling(nn.Layer):
    """Transposed convolutions between activations."""

    def __init__(self):
        super().__init__()
        self.up = nn.Conv2DTranspose(4, 8, 2, stride=2)
        self.more = nn.Conv2DTranspose(8, 6, 3, stride=2, output_padding=1, groups=2)

    def forward(self, x):
        return F.gelu(self.more(F.hardswish(self.up(F.relu(x)))))


class Mixer(nn.Layer):
    """Linears over the channels of a feature map, and a concat of both signednesses."""

    def __init__(self):
        super().__init__()
        self.one, self.other = (nn.Conv2D(4, 8, 3, padding=1) for _ in range(2))
        self.head, self.linear = nn.Conv2D(16, 6, 1), nn.Linear(6, 6)

    def forward(self, x):
        y = self.head(paddle.concat([F.relu(self.one(x)), self.other(x)], axis=1))
        return self.linear(y.transpose([0, 2, 3, 1]))


def chain(*layers):
    return lambda: nn.Sequential(*(layer() for layer in layers))


def linear(inputs, outputs, **options):
    return lambda: nn.Linear(inputs, outputs, **options)


# Networks, shapes of their inputs and the largest relative error.
NETS = {
    "square": (chain(linear(WIDTH, WIDTH), nn.GELU, linear(WIDTH, WIDTH)), [9, WIDTH], EXACT),
    "square of tokens": (chain(linear(WIDTH, WIDTH), nn.ReLU, linear(WIDTH, WIDTH)),
                         [2, 5, WIDTH], EXACT),
    "wide": (chain(linear(WIDTH, 50), nn.ReLU6, linear(50, 7)), [9, WIDTH], EXACT),
    "no bias": (chain(linear(WIDTH, 50, bias_attr=False), nn.Swish,
                      linear(50, 50, bias_attr=False)), [2, 5, WIDTH], EXACT),
    "one column": (chain(linear(WIDTH, 1), nn.Sigmoid, linear(1, 8)), [9, WIDTH], EXACT),
    "four dimensions": (chain(linear(WIDTH, WIDTH), nn.Tanh), [2, 3, 4, WIDTH], EXACT),
    "five dimensions": (chain(linear(WIDTH, 5), nn.Tanh), [2, 3, 2, 4, WIDTH], EXACT),
    "attention": (Attention, [2, 7, WIDTH], EXACT),
    "repeated": (Repeated, [9, WIDTH], EXACT),
    "encoder": (lambda: nn.TransformerEncoderLayer(WIDTH, 4, 50, dropout=0.0), [2, 7, WIDTH],
                EXACT),
    "transposed": (Upsampling, [2, 4, 6, 6], EXACT),
    "Conv3D": (chain(lambda: nn.Conv3D(2, 4, 3), nn.ReLU, lambda: nn.Conv3D(4, 3, 1)),
               [2, 2, 5, 5, 5], EXACT),
    "convolution and classifier": (
        chain(lambda: nn.Conv2D(4, 8, 3), nn.Hardswish, nn.Flatten, linear(8 * 16, 5)),
        [2, 4, 6, 6], ROUNDING),
    "mixer": (Mixer, [2, 4, 9, 9], ROUNDING),
}
BITS = [(INT8_WEIGHT_BITS, 8), (4, 8), (2, 8), (7, 6), (INT8_WEIGHT_BITS, 3), (7, 16), (3, 11)]


def network(name):
    """A network whose columns differ in magnitude."""
    paddle.seed(0)
    rng, net = np.random.RandomState(0), NETS[name][0]()
    for layer in net.sublayers():
        if isinstance(layer, nn.Linear):
            rows, columns = layer.weight.shape
            layer.weight.set_value((rng.randn(rows, columns) * np.exp(rng.randn(columns))
                                    / np.sqrt(rows)).astype("float32"))
    net.eval()
    return net


def exported(name, path, bits=BITS[0], quantizer=PerChannelAbsmaxQuantizer, **options):
    """Save a network at ``path``; return (input, output of the simulation)."""
    x = paddle.to_tensor(np.random.RandomState(1).randn(*NETS[name][1]).astype("float32"))
    ptq = paddleq.PTQ(AbsmaxQuantizer(bits[1]), quantizer(bits[0]))
    net = ptq.quantize(network(name))
    ptq.calibrate(net, [x])
    ptq.save_quantized_model(net, path, [InputSpec([None, *x.shape[1:]], "float32", "x")],
                             **options)
    with paddle.no_grad():
        return x.numpy(), net(x).numpy()


def check(name, path, x, expected, weight_bits=BITS[0][0]):
    """Layers with weights of fewer than 8 bits have no int8 kernel, and inputs that are rounded."""
    np.testing.assert_array_equal(paddle_inference(path, [x])[0], expected)
    found = paddle_inference(path, [x], ir_optim=True, int8=True)[0]
    assert relative_error(found, expected) < (EXACT if weight_bits < 8 else NETS[name][2])


@pytest.mark.parametrize("name", NETS)
def test_plain_paddle_inference_equals_the_simulation(name, tmp_path):
    path = str(tmp_path / "m")
    check(name, path, *exported(name, path))


@pytest.mark.parametrize("name, bits, quantizer", [
    pytest.param(name, bits, quantizer, marks=[] if chosen else [pytest.mark.nightly])
    for name in NETS for bits in BITS for quantizer in (PerChannelAbsmaxQuantizer, AbsmaxQuantizer)
    for chosen in [(name == "square of tokens" and quantizer is PerChannelAbsmaxQuantizer)
                   or (name, bits) == ("wide", BITS[0]) or (name, bits) == ("mixer", (7, 6))
                   or name in ("convolution and classifier", "mixer") and bits == (4, 8)]])
def test_bits_and_granularities(name, bits, quantizer, tmp_path):
    path = str(tmp_path / "m")
    x, expected = exported(name, path, bits, quantizer)
    check(name, path, x, expected, bits[0])


@pytest.mark.parametrize("bits", [3, 8, 12])
def test_activations_equal_numpy(bits, tmp_path):
    """float64: halves are rounded to even numbers, and values outside of the range clipped."""
    path, levels = str(tmp_path / "m"), 2 ** (bits - 1) - 1
    net = nn.Sequential(nn.Linear(4, 4, bias_attr=False))
    net[0].weight.set_value(paddle.eye(4))
    ptq = paddleq.PTQ(AbsmaxQuantizer(bits), PerChannelAbsmaxQuantizer(8))
    quantized = ptq.quantize(net)
    ptq.calibrate(quantized, [paddle.full([1, 4], float(levels))])  # a step of 1
    ptq.save_quantized_model(quantized, path, [InputSpec([None, 4], "float32", "x")])
    halves = np.arange(-levels - 3, levels + 3, 0.5 if bits < 12 else 8.5)
    x = np.resize(halves, [len(halves) // 4 + 1, 4]).astype("float32")
    expected = np.clip(np.rint(x.astype(np.float64)), -levels - 1, levels)
    for options in ({}, {"ir_optim": True, "int8": True}, {"ir_optim": True, "onednn": True}):
        np.testing.assert_allclose(paddle_inference(path, [x], **options)[0], expected, rtol=1e-5,
                                   atol=1e-6)


@pytest.mark.one_version
@pytest.mark.parametrize("bits", [BITS[0], (4, 5), (3, 11)])
@pytest.mark.parametrize("name", ["wide", "mixer"])
def test_openvino_equals_the_simulation(name, bits, tmp_path):
    path = str(tmp_path / "m")
    x, expected = exported(name, path, bits)
    assert relative_error(openvino(path, [x])[0], expected) < 2e-3


@pytest.mark.parametrize("name", ["square", "wide"])
@pytest.mark.parametrize("bits", [BITS[0], (4, 5), (3, 11)])
def test_quantizers_are_found_in_the_file(name, bits, tmp_path):
    path = str(tmp_path / "m")
    exported(name, path, bits)
    program = load_program(path + ".pdmodel", path + ".pdiparams")
    described = inspect(program)
    assert [each["bits"] for each in described["activations"]] == [bits[1]] * 2
    assert {each["reader"] for each in described["activations"]} <= {"matmul_v2", "mul"}
    for row in program_rows(program):
        kinds = {kind: spec["bits"] for kind, spec in row["quantizers"].items()}
        assert kinds == {"weight": bits[0], "activation": bits[1]}
    size = len(program.desc.blocks[0].ops)
    restore_quantizers(program)
    plain = len(program.desc.blocks[0].ops)
    assert plain < size
    apply_runtime_workarounds(program)
    for _ in range(2):  # a second time changes nothing
        again = program.desc.SerializeToString()
        apply_runtime_workarounds(program)
        assert program.desc.SerializeToString() == again


@pytest.mark.one_version
@pytest.mark.parametrize("bits", [BITS[0], (4, 5)])
def test_onnx_form_of_the_file(bits, tmp_path):
    import onnx

    path = str(tmp_path / "m")
    exported("wide", path, bits)
    exported("wide", path + "_direct", bits, format="onnx")
    paddleq.export.to_onnx(path, path)
    counts = []
    for each in (path, path + "_direct"):
        nodes = onnx.load(each + ".onnx").graph.node
        counts.append(sorted(node.op_type for node in nodes))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("reach", [1.0, 0.5])
def test_activations_behind_a_relu_have_255_levels(reach, tmp_path):
    """float64: less than a step from the simulation, and twice as near to the float values.

    ``reach``: share of the inputs' magnitude that calibration sees; larger values are clipped.
    """
    paddle.seed(0)
    x = np.random.RandomState(0).uniform(-1, 1, [2, 8, 9, 9]).astype("float32")
    net = nn.Sequential(*(nn.Conv2D(*each, 1) for each in ((8, 16), (16, 16), (16, 8))))
    for layer in net:  # no two products that may saturate when they are added in 16 bits
        layer.weight.set_value(layer.weight * paddle.to_tensor(
            [1.0, 0.0] * (layer.weight.shape[1] // 2)).reshape([1, -1, 1, 1]))
    net = nn.Sequential(net[0], nn.ReLU(), net[1], nn.ReLU(), net[2])
    ptq = paddleq.PTQ("AbsmaxQuantizer", PerChannelAbsmaxQuantizer(8))
    quantized, path = ptq.quantize(net, skip=["0"]), str(tmp_path / "m")
    ptq.calibrate(quantized, [paddle.to_tensor(reach * x)])
    ptq.save_quantized_model(quantized, path, [InputSpec(list(x.shape), "float32", "x")])
    steps = [float(quantized[i].activation_quantizer.scale) for i in (2, 4)]

    def computed(levels):
        """Return (inputs of the quantizers, their outputs, output of the network)."""
        value, found = x.astype(np.float64), []
        for layer, step in zip((net[0], net[2], net[4]), (None, *steps)):
            weight = layer.weight.numpy()[:, :, 0, 0].astype(np.float64)
            if step is not None:
                grid = np.abs(weight).max(1, keepdims=True) / 127
                weight = np.round(weight / grid) * grid
                fine, before = step * 127 / levels, np.maximum(value, 0)
                value = np.clip(np.round(before / fine), 0, levels) * fine
                found.append((before, value))
            value = np.einsum("oc,bchw->bohw", weight, value) + layer.bias.numpy().astype(
                np.float64)[:, None, None]
        return (*zip(*found), value)

    (before, *_), (coarse, *_), simulated = computed(127)
    (_, *_), (fine, *_), expected = computed(255)
    assert relative_error(quantized(paddle.to_tensor(x)).numpy(), simulated) < 1e-6
    assert relative_error(paddle_inference(path, [x], ir_optim=True, int8=True)[0], expected) < 1e-6
    clipped = np.minimum(before, 127 * steps[0])
    assert np.abs(fine - coarse).max() <= 0.75 * steps[0]
    assert np.abs(fine - clipped).max() <= 0.25 * steps[0] < np.abs(coarse - clipped).max()


class Unquantized(nn.Layer):
    """Layers that read the input of a quantized convolution."""

    def __init__(self):
        super().__init__()
        self.quantized, self.conv = (nn.Conv2D(4, 4, 3) for _ in range(2))
        self.linear, self.wide = nn.Linear(6, 5), nn.Linear(4 * 36, 7)
        self.linear.weight.set_value(self.linear.weight * paddle.exp(paddle.randn([1, 5])))
        self.wide.weight.set_value(self.wide.weight * paddle.exp(paddle.randn([1, 7])))

    def forward(self, x):
        x = F.hardswish(x)
        return (self.quantized(x), self.conv(x), self.linear(x), self.wide(x.reshape([-1, 144])),
                paddle.matmul(x, x, transpose_y=True))


def test_unquantized_layers_stay_float(tmp_path):
    """The quantizer of another layer gives their input a scale."""
    paddle.seed(5)
    ptq = paddleq.PTQ("AbsmaxQuantizer", PerChannelAbsmaxQuantizer(INT8_WEIGHT_BITS))
    x, path = paddle.randn([3, 4, 6, 6]), str(tmp_path / "m")
    net = ptq.quantize(Unquantized(), skip=["conv", "linear", "wide"])
    ptq.calibrate(net, [x])
    ptq.save_quantized_model(net, path, [InputSpec([None, 4, 6, 6], "float32", "x")])
    found = paddle_inference(path, [x.numpy()], ir_optim=True, int8=True)
    expected = [each.numpy() for each in net(x)]
    assert max(map(relative_error, found[1:], expected[1:])) < EXACT
    assert relative_error(found[0], expected[0]) < ROUNDING


@pytest.mark.parametrize("name", ["square of tokens", "wide", "attention", "transposed",
                                  "convolution and classifier"])
def test_target_paddle_int8(name, tmp_path):
    path, copy = str(tmp_path / "m"), str(tmp_path / "copy")
    x, expected = exported(name, path, target="paddle_int8")
    exported(name, copy)
    count = to_paddle_int8(copy, copy + "_int8", vnni=True)
    # Weights of few bits are written in another form for convolutions too.
    assert count == {"attention": 4, "transposed": 0,
                     "convolution and classifier": 1 + (INT8_WEIGHT_BITS < 8)}.get(name, 2)
    kinds = [[op.type for op in load_program(each + ".pdmodel", each + ".pdiparams")
              .desc.blocks[0].ops] for each in (path, copy + "_int8")]
    assert kinds[0] == kinds[1]
    assert "target: paddle_int8" in (tmp_path / "m.paddleq.yaml").read_text(encoding="utf-8")
    found = paddle_inference(path, [x], ir_optim=True, int8=True)[0]
    assert relative_error(found, expected) < ROUNDING


def test_target_of_quant_post_static(tmp_path):
    net, x = network("wide"), paddle.randn(NETS["wide"][1])
    spec = [InputSpec([None, WIDTH], "float32", "x")]
    paddle.jit.save(net, str(tmp_path / "float" / "m"), spec)
    errors = {}
    for target in ("any", "paddle_int8"):
        folder = tmp_path / target
        paddleq.quant_post_static(str(tmp_path / "float"), str(folder), [x], algo="abs_max",
                                  weight_bits=INT8_WEIGHT_BITS, target=target)
        found = paddle_inference(str(folder / "model"), [x.numpy()], ir_optim=True, int8=True)[0]
        errors[target] = relative_error(
            found, paddle_inference(str(tmp_path / "any" / "model"), [x.numpy()])[0])
    assert errors["any"] < EXACT and errors["paddle_int8"] < ROUNDING


@pytest.mark.parametrize("options, words", [
    ({"target": "paddle"}, "target"), ({"target": "paddle_int8", "format": "onnx"}, "target"),
    ({"target": "any", "format": "pir"}, "pir"),
    ({"target": "paddle_int8", "onnx_format": False}, "onnx_format"),
])
def test_invalid_targets(options, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        exported("wide", str(tmp_path / "m"), **options)
    assert list(tmp_path.iterdir()) == []
