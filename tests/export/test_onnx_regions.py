"""Pools of regions, deformable convolutions and prior boxes in ONNX."""

import numpy as np
import paddle
import pytest
from onnx_exports import normal, written_equals_model
from runtimes import onnxruntime, openvino

ops = paddle.vision.ops


@pytest.fixture(autouse=True)
def _seeded():
    np.random.seed(3)
    paddle.seed(3)


def boxes(*shape, size=5):
    corners = np.random.rand(*shape, 4).astype(np.float32) * size
    corners[..., 2:] += corners[..., :2] + 0.5
    return corners


def counts(*numbers):
    return np.array(numbers, np.int32)


class Held(paddle.nn.Layer):
    """A parameter."""

    def __init__(self, value):
        super().__init__()
        self.value = self.create_parameter(
            value.shape, default_initializer=paddle.nn.initializer.Assign(value))


def same_in_openvino(folder, arrays, tolerance=2e-5, share=0.0):
    """Compare OpenVINO with ONNX Runtime; a ``share`` of the values may be at the next pixel."""
    names = [f"x{number}" for number in range(len(arrays))]
    found = openvino(folder / "m", dict(zip(names, arrays)), ending="onnx")
    for a, b in zip(found, onnxruntime(folder / "m", arrays)):
        assert a.shape == b.shape
        assert (np.abs(a - b) > tolerance * max(1, np.abs(b).max())).mean() <= share


POOLS = {
    "one image": ((1, 3, 9, 8), (6,), (2, 3), {}),
    "scale": ((2, 3, 9, 8), (2, 4), 3, {"spatial_scale": 0.7}),
    "image without regions": ((3, 2, 9, 8), (2, 0, 4), (4, 2), {}),
    "outside": ((2, 3, 4, 5), (3, 3), (2, 2), {"spatial_scale": 1.5}),
    "larger than the region": ((2, 2, 9, 8), (1, 3), (8, 4), {"spatial_scale": 0.5}),
}


@pytest.mark.parametrize("case", POOLS)
def test_maximum_of_regions(case, tmp_path):
    shape, numbers, size, options = POOLS[case]
    arrays = [normal(*shape), boxes(sum(numbers)), counts(*numbers)]
    written_equals_model(lambda x, corners, numbers: ops.roi_pool(x * 1, corners, numbers, size,
                                                                  **options),
                         arrays, tmp_path, dynamic=())


@pytest.mark.skipif(paddle.__version__ < "3", reason="its kernel ends the process of Paddle 2.6")
@pytest.mark.parametrize("case", POOLS)
def test_mean_of_regions_by_channels(case, tmp_path):
    (batch, channels, *sides), numbers, size, options = POOLS[case]
    height, width = size if isinstance(size, tuple) else (size, size)
    arrays = [normal(batch, channels * height * width, *sides), boxes(sum(numbers)),
              counts(*numbers)]
    written_equals_model(lambda x, corners, numbers: ops.psroi_pool(x * 1, corners, numbers, size,
                                                                    **options),
                         arrays, tmp_path, dynamic=())
    same_in_openvino(tmp_path, arrays, share=0.03)


CONVOLUTIONS = {  # filters, channels, groups, parts, kernel, mask, options
    "mask": (6, 4, 1, 1, (3, 3), True, {}),
    "without mask": (6, 4, 1, 1, (3, 2), False, {}),
    "parts": (6, 4, 1, 2, (3, 3), True, {"padding": 1}),
    "groups": (6, 4, 2, 1, (3, 3), True, {"padding": [1, 2]}),
    "groups and parts": (4, 8, 4, 2, (2, 3), True, {"stride": [2, 1], "padding": [0, 1]}),
    "dilation": (3, 2, 1, 1, (3, 3), False, {"dilation": [2, 1], "padding": 2, "stride": 2}),
}


@pytest.mark.parametrize("case, dynamic", [
    *((case, ()) for case in CONVOLUTIONS), ("groups and parts", (0, 2, 3)),
    *(pytest.param(case, (0, 2, 3), marks=pytest.mark.nightly) for case in CONVOLUTIONS)])
def test_deformable_convolution(case, dynamic, tmp_path):
    filters, channels, groups, parts, kernel, with_mask, options = CONVOLUTIONS[case]
    held = Held(normal(filters, channels // groups, *kernel))
    x, taps = normal(2, channels, 9, 8), parts * kernel[0] * kernel[1]

    def convolved(x, offset, mask=None, held=None):
        return ops.deform_conv2d(x * 1, offset, held.value, mask=mask, deformable_groups=parts,
                                 groups=groups, **options)

    plain = paddle.nn.functional.conv2d(
        paddle.to_tensor(x), held.value, groups=groups,
        **{"padding": 0, **options})
    sides = plain.shape[2:]
    arrays = [x, 3 * normal(2, 2 * taps, *sides)]
    if with_mask:
        arrays.append(np.random.rand(2, taps, *sides).astype(np.float32))
    written_equals_model(convolved, arrays, tmp_path, dynamic=dynamic, tolerance=1e-5,
                         held=held)
    same_in_openvino(tmp_path, arrays)


VARIANCES = [0.1, 0.1, 0.2, 0.2]
CODERS = {
    "encode": ("encode_center_size", VARIANCES, (7,), {}),
    "encode pixels": ("encode_center_size", VARIANCES, (7,), {"box_normalized": False}),
    "encode by tensor": ("encode_center_size", None, (7,), {}),
    "decode": ("decode_center_size", VARIANCES, (7, 5), {}),
    "decode rows": ("decode_center_size", VARIANCES, (5, 7), {"axis": 1}),
    "decode pixels": ("decode_center_size", VARIANCES, (7, 5), {"box_normalized": False}),
    "decode by tensor": ("decode_center_size", None, (7, 5), {}),
    "decode rows by tensor": ("decode_center_size", None, (5, 7), {"axis": 1}),
}


@pytest.mark.parametrize("case", CODERS)
def test_differences_from_prior_boxes(case, tmp_path):
    kind, variance, shape, options = CODERS[case]
    priors = boxes(5)
    targets = boxes(*shape) if kind.startswith("encode") else 0.3 * normal(*shape, 4)
    arrays = [priors, targets]
    if variance is None:
        arrays.append(np.random.rand(5, 4).astype(np.float32) + 0.1)
    written_equals_model(
        lambda x, y, given=variance: ops.box_coder(x * 1, given, y * 1, kind, **options),
        arrays, tmp_path, dynamic=(), tolerance=1e-5)
    same_in_openvino(tmp_path, arrays)


PRIORS = {
    "one": {"min_sizes": [8.0]},
    "flip": {"min_sizes": [8.0], "aspect_ratios": [2.0, 3.0], "flip": True},
    "largest": {"min_sizes": [8.0, 20.0], "max_sizes": [12.0, 30.0], "aspect_ratios": [1.0, 2.0]},
    "order": {"min_sizes": [8.0, 20.0], "max_sizes": [12.0, 30.0], "aspect_ratios": [2.0],
                  "min_max_aspect_ratios_order": True, "flip": True},
    "clip": {"min_sizes": [40.0], "clip": True, "offset": 0.3},
    "steps": {"min_sizes": [8.0], "steps": [7.0, 9.0], "variance": [0.1, 0.2, 0.3, 0.4]},
}


@pytest.mark.parametrize("dynamic", [(), (0, 2, 3)], ids=str)
@pytest.mark.parametrize("case", PRIORS)
def test_prior_boxes(case, dynamic, tmp_path):
    arrays = [normal(2, 3, 5, 4), normal(2, 3, 45, 37)]
    written_equals_model(lambda x, image: list(ops.prior_box(x * 1, image * 1, **PRIORS[case])),
                         arrays, tmp_path, dynamic=dynamic)
    same_in_openvino(tmp_path, arrays)
