"""Transposed convolutions whose output is larger than their input and padding give."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from runtimes import int8_ptq, onnxruntime, openvino, paddle_inference, relative_error

import paddleq
from paddleq.export.pir_to_program import load_program

UP = nn.Conv2DTranspose
# output_size, layer
LAYERS = {
    "output_padding": (None, lambda: UP(8, 6, 3, 2, 1, output_padding=1)),
    "no padding": (None, lambda: UP(8, 6, 3, 2, 0, output_padding=1)),
    "per axis": (None, lambda: UP(8, 6, [3, 4], [3, 4], 1, output_padding=[2, 3])),
    "dilation": (None, lambda: UP(8, 6, 3, 2, 0, output_padding=1, dilation=2)),
    "depthwise": (None, lambda: UP(8, 8, 3, 2, 1, output_padding=1, groups=8)),
    "unequal padding": (None, lambda: UP(8, 6, 4, 2, [0, 1, 1, 0], output_padding=[1, 0])),
    "SAME": (None, lambda: UP(8, 6, 3, 2, "SAME")),
    "SAME, extra": (None, lambda: UP(8, 6, 4, 3, "SAME", output_padding=2)),
    "SAME, dilation": (None, lambda: UP(8, 6, 3, 2, "SAME", dilation=2)),
    "SAME, stride 1": (None, lambda: UP(8, 6, 4, 1, "SAME")),
    "even": (None, lambda: UP(8, 6, 2, 2)),
    "output_size": ([16, 15], lambda: UP(8, 6, 3, 2, 1)),
    "computed": ("input", lambda: UP(8, 6, 3, 2, 1)),
    "computed, no padding": ("input", lambda: UP(8, 6, 2, 2)),
}


class Net(nn.Layer):
    def __init__(self, layers):
        super().__init__()
        self.down, self.sizes = nn.Conv2D(3, 8, 3, 2, 1), [size for size, _ in layers]
        self.layers = nn.LayerList([make() for _, make in layers])

    def forward(self, x):
        small, outputs = F.relu(self.down(x)), []
        for size, layer in zip(self.sizes, self.layers):
            if size is None:
                outputs.append(layer(small))
            else:
                outputs.append(layer(small, output_size=x.shape[2:] if size == "input" else size))
        return outputs


def quantized_and_input(layers):
    paddle.seed(0)
    x = np.random.RandomState(0).rand(2, 3, 16, 16).astype("float32")
    ptq = int8_ptq()
    net = ptq.quantize(Net(layers))
    net.eval()
    ptq.calibrate(net, [x])
    with paddle.no_grad():
        return net, x, [each.numpy() for each in net(paddle.to_tensor(x))]


def largest(found, expected):
    assert [each.shape for each in found] == [each.shape for each in expected]
    return max(map(relative_error, found, expected))


@pytest.mark.parametrize("dynamic", [False, True])
def test_output_sizes_in_every_runtime(dynamic, tmp_path):
    layers = [layer for name, layer in LAYERS.items()
              if not dynamic or not name.startswith("SAME") or "stride 1" in name]
    net, x, expected = quantized_and_input(layers)
    path = str(tmp_path / "m")
    spec = [paddle.static.InputSpec([None, 3, None, None] if dynamic else list(x.shape), "float32")]
    paddleq.save_quantized_model(net, path, spec)
    for found, wanted in zip(paddle_inference(path, [x]), expected):
        np.testing.assert_array_equal(found, wanted)
    assert largest(paddle_inference(path, [x], ir_optim=True), expected) < 1e-5
    assert largest(paddle_inference(path, [x], ir_optim=True, int8=True), expected) < 0.02
    assert largest(openvino(path, [x]), expected) < 1e-5
    program = load_program(f"{path}.pdmodel", f"{path}.pdiparams")
    integers = sum(array.dtype == np.int8 for array in program.arrays.values())
    assert integers == 1 + len(layers)  # stored as integers


def test_computed_size_follows_the_input(tmp_path):
    net, _, _ = quantized_and_input([LAYERS["computed"], LAYERS["computed, no padding"]])
    path = str(tmp_path / "m")
    paddleq.save_quantized_model(net, path, [paddle.static.InputSpec([None, 3, None, None])])
    for shape in ([1, 3, 7, 10], [2, 3, 12, 9]):
        x = np.random.RandomState(1).rand(*shape).astype("float32")
        x = x[..., :shape[2] // 2 * 2, :shape[3] // 2 * 2]  # the second layer has even sizes only
        with paddle.no_grad():
            expected = [each.numpy() for each in net(paddle.to_tensor(x))]
        # The file computes more and slices, in which the order of the sums may differ.
        assert largest(paddle_inference(path, [x]), expected) <= 1e-6
        assert largest(openvino(path, [x]), expected) < 1e-5


def test_output_sizes_in_onnx(tmp_path):
    pytest.importorskip("onnxruntime")
    net, x, expected = quantized_and_input([LAYERS[name] for name in (
        "output_padding", "no padding", "output_size", "computed", "SAME, stride 1")])
    path = str(tmp_path / "m")
    paddleq.save_quantized_model(net, path, [paddle.static.InputSpec([None, 3, None, None])],
                                 format="onnx")
    assert largest(onnxruntime(path, [x]), expected) < 1e-5


class ComputedKernel(nn.Layer):
    """A function of a tensor and a kernel."""

    def __init__(self, function):
        super().__init__()
        self.function, self.kernel = function, self.create_parameter([8, 6, 3, 3])

    def forward(self, x):
        return self.function(x, self.kernel)


COMPUTED = {
    "scaled": lambda x, w: F.conv2d_transpose(x, w * 2, None, 2, 0, 1),
    "from the input": lambda x, w: F.conv2d_transpose(x, w * x.mean(), None, 2, 0, [1, 0]),
    "groups": lambda x, w: F.conv2d_transpose(x, w[:, :3, :2, :2].tanh(), None, 3, 0, 2, 2),
    "output_size": lambda x, w: F.conv2d_transpose(x, w.abs(), None, 2, output_size=[16, 12]),
    "shared": lambda x, w: F.conv2d_transpose(x, w, None, 2, 0, 1) + F.conv2d_transpose(
        x * 2, w, None, 2, 0, 1),
    "dilation": lambda x, w: F.conv2d_transpose(x, w.exp(), None, 3, 1, 2, 1, 2),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_computed_and_shared_kernels(name, tmp_path):
    x = np.random.RandomState(0).rand(2, 8, 7, 5).astype("float32")
    net, path = ComputedKernel(COMPUTED[name]), str(tmp_path / "m")
    with paddle.no_grad():
        expected = [net(paddle.to_tensor(x)).numpy()]
    paddle.jit.save(net, path + "_traced", input_spec=[paddle.static.InputSpec(x.shape, "float32")])
    model = path + "_traced" + (".json" if paddle.__version__ >= "3" else ".pdmodel")
    load_program(model, path + "_traced.pdiparams").save(path + ".pdmodel", path + ".pdiparams")
    np.testing.assert_array_equal(paddle_inference(path, [x])[0], expected[0])
    assert largest(paddle_inference(path, [x], ir_optim=True, onednn=True), expected) < 1e-5
    assert largest(openvino(path, [x]), expected) < 1e-5


@pytest.mark.parametrize("form", ["pdmodel", "onnx"])
def test_same_padding_of_an_open_size_is_refused_by_name(form, tmp_path):
    net, _, _ = quantized_and_input([LAYERS["SAME"]])
    with pytest.raises(paddleq.errors.UnsupportedOperatorError, match="padding 'SAME'.*open size"):
        paddleq.save_quantized_model(net, str(tmp_path / "m"),
                                     [paddle.static.InputSpec([None, 3, None, 16])], format=form)


def test_same_padding_with_a_size(tmp_path):
    net, x, expected = quantized_and_input([([17, 16], lambda: UP(8, 6, 3, 2, "SAME"))])
    path = str(tmp_path / "m")
    paddleq.save_quantized_model(net, path, [paddle.static.InputSpec([None, 3, 16, 16])])
    assert largest(paddle_inference(path, [x]), expected) == 0
    assert largest(openvino(path, [x]), expected) < 1e-5
