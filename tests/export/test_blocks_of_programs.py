"""Layers in the blocks of ``if`` and ``while`` are quantized like those of the main block."""
# ruff: noqa: SIM108  (the trace takes statements)

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from runtimes import INT8_WEIGHT_BITS, paddle_inference, relative_error

import paddleq
from paddleq.deploy import Predictor, has_vnni
from paddleq.export.pir_to_program import load_program
from paddleq.export.program.inspect import inspect, program_rows
from paddleq.paddleslim import PerChannelAbsmaxQuantizer


class Branches(nn.Layer):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x):
        if x.mean() > 0:
            x = self.a(x)
        else:
            x = self.b(x)
        return self.c(x)


class Nested(nn.Layer):
    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Conv2D(4, 4, 3, padding=1) for _ in range(2))
        self.up = nn.Conv2DTranspose(4, 4, 3, 2, 1, output_padding=1)

    def forward(self, x):
        x = self.a(x)
        if x.abs().mean() > 0:
            if x.mean() > 0:
                x = F.relu(self.b(x))
            else:
                x = self.up(x)[:, :, ::2, ::2]
        return x


class SharedLayer(nn.Layer):
    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Conv2D(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, x):
        x = self.a(x)
        if x.mean() > 0:
            x = F.relu(self.a(x))
        else:
            x = self.b(x)
        return self.b(x)


class Loop(nn.Layer):
    def __init__(self):
        super().__init__()
        self.a, self.c = (nn.Conv1D(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, x):
        i, n = paddle.zeros([1], "int32"), paddle.full([1], 3, "int32")
        while i < n:
            x = F.relu(self.a(x)) + x
            i = i + 1
        return self.c(x)


NETS = {Branches: ([4, 16], 3), Nested: ([2, 4, 8, 8], 3), SharedLayer: ([2, 4, 8, 8], 4),
        Loop: ([2, 4, 9], 2)}  # shape, number of weights in the file


@pytest.mark.parametrize("make", NETS)
def test_layers_in_blocks(make, tmp_path):
    paddle.seed(1)
    shape, count = NETS[make]
    net, path = make(), str(tmp_path / "m")
    net.eval()
    random = np.random.RandomState(0)
    batches = [random.randn(*shape).astype("float32") + shift for shift in (20, 1, -1, -20)]
    ptq = paddleq.PTQ("AbsmaxQuantizer", PerChannelAbsmaxQuantizer(INT8_WEIGHT_BITS))
    quantized = ptq.quantize(net, quantizable_layer_type=["Conv1D", "Conv2D", "Conv2DTranspose",
                                                          "Linear"])
    ptq.calibrate(quantized, batches)
    ptq.save_quantized_model(quantized, path, [paddle.static.InputSpec([None, *shape[1:]],
                                                                       "float32")])
    program = load_program(f"{path}.pdmodel", f"{path}.pdiparams")
    matrices = [array for name, array in program.arrays.items()
                if array.ndim > 1 and not name.endswith(".all_axes")]  # of biases
    assert len(matrices) == count and all(array.dtype == np.int8 for array in matrices)
    assert len(inspect(program)["weights"]) == count
    assert sum(row["done"] == "quantized" for row in program_rows(program)) == count
    with Predictor(path, "paddle") as predictor:
        for x in batches:
            expected = quantized(paddle.to_tensor(x)).numpy()
            np.testing.assert_array_equal(paddle_inference(path, [x])[0], expected)
            # Without VNNI, Predictor computes in float.
            assert relative_error(predictor.run(x)[0], expected) < (0.02 if has_vnni() else 0.1)
            stock = paddle_inference(path, [x], ir_optim=True, int8=True)[0]
            assert relative_error(stock, expected) < (0.1 if make is Branches else 0.02)


@pytest.mark.parametrize("quantize", ["static", "dynamic"])
def test_saved_programs_with_branches(quantize, tmp_path):
    paddle.seed(1)
    net, source, target = Branches(), str(tmp_path / "float"), str(tmp_path / "int8")
    net.eval()
    paddle.jit.save(net, source + "/m", [paddle.static.InputSpec([None, 16], "float32")])
    data = [paddle.rand([4, 16]), -paddle.rand([4, 16])]
    if quantize == "static":
        names, prefix = paddleq.quant_post_static(source, target, data), target + "/model"
        assert len(names) == 3
    else:
        paddleq.quant_post_dynamic(source, target)
        prefix = target + "/quantized_model/model"
    program = load_program(prefix + ".pdmodel", prefix + ".pdiparams")
    assert [array.dtype for array in program.arrays.values() if array.ndim > 1] == [np.int8] * 3
    for x in data:
        expected = net(x).numpy()
        assert relative_error(paddle_inference(prefix, [x.numpy()])[0], expected) < 0.05
        with Predictor(prefix, "paddle") as predictor:
            assert relative_error(predictor.run(x.numpy())[0], expected) < 0.05
