"""Nearest interpolation by ratios that are no whole numbers, in every runtime."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from runtimes import int8_ptq, openvino, paddle_inference, relative_error

from paddleq.export.pir_to_program import load_program

CASES = {
    "enlarged": {"size": [11, 13]}, "reduced": {"size": [5, 7]}, "one axis": {"size": [8, 12]},
    "halved": {"scale_factor": 0.5}, "factor": {"scale_factor": 1.5},
    "two factors": {"scale_factor": [1.3, 2.0]}, "whole": {"scale_factor": 2},
    "large": {"size": [31, 29]}, "mobilevit": {"size": [6, 10]},
}


class Net(nn.Layer):
    def __init__(self, cases):
        super().__init__()
        self.conv, self.cases = nn.Conv2D(3, 4, 3, padding=1), list(cases)
        self.last = nn.Conv2D(4, 4, 1)

    def forward(self, x, like):
        x = self.conv(x)
        found = [F.interpolate(x, mode="nearest", **options) for options in self.cases]
        found.append(F.interpolate(x, size=like.shape[2:], mode="nearest"))
        return [*found, self.last(found[0])]


def exported(net, path, arrays, dynamic):
    net.eval()
    ptq = int8_ptq()
    net = ptq.quantize(net)
    ptq.calibrate(net, [arrays])
    spec = [paddle.static.InputSpec([None, 3, None, None] if dynamic else list(array.shape),
                                    "float32", name) for array, name in zip(arrays, ("x", "like"))]
    ptq.save_quantized_model(net, path, spec)
    return lambda *arrays: [each.numpy() for each in net(*map(paddle.to_tensor, arrays))]


@pytest.mark.parametrize("dynamic", [False, True])
def test_same_elements_in_every_runtime(dynamic, tmp_path):
    random, path = np.random.RandomState(0), str(tmp_path / "m")
    arrays = [random.rand(1, 3, *size).astype("float32") for size in ([8, 8], [13, 17])]
    net = exported(Net(CASES.values()), path, arrays, dynamic)
    batches = [arrays]
    if dynamic:
        batches.append([random.rand(2, 3, *size).astype("float32") for size in ([9, 7], [5, 24])])
    for arrays in batches:
        expected = net(*arrays)
        for found, wanted in zip(paddle_inference(path, arrays), expected):
            np.testing.assert_array_equal(found, wanted)
        for found in (paddle_inference(path, arrays, ir_optim=True, int8=True),
                      paddle_inference(path, arrays, ir_optim=True),
                      openvino(path, dict(zip(("x", "like"), arrays)))):
            assert [each.shape for each in found] == [each.shape for each in expected]
            assert max(map(relative_error, found, expected)) < 2e-3


def test_multiples_keep_their_operator(tmp_path):
    """Runtimes have fast kernels for it."""
    path = str(tmp_path / "m")
    arrays = [np.random.rand(1, 3, size, size).astype("float32") for size in (8, 16)]
    exported(Net([{"size": [16, 32]}, {"scale_factor": 2}]), path, arrays, dynamic=False)
    kinds = [op.type for op in load_program(f"{path}.pdmodel", f"{path}.pdiparams").desc.blocks[0]
             .ops]
    assert kinds.count("nearest_interp_v2") == 3 and "gather" not in kinds


def test_3d(tmp_path):
    class Volumes(nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3D(2, 3, 1)

        def forward(self, x):
            return F.interpolate(self.conv(x), size=[7, 4, 8], mode="nearest", data_format="NCDHW")

    x, path = np.random.RandomState(0).rand(1, 2, 4, 5, 8).astype("float32"), str(tmp_path / "m")
    ptq = int8_ptq()
    net = ptq.quantize(Volumes(), quantizable_layer_type=["Conv3D"])
    ptq.calibrate(net, [x])
    ptq.save_quantized_model(net, path, [paddle.static.InputSpec(list(x.shape), "float32")])
    expected = net(paddle.to_tensor(x)).numpy()
    np.testing.assert_array_equal(paddle_inference(path, [x])[0], expected)
    assert relative_error(paddle_inference(path, [x], ir_optim=True)[0], expected) < 2e-3


class Scaled(nn.Layer):
    def __init__(self, factors, mode):
        super().__init__()
        self.conv, self.factors, self.mode = nn.Conv2D(3, 2, 1), factors, mode

    def forward(self, x):
        return F.interpolate(self.conv(x), scale_factor=self.factors, mode=self.mode)


# Factors that float32 does not represent: Paddle 3.3 computes sizes and ratios with float64.
FACTORS = {
    "size is whole": ([30, 20], 1.7), "size is not whole": ([31, 27], 1.7),
    "below": ([50, 40], 1.9), "reduced": ([33, 47], 0.7), "two": ([33, 47], [1.3, 0.7]),
    "tenth": ([40, 70], 1.1), "fifth": ([61, 55], 1.2),
}


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("case", FACTORS)
def test_factors_that_float32_does_not_represent(case, mode, tmp_path):
    sides, factors = FACTORS[case]
    x = np.random.RandomState(0).rand(1, 3, *sides).astype("float32")
    net = Scaled(factors, mode)
    net.eval()
    ptq = int8_ptq()
    net = ptq.quantize(net)
    ptq.calibrate(net, [paddle.to_tensor(x)])
    ptq.save_quantized_model(net, str(tmp_path / "m"), [paddle.static.InputSpec(x.shape)])
    expected = net(paddle.to_tensor(x)).numpy()
    found = paddle_inference(str(tmp_path / "m"), [x])[0]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
