"""ONNX forms of operators that move elements, which paddle2onnx does not have."""

import numpy as np

from ..program.passes.ignored_parts import trace_offset
from .splice import exact_form

# Axis of images. OpenVINO 2026.4 moves a permutation along axis 1 into the weight of a convolution
# behind it, in the order of the inverse permutation; it does not recognize a negative axis.
_CHANNELS = -3


@exact_form("pixel_unshuffle")
def pixel_unshuffle(operator):
    """``SpaceToDepth`` has another order of channels."""
    x, size = operator.input("X"), operator.attribute("downscale_factor", 1)
    channels = operator.shape(x)[1]
    if channels < 1:
        return None

    def write(to):
        order = np.arange(size * size * channels).reshape(size * size, channels).T.reshape(-1)
        to.node("Gather", to.node("SpaceToDepth", x, blocksize=size), order, axis=_CHANNELS,
                output=operator.output())

    return write


@exact_form("channel_shuffle")
def channel_shuffle(operator):
    x, groups = operator.input("X"), operator.attribute("groups", 1)
    channels = operator.shape(x)[1]
    if channels < 1:
        return None
    order = np.arange(channels).reshape(groups, -1).T.reshape(-1)
    return lambda to: to.node("Gather", x, order, axis=_CHANNELS, output=operator.output())


def diagonal_of(operator):
    """Return a function that adds the diagonals as the last axis, None for dynamic sizes."""
    x, offset = operator.input("Input"), operator.attribute("offset", 0)
    shape = operator.shape(x)
    rank = len(shape)
    axes = [operator.attribute(name, default) % rank
            for name, default in (("axis1", 0), ("axis2", 1))]
    if operator.type == "trace":
        offset, *axes = trace_offset(operator.op, rank)
    rows, columns = (shape[axis] for axis in axes)
    if rows < 1 or columns < 1:
        return None
    index = np.arange(rows * columns).reshape(rows, columns).diagonal(offset)
    order = [axis for axis in range(rank) if axis not in axes] + axes

    def write(to, output=None):
        flat = to.node("Reshape", to.node("Transpose", x, perm=order),
                       np.array([0] * (rank - 2) + [-1]))
        return to.node("Gather", flat, index, axis=rank - 2, output=output)

    return write


@exact_form("diagonal")
def diagonal(operator):
    write = diagonal_of(operator)
    return write and (lambda to: write(to, operator.output()))


@exact_form("flip")
def flip(operator):
    """``Slice``: paddle2onnx needs the sizes of the axes."""
    x = operator.input("X")
    shape = operator.shape(x)
    axes = np.array([axis % len(shape) for axis in operator.attribute("axis", [])])
    if all(shape[axis] >= 0 for axis in axes):
        return None  # paddle2onnx converts it
    minus_one, no_end = np.full_like(axes, -1), np.full_like(axes, np.iinfo(np.int64).min)
    return lambda to: to.node("Slice", x, minus_one, no_end, axes, minus_one,
                              output=operator.output())


@exact_form("meshgrid")
def meshgrid(operator):
    names, ends = operator.inputs("X"), operator.outputs("Out")

    def write(to):
        shape = to.node("Concat", *[to.node("Shape", to.node("Reshape", name, np.array([-1])))
                                    for name in names], axis=0)
        for i, (name, end) in enumerate(zip(names, ends)):
            view = to.node("Reshape", name, np.array(
                [-1 if i == axis else 1 for axis in range(len(names))]))
            to.node("Expand", view, shape, output=end)

    return write


@exact_form("fold")
def fold(operator):
    """A transposed convolution whose weight is one for each place in a block."""
    x, output = operator.input("X"), operator.output("Y")
    sizes, blocks, strides, dilations, pads = (operator.attribute(name) for name in (
        "output_sizes", "kernel_sizes", "strides", "dilations", "paddings"))
    pads = pads if len(pads) == 4 else [*pads, *pads]
    channels = operator.shape(x)[1]
    if channels < 1 or min(sizes) < 1 or pads[:2] != pads[2:]:
        return None

    def write(to):
        area = blocks[0] * blocks[1]
        rest = [sizes[i] + pads[i] + pads[i + 2] - dilations[i] * (blocks[i] - 1) - 1
                for i in (0, 1)]
        counts = [rest[i] // strides[i] + 1 for i in (0, 1)]
        weight = np.tile(np.eye(area, dtype=np.float32), (channels // area, 1)).reshape(
            channels, 1, *blocks)
        to.node("ConvTranspose", to.node("Reshape", x, np.array([0, 0, *counts])), weight,
                output=output, group=channels // area, strides=strides, dilations=dilations,
                pads=pads, output_padding=[rest[i] % strides[i] for i in (0, 1)])

    return write


@exact_form("affine_grid")
def affine_grid(operator):
    """Multiply the places of the output, which are constant, by the matrices."""
    sizes = operator.attribute("output_shape") or []
    if operator.input("OutputShape"):
        value = operator.value(operator.input("OutputShape"))
        sizes = [] if value is None else value.tolist()
    corners = operator.attribute("align_corners", True)
    if len(sizes) not in (4, 5):
        return None
    spatial = [int(size) for size in sizes[2:]]
    axes = [np.linspace(-1, 1, size, dtype=np.float64) * (1 if corners else (size - 1) / size)
            for size in spatial]
    places = np.stack([*np.meshgrid(*axes, indexing="ij")[::-1], np.ones(spatial)], -1)

    def write(to):
        rank = len(spatial)
        matrix = to.node("Transpose", operator.input("Theta"), perm=[0, 2, 1])
        flat = to.node("MatMul", places.reshape(1, -1, rank + 1).astype(np.float32), matrix)
        to.node("Reshape", flat, np.array([-1, *spatial, rank]), output=operator.output("Output"))

    return write
