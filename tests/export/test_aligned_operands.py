"""Elementwise operators whose ``axis`` aligns a smaller operand with other axes than the last ones.

Paddle of today does not write them; older programs and folded additions have them.
"""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from runtimes import INT8_WEIGHT_BITS, onnxruntime, openvino, paddle_inference, relative_error

import paddleq
from paddleq.export.pir_to_program import load_program
from paddleq.export.program.op_desc import all_outputs, inputs, set_attribute, set_input
from paddleq.paddleslim import PerChannelAbsmaxQuantizer

EXACT, ROUNDING = 2e-3, 0.03
OPERATORS = {"add": paddle.add, "sub": paddle.subtract, "mul": paddle.multiply,
             "div": paddle.divide}


class Net(nn.Layer):
    """``last(operator(first(conv(x)), operand))``, where the operand has four axes."""

    def __init__(self, operator, first, last, shape=None):
        super().__init__()
        self.conv, self.after = nn.Conv2D(3, 8, 3, padding=1), nn.Conv2D(8, 4, 3, padding=1)
        self.operator, self.first, self.last = operator, first, last
        self.operand = shape and self.create_parameter(
            shape, default_initializer=nn.initializer.Uniform(0.5, 1.3))

    def forward(self, x):
        y = self.first(self.conv(x))
        operand = self.operand
        if operand is None:  # a gate of the channels
            operand = F.sigmoid(y.mean([2, 3])).unsqueeze([2, 3])
        return self.last(self.operator(y, operand), self.after)


def align(path, axis, out):
    """Write a file whose operand lacks the axes of size 1."""
    program = load_program(path + ".pdmodel", path + ".pdiparams")
    (block,) = program.desc.blocks
    producers = {name: op for op in block.ops for name in all_outputs(op)}
    changed = 0
    for op in block.ops:
        if not op.type.startswith("elementwise"):
            continue
        (y,) = inputs(op, "Y")
        if y in program.arrays and program.arrays[y].ndim > 2:
            program.set_parameter(y, np.squeeze(program.arrays[y]))
        elif y in producers and producers[y].type == "unsqueeze2":
            set_input(op, "Y", inputs(producers[y], "X")[0])
        else:
            continue
        set_attribute(op, "axis", axis)
        changed += 1
    assert changed == 1
    program.save(out + ".pdmodel", out + ".pdiparams")


def check(net, axis, folder, bound=EXACT):
    paddle.seed(2)
    path, x = str(folder / "m"), np.random.RandomState(0).randn(2, 3, 12, 12).astype("float32")
    net.eval()
    ptq = paddleq.PTQ("AbsmaxQuantizer", PerChannelAbsmaxQuantizer(INT8_WEIGHT_BITS))
    net = ptq.quantize(net)
    ptq.calibrate(net, [x])
    ptq.save_quantized_model(net, path, [paddle.static.InputSpec([None, 3, 12, 12], "float32")])
    expected = net(paddle.to_tensor(x)).numpy()
    align(path, axis, path + ".aligned")
    path += ".aligned"
    np.testing.assert_array_equal(paddle_inference(path, [x])[0], expected)
    paddleq.export.to_onnx(path, path)
    for (found,) in (paddle_inference(path, [x], ir_optim=True, onednn=True),
                     openvino(path, [x]), onnxruntime(path, [x])):
        assert relative_error(found, expected) < EXACT
    (found,) = paddle_inference(path, [x], ir_optim=True, int8=True)
    assert relative_error(found, expected) < bound


LAST = {"quantizer": lambda y, conv: conv(y), "tanh": lambda y, conv: conv(F.tanh(y)),
        "pool": lambda y, conv: conv(F.max_pool2d(y, 2)), "output": lambda y, conv: F.tanh(y)}


@pytest.mark.parametrize("operator", OPERATORS)
def test_vectors_of_channels(operator, tmp_path):
    check(Net(OPERATORS[operator], F.hardswish, LAST["quantizer"], [8, 1, 1]), 1, tmp_path)


@pytest.mark.parametrize("last", list(LAST)[1:])
def test_vectors_in_front_of_other_operators(last, tmp_path):
    check(Net(paddle.multiply, F.gelu, LAST[last], [8, 1, 1]), 1, tmp_path)


@pytest.mark.parametrize("first", [F.hardswish, F.relu, lambda y: y],
                         ids=["hardswish", "relu", "none"])
def test_gates(first, tmp_path):
    check(Net(paddle.multiply, first, LAST["quantizer"]), 0, tmp_path, ROUNDING)


def test_matrices_of_channels_and_rows(tmp_path):
    check(Net(paddle.add, F.hardswish, LAST["quantizer"], [8, 12, 1]), 1, tmp_path)


def test_additions_that_folding_leaves(tmp_path):
    class Scaled(nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv, self.after = nn.Conv2D(3, 8, 3, padding=1), nn.Conv2D(8, 4, 3, padding=1)
            self.scale, self.shift = (self.create_parameter(
                [8, 1, 1], default_initializer=nn.initializer.Uniform(0.5, 1.3)) for _ in "sb")

        def forward(self, x):
            return self.after(F.hardswish(self.conv(x)) * self.scale + self.shift)

    path, net = str(tmp_path / "float"), Scaled()
    x = np.random.RandomState(0).randn(2, 3, 12, 12).astype("float32")
    net.eval()
    paddle.jit.save(net, path, [paddle.static.InputSpec([None, 3, 12, 12], "float32", "x")])
    int8 = str(tmp_path / "int8")
    paddleq.quant_post_static(str(tmp_path), int8, data_loader=[x], algo="mse",
                              weight_bits=INT8_WEIGHT_BITS)
    (expected,) = paddle_inference(int8 + "/model", [x])
    (found,) = paddle_inference(int8 + "/model", [x], ir_optim=True, int8=True)
    assert relative_error(found, expected) < EXACT
