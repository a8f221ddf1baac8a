"""Export to OpenVINO's own files, and OpenVINO on a ``.pdmodel``."""

import os
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import openvino as ov
import paddle
import paddle.nn.functional as F
import pytest
from deployed import ACTIVATIONS, WEIGHTS, deploy
from onnx_exports import Net
from paddle import nn
from runtimes import (
    INT8_WEIGHT_BITS,
    onnxruntime,
    openvino,
    paddle_inference,
    precisions,
    relative_error,
)

import paddleq
from paddleq.deploy import Predictor, verify
from paddleq.errors import ConfigTypeError, FormatError, UnsupportedOperatorError

SPEC = paddle.static.InputSpec
pytestmark = pytest.mark.one_version


def compiled(path, low_precision=True):
    """``path.xml`` in OpenVINO in float32 outside of int8 kernels."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    if not low_precision:
        settings["LP_TRANSFORMS_MODE"] = "NO"
    return ov.Core().compile_model(f"{path}.xml", "CPU", settings)


def outputs(model, *arrays):
    return [np.array(each) for each in model(
        {f"x{i}": array for i, array in enumerate(arrays)}).values()]


def latest_opset(path):
    """Number of the latest opset of the operators of a file."""
    return max(int(layer.get("version")[len("opset"):])
               for layer in ElementTree.parse(path).iter("layer"))


def is_integer(model, count):
    """Return True if all of ``count`` layers are computed in 8 bits."""
    found = precisions(model)
    return sum(found.values()) == count and all(kind in ("i8", "u8") for _, kind in found)


def simulated(net, *arrays):
    with paddle.no_grad():
        found = net(*map(paddle.to_tensor, arrays))
    found = found if isinstance(found, (list, tuple)) else [found]
    return [each.numpy() for each in found]


def quantized(net, *arrays, weight_bits=INT8_WEIGHT_BITS, **options):
    net.eval()
    ptq = paddleq.PTQ("AbsmaxQuantizer", paddleq.paddleslim.PerChannelAbsmaxQuantizer(weight_bits),
                      **options)
    made = ptq.quantize(net)
    ptq.calibrate(made, [tuple(map(paddle.to_tensor, arrays))])
    return made


def spec_of(*arrays, dynamic=(0,)):
    return [SPEC([None if i in dynamic else size for i, size in enumerate(array.shape)],
                 str(array.dtype), f"x{number}") for number, array in enumerate(arrays)]


def random_array(*shape, seed=0):
    return np.random.RandomState(seed).randn(*shape).astype("float32")


CONVOLUTIONS = {
    "plain": (nn.Conv2D, {"in_channels": 8, "out_channels": 12, "kernel_size": 3}),
    "strided, without bias": (nn.Conv2D, {"in_channels": 8, "out_channels": 12, "kernel_size": 3,
                                          "stride": 2, "bias_attr": False}),
    "dilated": (nn.Conv2D, {"in_channels": 8, "out_channels": 12, "kernel_size": 3,
                            "dilation": 2, "padding": 2}),
    "groups": (nn.Conv2D, {"in_channels": 8, "out_channels": 12, "kernel_size": 3, "groups": 4}),
    "depthwise": (nn.Conv2D, {"in_channels": 8, "out_channels": 8, "kernel_size": 3, "groups": 8}),
    "of one pixel": (nn.Conv2D, {"in_channels": 8, "out_channels": 12, "kernel_size": 1}),
    "SAME": (nn.Conv2D, {"in_channels": 8, "out_channels": 12, "kernel_size": 3, "stride": 2,
                         "padding": "SAME"}),
    "of one axis": (nn.Conv1D, {"in_channels": 8, "out_channels": 12, "kernel_size": 3}),
    "channels last": (nn.Conv2D, {"in_channels": 8, "out_channels": 12, "kernel_size": 3,
                                  "data_format": "NHWC"}),
    "transposed": (nn.Conv2DTranspose, {"in_channels": 8, "out_channels": 12, "kernel_size": 3,
                                        "stride": 2}),
    "transposed, output_padding": (nn.Conv2DTranspose, {
        "in_channels": 8, "out_channels": 12, "kernel_size": 3, "stride": 2, "padding": 1,
        "output_padding": 1}),
    "transposed, groups": (nn.Conv2DTranspose, {
        "in_channels": 8, "out_channels": 12, "kernel_size": 4, "stride": 2, "groups": 2}),
}


@pytest.mark.parametrize("activation", [None, F.relu, F.hardswish])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_have_int8_kernels_and_the_simulated_values(name, activation, tmp_path):
    kind, arguments = CONVOLUTIONS[name]
    paddle.seed(1)
    x = random_array(*{"channels last": (2, 10, 9, 8), "of one axis": (2, 8, 20)}.get(
        name, (2, 8, 10, 9)))

    def function(x, conv):
        return conv(x if activation is None else activation(x))

    net = quantized(Net(function, conv=kind(**arguments)), x)
    assert paddleq.export.to_openvino(net, tmp_path / "m", spec_of(x)) == str(tmp_path / "m.xml")
    model = compiled(tmp_path / "m")
    # OpenVINO has no int8 kernel for groups of transposed convolutions, and a wrong one for signed
    # integers.
    float_kernel = "transposed" in name and (activation is not F.relu or "groups" in name)
    assert is_integer(model, 1) != float_kernel, precisions(model)
    (found,), (wanted,) = outputs(model, x), simulated(net, x)
    assert relative_error(found, wanted) < 1e-3
    assert outputs(model, x[:1])[0].shape == (1, *wanted.shape[1:])


PRODUCTS = {
    "matrix": ((5, 16), lambda x, linear: linear(x)),
    "of three axes": ((2, 5, 16), lambda x, linear: F.gelu(linear(x))),
    "behind relu": ((2, 5, 16), lambda x, linear: linear(F.relu(x))),
    "behind softmax": ((5, 16), lambda x, linear: linear(F.softmax(x))),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_have_int8_kernels_and_the_simulated_values(name, tmp_path):
    shape, function = PRODUCTS[name]
    paddle.seed(1)
    x = random_array(*shape)
    net = quantized(Net(function, linear=nn.Linear(16, 24)), x)
    paddleq.save_quantized_model(net, tmp_path / "m", spec_of(x), format="openvino")
    model = compiled(tmp_path / "m")
    assert is_integer(model, 1), precisions(model)
    assert relative_error(outputs(model, x)[0], simulated(net, x)[0]) < 1e-3


@pytest.mark.parametrize("bits", [8, 7, 6, 4, 3, 2])
@pytest.mark.parametrize("function", [F.relu, F.relu6, F.sigmoid, paddle.abs, paddle.tanh],
                         ids=lambda each: each.__name__)
def test_few_bits_are_the_integers_of_the_simulation(bits, function, tmp_path):
    paddle.seed(2)
    x = random_array(2, 4, 8, 8) * 3
    net = Net(lambda x, conv: conv(function(x)), conv=nn.Conv2D(4, 8, 3))
    net.eval()
    ptq = paddleq.PTQ(paddleq.paddleslim.AbsmaxQuantizer(bits),
                      paddleq.paddleslim.PerChannelAbsmaxQuantizer(min(bits, INT8_WEIGHT_BITS)))
    made = ptq.quantize(net)
    ptq.calibrate(made, [paddle.to_tensor(x / 2)])  # larger values are clipped
    paddleq.export.to_openvino(made, tmp_path / "m", spec_of(x))
    model = compiled(tmp_path / "m")
    assert is_integer(model, 1)
    assert relative_error(outputs(model, x)[0], simulated(made, x)[0]) < 1e-3
    (quantizer,) = [node for node in ov.Core().read_model(tmp_path / "m.xml").get_ops()
                    if node.get_type_name() == "FakeQuantize"]
    assert quantizer.get_attributes()["levels"] == 256


# Operators between layers, behind which OpenVINO 2026.4 computes other values for the plain form of
# a quantized graph, with those that are computed right.
EXTREMES = {
    "minimum": lambda x: x.min(2, keepdim=True).expand([-1, -1, 8, -1]),
    "amax, leaky relu": lambda x: F.leaky_relu(
        x.amax(3, keepdim=True).expand([-1, -1, -1, 8]), 0.3),
    "concat of extremes": lambda x: paddle.concat(
        [x.max(2, keepdim=True), x.amin(2, keepdim=True) * 2.0], 2).tile([1, 1, 4, 1]),
}
BETWEEN = {
    "square": lambda x: x * x,
    "two readers": lambda x: F.relu(x) + F.sigmoid(x),
    "three readers": lambda x: paddle.concat([x, F.relu(x), -x], 1)[:, 5:13],
    "layer_norm": lambda x: F.layer_norm(x, [8]),
    "relu6 of a sum": lambda x: F.relu6(x + F.relu(x)),
    "relu6 of a pool": lambda x: F.relu6(F.max_pool2d(x, 3, 1, 1)),
    "clip of a transposed tensor": lambda x: paddle.clip(x.transpose([0, 1, 3, 2]), -0.7, 0.8),
    "clip of a mean": lambda x: paddle.clip(
        x.mean([2, 3], keepdim=True).expand([-1, -1, 8, 8]), -0.1, 0.1),
    "round": lambda x: paddle.round(x * 3),
    "relu of a pool": lambda x: F.max_pool2d(F.relu(x), 3, 1, 1),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.6),
    "one minus a relu": lambda x: 1.0 - F.relu(x),
    "negative factor": lambda x: F.relu(x) * -1.5 + 0.2,
    "negative factor alone": lambda x: F.relu(x) * -0.5,
    "negative leaky relu": lambda x: -F.leaky_relu(x, 0.1),
    "negative relu in a concat": lambda x: paddle.concat([-F.relu(x[:, :4]), x[:, 4:]], 1),
    **EXTREMES,
    "negative factor of a pool": lambda x: -F.max_pool2d(F.relu(x), 3, 1, 1),
    "shuffled channels": lambda x: F.channel_shuffle(x, 2),
    "relu of permuted channels": lambda x: F.relu(paddle.index_select(
        x, paddle.to_tensor([3, 0, 1, 2, 5, 6, 7, 4]), 1)),
    "shuffled channels of a sum": lambda x: F.channel_shuffle(x + F.relu(x), 4) * 0.5,
}


@pytest.mark.parametrize("name", EXTREMES)
def test_extremes_of_a_quantized_onnx_file(name, tmp_path):
    net = Net(lambda x, conv, layer: layer(EXTREMES[name](conv(x))),
              conv=nn.Conv2D(8, 8, 3, padding=1), layer=nn.Conv2D(8, 5, 3))
    net.eval()
    x = random_array(2, 8, 8, 8)
    made = quantized(net, x)
    for target in ("onnxruntime", "plain"):
        paddleq.export.to_onnx(made, tmp_path / "m", spec_of(x), target=target)
        found = openvino(tmp_path / "m", [x], as_is=False, ending="onnx")
        assert relative_error(found[0], simulated(made, x)[0]) < 1e-5


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("last", ["convolution", "product"])
@pytest.mark.parametrize("name", BETWEEN)
def test_faults_of_int8_graphs_are_avoided(name, last, bits, tmp_path):
    def function(x, conv, layer):
        x = BETWEEN[name](conv(x))
        return layer(x if last == "convolution" else x[:, :, 3, 4])

    paddle.seed(1)
    x = random_array(2, 8, 8, 8) * 2
    net = Net(function, conv=nn.Conv2D(8, 8, 3, padding=1),  # with a bias of zeros
              layer=nn.Conv2D(8, 5, 3) if last == "convolution" else nn.Linear(8, 5))
    net.eval()
    ptq = paddleq.PTQ(paddleq.paddleslim.AbsmaxQuantizer(bits),
                      paddleq.paddleslim.PerChannelAbsmaxQuantizer(INT8_WEIGHT_BITS))
    made = ptq.quantize(net)
    ptq.calibrate(made, [paddle.to_tensor(x / 2)])  # larger values are clipped
    paddleq.export.to_openvino(made, tmp_path / "m", spec_of(x))
    model = compiled(tmp_path / "m")
    assert is_integer(model, 2), precisions(model)
    # A last digit selects another integer of the second layer, in few places.
    assert relative_error(outputs(model, x)[0], simulated(made, x)[0]) < 1e-2


@pytest.mark.parametrize("function", [
    lambda x: F.channel_shuffle(x, 2), lambda x: F.relu(F.channel_shuffle(x, 4)),
    lambda x: F.pixel_unshuffle(x[:, :2], 2)], ids=["shuffle", "relu", "pixel_unshuffle"])
def test_permuted_channels_of_an_onnx_file(function, tmp_path):
    net = Net(lambda x, conv, layer: layer(function(conv(x))), conv=nn.Conv2D(8, 8, 3, padding=1),
              layer=nn.Conv2D(8, 5, 3))
    x = random_array(2, 8, 8, 8)
    net.eval()
    paddleq.export.to_onnx(net, tmp_path / "m", spec_of(x))
    found = openvino(tmp_path / "m", [x], ending="onnx")
    assert relative_error(found[0], simulated(net, x)[0]) < 1e-5


@pytest.mark.parametrize("select", [paddle.index_select, paddle.gather])
def test_selected_channels_in_every_runtime(select, tmp_path):
    net = Net(lambda x, conv, layer: layer(select(
        conv(x), paddle.to_tensor([3, 0, 1, 2, 5, 6, 7, 4]), axis=1)),
              conv=nn.Conv2D(8, 8, 3, padding=1), layer=nn.Conv2D(8, 5, 3))
    path, x = tmp_path / "m", random_array(2, 8, 8, 8)
    made = quantized(net, x)
    (expected,) = simulated(made, x)
    for format in ("pdmodel", "onnx"):
        paddleq.save_quantized_model(made, path, spec_of(x), format=format)
    np.testing.assert_array_equal(paddle_inference(path, [x])[0], expected)
    for (found,) in (paddle_inference(path, [x], ir_optim=True, onednn=True),
                     openvino(path, [x]), openvino(path, [x], ending="onnx"),
                     onnxruntime(path, [x])):
        assert relative_error(found, expected) < 1e-3


SCHEMES = [*((weight, "A16") for weight in WEIGHTS),
           *((weight, activation) for weight in ("W8 channel affine", "W4 g32 affine")
             for activation in ACTIVATIONS if activation != "A16")]


@pytest.mark.parametrize("weight, activation", SCHEMES)
def test_integer_linear(weight, activation, tmp_path):
    """Every scheme, with zero points and groups, equals the layer."""
    paddle.seed(3)
    net = nn.Sequential(nn.Linear(128, 96), nn.GELU(), nn.Linear(96, 64))
    x = paddle.randn([5, 128])
    net = deploy(net, WEIGHTS[weight], ACTIVATIONS[activation], [(x,)], smoothed=True,
                 permuted=True)
    paddleq.save_quantized_model(net, tmp_path / "m", [SPEC([None, 128], "float32", "x0")],
                                 format="openvino")
    found = outputs(compiled(tmp_path / "m", low_precision=False), x.numpy())[0]
    assert relative_error(found, simulated(net, x)[0]) < 1e-5
    spec = WEIGHTS[weight]
    if activation == "A16":
        size = os.path.getsize(tmp_path / "m.bin")
        integers = (128 * 96 + 96 * 64) * (0.5 if spec.bits <= 4 else spec.bits / 8)
        assert size < 2.2 * integers + 4 * (128 + 96) * 2


def test_loops_and_branches_hold_quantizers_and_other_forms(tmp_path):
    """The frontend converts sub-blocks with the same functions."""
    class Looped(nn.Layer):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x, n):
            i = paddle.zeros([1], "int64")
            while i < n:
                x = F.mish(self.linear(x))
                i = i + 1
            return x

    x, n = random_array(3, 8), np.array([3], "int64")
    paddle.seed(4)
    net = quantized(Looped(), x, n)
    paddleq.export.to_openvino(net, tmp_path / "m", [
        SPEC([None, 8], "float32", "x0"), SPEC([1], "int64", "x1")])
    model = compiled(tmp_path / "m")
    for count in (3, 1):
        n = np.array([count], "int64")
        assert relative_error(outputs(model, x, n)[0], simulated(net, x, n)[0]) < 1e-3


DYNAMIC_FORMS = {
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 4),
    "instance_norm": lambda x: F.instance_norm(x),
    "prelu": lambda x: F.prelu(x, paddle.full([8], 0.3)),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.7),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "logsumexp": lambda x: paddle.logsumexp(x, [1, 3]),
    "logsumexp of all": lambda x: paddle.logsumexp(x),
    "std": lambda x: x.std([2, 3]),
    "argsort": lambda x: paddle.argsort(x, 2).astype("float32"),
    "sort descending": lambda x: paddle.sort(x, 3, descending=True),
    "unbind": lambda x: paddle.unbind(x, 1)[3],
    "unfold": lambda x: F.unfold(x, [2, 3], [1, 2], 1),
    "einsum": lambda x: paddle.einsum("nchw,ncvw->nhv", x, x),
    "arg_max": lambda x: paddle.argmax(x, -2).astype("float32"),
    "tril": lambda x: paddle.tril(x, -1),
    "repeat_interleave": lambda x: paddle.repeat_interleave(x, 3, 2),
    "bitwise": lambda x: paddle.bitwise_xor((x * 9).astype("int32"), paddle.to_tensor(
        5, "int32")).astype("float32"),
    "round of halves": lambda x: paddle.round((x * 4).round() / 2),
    "numel": lambda x: x / paddle.numel(x).astype("float32"),
    "dist": lambda x: paddle.dist(x, x * 0.5, 3),
    "dist, largest": lambda x: paddle.dist(x, x * 0.5, float("inf")),
    "dist, number that differ": lambda x: paddle.dist(x, F.relu(x), 0),
    "cummin": lambda x: paddle.cummin(x, 2)[0],
    "renorm": lambda x: paddle.renorm(x, 2.0, 1, 1.5),
    "rrelu": lambda x: F.rrelu(x, 0.1, 0.3, training=False),
    "log1p of small numbers": lambda x: paddle.log1p(x.abs() * 1e-6),
}


@pytest.mark.parametrize("name", DYNAMIC_FORMS)
def test_operators_that_the_frontend_refuses_have_forms_for_dynamic_sizes(name, tmp_path):
    if paddle.__version__.startswith("2.") and name in (
            "pixel_shuffle", "instance_norm", "repeat_interleave"):
        pytest.skip("Paddle 2.6 declares negative sizes for it, which no reader accepts")
    function = DYNAMIC_FORMS[name]
    x = random_array(2, 8, 6, 6, seed=5)
    net = Net(lambda x, conv: function(conv(x)), conv=nn.Conv2D(8, 8, 1))
    net.eval()
    paddleq.export.to_openvino(net, tmp_path / "m", spec_of(x, dynamic=(0, 2, 3)))
    # OpenVINO 2023.0 reads opset 11, 2023.2 reads opset 13.
    assert latest_opset(tmp_path / "m.xml") <= (13 if name == "bitwise" else 11)
    model = compiled(tmp_path / "m")
    for array in (x, random_array(3, 8, 5, 7, seed=6)):
        if name == "tril" and array is not x:
            continue
        (found,), (wanted,) = outputs(model, array), simulated(net, array)
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, atol=2e-5 * max(np.abs(wanted).max(), 1e-6))


@pytest.mark.parametrize("kind", ["GRU", "SimpleRNN", "LSTM"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "direction": "bidirect"}],
                         ids=["plain", "two layers in both directions"])
def test_recurrent_layers(kind, options, tmp_path):
    def function(x, layer):
        y, state = layer(x)
        return [y, *(state if isinstance(state, tuple) else [state])]

    x = random_array(3, 7, 6)
    net = Net(function, layer=getattr(nn, kind)(6, 5, **options))
    net.eval()
    paddleq.export.to_openvino(net, tmp_path / "m", spec_of(x, dynamic=(0, 1)))
    for found, wanted in zip(outputs(compiled(tmp_path / "m"), x), simulated(net, x)):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_lengths_of_sequences_are_refused(tmp_path):
    """OpenVINO ignores them."""
    net = Net(lambda x, y, layer: layer(x, None, y)[0], layer=nn.LSTM(6, 5))
    net.eval()
    with pytest.raises(UnsupportedOperatorError, match="lengths of the sequences"):
        paddleq.export.to_openvino(net, tmp_path / "m", [
            SPEC([None, 7, 6], "float32", "x0"), SPEC([None], "int64", "x1")])
    assert not list(tmp_path.iterdir())


class Small(nn.Layer):
    """Convolutions with the operators of mobile networks between them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2D(3, 16, 3, 2, 1)
        self.depthwise = nn.Conv2D(16, 16, 3, 1, 1, groups=16)
        self.squeeze, self.excite = nn.Conv2D(16, 4, 1), nn.Conv2D(4, 16, 1)
        self.last, self.linear = nn.Conv2D(16, 16, 1), nn.Linear(16, 10)

    def forward(self, x):
        x = F.hardswish(self.first(x))
        y = F.relu(self.depthwise(x))
        y = y * F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        x = x + self.last(y)
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Prefix of a network in three formats, its simulation, and images."""
    paddle.seed(7)
    x, path = random_array(8, 3, 24, 24), str(tmp_path_factory.mktemp("small") / "net")
    net = quantized(Small(), x)
    for format in ("pdmodel", "openvino"):
        paddleq.save_quantized_model(net, path, [SPEC([None, 3, 24, 24], "float32", "x0")],
                                     format=format)
    return path, net, x


def test_all_layers_of_a_network_are_integer(small):
    path, net, x = small
    model = compiled(path)
    assert is_integer(model, 6), precisions(model)
    assert [each.get_any_name() for each in model.inputs] == ["x0"]
    (found,), (wanted,) = outputs(model, x), simulated(net, x)
    assert relative_error(found, wanted) < 5e-3
    assert (found.argmax(1) == wanted.argmax(1)).all()
    exact = outputs(compiled(path, low_precision=False), x)[0]
    assert relative_error(exact, wanted) < 1e-3


def test_predictor_runs_int8_kernels_of_a_pdmodel(small):
    """The same graph is made when it is loaded."""
    path, net, x = small
    arrays = {}
    for ending in (".xml", ".pdmodel"):
        with Predictor(path + ending, "openvino", threads=1) as predictor:
            assert is_integer(predictor._original._compiled, 6)
            assert [each.name for each in predictor.inputs] == ["x0"]
            arrays[ending] = predictor.run(x)[0]
    np.testing.assert_array_equal(*arrays.values())
    with Predictor(path, "openvino") as predictor:
        assert predictor.file.endswith(".xml")


def test_verify_compares_the_files(small):
    path, net, x = small
    report = verify(path + ".xml", net, x, runtimes=["openvino"])
    assert report.ok, report
    reference, row = report.rows
    assert reference.error < 1e-3 and row.ms > 0 and row.float_ms > 0
    assert row.size == sum(os.path.getsize(path + each) for each in (".xml", ".bin"))
    assert row.float_size > 0
    report = verify(path, net, x, runtimes=["openvino"], error=1e-9, top1=0.0, seconds=0)
    row = next(each for each in report.rows if each.file.endswith(".xml")
               and each.runtime == "openvino")
    layer, before, after = row.worst_layer
    assert layer in {each.name for each in net.parameters()} and after >= before
    assert "the float model is right in OpenVINO" in row.problem


def test_saved_models_and_float_models_are_converted(small, tmp_path):
    path, net, x = small
    made = paddleq.export.to_openvino(path, tmp_path / "converted.xml")
    assert made == str(tmp_path / "converted.xml")
    assert is_integer(compiled(made[:-4]), 6)
    np.testing.assert_array_equal(outputs(compiled(made[:-4]), x)[0],
                                  outputs(compiled(path), x)[0])
    plain = Small()
    plain.eval()
    paddle.jit.save(plain, str(tmp_path / "plain"), [SPEC([None, 3, 24, 24], "float32", "x0")])
    paddleq.export.to_openvino(tmp_path / "plain", tmp_path / "float")
    model = compiled(tmp_path / "float")
    assert set(precisions(model)) <= {("Convolution", "f32"), ("FullyConnected", "f32")}
    np.testing.assert_allclose(outputs(model, x)[0], simulated(plain, x)[0], atol=1e-5)


def test_files_are_recorded_and_reproducible(small, tmp_path):
    path, net, _ = small
    with open(path + ".paddleq.yaml", encoding="utf-8") as file:
        record = file.read()
    assert "net.xml" in record and "net.bin" in record and "openvino:" in record
    for name in ("a", "b"):
        paddleq.export.to_openvino(path, tmp_path / name)
    for ending in (".xml", ".bin"):
        assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


@pytest.mark.parametrize("damage", ["no bin", "short bin", "torn", "no xml inside", "another xml"])
def test_damaged_files_are_refused(small, damage, tmp_path):
    for ending in (".xml", ".bin") + ((".paddleq.yaml",) if damage == "torn" else ()):
        shutil.copyfile(small[0] + ending, tmp_path / f"net{ending}")
    xml, values = tmp_path / "net.xml", tmp_path / "net.bin"
    if damage == "no bin":
        values.unlink()
    elif damage == "short bin":
        values.write_bytes(values.read_bytes()[:-8])
    elif damage == "torn":
        values.write_bytes(values.read_bytes()[::-1])
    else:
        xml.write_bytes(b"<net><layers>" if damage == "no xml inside" else b"<html/>")
    with pytest.raises(FormatError, match="net.xml is (torn|damaged|incomplete|no model)"):
        Predictor(xml, "openvino")


@pytest.mark.parametrize("attribute", ["element_type", "shape", None])
def test_inputs_without_description_are_refused(small, attribute, tmp_path):
    for ending in (".xml", ".bin"):
        shutil.copyfile(small[0] + ending, tmp_path / f"net{ending}")
    tree = ElementTree.parse(tmp_path / "net.xml")
    (layer,) = [each for each in tree.iter("layer") if each.get("type") == "Parameter"]
    if attribute is None:
        layer.remove(layer.find("data"))
    else:
        del layer.find("data").attrib[attribute]
    tree.write(tmp_path / "net.xml")
    with pytest.raises(FormatError, match="net.xml is damaged: its input"):
        verify(tmp_path / "net.xml", None, small[2], seconds=0)


@pytest.mark.one_version
@pytest.mark.parametrize("import_before, module, found", [
    ("sys", "openvino", "not installed"),
    ("openvino", "openvino.opset15", r"20\d\d\.\d+\.\d+.* is installed")])
def test_missing_or_old_package_is_named_with_the_remedy(import_before, module, found, tmp_path):
    script = f"""
import sys, zlib
import {import_before}
sys.modules[{module!r}] = None
import paddle, paddleq
net = paddle.nn.Linear(4, 3)
for write in (lambda: paddleq.export.to_openvino(net, {str(tmp_path / "m")!r},
                                                 [paddle.static.InputSpec([None, 4])]),):
    try:
        write()
    except paddleq.errors.DependencyError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    remedy = "pip install 'openvino>=2024.4'"
    assert re.search(f"OpenVINO 2024.4 or later is needed, .*{found}: {remedy}", done.stdout)
    assert not list(tmp_path.iterdir())


def test_wrong_arguments():
    with pytest.raises(ConfigTypeError, match="model must be"):
        paddleq.export.to_openvino(3, "m")
    with pytest.raises(FormatError, match="neither"):
        paddleq.export.to_openvino("no/model", "m")
