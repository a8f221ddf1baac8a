"""Pools, resampling, padding, normalization and detection for the test of operator conformance."""

from functools import partial

import paddle
import paddle.nn.functional as F
from operator_cases import ramp
from paddle.vision import ops


def one(x):
    """[2, 12, 63]."""
    return x.flatten(2)


def three(x):
    """[2, 4, 3, 9, 7]."""
    return x.reshape([2, 4, 3, 9, 7])


def last(x):
    """[2, 9, 7, 12]."""
    return x.transpose([0, 2, 3, 1])


def boxes(x):
    """[4, 4]: corners of regions."""
    first = F.sigmoid(x[0, 0, :4, :2]) * 3
    return paddle.concat([first, first + 2 + F.sigmoid(x[0, 1, :4, :2]) * 2], 1)


POOLS = {
    "max_pool1d": lambda x: F.max_pool1d(one(x), 3, 2, 1, ceil_mode=True),
    "max_pool2d": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool2d ceil": lambda x: F.max_pool2d(x, 2, 2, 0, ceil_mode=True),
    "max_pool2d SAME": lambda x: F.max_pool2d(x, 3, 2, "SAME"),
    "max_pool2d asymmetric": lambda x: F.max_pool2d(x, 3, 2, [0, 1, 1, 1]),
    "max_pool2d NHWC": lambda x: F.max_pool2d(last(x), 2, data_format="NHWC"),
    "max_pool2d mask": lambda x: F.max_pool2d(x, 2, return_mask=True),
    "max_pool3d": lambda x: F.max_pool3d(three(x), [2, 3, 2], 2, [0, 1, 1]),
    "avg_pool1d": lambda x: F.avg_pool1d(one(x), 4, 3, 1),
    "avg_pool1d inclusive": lambda x: F.avg_pool1d(one(x), 4, 3, 1, exclusive=False),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "avg_pool2d inclusive ceil": lambda x: F.avg_pool2d(x, 3, 2, 1, exclusive=False,
                                                        ceil_mode=True),
    "avg_pool2d ceil": lambda x: F.avg_pool2d(x, 2, 2, 0, ceil_mode=True),
    "avg_pool2d asymmetric": lambda x: F.avg_pool2d(x, 3, 2, [0, 1, 1, 2]),
    "avg_pool2d divisor": lambda x: F.avg_pool2d(x, 3, 2, divisor_override=5),
    "avg_pool3d": lambda x: F.avg_pool3d(three(x), [2, 3, 2], 2, [0, 1, 1]),
    "adaptive_avg_pool1d": lambda x: F.adaptive_avg_pool1d(one(x), 10),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, [4, 3]),
    "adaptive_avg_pool2d larger": lambda x: F.adaptive_avg_pool2d(x, [13, 10]),
    "adaptive_avg_pool2d 1": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive_avg_pool2d one axis": lambda x: F.adaptive_avg_pool2d(x, [1, 7]),
    "adaptive_avg_pool3d": lambda x: F.adaptive_avg_pool3d(three(x), [2, 4, 3]),
    "adaptive_max_pool1d": lambda x: F.adaptive_max_pool1d(one(x), 10),
    "adaptive_max_pool2d": lambda x: F.adaptive_max_pool2d(x, [4, 3]),
    "adaptive_max_pool3d": lambda x: F.adaptive_max_pool3d(three(x), [2, 4, 3]),
    "lp_pool1d": lambda x: F.lp_pool1d(one(x), 3.0, 3, 2),
    "lp_pool2d": lambda x: F.lp_pool2d(x, 2.0, [2, 3], 2),
    "max_unpool1d": lambda x: F.max_unpool1d(*F.max_pool1d(one(x), 3, return_mask=True), 3),
    "max_unpool2d": lambda x: F.max_unpool2d(
        *F.max_pool2d(x, 2, return_mask=True), 2, output_size=[2, 12, 9, 7]),
    "max_unpool3d": lambda x: F.max_unpool3d(
        *F.max_pool3d(three(x), [1, 3, 1], return_mask=True), [1, 3, 1]),
}

_RESIZED = {"nearest": (lambda x: x, (13, 10)), "bilinear": (lambda x: x, (13, 10)),
            "bicubic": (lambda x: x, (13, 10)), "linear": (one, (40,)),
            "trilinear": (three, (4, 13, 10)), "area": (lambda x: x, (4, 3))}


def _resize(view, options, x):
    seen = view(x)
    return F.interpolate(seen, **options, data_format={3: "NCW", 4: "NCHW", 5: "NCDHW"}[seen.ndim])


RESAMPLING = {
    **{f"interpolate {mode}": partial(_resize, view, {"size": size, "mode": mode})
       for mode, (view, size) in _RESIZED.items()},
    **{f"interpolate {mode} scale 1.7": partial(_resize, view, {"scale_factor": 1.7, "mode": mode})
       for mode, (view, _) in _RESIZED.items() if mode != "area"},
    **{f"interpolate {mode} scale 2": partial(_resize, view, {"scale_factor": 2, "mode": mode})
       for mode, (view, _) in _RESIZED.items() if mode != "area"},
    **{f"interpolate {mode} align_corners": partial(_resize, view, {
        "size": size, "mode": mode, "align_corners": True})
       for mode, (view, size) in _RESIZED.items() if mode not in ("area", "nearest")},
    **{f"interpolate {mode} align_mode 1": partial(_resize, view, {
        "size": size, "mode": mode, "align_mode": 1})
       for mode, (view, size) in _RESIZED.items() if mode.endswith("linear")},
    "interpolate nearest smaller": lambda x: F.interpolate(x, [4, 3]),
    "interpolate bilinear smaller": lambda x: F.interpolate(x, [4, 3], mode="bilinear"),
    "interpolate nearest 3-D": lambda x: F.interpolate(three(x), [4, 13, 10], data_format="NCDHW"),
    "interpolate bilinear NHWC": lambda x: F.interpolate(last(x), [13, 10], mode="bilinear",
                                                         data_format="NHWC"),
    "upsample bilinear": lambda x: F.upsample(x, [13, 10], mode="bilinear"),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "pixel_shuffle NHWC": lambda x: F.pixel_shuffle(last(x), 2, "NHWC"),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x[:, :, :, :6], 3),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 3),
    "channel_shuffle NHWC": lambda x: F.channel_shuffle(last(x), 4, "NHWC"),
    "unfold": lambda x: F.unfold(x, [3, 2], [2, 1], [1, 0], [1, 2]),
    "unfold asymmetric": lambda x: F.unfold(x, 3, 2, [1, 0, 2, 1]),
    "fold": lambda x: F.fold(x[:, :, :, :6].flatten(2), [10, 7], [2, 2]),
    "fold strides": lambda x: F.fold(x[:, :, :4, :3].flatten(2), [8, 6], [3, 2], 2, [1, 0]),
    "grid_sample": lambda x: F.grid_sample(x, ramp(2, 5, 4, 2)),
    "grid_sample corners": lambda x: F.grid_sample(x, ramp(2, 5, 4, 2) * 1.3, "bilinear", "border",
                                                   align_corners=False),
    "grid_sample nearest": lambda x: F.grid_sample(x, ramp(2, 5, 4, 2) * 1.31, "nearest", "zeros",
                                                   align_corners=False),
    "grid_sample reflection": lambda x: F.grid_sample(x, ramp(2, 5, 4, 2) * 1.3, "bilinear",
                                                      "reflection", align_corners=False),
    "affine_grid": lambda x: F.affine_grid(x[:, 0, :2, :3], [2, 3, 5, 4], align_corners=False),
    "affine_grid corners": lambda x: F.affine_grid(x[:, 0, :2, :3], [2, 3, 5, 4]),
    "temporal_shift": lambda x: F.temporal_shift(x, 2, 0.25),
    "pad constant": lambda x: F.pad(x, [1, 2, 0, 3], value=0.7),
    "pad all axes": lambda x: F.pad(x, [0, 1, 2, 0, 1, 2, 0, 3], value=0.7),
    "pad channels": lambda x: F.pad(x, [0, 0, 1, 2, 0, 0, 0, 0]),
    "pad reflect": lambda x: F.pad(x, [1, 2, 0, 3], "reflect"),
    "pad replicate": lambda x: F.pad(x, [1, 2, 0, 3], "replicate"),
    "pad circular": lambda x: F.pad(x, [1, 2, 0, 3], "circular"),
    "pad 1-D reflect": lambda x: F.pad(one(x), [3, 1], "reflect", data_format="NCL"),
    "pad 1-D circular": lambda x: F.pad(one(x), [3, 1], "circular", data_format="NCL"),
    "pad 3-D replicate": lambda x: F.pad(three(x), [1, 2, 0, 3, 1, 0], "replicate",
                                         data_format="NCDHW"),
    "pad 3-D circular": lambda x: F.pad(three(x), [1, 2, 0, 3, 1, 0], "circular",
                                        data_format="NCDHW"),
    "pad NHWC": lambda x: F.pad(last(x), [1, 2, 0, 3], "reflect", data_format="NHWC"),
    "zeropad2d": lambda x: F.zeropad2d(x, [1, 0, 2, 3]),
}

NORMS = {
    "batch_norm": lambda x: F.batch_norm(x, ramp(12), ramp(12) + 2, ramp(12), ramp(12) * 2),
    "batch_norm NHWC": lambda x: F.batch_norm(last(x), ramp(12), ramp(12) + 2, ramp(12),
                                              ramp(12) * 2, data_format="NHWC"),
    "batch_norm 1-D": lambda x: F.batch_norm(one(x), ramp(12), ramp(12) + 2, ramp(12), ramp(12),
                                             data_format="NCL"),
    "layer_norm": lambda x: F.layer_norm(x, [9, 7], ramp(63), ramp(63), 1e-3),
    "layer_norm without weights": lambda x: F.layer_norm(x, [7]),
    "instance_norm": lambda x: F.instance_norm(x, weight=ramp(12), bias=ramp(12), eps=1e-3),
    "instance_norm 3-D": lambda x: F.instance_norm(three(x), weight=ramp(4), bias=ramp(4)),
    "group_norm": lambda x: F.group_norm(x, 3, 1e-3, ramp(12), ramp(12)),
    "local_response_norm": lambda x: F.local_response_norm(x, 3, 1e-2, 0.6, 1.3),
}

WEIGHTED = {
    "conv1d": lambda x: F.conv1d(one(x), ramp(6, 4, 3), ramp(6), 2, 1, 2, 3),
    "conv2d SAME": lambda x: F.conv2d(x, ramp(6, 12, 3, 2), ramp(6), 2, "SAME"),
    "conv2d asymmetric": lambda x: F.conv2d(x, ramp(6, 12, 3, 2), None, 2, [0, 1, 2, 1], 2),
    "conv2d depthwise": lambda x: F.conv2d(x, ramp(24, 1, 3, 3), ramp(24), 1, 1, 1, 12),
    "conv2d NHWC": lambda x: F.conv2d(last(x), ramp(6, 12, 3, 2), ramp(6), 2, 1,
                                      data_format="NHWC"),
    "conv3d": lambda x: F.conv3d(three(x), ramp(6, 2, 2, 3, 3), ramp(6), 2, 1, 1, 2),
    "conv1d_transpose": lambda x: F.conv1d_transpose(one(x), ramp(12, 2, 3), ramp(6), 2, 1, 1, 3),
    "conv2d_transpose": lambda x: F.conv2d_transpose(x, ramp(12, 3, 3, 2), ramp(6), 2, 1, 1,
                                                     1, 2),
    "conv2d_transpose size": lambda x: F.conv2d_transpose(x, ramp(12, 6, 3, 3), None, 2,
                                                          output_size=[20, 16]),
    "conv3d_transpose": lambda x: F.conv3d_transpose(three(x), ramp(4, 3, 2, 2, 2), ramp(3), 2),
    "linear": lambda x: F.linear(x, ramp(7, 5), ramp(5)),
}

DETECTION = {
    "roi_align": lambda x: ops.roi_align(x, boxes(x), paddle.to_tensor([1, 3], "int32"), (2, 3),
                                         0.8, 2, False),
    "roi_align aligned": lambda x: ops.roi_align(x, boxes(x), paddle.to_tensor([1, 3], "int32"), 2),
    "roi_pool": lambda x: ops.roi_pool(x, boxes(x), paddle.to_tensor([1, 3], "int32"), (2, 3)),
    "psroi_pool": lambda x: ops.psroi_pool(x, boxes(x), paddle.to_tensor([1, 3], "int32"), (2, 3)),
    "deform_conv2d": lambda x: ops.deform_conv2d(
        x, ramp(2, 8, 8, 6), ramp(3, 12, 2, 2), mask=ramp(2, 4, 8, 6)),
    "box_coder": lambda x: ops.box_coder(
        boxes(x), [0.1, 0.1, 0.2, 0.2], boxes(x) + 0.5, "encode_center_size"),
    "prior_box": lambda x: ops.prior_box(x, paddle.zeros([2, 3, 90, 70]), [2.0], [5.0], [2.0]),
    "yolo_box": lambda x: ops.yolo_box(
        x, paddle.to_tensor([[90, 70], [80, 60]], "int32"), [10, 13, 16, 30], 1, 0.1, 8),
    "nms": lambda x: ops.nms(boxes(x), 0.3, x[0, 0, 0, :4]),
}

TABLES = (POOLS, RESAMPLING, NORMS, WEIGHTED, DETECTION)
