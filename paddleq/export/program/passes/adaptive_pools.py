"""Exact forms of adaptive pools of which one output size is 1, as ``[1, width]``.

OpenVINO (2026.4) reads them from a ``.pdmodel`` as global pools, and returns ``[1, 1]``.
"""

from ..graph_view import GraphView
from ..op_desc import (
    attribute,
    inputs,
    make_op,
    outputs,
    replace_ops,
    set_attribute,
    set_input,
    set_output,
    shape_of,
)


def write_partly_global_pools(builder, block):
    """Write adaptive pools over one whole axis in another form, in place."""
    view = GraphView(block.ops)
    replace_ops(block, [new for op in block.ops for new in (
        _exact(builder, block, op) if _is_partly_global(view, op) else [op])])


def _is_partly_global(view, op):
    """Return True for an adaptive pool with one output size of 1, whose indices are not read."""
    return (op.type in ("pool2d", "max_pool2d_with_index") and attribute(op, "adaptive", False)
            and not attribute(op, "global_pooling", False)
            and list(attribute(op, "ksize")).count(1) == 1
            and not any(view.consumers.get(name) for name in outputs(op, "Mask")))


def _exact(builder, block, op):
    """Return the operators to write for a pool."""
    sizes = list(attribute(op, "ksize"))
    (x,) = inputs(op, "X")
    shape = shape_of(builder.program.variable(x, block))
    window = [size // count if size > 0 and size % count == 0 else 0
              for size, count in zip(shape[2:4], sizes)]
    if all(window):
        if op.type == "max_pool2d_with_index":
            op = make_op("pool2d", {"X": x}, {"Out": outputs(op, "Out")}, pooling_type="max",
                         global_pooling=False, exclusive=True, data_format="NCHW")
        for name, value in (("ksize", window), ("strides", window), ("paddings", [0, 0])):
            set_attribute(op, name, value)
        for name in ("adaptive", "ceil_mode"):
            set_attribute(op, name, False)
        set_attribute(op, "padding_algorithm", "EXPLICIT")
        return [op]
    # The pool of two copies along that axis, of which one is kept.
    axis, (result,) = 2 + sizes.index(1), outputs(op, "Out")
    sizes[axis - 2] = 2
    doubled, pooled = (
        builder.variable(block, f"{result}.{word}", [*shape[:axis], length, *shape[axis + 1:]])
        for word, shape, length in (
            ("doubled", shape, 2 * shape[axis] if shape[axis] > 0 else -1),
            ("pooled", shape_of(builder.program.variable(result, block)), 2)))
    double = make_op("concat", {"X": [x, x]}, {"Out": doubled}, axis=axis)
    set_attribute(op, "ksize", sizes)
    set_input(op, "X", doubled)
    set_output(op, "Out", pooled)
    half = make_op("slice", {"Input": pooled}, {"Out": result}, axes=[axis], starts=[0], ends=[1],
                   infer_flags=[1], decrease_axis=[])
    return [double, op, half]
