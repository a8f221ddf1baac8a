"""Paddle 3.2 and later trace not every model into the .pdmodel format. Those that can be traced are
exported; the others get an error that says so. Collected there only (.ci/run runs Paddle 3.3.1).
"""

import numpy as np
import paddle
from nets import warmed
from paddle import nn
from paddle.vision import models
from runtimes import paddle_inference, relative_error

import paddleq

NEW = tuple(int(part) for part in paddle.__version__.split(".")[:2]) >= (3, 2)

if NEW:
    import pytest

    def exported(net, x, path):
        ptq = paddleq.PTQ("AbsmaxQuantizer")
        quantized = ptq.quantize(warmed(net, x), fuse=True)
        ptq.calibrate(quantized, [x])
        ptq.save_quantized_model(quantized, path)
        return relative_error(paddle_inference(path, [x.numpy()])[0], quantized(x).numpy())

    @pytest.mark.parametrize("make", [models.LeNet, models.mobilenet_v1])
    def test_models_that_can_be_written_are(make, tmp_path):
        shape = [2, 1, 28, 28] if make is models.LeNet else [2, 3, 64, 64]
        assert exported(make(), paddle.randn(shape), str(tmp_path / "m")) < 1e-6

    class Scores(nn.Layer):
        def __init__(self):
            super().__init__()
            self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return paddle.matmul(self.q(x), self.k(x), transpose_y=True)

    def test_models_that_cannot_be_written_get_a_typed_error(tmp_path):
        x = paddle.randn([2, 5, 8])
        ptq = paddleq.PTQ("AbsmaxQuantizer")
        net = ptq.quantize(Scores())
        ptq.calibrate(net, [x])
        expected = net(x).numpy()
        with pytest.raises(paddleq.errors.TraceError, match="moved to C\\+\\+ cannot be traced"):
            ptq.save_quantized_model(net, str(tmp_path / "m"))
        assert list(tmp_path.iterdir()) == []
        assert paddle.in_dynamic_mode()
        np.testing.assert_array_equal(net(x).numpy(), expected)  # and it is usable as before
