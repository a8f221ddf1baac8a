"""Nearest interpolation by a ratio for which runtimes select other elements than Paddle.

oneDNN, which Paddle Inference uses, and OpenVINO's Paddle frontend take the nearest center of an
element; Paddle takes ``floor(position * input / output)``. Both are equal only where the size is
multiplied by a whole number. A gather along each axis selects the elements in every runtime.
"""

import numpy as np

from ..op_builder import FLOAT32, INT32
from ..op_desc import attribute, inputs, make_op, outputs, replace_ops, shape_of

_TYPES = ("nearest_interp_v2", "nearest_interp")
_SIZES = ("out_d", "out_h", "out_w")


def gather_nearest(builder, block):
    """Replace nearest interpolation by a ratio that may not be a whole number, in place."""
    if any(op.type in _TYPES for op in block.ops):
        replace_ops(block, [new for op in block.ops for new in (
            _Gathers(builder, block, op).ops if op.type in _TYPES else [op])])


class _Gathers:
    """Operators that replace one nearest interpolation: itself if its ratio is a whole number."""

    def __init__(self, builder, block, op):
        self._builder, self._block, self._op, self.ops = builder, block, op, []
        (self._source,), (self._target,) = inputs(op, "X"), outputs(op, "Out")
        shape = shape_of(builder.program.variable(self._source, block))
        rank = len(shape) - 2
        self._corners = attribute(op, "align_corners", True)
        tensors = inputs(op, "OutSize") or inputs(op, "SizeTensor")
        scales, sizes = self._scales(rank), [attribute(op, name, -1) for name in _SIZES][-rank:]
        axes = [(2 + i, -1 if tensors else size, None if tensors else scale)
                for i, (size, scale) in enumerate(zip(sizes, scales))]
        if inputs(op, "Scale") and not tensors or not self._corners and all(
                self._is_whole(shape[axis], size, scale) for axis, size, scale in axes):
            self.ops = [op]
            return
        if self._corners and any(shape[axis] <= 0 or scale is None and size <= 0
                                 for axis, size, scale in axes):
            self.ops = [op]  # only old programs have it
            return
        declared = shape_of(builder.program.variable(self._target, block))
        for i, (axis, size, scale) in enumerate(axes):
            before = shape[axis]
            # Paddle 3.3 computes the product with float64, older versions with float32.
            after = (size if scale is None else declared[axis] if declared[axis] > 0
                     else int(np.float32(before) * np.float32(scale)))
            if before > 0 and after > 0:
                name = builder.parameter(f"{self._target}.index_{axis}",
                                         _indices(before, after, scale, self._corners))
                shape[axis] = after
            else:
                name = self._computed_indices(axis, self._size(i, size, tensors, rank), scale)
                shape[axis] = -1
            last = axis == axes[-1][0]
            self._add("gather", {"X": self._source, "Index": name}, shape, axis=axis,
                      overwrite=True, target=self._target if last else None)
            self._source = self.ops[-1].outputs[0].arguments[0]

    def _scales(self, rank):
        """Return the scale factor of each axis, None where the size is given."""
        found = attribute(self._op, "scale")
        found = [found] if isinstance(found, float) else list(found or [])
        found = found * rank if len(found) == 1 else found
        return found if len(found) == rank and all(each > 0 for each in found) else [None] * rank

    @staticmethod
    def _is_whole(before, size, scale):
        return (scale % 1 == 0 if scale is not None else size > 0 and before > 0
                and size % before == 0)

    def _add(self, kind, ins, shape, dtype="float32", slot="Out", target=None, **attributes):
        """Append an operator and return its output."""
        name = target or self._builder.variable(
            self._block, f"{self._target}.{kind}", shape, dtype)
        self.ops.append(make_op(kind, ins, {slot: name}, **attributes))
        return name

    def _float(self, name, code=INT32):
        return self._add("cast", {"X": name}, [1], in_dtype=code, out_dtype=FLOAT32)

    def _element(self, name, index):
        return self._add("slice", {"Input": name}, [1], "int32", axes=[0], starts=[index],
                         ends=[index + 1], infer_flags=[1], decrease_axis=[])

    def _size(self, index, size, tensors, rank):
        """Return the variable with the size of an axis as a float, None without one."""
        if not tensors:
            return self._builder.parameter(f"{self._target}.size", np.array(
                [size], np.float32)) if size > 0 else None
        if len(tensors) != rank:  # one tensor with all sizes
            return self._float(self._element(tensors[0], index))
        flat = self._builder.variable(self._block, f"{self._target}.flat", [1], "int32")
        shadow = self._builder.variable(self._block, f"{flat}.shape", [0])
        self.ops.append(make_op("reshape2", {"X": tensors[index]}, {"Out": flat, "XShape": shadow},
                                shape=[1]))
        return self._float(flat)

    def _computed_indices(self, axis, size, scale):
        shape = self._add("shape", {"Input": inputs(self._op, "X")[0]},
                          [len(shape_of(self._builder.program.variable(
                              inputs(self._op, "X")[0], self._block)))], "int32")
        before = self._float(self._element(shape, axis))
        if scale is not None:
            factor = self._builder.parameter(f"{self._target}.scale", np.array([scale], np.float32))
            size = self._add("floor", {"X": self._multiply(before, factor, [1])}, [1])
            ratio = self._builder.parameter(f"{self._target}.ratio", np.array(
                [np.float32(1.0 / np.float32(scale))], np.float32))
        else:
            ratio = self._add("elementwise_div", {"X": before, "Y": size}, [1], axis=-1)
        zero, one = (self._builder.constant(f"paddleq.{name}", value)
                     for name, value in (("zero_point", 0), ("one", 1)))
        positions = self._add("range", {"Start": zero, "End": size, "Step": one}, [-1])
        return self._add("cast", {"X": self._multiply(positions, ratio, [-1])}, [-1], "int32",
                         in_dtype=FLOAT32, out_dtype=INT32)

    def _multiply(self, x, y, shape):
        return self._add("elementwise_mul", {"X": x, "Y": y}, shape, axis=-1)


def _indices(before, after, scale, align_corners):
    """Return the index that Paddle's kernel computes, in float32, for each element of an axis."""
    position = np.arange(after, dtype=np.float32)
    if align_corners:
        ratio = np.float32(before - 1) / np.float32(after - 1) if after > 1 else np.float32(0)
        index = (position * ratio + np.float32(0.5)).astype(np.int32)
    else:
        ratio = (np.float32(before) / np.float32(after) if scale is None
                 else np.float32(1.0 / np.float32(scale)))
        index = (position * ratio).astype(np.int32)
    return np.minimum(index, before - 1)
