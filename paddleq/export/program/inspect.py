"""Description of a saved program: interface, operators, parameters and quantizers."""

from collections import Counter

import numpy as np

from ...engine.summary import plain_spec
from .graph_view import GraphView
from .op_desc import all_inputs, attribute, dtype_of, inputs, outputs, shape_of
from .passes.activation_steps import restore_quantizers
from .passes.stored_weights import WEIGHTED_OPS, spec_of, stored_weights
from .validate import contradictions_reported

_FAKE_ACTIVATION = "fake_quantize_dequantize_moving_average_abs_max"
_FAKE_WEIGHT = ("fake_quantize_dequantize_abs_max",
                "fake_channel_wise_quantize_dequantize_abs_max")
_BETWEEN = ("assign", "cast", "unsqueeze2")  # operators between a weight and its user
_BINS = 16


@contradictions_reported()
def inspect(program):
    """Describe a program by plain values.

    Returns:
        Dict of ``inputs`` and ``outputs`` (name, shape with -1 for dynamic dimensions, dtype),
        ``operators`` (type -> count), ``parameters`` (count, bytes, bytes by dtype), ``weights``
        (name, shape, dtype, bits, axis, lowest and highest scale, histogram of the integers in 16
        bins), ``activations`` (name, reader, bits, scale).
    """
    block = program.desc.blocks[0]
    feeds = sorted((attribute(op, "col", 0), outputs(op, "Out")[0]) for op in block.ops
                   if op.type == "feed")
    fetches = sorted((attribute(op, "col", 0), inputs(op, "X")[0]) for op in block.ops
                     if op.type == "fetch")
    sizes = Counter()
    for array in program.arrays.values():
        sizes[array.dtype.name] += array.nbytes

    def described(name):
        var = program.variable(name)
        return {"name": name, "shape": shape_of(var), "dtype": dtype_of(var)}

    plain = program.copy()
    restore_quantizers(plain)
    weights, activations = (sum(found, []) for found in zip(*(
        _quantizers(plain, each) for each in plain.desc.blocks)))
    return {
        "inputs": [described(name) for _, name in feeds],
        "outputs": [described(name) for _, name in fetches],
        "operators": count_operators(program),
        "parameters": {"count": len(program.arrays), "bytes": sum(sizes.values()),
                       "bytes_by_dtype": dict(sorted(sizes.items()))},
        "weights": weights, "activations": activations,
    }


def count_operators(program):
    """Return operator type -> count without feed and fetch, the most frequent ones first."""
    found = Counter(op.type for block in program.desc.blocks for op in block.ops
                    if op.type not in ("feed", "fetch"))
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _quantizers(program, block):
    ops, activations = list(block.ops), []
    view = GraphView(ops)
    weights = [_weight(program, *weight[:4]) for weight in stored_weights(program, ops).values()]
    for op in ops:
        if op.type in ("quantize_linear", _FAKE_ACTIVATION):
            slot = "Scale" if op.type == "quantize_linear" else "InScale"
            abs_max, bits = program.arrays[inputs(op, slot)[0]], attribute(op, "bit_length")
            activations.append({
                "name": inputs(op, "X")[0], "reader": _consumer_type(view, op), "bits": bits,
                "scale": _scale(abs_max.reshape(-1)[0], bits)})
        elif op.type in _FAKE_WEIGHT and inputs(op, "X")[0] in program.arrays:
            weights.append(_weight(program, inputs(op, "X")[0], outputs(op, "OutScale")[0],
                                   attribute(op, "bit_length"), attribute(op, "quant_axis", -1)))
    return weights, activations


def _weight(program, name, scale, bits, axis):
    array, abs_max = program.arrays[name], program.arrays[scale]
    row = {"name": name, "shape": list(array.shape), "dtype": array.dtype.name, "bits": bits,
           "axis": axis, "scale": [_scale(each, bits) for each in (abs_max.min(), abs_max.max())]}
    if array.dtype.kind == "i":
        limit = 2 ** (bits - 1)
        row["histogram"] = np.histogram(array, bins=_BINS, range=(-limit, limit))[0].tolist()
    return row


def _scale(abs_max, bits):
    return float(abs_max) / (2 ** (bits - 1) - 1)


def _consumer_type(view, op):
    """Type of the operator that uses a quantized activation, "" if there is none."""
    (name,) = outputs(op, "Y") or outputs(op, "Out")
    consumers = view.consumers.get(name)
    if consumers and consumers[0].type == "dequantize_linear":
        consumers = view.consumers.get(outputs(consumers[0], "Y")[0])
    return consumers[0].type if consumers else ""


@contradictions_reported()
def program_rows(program):
    """Rows as of :func:`paddleq.engine.summary.layer_rows`, one for each operator with a weight."""
    rows, program = [], program.copy()
    restore_quantizers(program)
    for block in program.desc.blocks:
        view = GraphView(block.ops)
        weights = stored_weights(program, list(block.ops))
        for op in block.ops:
            if op.type in WEIGHTED_OPS:
                rows += _row(program, view, weights, op)
    return rows


def _row(program, view, weights, op):
    (name,) = inputs(op, WEIGHTED_OPS[op.type])
    while name in view.producers and view.producers[name].type in _BETWEEN:
        name = inputs(view.producers[name], "X")[0]
    weight, quantizers = weights.get(name), {}
    if weight is not None:
        name = weight.name
        quantizers["weight"] = _described(program, *weight[1:4])
    if name not in program.arrays:
        return []  # the product of two activations
    dequantize = next((made for made in map(view.producers.get, all_inputs(op))
                       if made is not None and made.type == "dequantize_linear"
                       and view.source(made, "X", "quantize_linear") is not None), None)
    if dequantize is not None:
        quantizers["activation"] = _described(program, inputs(dequantize, "Scale")[0],
                                              attribute(dequantize, "bit_length", 8),
                                              attribute(dequantize, "quant_axis", -1))
    row = {"name": name, "type": op.type, "done": "quantized" if quantizers else "left"}
    return [{**row, "quantizers": quantizers} if quantizers else row]


def _described(program, scale, bits, axis):
    abs_max = program.arrays.get(scale)
    if abs_max is None:  # the program computes it
        return {}
    spec = spec_of(bits, axis, abs_max.reshape(-1))
    return plain_spec(spec, abs_max / spec.quant_max)
