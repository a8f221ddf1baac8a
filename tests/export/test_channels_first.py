"""Models with channels last are written with channels first, for every runtime."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from runtimes import (
    INT8_WEIGHT_BITS,
    onnxruntime,
    openvino,
    paddle_inference,
    relative_error,
)

import paddleq
from paddleq.export.pir_to_program import load_program
from paddleq.export.program.op_desc import all_inputs, attribute, inputs, outputs
from paddleq.export.program.passes.layout_rules import has_channels_last
from paddleq.export.program.passes.runtime_workarounds import apply_runtime_workarounds
from paddleq.export.program.program import Program

LAST = {"data_format": "NHWC"}


class Mobile(nn.Layer):
    """Inverted residual with squeeze and excitation."""

    shape, transposes = [9, 8, 3], 2

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2D(3, 8, 3, 2, 1, **LAST)
        self.expand, self.norm = nn.Conv2D(8, 16, 1, **LAST), nn.BatchNorm2D(16, **LAST)
        self.depthwise = nn.Conv2D(16, 16, 3, 1, 1, groups=16, **LAST)
        self.reduce, self.restore = (nn.Conv2D(*channels, 1, **LAST) for channels in (
            (16, 4), (4, 16)))
        self.project = nn.Conv2D(16, 8, 1, bias_attr=False, **LAST)

    def forward(self, x):
        x = F.hardswish(self.stem(x))
        y = F.relu(self.depthwise(F.hardswish(self.norm(self.expand(x)))))
        scale = self.restore(F.relu(self.reduce(y.mean([1, 2], keepdim=True))))
        return x + self.project(y * F.hardsigmoid(scale))


class Residual(nn.Layer):
    """Residual classifier: only its input needs a transpose."""

    shape, transposes = [17, 15, 3], 1

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2D(3, 8, 3, 2, 1, **LAST)
        self.convs = nn.LayerList([nn.Conv2D(8, 8, 3, 1, 1, **LAST) for _ in range(3)])
        self.norms = nn.LayerList([nn.BatchNorm2D(8, **LAST) for _ in range(3)])
        self.head = nn.Conv2D(8, 5, 1, **LAST)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norms[0](self.stem(x))), 3, 2, 1, **LAST)
        y = F.relu(self.norms[1](self.convs[0](x)))
        x = F.relu(x + self.norms[2](self.convs[1](y)))
        x = self.head(F.avg_pool2d(F.relu(self.convs[2](x)), 2, **LAST))
        return paddle.flatten(F.adaptive_avg_pool2d(x, 1, **LAST), 1)


class UNet(nn.Layer):
    """Encoder and decoder, with concatenation, interpolation and padding."""

    shape, transposes = [8, 6, 3], 3

    def __init__(self):
        super().__init__()
        self.first, self.down = nn.Conv2D(3, 8, 3, 1, 1, **LAST), nn.Conv2D(8, 8, 3, 2, 1, **LAST)
        self.up = nn.Conv2DTranspose(8, 8, 2, 2, **LAST)
        self.merge = nn.Conv2D(16, 4, 1, **LAST)
        self.last = nn.Conv2DTranspose(4, 4, 3, 2, 1, output_padding=1, **LAST)

    def forward(self, x):
        x = F.relu(self.first(x))
        x = self.merge(paddle.concat([x, self.up(F.relu(self.down(x)))], -1))
        x = F.interpolate(x, scale_factor=2, mode="bilinear", **LAST)
        x = self.last(F.pad(x, [1, 0, 2, 1], "reflect", **LAST))
        first, second = paddle.split(x, 2, -1)
        return F.softmax(first, -1), second[:, 1:-1, :, 0:1]


class Conformer(nn.Layer):
    """Convolution between layers that need channels last, with residuals."""

    shape, transposes = [7, 8], 2

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1D(8, 16, 1, data_format="NLC")
        self.depthwise = nn.Conv1D(8, 8, 3, padding=1, groups=8, data_format="NLC")
        self.norm = nn.BatchNorm1D(8, data_format="NLC")
        self.last = nn.Conv1D(8, 8, 1, data_format="NLC")
        self.norms = nn.LayerList([nn.LayerNorm(8) for _ in range(3)])
        self.linears = nn.LayerList([nn.Linear(8, 8) for _ in range(3)])

    def forward(self, x):
        x = x + F.silu(self.linears[0](self.norms[0](x)))
        y = self.norm(self.depthwise(F.glu(self.first(self.norms[1](x)), -1)))
        x = x + self.last(F.silu(y))
        x = x + F.silu(self.linears[1](self.norms[2](x)))
        return self.linears[2](x)


class Wrapped(nn.Layer):
    """Channels last between the transposes of a model with channels first."""

    shape, transposes = [3, 6, 5], 2

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2D(3, 8, 3, padding=1)
        self.inner = nn.LayerList([nn.Conv2D(8, 8, 3, padding=1, **LAST) for _ in range(2)])
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        x = F.relu(self.first(x))
        y = self.norm(self.inner[0](x.transpose([0, 2, 3, 1])))
        y = self.inner[1](F.gelu(y)).transpose([0, 3, 1, 2])
        return x + y, y


class Shared(nn.Layer):
    """Tensors that operators with and without an order read; operands of fewer axes."""

    shape, transposes = [5, 6, 3], 3

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2D(3, 8, 3, 1, 1, **LAST), nn.Conv2D(8, 8, 1, **LAST)
        self.linear = nn.Linear(8, 8)
        self.factors = nn.ParameterList([self.create_parameter(shape, default_initializer=(
            nn.initializer.Uniform(0.5, 1.5))) for shape in ([8], [6, 8], [5, 1, 1], [1, 1, 1, 8])])

    def forward(self, x):
        x = F.relu(self.first(x))
        y, z = self.second(x), self.linear(x)
        for each in self.factors:
            y = each * y
        return y + z, (y * y.mean([0, 1])).flatten(1, 2)


class Volume(nn.Layer):
    shape, transposes = [4, 6, 4, 2], 2

    def __init__(self):
        super().__init__()
        form = {"data_format": "NDHWC"}
        self.first, self.second = nn.Conv3D(2, 4, 3, padding=1, **form), nn.Conv3D(4, 4, 1, **form)
        self.norm = nn.BatchNorm3D(4, **form)

    def forward(self, x):
        x = F.max_pool3d(F.relu(self.norm(self.first(x))), 2, 2, data_format="NDHWC")
        return self.second(x)


class Branches(nn.Layer):
    """Convolutions in a branch and in a loop, which assign variables outside."""

    shape, transposes = [5, 6, 3], 8

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2D(3, 8, 3, padding=1, **LAST)
        self.second = nn.Conv2D(8, 8, 3, padding=1, **LAST)
        self.third = nn.Conv2D(8, 8, 1, **LAST)

    def forward(self, x):
        x = F.relu(self.first(x))
        if x.mean() > 0.0:
            y = F.relu(self.second(x)) * 2
            x = x + y
        else:
            y = x - 1
        i = paddle.zeros([1])
        while i < 3:
            y = F.tanh(self.third(y)) + x
            i = i + 1
        return self.third(y)


class Operators(nn.Layer):
    """Operators with an attribute for the order, or with axes."""

    shape, transposes = [6, 4, 3], 3

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2D(3, 16, 3, 1, 1, **LAST), nn.Conv2D(4, 8, 1, **LAST)
        self.norm = nn.GroupNorm(4, 16, **LAST)
        self.slopes, self.slope = nn.PReLU(16, **LAST), nn.PReLU()

    def forward(self, x):
        x = F.pixel_shuffle(self.slope(self.slopes(self.norm(self.first(x)))), 2, "NHWC")
        x = F.interpolate(F.channel_shuffle(self.second(x), 4, "NHWC"), [13, 9], **LAST)
        x = F.pixel_unshuffle(x[:, :12, :8], 2, "NHWC")
        x = F.maxout(paddle.tile(paddle.roll(x, [1, 2], [1, 2]), [1, 2, 1, 1]), 2, 3)
        return (x, paddle.squeeze(x[:, 0:1], 1).transpose([0, 2, 1]), x.mean([1, 2, 3]), x.max(3),
                paddle.topk(x, 3)[0])


NETS = {each.__name__: each for each in (Mobile, Residual, UNet, Conformer, Wrapped, Shared, Volume,
                                         Branches, Operators)}
NOT_IN_OPENVINO = ("Volume", "Branches", "Operators")  # has no conv3d, loops, prelu
NOT_IN_ONNX = ("Branches",)


def made(name):
    """A net with random norms, its input and the specification of that."""
    paddle.seed(3)
    net = NETS[name]()
    net.eval()
    for _, buffer in net.named_buffers():
        buffer.set_value(paddle.rand(buffer.shape) + 0.5)
    x = np.random.RandomState(2).uniform(-1, 1, [2, *net.shape]).astype("float32")
    return net, x, [paddle.static.InputSpec([None, *net.shape], "float32", "x")]


def results(net, x):
    with paddle.no_grad():
        found = net(paddle.to_tensor(x))
    return [each.numpy() for each in (found if isinstance(found, (list, tuple)) else [found])]


def written_float(net, spec, folder):
    """Write a float model as ``m.pdmodel`` and return the program as it was traced."""
    path = str(folder / "m")
    paddle.jit.save(net, path + "_traced", input_spec=spec)
    model = path + "_traced" + (".json" if paddle.__version__ >= "3" else ".pdmodel")
    program = load_program(model, path + "_traced.pdiparams")
    program.copy().save(path + ".pdmodel", path + ".pdiparams")
    return program


def assert_close(found, expected, tolerance):
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize("name", [
    name if name in ("Mobile", "Conformer", "Operators") else
    pytest.param(name, marks=pytest.mark.nightly) for name in NETS])
def test_float_models_are_right_in_every_runtime(name, tmp_path):
    net, x, spec = made(name)
    expected, path = results(net, x), str(tmp_path / "m")
    written_float(net, spec, tmp_path)
    program = Program.load(path + ".pdmodel", path + ".pdiparams")
    ops = [op for block in program.desc.blocks for op in block.ops]
    assert not any(map(has_channels_last, ops))
    assert sum(op.type == "transpose2" for op in ops) <= net.transposes
    assert_close(paddle_inference(path, [x]), expected, 1e-6)
    assert_close(paddle_inference(path, [x], ir_optim=True, onednn=True), expected, 1e-5)
    if name not in NOT_IN_OPENVINO:
        assert_close(openvino(path, [x]), expected, 1e-5)
    if name not in NOT_IN_ONNX:
        paddleq.export.to_onnx(path, path)
        assert_close(onnxruntime(path, [x], as_is=False), expected, 1e-5)


@pytest.mark.parametrize("name", [
    name if name in ("Residual", "Shared", "Wrapped") else
    pytest.param(name, marks=pytest.mark.nightly) for name in NETS])
def test_quantized_models_are_right_in_every_runtime(name, tmp_path):
    net, x, spec = made(name)
    ptq = paddleq.PTQ("AbsmaxQuantizer", paddleq.paddleslim.PerChannelAbsmaxQuantizer(
        INT8_WEIGHT_BITS))
    types = ["Conv1D", "Conv2D", "Conv3D", "Conv2DTranspose"]
    quantized = ptq.quantize(net, quantizable_layer_type=types)
    ptq.calibrate(quantized, [paddle.to_tensor(x)])
    expected, path = results(quantized, x), str(tmp_path / "m")
    ptq.save_quantized_model(quantized, path, spec)
    assert_close(paddle_inference(path, [x]), expected, 1e-6)
    assert_quantizers_are_next_to_convolutions(path)
    lost = max(map(relative_error, expected, results(net, x)))
    for a, b in zip(paddle_inference(path, [x], ir_optim=True, int8=True), expected):
        assert relative_error(a, b) <= 3 * lost
    if name not in NOT_IN_OPENVINO:
        assert_close(openvino(path, [x]), expected, 1e-5)
    if name not in NOT_IN_ONNX:
        ptq.save_quantized_model(quantized, path, spec, format="onnx")
        assert_close(onnxruntime(path, [x]), expected, 1e-5)


def assert_quantizers_are_next_to_convolutions(path):
    program = Program.load(path + ".pdmodel", path + ".pdiparams")
    for block in program.desc.blocks:
        producers = {outputs(op, "Y")[0]: op for op in block.ops if "quantize_linear" in op.type}
        convolutions = [op for op in block.ops if "conv" in op.type]
        for op in convolutions:
            dequantize = producers[inputs(op, "Input")[0]]
            assert producers[inputs(dequantize, "X")[0]].type == "quantize_linear"


def convolved(x, weight, bias, stride, padding, groups):
    """Convolution of ``[N, H, W, C]`` in float64."""
    x = np.pad(x.astype(np.float64), [(0, 0), (padding,) * 2, (padding,) * 2, (0, 0)])
    size = weight.shape[2:]
    windows = np.lib.stride_tricks.sliding_window_view(x, size, (1, 2))[:, ::stride, ::stride]
    windows = windows.reshape(*windows.shape[:3], groups, -1, *size)
    weight = weight.astype(np.float64).reshape(groups, -1, *weight.shape[1:])
    found = np.einsum("nhwgiab,goiab->nhwgo", windows, weight)
    return found.reshape(*found.shape[:3], -1) + bias


@pytest.mark.parametrize("groups, stride, padding", [(1, 2, 1), (4, 1, 0), (2, 2, 2)])
def test_values_are_those_of_the_definition(groups, stride, padding, tmp_path):
    net = nn.Sequential(nn.Conv2D(4, 8, 3, stride, padding, groups=groups, **LAST), nn.ReLU(),
                        nn.Conv2D(8, 4, 2, 1, 0, **LAST))
    x = np.random.RandomState(0).uniform(-1, 1, [2, 9, 7, 4]).astype("float32")
    inner = convolved(x, net[0].weight.numpy(), net[0].bias.numpy(), stride, padding, groups)
    expected = convolved(np.maximum(inner, 0), net[2].weight.numpy(), net[2].bias.numpy(), 1, 0, 1)
    written_float(net, [paddle.static.InputSpec([None, 9, 7, 4], "float32", "x")], tmp_path)
    path = str(tmp_path / "m")
    for found in (paddle_inference(path, [x]), openvino(path, [x]),
                  paddle_inference(path, [x], ir_optim=True, onednn=True)):
        assert_close(found, [expected], 1e-6)


def test_saved_models_are_quantized_and_written_with_channels_first(tmp_path):
    net, x, spec = made("Mobile")
    path = str(tmp_path / "m")
    paddle.jit.save(net, path, input_spec=spec)
    saved = paddleq.SavedModel(path)
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    quantized = ptq.quantize(saved, quantizable_layer_type=["Conv2D"])
    ptq.calibrate(quantized, [paddle.to_tensor(x)])
    expected, path = results(quantized, x), str(tmp_path / "int8")
    ptq.save_quantized_model(quantized, path)
    assert_close(paddle_inference(path, [x]), expected, 1e-6)
    assert_close(openvino(path, [x]), expected, 1e-5)
    assert_quantizers_are_next_to_convolutions(path)


def test_a_second_time_changes_nothing_and_names_of_outputs_stay(tmp_path):
    net, x, spec = made("UNet")
    program = written_float(net, spec, tmp_path)

    def fetched():
        return [all_inputs(op) for op in program.desc.blocks[0].ops if op.type == "fetch"]

    names = fetched()
    apply_runtime_workarounds(program)
    once = program.desc.SerializeToString()
    apply_runtime_workarounds(program)
    assert program.desc.SerializeToString() == once and fetched() == names
    used = {name for op in program.desc.blocks[0].ops for name in all_inputs(op)}
    assert program.arrays.keys() <= used
    weights = [inputs(op, "Filter")[0] for op in program.desc.blocks[0].ops if "conv" in op.type]
    parameters = {each.name: each.numpy() for each in net.parameters()}
    assert all(np.array_equal(program.arrays[name], parameters[name]) for name in weights[:4])


def test_models_with_channels_first_keep_their_transposes(tmp_path):
    class Transposed(nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2D(3, 4, 1)

        def forward(self, x):
            return F.relu(self.conv(x)).transpose([0, 2, 3, 1])

    net = Transposed()
    program = written_float(net, [paddle.static.InputSpec([1, 3, 4, 5], "float32", "x")], tmp_path)
    apply_runtime_workarounds(program)
    (transpose,) = [op for op in program.desc.blocks[0].ops if op.type == "transpose2"]
    assert attribute(transpose, "axis") == [0, 2, 3, 1]
