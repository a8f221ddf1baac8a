"""ONNX forms of pools of regions of an image, and of convolutions at computed places."""

import numpy as np

from .splice import exact_form

_FLOAT, _INT64 = 1, 7  # onnx.TensorProto.DataType


def _images(to, rois, counts):
    """Return the image of each region, from the number of regions of each image."""
    index = to.node("Range", np.array(0), _size(to, rois, 0), np.array(1))
    ends = to.node("CumSum", to.node("Cast", counts, to=_INT64), np.array(0))
    behind = to.node("GreaterOrEqual", to.node("Unsqueeze", index, np.array([1])), ends)
    return to.node("ReduceSum", to.node("Cast", behind, to=_INT64), np.array([1]), keepdims=0)


def _size(to, name, axis):
    return to.node("Gather", to.node("Shape", name), np.array(axis))


@exact_form("roi_align")
def roi_align(operator):
    """Pool of regions; paddle2onnx ignores ``aligned`` and writes an invalid sampling ratio."""
    rois, counts = operator.input("ROIs"), operator.input("RoisNum")
    if counts is None:
        return None

    def write(to):
        aligned = bool(operator.attribute("aligned", False))
        if aligned:
            to.require_opset(16, "roi_align with aligned=True")
        modes = {} if to.opset < 16 else {
            "coordinate_transformation_mode": "half_pixel" if aligned else "output_half_pixel"}
        to.node("RoiAlign", operator.input("X"), rois, _images(to, rois, counts),
                output=operator.output(),
                output_height=operator.attribute("pooled_height", 1),
                output_width=operator.attribute("pooled_width", 1), mode="avg",
                spatial_scale=float(operator.attribute("spatial_scale", 1.0)),
                sampling_ratio=max(operator.attribute("sampling_ratio", -1), 0), **modes)

    return write


@exact_form("roi_pool")
def roi_pool(operator):
    """Maximum of each part of a region."""
    rois, counts = operator.input("ROIs"), operator.input("RoisNum")
    if counts is None or operator.used(operator.output("Argmax")):
        return None

    def write(to):
        image = to.node("Cast", _images(to, rois, counts), to=_FLOAT)
        rows = to.node("Concat", to.node("Unsqueeze", image, np.array([1])), rois, axis=1)
        to.node("MaxRoiPool", operator.input("X"), rows, output=operator.output(),
                pooled_shape=[operator.attribute(f"pooled_{side}", 1)
                              for side in ("height", "width")],
                spatial_scale=float(operator.attribute("spatial_scale", 1.0)))

    return write


@exact_form("psroi_pool")
def position_sensitive_pool(operator):
    """Mean of each part of a region, from the channels of that part.

    Products of the image with a table of the pixels of each part add them up.
    """
    x, rois, counts = (operator.input(slot) for slot in ("X", "ROIs", "RoisNum"))
    sizes = [operator.attribute(f"pooled_{side}", 1) for side in ("height", "width")]
    channels, parts = operator.attribute("output_channels", 1), sizes[0] * sizes[1]
    if counts is None:
        return None

    def write(to):
        corners = _rounded(to, rois)
        rows, columns = (_members(to, operator, corners, axis, size, _size(to, x, 3 - axis))
                         for axis, size in ((1, sizes[0]), (0, sizes[1])))
        inside = to.node("Mul", to.node("Unsqueeze", rows, np.array([2, 4])),
                         to.node("Unsqueeze", columns, np.array([1, 3])))
        inside = to.node("Reshape", inside, np.array([0, parts, -1]))  # region, part, pixel
        pixels = to.node("Transpose", to.node(
            "Reshape", x, np.array([0, channels, parts, -1])), perm=[0, 2, 3, 1])
        sums = to.node("MatMul", to.node("Transpose", inside, perm=[1, 0, 2]), pixels)
        sums = to.node("Transpose", sums, perm=[2, 0, 3, 1])  # region, image, channel, part
        own = to.node("GatherND", sums, to.node("Unsqueeze", _images(to, rois, counts),
                                                np.array([1])), batch_dims=1)
        area = to.node("ReduceSum", inside, np.array([2]), keepdims=0)
        area = to.node("Unsqueeze", to.node("Max", area, np.float32(1)), np.array([1]))
        to.node("Reshape", to.node("Div", own, area), np.array([0, channels, *sizes]),
                output=operator.output())

    return write


def _rounded(to, x):
    """Round half away from zero; ``Round`` rounds half to even."""
    size = to.node("Abs", x)
    whole = to.node("Floor", size)
    up = to.node("GreaterOrEqual", to.node("Sub", size, whole), np.float32(0.5))
    return to.node("Mul", to.node("Sign", x), to.node("Add", whole, to.node(
        "Cast", up, to=_FLOAT)))


def _members(to, operator, corners, axis, parts, extent):
    """Return 1 for each (region, part, pixel) where the pixel is in the part, along one axis."""
    scale = np.float32(operator.attribute("spatial_scale", 1.0))
    start = to.node("Mul", to.node("Gather", corners, np.array([axis]), axis=1), scale)
    end = to.node("Gather", corners, np.array([axis + 2]), axis=1)
    end = to.node("Mul", to.node("Add", end, np.float32(1)), scale)
    length = to.node("Max", to.node("Sub", end, start), np.float32(0.1))
    step = to.node("Div", length, np.float32(parts))
    borders = [to.node("Unsqueeze", to.node(kind, to.node("Add", to.node(
        "Mul", step, np.arange(first, first + parts, dtype=np.float32)), start)), np.array([2]))
        for kind, first in (("Floor", 0), ("Ceil", 1))]
    pixels = to.node("Cast", to.node("Range", np.array(0), extent, np.array(1)), to=_FLOAT)
    return to.node("Cast", to.node("And", to.node("GreaterOrEqual", pixels, borders[0]),
                                   to.node("Less", pixels, borders[1])), to=_FLOAT)


@exact_form("deformable_conv", "deformable_conv_v1")
def deformable_convolution(operator):
    """Interpolation at the place of each weight, and a product with the weights.

    ``DeformConv``, from opset 19 on, is the same operator; few runtimes have it.
    """
    x, offset, mask, weight = (operator.input(slot) for slot in (
        "Input", "Offset", "Mask", "Filter"))
    filters, _, *kernel = operator.shape(weight)
    channels, parts = operator.shape(x)[1], operator.attribute("deformable_groups", 1)
    groups, taps = operator.attribute("groups", 1), kernel[0] * kernel[1]
    if channels < 1:
        return None

    def write(to):
        height, width = (to.node("Gather", to.node("Shape", offset), np.array(axis))
                         for axis in (2, 3))
        moves = to.node("Reshape", offset, np.array([0, parts, taps, 2, -1]))
        index = to.node("Range", np.array(0), to.node("Mul", height, width), np.array(1))
        bases = to.node("Div", index, width), to.node("Mod", index, width)
        places = [_places(to, operator, to.node("Gather", moves, np.array(axis), axis=3),
                          bases[axis], kernel, axis) for axis in (0, 1)]
        columns = _interpolated(to, x, places, parts, channels // parts)
        if mask is not None:
            columns = to.node("Mul", columns, to.node(
                "Reshape", mask, np.array([0, parts, -1, 1])))
        columns = to.node("Reshape", columns, np.array([0, 0, taps, -1, channels // parts]))
        columns = to.node("Reshape", to.node("Transpose", columns, perm=[0, 1, 4, 2, 3]),
                          np.array([0, groups, channels // groups * taps, -1]))
        found = to.node("MatMul", to.node("Reshape", weight, np.array(
            [groups, filters // groups, -1])), columns)
        size = to.node("Slice", to.node("Shape", offset), np.array([2]), np.array([4]))
        batch = to.node("Concat", np.array([0, filters]), size, axis=0)
        to.node("Reshape", found, batch, output=operator.output("Output"))

    return write


def _places(to, operator, moves, base, kernel, axis):
    """Return the coordinates (image, part, place of a weight) of one axis of the input."""
    stride, pad, dilation = (operator.attribute(name)[axis]
                             for name in ("strides", "paddings", "dilations"))
    inner = np.indices(kernel)[axis].reshape(-1, 1) * dilation - pad
    base = to.node("Add", to.node("Mul", base, np.array(stride)), inner)
    coordinates = to.node("Add", moves, to.node("Cast", base, to=_FLOAT))
    return to.node("Reshape", coordinates, np.array([0, 0, -1]))


def _interpolated(to, x, places, parts, channels):
    """Return the values (image, part, place, channel) at coordinates, 0 outside of the image."""
    sides = []
    for axis, place in enumerate(places):
        first = to.node("Floor", place)
        share = to.node("Sub", place, first)
        size = _size(to, x, 2 + axis)
        last = to.node("Cast", to.node("Sub", size, np.array(1)), to=_FLOAT)
        ends = []
        for pixel, part in ((first, to.node("Sub", np.float32(1), share)),
                            (to.node("Add", first, np.float32(1)), share)):
            inside = to.node("Max", to.node("Min", pixel, last), np.float32(0))
            valid = to.node("Cast", to.node("Equal", inside, pixel), to=_FLOAT)
            ends.append((to.node("Cast", inside, to=_INT64), to.node("Mul", part, valid)))
        sides.append((size, ends))
    pixels = to.node("Transpose", to.node("Reshape", x, np.array(
        [0, parts, channels, -1])), perm=[0, 1, 3, 2])
    corners = []
    for row, row_share in sides[0][1]:
        for column, column_share in sides[1][1]:
            index = to.node("Add", to.node("Mul", row, sides[1][0]), column)
            values = to.node("GatherND", pixels, to.node("Unsqueeze", index, np.array([3])),
                             batch_dims=2)
            share = to.node("Unsqueeze", to.node("Mul", row_share, column_share), np.array([3]))
            corners.append(to.node("Mul", values, share))
    return to.node("Sum", *corners)
