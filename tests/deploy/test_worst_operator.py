"""Search of the operator with the largest error in quantized files."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddleq import PTQ
from paddleq.deploy import has_vnni
from paddleq.deploy.model_file import model_files
from paddleq.deploy.runtimes import RUNTIMES
from paddleq.deploy.worst_layer import worst_operator

pytestmark = pytest.mark.one_version


class Net(nn.Layer):
    """Operators without parameters in front of two quantized layers."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2D(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        x = x.transpose([0, 1, 3, 2]).reshape([0, 3, 8, 8])
        return self.linear(nn.functional.relu(self.conv(x)).mean([2, 3]))


@pytest.mark.parametrize("format, runtime", [
    ("pdmodel", "paddle"), ("pdmodel", "openvino"), ("onnx", "onnxruntime"), ("onnx", "openvino"),
    ("openvino", "openvino")])
def test_quantized_files_are_cut_at_float_tensors(format, runtime, tmp_path):
    paddle.seed(1)
    ptq = PTQ("AbsmaxQuantizer")
    model, x = ptq.quantize(Net()), np.float32(np.random.RandomState(1).randn(2, 3, 8, 8))
    ptq.calibrate(model, [x])
    ptq.save_quantized_model(model, str(tmp_path / "m"),
                             [paddle.static.InputSpec([None, 3, 8, 8], "float32", "x")],
                             format=format)
    (file,) = model_files(str(tmp_path / "m"))
    name, before, after = worst_operator(file, RUNTIMES[runtime], 1, [x])
    # Each part is right. Paddle Inference computes in float where int8 kernels saturate.
    assert name and 0.0 <= before <= after <= (
        1e-5 if has_vnni() or runtime != "paddle" else 2e-2)
