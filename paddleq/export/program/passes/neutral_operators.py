"""Removal of multiplications by one and additions of zero that folding left in a Layer."""

from ..graph_view import GraphView
from ..op_desc import inputs, outputs, rename_inputs, replace_ops, shape_of

_NEUTRAL = {"elementwise_mul": 1.0, "elementwise_div": 1.0, "elementwise_add": 0.0,
            "elementwise_sub": 0.0}


def remove_neutral_operators(program, names):
    """Remove operators that change nothing because of one of the parameters ``names``, in place.

    One whose result is an output of the model stays.
    """
    neutral = set(names) & program.arrays.keys()
    if not neutral:
        return
    view, renamed = GraphView.of_program(program), {}
    for block in program.desc.blocks:
        kept = []
        for op in block.ops:
            source = _unchanged_input(program, op, neutral)
            if source is not None and _is_replaceable(program, block, view, source, op):
                renamed[outputs(op, "Out")[0]] = renamed.get(source, source)
            else:
                kept.append(op)
        replace_ops(block, kept)
    for block in program.desc.blocks:
        rename_inputs(block.ops, renamed)
    program.remove_unused_parameters()


def _unchanged_input(program, op, neutral):
    """Return the variable that an operator passes on unchanged, None for other operators."""
    if op.type not in _NEUTRAL:
        return None
    (x,), (y,) = inputs(op, "X"), inputs(op, "Y")
    if y in neutral:
        source, constant = x, y
    elif x in neutral and op.type in ("elementwise_mul", "elementwise_add"):
        source, constant = y, x
    else:
        return None
    return source if (program.arrays[constant] == _NEUTRAL[op.type]).all() else None


def _is_replaceable(program, block, view, source, op):
    (target,) = outputs(op, "Out")
    shapes = [shape_of(program.variable(name, block)) for name in (source, target)]
    return shapes[0] == shapes[1] and not {source, target} & view.rewritten and not any(
        reader is None or reader.type == "fetch" for reader in view.consumers.get(target, ()))
