"""What is done to each operator with a weight in a saved program: rows for a record."""

from ..engine import plain_spec
from .from_program import spec_of
from .program import inputs
from .weight_only import WEIGHTED_OPS

_PASSED = ("assign", "cast", "unsqueeze2")  # between a weight and its reader


def program_rows(program):
    """A dict for each operator whose weight is a parameter, in the order of the program.

    It has ``name`` (the weight's), ``type`` (the operator's) and ``done``, and where there are such
    ``quantizers``, as :func:`paddleq.engine.layer_rows` has them.
    """
    rows = []
    for block in program.desc.blocks:
        made = {name: op for op in block.ops for slot in op.outputs for name in slot.arguments}
        for op in block.ops:
            if op.type in WEIGHTED_OPS:
                rows += _row(program, made, op)
    return rows


def _row(program, made, op):
    name, pair = _weight(made, inputs(op, WEIGHTED_OPS[op.type][0])[0])
    if name not in program.arrays:
        return []  # the product of two activations
    quantizers = {} if pair is None else {"weight": _described(program, pair)}
    pair = _activation(made, op)
    if pair is not None:
        quantizers["activation"] = _described(program, pair)
    done = "quantized" if quantizers else "left"
    return [{"name": name, "type": op.type, "done": done,
             **({"quantizers": quantizers} if quantizers else {})}]


def _weight(made, name):
    """(the parameter behind ``name``, the dequantize_linear that reads it or None)."""
    pair = None
    while name in made and made[name].type in (*_PASSED, "dequantize_linear"):
        pair = made[name] if made[name].type == "dequantize_linear" else pair
        name = inputs(made[name], "X")[0]
    return name, pair


def _activation(made, op):
    """The dequantize_linear of what ``op`` reads beside its weight, or None."""
    for slot in ("Input", "X"):
        for name in inputs(op, slot):
            pair = made.get(name)
            if pair is not None and pair.type == "dequantize_linear":
                (source,) = inputs(pair, "X")
                if source in made and made[source].type == "quantize_linear":
                    return pair
    return None


def _described(program, op):
    scale = program.arrays.get(inputs(op, "Scale")[0])
    if scale is None:  # the program computes it
        return {}
    return plain_spec(spec_of(op, scale.reshape(-1)), scale)
