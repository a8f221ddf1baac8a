"""Constant pads of any axes, as ``F.pad`` writes for two paddings of each axis.

oneDNN, which Paddle Inference uses, takes the paddings of ``pad`` for those of other axes, and
writes out of bounds; OpenVINO does not have the operator. ``pad3d``, which both compute right, pads
the last three of five axes.
"""

from ..op_desc import attribute, dtype_of, inputs, make_op, outputs, replace_ops, shape_of

_RANK, _PADDED = 5, 3  # axes of the input of pad3d, and those that it pads


def write_pads(builder, block):
    """Replace ``pad`` by ``pad3d`` of three axes at a time, in place."""
    if any(op.type == "pad" for op in block.ops):
        replace_ops(block, [new for op in block.ops for new in (
            _Pads(builder, block, op).ops if op.type == "pad" else [op])])


class _Pads:
    """Operators that replace one pad; itself if it has more than five axes."""

    def __init__(self, builder, block, op):
        self._builder, self._block, self.ops = builder, block, []
        (self._source,), (self._target,) = inputs(op, "X"), outputs(op, "Out")
        variable = builder.program.variable(self._source, block)
        self._shape, self._dtype = shape_of(variable), dtype_of(variable)
        paddings = list(attribute(op, "paddings"))
        pairs = list(zip(paddings[::2], paddings[1::2]))
        padded = [axis for axis, pair in enumerate(pairs) if any(pair)]
        if len(pairs) != len(self._shape) or len(pairs) > _RANK or min(paddings) < 0:
            self.ops = [op]
            return
        for end in range(len(padded), 0, -_PADDED):
            self._pad(padded[max(end - _PADDED, 0):end], pairs, attribute(op, "pad_value", 0.0))
        self.ops.append(make_op("assign", {"X": self._source}, {"Out": self._target}))

    def _pad(self, axes, pairs, value):
        rank = len(self._shape)
        rest = [axis for axis in range(rank) if axis not in axes]
        moved = sorted(axes + rest[len(rest) - max(min(_PADDED, rank) - len(axes), 0):])
        order = [axis for axis in range(rank) if axis not in moved] + moved
        added = list(range(_RANK - rank))
        self._transpose(order)
        if added:
            self._add("unsqueeze2", [1] * len(added) + self._shape, axes=added)
        padded = [pairs[axis] if axis in axes else (0, 0) for axis in order][-_PADDED:]
        padded = [(0, 0)] * (_PADDED - len(padded)) + padded
        shape = [size if size < 0 else size + sum(pair)
                 for size, pair in zip(self._shape, [(0, 0)] * (_RANK - _PADDED) + padded)]
        self._add("pad3d", shape, mode="constant", value=float(value), data_format="NCDHW",
                  paddings=[each for pair in reversed(padded) for each in pair])
        if added:
            self._add("squeeze2", self._shape[len(added):], axes=added)
        self._transpose([order.index(axis) for axis in range(rank)])

    def _transpose(self, order):
        if order != sorted(order):
            self._add("transpose2", [self._shape[axis] for axis in order], axis=order)

    def _add(self, kind, shape, **attributes):
        name = self._builder.variable(self._block, f"{self._target}.{kind}", shape, self._dtype)
        outs = {"Out": name}
        if kind != "pad3d":
            outs["XShape"] = self._builder.variable(
                self._block, f"{name}.shape", [0, *self._shape], self._dtype)
        self.ops.append(make_op(kind, {"X": self._source}, outs, **attributes))
        self._source, self._shape = name, shape
