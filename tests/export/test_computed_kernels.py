"""Convolutions whose kernel the model computes, between quantized layers, in every runtime."""

import paddle
import paddle.nn.functional as F
import pytest
import runtimes
from paddle import nn

SIZE = [2, 3, 9, 8]
# Name -> (elements of the kernel, function of the data and these elements).
CASES = {
    "conv2d": (144, lambda x, k: F.conv2d(x, k.reshape([4, 4, 3, 3]), stride=2, padding=1)),
    "conv2d grouped, asymmetric, dilated": (72, lambda x, k: F.conv2d(
        x, k.reshape([4, 2, 3, 3]), padding=[0, 1, 2, 1], dilation=[1, 2], groups=2)),
    "conv2d depthwise": (36, lambda x, k: F.conv2d(
        x, k.reshape([4, 1, 3, 3]), padding="SAME", groups=4)),
    "conv2d scaled": (4, lambda x, k: F.conv2d(
        x, paddle.ones([4, 4, 3, 3]) * k.reshape([4, 1, 1, 1]))),
    "conv2d_transpose": (144, lambda x, k: F.conv2d_transpose(
        x, k.reshape([4, 4, 3, 3]), stride=2, padding=1, output_padding=1)),
    "conv2d_transpose depthwise": (36, lambda x, k: F.conv2d_transpose(
        x, k.reshape([4, 1, 3, 3]), stride=2, groups=4)),
}


class Dynamic(nn.Layer):
    """Two quantized convolutions around one whose kernel a quantized Linear computes."""

    def __init__(self, elements, convolve):
        super().__init__()
        self.first, self.last = nn.Conv2D(3, 4, 3, padding=1), nn.Conv2D(4, 4, 3)
        self.kernel, self.convolve = nn.Linear(4, elements), convolve

    def forward(self, x):
        x = self.first(x)
        return self.last(self.convolve(x, self.kernel(x.mean([2, 3])).mean(0)))


@pytest.mark.parametrize("name", CASES)
def test_computed_kernels_in_every_runtime(name, tmp_path):
    paddle.seed(4)
    runtimes.compare_every_file(Dynamic(*CASES[name]), paddle.randn(SIZE).numpy(),
                                str(tmp_path / "m"), refused=["pdmodel"])
