"""Average pools that count paddings, where runtimes count others than Paddle.

Paddle counts the elements up to as much padding at the end of an axis as at its begin. oneDNN and
OpenVINO divide by the size of the window, also if it exceeds that (``ceil_mode``). A padded input,
of which the pool counts no padding, gives what Paddle computes.
"""

from ..op_builder import OpBuilder
from ..op_desc import (
    attribute,
    dtype_of,
    inputs,
    make_op,
    replace_ops,
    set_attribute,
    set_input,
    shape_of,
)

_TYPES = ("pool2d", "pool3d")


def write_inclusive_pools(program):
    """Write such pools as a pad and a pool that excludes paddings, in place."""
    builder = None
    for block in program.desc.blocks:
        if any(_differs(program, block, op) for op in block.ops):
            builder = builder or OpBuilder(program)
            replace_ops(block, [new for op in block.ops for new in (
                _padded(builder, block, op) if _differs(program, block, op) else [op])])


def _differs(program, block, op):
    """Return True for an inclusive pool with windows of which Paddle counts a part."""
    if op.type not in _TYPES or attribute(op, "pooling_type") != "avg" or attribute(
            op, "exclusive", True) or attribute(
            op, "padding_algorithm", "EXPLICIT") != "EXPLICIT" or any(
            attribute(op, name, False) for name in ("adaptive", "global_pooling")):
        return False
    pairs = _pairs(op)
    if any(after < before for before, after in pairs):
        return False
    ceil, sizes = attribute(op, "ceil_mode", False), shape_of(
        program.variable(inputs(op, "X")[0], block))[2:]
    return any(after > before or ceil and (size < 0 or (size + before + after - window) % stride)
               for size, (before, after), window, stride in zip(
                   sizes, pairs, attribute(op, "ksize"), attribute(op, "strides")))


def _pairs(op):
    """Return the paddings as (before, after) of each axis."""
    paddings = list(attribute(op, "paddings"))
    if len(paddings) == len(attribute(op, "ksize")):
        return [(each, each) for each in paddings]
    return list(zip(paddings[::2], paddings[1::2]))


def _padded(builder, block, op):
    pairs, (x,) = _pairs(op), inputs(op, "X")
    variable = builder.program.variable(x, block)
    shape, dtype = shape_of(variable), dtype_of(variable)
    added = [2] if op.type == "pool2d" else []  # pad3d takes five axes
    made = []

    def add(kind, shape, **attributes):
        nonlocal x
        target = builder.variable(block, f"{x}.{kind}", shape, dtype)
        results = {"Out": target}
        if kind != "pad3d":
            results["XShape"] = builder.variable(block, f"{target}.shape", [0, *shape], dtype)
        made.append(make_op(kind, {"X": x}, results, **attributes))
        x = target

    before = [(first, first) for first, _ in pairs]
    whole = [*shape[:2], *(size if size < 0 else size + sum(pair)
                           for size, pair in zip(shape[2:], before))]
    if any(map(sum, before)):
        if added:
            add("unsqueeze2", [*shape[:2], 1, *shape[2:]], axes=added)
        add("pad3d", [*whole[:2], *([1] * len(added)), *whole[2:]], mode="constant", value=0.0,
            data_format="NCDHW", paddings=[
                each for pair in reversed([(0, 0)] * len(added) + before) for each in pair])
        if added:
            add("squeeze2", whole, axes=added)
    set_input(op, "X", x)
    ends = [last - first for first, last in pairs]
    if attribute(op, "ceil_mode", False) and min(whole[2:]) > 0:
        # Up to the last window; oneDNN refuses some different paddings with ceil_mode.
        ends = [max(-(-(size + end - window) // stride) * stride + window - size, 0)
                for size, end, window, stride in zip(
                    whole[2:], ends, attribute(op, "ksize"), attribute(op, "strides"))]
        set_attribute(op, "ceil_mode", False)
    set_attribute(op, "paddings", [each for end in ends for each in (0, end)])
    set_attribute(op, "exclusive", True)
    return [*made, op]
