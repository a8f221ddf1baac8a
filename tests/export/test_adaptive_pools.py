"""Adaptive pools over one whole axis, whose other axis keeps several values."""

import numpy as np
import paddle
import pytest
from paddle import nn
from runtimes import int8_ptq, openvino, paddle_inference, relative_error

# (pool, shape of the input)
POOLS = {
    "height, width kept": (nn.AdaptiveAvgPool2D([1, 12]), [6, 12]),
    "width, height kept": (nn.AdaptiveAvgPool2D([None, 1]), [6, 12]),
    "height, width halved": (nn.AdaptiveMaxPool2D([1, 6]), [5, 12]),
    "height, width not divided": (nn.AdaptiveAvgPool2D([1, 5]), [6, 12]),
    "width, height not divided": (nn.AdaptiveMaxPool2D([4, 1]), [6, 12]),
    "open sizes": (nn.AdaptiveAvgPool2D([1, 5]), [None, None]),
    "1-D": (nn.AdaptiveAvgPool1D(4), [12]),
    "1-D not divided": (nn.AdaptiveMaxPool1D(5), [12]),
    "both axes": (nn.AdaptiveAvgPool2D(1), [6, 12]),
}


@pytest.mark.parametrize("name", POOLS)
def test_runtimes_pool_over_one_axis(name, tmp_path):
    pool, sizes = POOLS[name]
    net = nn.Sequential(nn.Conv1D(3, 8, 3) if len(sizes) == 1 else nn.Conv2D(3, 8, 1), pool)
    net.eval()
    x = paddle.randn([2, 3, *(size or 7 + i for i, size in enumerate(sizes))])
    if len(sizes) == 1:
        x = paddle.randn([2, 3, 14])  # 12 behind the convolution
    ptq = int8_ptq()
    quantized = ptq.quantize(net, quantizable_layer_type=["Conv1D", "Conv2D"])
    ptq.calibrate(quantized, [x])
    shape = [None, 3, *([14] if len(sizes) == 1 else sizes)]
    path = str(tmp_path / "m")
    ptq.save_quantized_model(quantized, path, [paddle.static.InputSpec(shape, "float32", "x")])
    expected = quantized(x).numpy()
    np.testing.assert_array_equal(paddle_inference(path, [x.numpy()])[0], expected)
    for found in (openvino(path, [x.numpy()])[0],
                  paddle_inference(path, [x.numpy()], ir_optim=True, int8=True)[0]):
        assert found.shape == expected.shape
        assert relative_error(found, expected) <= 1e-5
