"""What is in a saved model: its interface, operators, parameters and quantizers."""

from collections import Counter

import numpy as np

from .passes.stored_weights import stored_weights
from .program import attribute, inputs, outputs, shape_of, tensor_dtype

_FAKE = ("fake_quantize_dequantize_moving_average_abs_max", "fake_quantize_dequantize_abs_max",
         "fake_channel_wise_quantize_dequantize_abs_max")
_BINS = 16


def inspect(program):
    """Describe a program.

    Args:
        program: a :class:`~paddleq.export.program.program.Program`.

    Returns:
        A dict of plain values: ``inputs`` and ``outputs`` (name, shape with -1 where it is open,
        dtype), ``operators`` (type -> count), ``parameters`` (count, bytes, bytes by dtype),
        ``weights`` (name, shape, dtype, bits, axis, lowest and highest threshold, histogram of
        the integers in 16 bins), ``activations`` (name, reader, bits, threshold).
    """
    block = program.desc.blocks[0]
    variables = program.variables()
    feeds = sorted((attribute(op, "col", 0), outputs(op, "Out")[0]) for op in block.ops
                   if op.type == "feed")
    fetches = sorted((attribute(op, "col", 0), inputs(op, "X")[0]) for op in block.ops
                     if op.type == "fetch")
    operators = Counter(op.type for each in program.desc.blocks for op in each.ops
                        if op.type not in ("feed", "fetch"))
    sizes = Counter()
    for array in program.arrays.values():
        sizes[array.dtype.name] += array.nbytes

    def described(name):
        return {"name": name, "shape": shape_of(variables[name]),
                "dtype": tensor_dtype(variables[name])}

    weights, activations = _quantizers(program, block)
    return {
        "inputs": [described(name) for _, name in feeds],
        "outputs": [described(name) for _, name in fetches],
        "operators": dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        "parameters": {"count": len(program.arrays), "bytes": sum(sizes.values()),
                       "bytes_by_dtype": dict(sorted(sizes.items()))},
        "weights": weights, "activations": activations,
    }


def _quantizers(program, block):
    readers = {}
    for op in block.ops:
        for slot in op.inputs:
            for name in slot.arguments:
                readers.setdefault(name, []).append(op)
    ops, weights, activations = list(block.ops), [], []
    stored = {id(weight.ops[-1]): weight for weight in stored_weights(program, ops).values()}
    for op in ops:
        if id(op) in stored:
            weight = stored[id(op)]
            weights.append(_weight(program, weight.name, weight.scale, weight.bits, weight.axis))
        elif op.type == "quantize_linear" or op.type == _FAKE[0]:
            slot = "Scale" if op.type == "quantize_linear" else "InScale"
            activations.append({
                "name": inputs(op, "X")[0],
                "reader": _reader(readers, op), "bits": attribute(op, "bit_length"),
                "threshold": float(program.arrays[inputs(op, slot)[0]].reshape(-1)[0])})
        elif op.type in _FAKE[1:] and inputs(op, "X")[0] in program.arrays:
            weights.append(_weight(program, inputs(op, "X")[0], outputs(op, "OutScale")[0],
                                   attribute(op, "bit_length"), attribute(op, "quant_axis", -1)))
    return weights, activations


def _weight(program, name, scale, bits, axis):
    array, thresholds = program.arrays[name], program.arrays[scale]
    edge = 2 ** (bits - 1)
    row = {"name": name, "shape": list(array.shape), "dtype": array.dtype.name, "bits": bits,
           "axis": axis,
           "threshold": [float(thresholds.min()), float(thresholds.max())]}
    if array.dtype.kind == "i":
        row["histogram"] = np.histogram(array, bins=_BINS, range=(-edge, edge))[0].tolist()
    return row


def _reader(readers, op):
    """Type of the operator that reads what the pair of operators gives."""
    (name,) = outputs(op, "Y") or outputs(op, "Out")
    for _ in range(2):
        following = readers.get(name)
        if not following:
            return ""
        if following[0].type != "dequantize_linear":
            return following[0].type
        (name,) = outputs(following[0], "Y")
    return following[0].type
