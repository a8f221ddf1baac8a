"""Transposed convolutions whose output is larger than their input and padding give."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from runtimes import onnxruntime, openvino, paddle_inference, relative_error

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
    ptq = paddleq.PTQ("AbsmaxQuantizer")
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
    net, x, expected = quantized_and_input(list(LAYERS.values()))
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
    assert integers == 1 + len(LAYERS)  # stored as integers


def test_computed_size_follows_the_input(tmp_path):
    net, _, _ = quantized_and_input([LAYERS["computed"], LAYERS["computed, no padding"]])
    path = str(tmp_path / "m")
    paddleq.save_quantized_model(net, path, [paddle.static.InputSpec([None, 3, None, None])])
    for shape in ([1, 3, 7, 10], [2, 3, 12, 9]):
        x = np.random.RandomState(1).rand(*shape).astype("float32")
        x = x[..., :shape[2] // 2 * 2, :shape[3] // 2 * 2]  # the second layer has even sizes only
        with paddle.no_grad():
            expected = [each.numpy() for each in net(paddle.to_tensor(x))]
        for found, wanted in zip(paddle_inference(path, [x]), expected):
            np.testing.assert_array_equal(found, wanted)
        assert largest(openvino(path, [x]), expected) < 1e-5


def test_output_sizes_in_onnx(tmp_path):
    pytest.importorskip("onnxruntime")
    net, x, expected = quantized_and_input([LAYERS[name] for name in (
        "output_padding", "no padding", "output_size", "computed")])
    path = str(tmp_path / "m")
    paddleq.save_quantized_model(net, path, [paddle.static.InputSpec([None, 3, None, None])],
                                 format="onnx")
    assert largest(onnxruntime(path, [x]), expected) < 1e-5


def test_same_padding_with_a_size_is_refused_by_name(tmp_path):
    net, _, _ = quantized_and_input([([16, 16], lambda: UP(8, 6, 3, 2, "SAME"))])
    with pytest.raises(paddleq.errors.UnsupportedOperatorError, match="SAME"):
        paddleq.save_quantized_model(net, str(tmp_path / "m"),
                                     [paddle.static.InputSpec([None, 3, 16, 16])])
