"""What is done to each operator with a weight in a saved program: rows for a record."""

from ...engine import plain_spec
from .passes.stored_weights import spec_of, stored_weights
from .passes.weight_only import WEIGHTED_OPS
from .program import attribute, inputs

_PASSED = ("assign", "cast", "unsqueeze2")  # between a weight and its reader


def program_rows(program):
    """A dict for each operator whose weight is a parameter, in the order of the program.

    It has ``name`` (the weight's), ``type`` (the operator's) and ``done``, and where there are such
    ``quantizers``, as :func:`paddleq.engine.layer_rows` has them.
    """
    rows = []
    for block in program.desc.blocks:
        made = {name: op for op in block.ops for slot in op.outputs for name in slot.arguments}
        weights = stored_weights(program, list(block.ops))
        for op in block.ops:
            if op.type in WEIGHTED_OPS:
                rows += _row(program, made, weights, op)
    return rows


def _row(program, made, weights, op):
    (name,) = inputs(op, WEIGHTED_OPS[op.type][0])
    while name in made and made[name].type in _PASSED:
        name = inputs(made[name], "X")[0]
    weight, quantizers = weights.get(name), {}
    if weight is not None:
        name = weight.name
        quantizers["weight"] = _described(program, weight.scale, weight.bits, weight.axis)
    if name not in program.arrays:
        return []  # the product of two activations
    pair = _activation(made, op)
    if pair is not None:
        quantizers["activation"] = _described(program, inputs(pair, "Scale")[0],
                                              attribute(pair, "bit_length", 8),
                                              attribute(pair, "quant_axis", -1))
    done = "quantized" if quantizers else "left"
    return [{"name": name, "type": op.type, "done": done,
             **({"quantizers": quantizers} if quantizers else {})}]


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


def _described(program, scale, bits, axis):
    thresholds = program.arrays.get(scale)
    if thresholds is None:  # the program computes them
        return {}
    return plain_spec(spec_of(bits, axis, thresholds.reshape(-1)), thresholds)
