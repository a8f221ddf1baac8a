"""Convolutions whose weights ONNX Runtime must not quantize again, with one scale for all channels.

It does that to float weights between a dequantizer and a quantizer, also if it puts them there: it
folds constants behind a convolution into it and moves quantizers up.
"""

import paddle
import paddle.nn.functional as F
import pytest
import runtimes
from paddle import nn

import paddleq
from paddleq import PTQ

SIZE = [2, 3, 9, 8]
C = 6


def ramp():
    return paddle.linspace(0.5, 2.0, C).reshape([C, 1, 1])


# Between two quantized layers.
BETWEEN = {
    "add": lambda x: x + ramp(),
    "subtract, relu": lambda x: F.relu(x - ramp()),
    "add a full tensor": lambda x: x + paddle.full([C, 1, 1], 0.3),
    "multiply by a full tensor": lambda x: x * paddle.full([C, 1, 1], 0.3),
    "multiply": lambda x: x * ramp(),
    "divide, add": lambda x: x / ramp() + 0.3,
    "slice": lambda x: x[:, :, 1:7],
    "add, transpose": lambda x: (x + ramp()).transpose([0, 1, 3, 2]),
    "slice, squeeze, transpose": lambda x: x[:, 0].transpose([0, 2, 1]),
}


class Between(nn.Layer):
    def __init__(self, function):
        super().__init__()
        self.first, self.function = nn.Conv2D(3, C, 3, padding=1), function
        # One scale for all channels would round most of them to a few levels.
        self.first.weight.set_value(self.first.weight * paddle.to_tensor(
            [1.0, 0.05, 0.02, 1.0, 0.1, 0.03]).reshape([C, 1, 1, 1]))
        self.last = None
        with paddle.no_grad():
            made = self(paddle.zeros(SIZE))
        self.last = nn.Conv2D(C, 4, 3) if len(made.shape) == 4 else nn.Linear(made.shape[-1], 4)

    def forward(self, x):
        x = self.function(self.first(x))
        return x if self.last is None else self.last(x)


@pytest.mark.parametrize("name", BETWEEN)
def test_weights_are_not_quantized_again(name, tmp_path):
    paddle.seed(6)
    ptq = PTQ("AbsmaxQuantizer", paddleq.paddleslim.PerChannelAbsmaxQuantizer(
        runtimes.INT8_WEIGHT_BITS))
    model, x = ptq.quantize(Between(BETWEEN[name])), paddle.randn(SIZE)
    ptq.calibrate(model, [x])
    ptq.save_quantized_model(model, str(tmp_path / "m"),
                             [paddle.static.InputSpec(SIZE, "float32", "x")], format="onnx")
    wanted = model(x).numpy()
    (found,) = runtimes.onnxruntime(str(tmp_path / "m"), [x.numpy()], as_is=False)
    assert runtimes.relative_error(found, wanted) <= 1e-5
