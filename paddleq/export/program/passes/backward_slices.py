"""Slices with negative steps that go on to the first element.

Paddle 2.6 writes -1 for the missing end, which means the last element to Paddle 3, OpenVINO and
paddle2onnx: they return nothing. Paddle 3 writes the lowest integer, with which Paddle 2.6 leaves
out the first element. A flip and a slice with a positive step have one meaning everywhere.
"""

from ..op_builder import OpBuilder
from ..op_desc import (
    attribute,
    dtype_of,
    inputs,
    make_op,
    outputs,
    replace_ops,
    set_attribute,
    set_input,
    set_output,
    shape_of,
)

_FAR = 2 ** 31 - 1  # beyond any size: no bound
PADDLE_3 = 3000000  # from this version on, bounds have the meaning of Python's slices
_TENSORS = tuple(f"{name}{kind}" for name in ("Starts", "Ends", "Strides")
                 for kind in ("Tensor", "TensorList"))


def write_backward_slices(program, version):
    """Write slices back to the first element as a flip and a slice, in place.

    Slices with computed bounds stay.

    Args:
        program: the :class:`~..program.Program`.
        version: number of the Paddle version that wrote the bounds.
    """
    builder = None
    for block in program.desc.blocks:
        if any(_steps_back(op) for op in block.ops):
            builder = builder or OpBuilder(program)
            replace_ops(block, [new for op in block.ops for new in (
                _Flips(builder, block, op, version >= PADDLE_3).ops if _steps_back(op) else [op])])


def _steps_back(op):
    return op.type == "strided_slice" and min(attribute(op, "strides") or [0]) < 0 and not any(
        inputs(op, slot) for slot in _TENSORS)


class _Flips:
    """Operators that replace one slice; the slice alone if none of its axes ends at the first."""

    def __init__(self, builder, block, op, like_numpy):
        self._builder, self._block, self._like_numpy, self.ops = builder, block, like_numpy, []
        (self._source,), (self._target,) = inputs(op, "Input"), outputs(op, "Out")
        variable = builder.program.variable(self._source, block)
        self._shape, self._dtype = shape_of(variable), dtype_of(variable)
        names = ("axes", "starts", "ends", "strides")
        bounds, heads, flipped = [], {}, []
        for axis, start, end, step in zip(*(attribute(op, name) for name in names)):
            if step < 0:
                size = self._shape[axis]
                start, end = self._start(start, size), self._end(end, size)
                if end is None:
                    flipped.append(axis)
                    if size < 0 and 0 <= start < _FAR:
                        heads[axis] = start + 1
                        start = -1
                    start = -start - 1 if start < 0 else max(size - 1 - start, 0)
                    end, step = _FAR, -step
            bounds.append((axis, start, end, step))
        if heads:
            self._add("slice", "Input", axes=list(heads), starts=[0] * len(heads),
                      ends=list(heads.values()), infer_flags=[1] * len(heads), decrease_axis=[])
        if flipped:
            self._add("flip", "X", axis=flipped)
        if flipped and not attribute(op, "decrease_axis") and all(
                each[1:] == (0, _FAR, 1) for each in bounds):
            set_output(self.ops[-1], "Out", self._target)
            return
        for name, values in zip(names, zip(*bounds)):
            set_attribute(op, name, list(values))
        set_input(op, "Input", self._source)
        self.ops.append(op)

    def _start(self, start, size):
        """Return the first index, counted from the front if the size is known."""
        if size < 0:
            return start
        first = start + size if start < 0 else min(start, size - 1)
        return first if first >= 0 else start if self._like_numpy else 0

    def _end(self, end, size):
        """Return the index before which the slice ends, None if it ends with the first element."""
        if self._like_numpy:
            if end <= -_FAR or 0 <= size < -end:
                return None
            if end == -1 and size < 0:  # the last element: nothing is left
                return _FAR
        elif end == -1:
            return None
        return max(end + size, 0) if end < 0 <= size else end

    def _add(self, kind, slot, **attributes):
        name = self._builder.variable(self._block, f"{self._target}.{kind}", self._shape,
                                      self._dtype)
        self.ops.append(make_op(kind, {slot: self._source}, {"Out": name}, **attributes))
        self._source = name
