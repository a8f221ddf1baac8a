"""Average pools that count paddings, with windows of which Paddle counts a part."""

import paddle
import paddle.nn.functional as F
import pytest
import runtimes
from paddle import nn

# Name -> (shape of the data, pool).
POOLS = {
    "2d": ([2, 3, 2, 3], lambda x: F.avg_pool2d(x, 3, 2, 1, exclusive=False, ceil_mode=True)),
    "2d, asymmetric": ([2, 3, 8, 8], lambda x: F.avg_pool2d(
        x, 3, 2, [0, 1, 1, 1], exclusive=False, ceil_mode=True)),
    "2d, no padding": ([2, 3, 6, 8], lambda x: F.avg_pool2d(
        x, 3, 2, 0, exclusive=False, ceil_mode=True)),
    "2d, asymmetric, floor": ([2, 3, 6, 8], lambda x: F.avg_pool2d(
        x, 3, 2, [0, 1, 1, 2], exclusive=False)),
    "2d, channels last": ([2, 3, 4, 6], lambda x: F.avg_pool2d(
        x.transpose([0, 2, 3, 1]), 3, 2, 1, exclusive=False, ceil_mode=True,
        data_format="NHWC").transpose([0, 3, 1, 2])),
    "1d": ([2, 3, 2, 4], lambda x: F.avg_pool1d(
        x.flatten(2), 3, 2, 1, exclusive=False, ceil_mode=True).unsqueeze(2)),
    "3d": ([2, 3, 4, 6], lambda x: F.avg_pool3d(
        x.unsqueeze(2), 3, 2, 1, exclusive=False, ceil_mode=True).squeeze(2)),
}


class Pooled(nn.Layer):
    """A pool between two convolutions."""

    def __init__(self, pool):
        super().__init__()
        self.first, self.last, self.pool = nn.Conv2D(3, 4, 1), nn.Conv2D(4, 2, 1), pool

    def forward(self, x):
        return self.last(self.pool(self.first(x)))


@pytest.mark.parametrize("open_sizes", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", POOLS)
def test_inclusive_pools_in_every_runtime(name, open_sizes, tmp_path):
    shape, pool = POOLS[name]
    if open_sizes and name in ("2d, channels last", "2d, asymmetric"):  # sizes of images are needed
        shape = [-1, *shape[1:]]
    paddle.seed(5)
    sizes = [-1, 3, -1, -1] if open_sizes and shape[0] > 0 else shape
    runtimes.compare_every_file(Pooled(pool), paddle.randn([2, *shape[1:]]).numpy(),
                                str(tmp_path / "m"), sizes)
