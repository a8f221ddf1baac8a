"""Predictor compares the runtimes among which it chooses."""

import logging

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from runtimes import paddle_inference, relative_error

from paddleq.deploy import Predictor
from paddleq.errors import InferenceError
from paddleq.export.trace import trace_float


class Product(nn.Layer):
    """Paddle Inference reads the outputs of the convolutions as if they were contiguous."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2D(3, 8, 1), nn.Conv2D(3, 8, 1)

    def forward(self, x):
        return paddle.matmul(self.a(x), self.b(x))


class Counted(nn.Layer):
    """OpenVINO computes integers in float32, which holds all of them up to 2 ** 24."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, 4, 1)

    def forward(self, x):
        return parity(self.conv(x), 2 ** 24)


def parity(x, added):
    return (((x * 100).astype("int32") + added) % 2).astype("float32") + x


class Resized(nn.Layer):
    """Both are wrong for other sizes than 7.

    Paddle Inference selects other pixels, OpenVINO computes large integers.
    """

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, 8, 1)

    def forward(self, x):
        x, added = self.conv(x), (x.shape[2] - 7) * 2 ** 24
        return F.interpolate(parity(x, added), size=[7, 7], mode="nearest")


def saved(net, path, shape):
    """Write a float file as other tools do, without workarounds."""
    net.eval()
    program = trace_float(net, [paddle.static.InputSpec(shape, "float32", "x")])
    program.save(path + ".pdmodel", path + ".pdiparams", workarounds=False)
    return path


def random_input(*shape):
    return np.random.RandomState(0).rand(*shape).astype("float32")


@pytest.mark.parametrize("make, right", [(Product, "openvino"), (Counted, "paddle")])
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_wrong_runtime_is_not_used(make, right, dynamic, tmp_path, caplog):
    path = saved(make(), str(tmp_path / "m"), [None, 3, *([None] * 2 if dynamic else [8, 8])])
    x = random_input(2, 3, 8, 8)
    with Predictor(path) as predictor:
        found = predictor.run(x)[0]
        again = predictor.run(x)[0]
        assert predictor.runtime == right
    wrong = {"paddle": "openvino", "openvino": "paddle"}[right]
    messages = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert any(wrong in message and "away" in message for message in messages)
    expected = paddle_inference(path, [x])[0]
    assert found.shape == expected.shape and relative_error(found, expected) < 1e-5
    np.testing.assert_array_equal(found, again)


def test_a_later_shape_is_compared(tmp_path, caplog):
    path = saved(Resized(), str(tmp_path / "m"), [None, 3, None, None])
    with Predictor(path) as predictor:
        x = random_input(1, 3, 7, 7)
        assert relative_error(predictor.run(x)[0], paddle_inference(path, [x])[0]) < 1e-5
        assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
        with pytest.raises(InferenceError, match="no runtime computes the model correctly"):
            predictor.run(random_input(1, 3, 8, 8))


def test_all_runtimes_wrong(tmp_path):
    path = saved(Resized(), str(tmp_path / "m"), [1, 3, 8, 8])
    with pytest.raises(InferenceError, match="openvino is .*paddle is .*by name"):
        Predictor(path)
    with Predictor(path, "paddle") as predictor:
        assert predictor.run(random_input(1, 3, 8, 8))[0].shape == (1, 8, 7, 7)


def test_agreement_is_silent_and_ends_after_a_few_shapes(tmp_path, caplog):
    path = saved(nn.Sequential(nn.Conv2D(3, 4, 3)), str(tmp_path / "m"), [None, 3, None, None])
    with Predictor(path) as predictor:
        for size in range(5, 11):
            x = random_input(1, 3, size, size)
            expected = paddle_inference(path, [x])[0]
            assert relative_error(predictor.run(x)[0], expected) < 1e-5
        assert not predictor._candidates
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
