"""Quantization by ``fake_*`` operators, written as quantize_linear and dequantize_linear.

PIR programs, and ``.pdmodel`` files of ``onnx_format=False``, quantize activations by
``fake_quantize_dequantize_moving_average_abs_max``. Their weights are floats: those before
quantization, which another operator rounds, or those after it, on a grid of equal steps.
"""

import numpy as np

from ..graph_view import GraphView
from ..op_builder import OpBuilder, linear_op
from ..op_desc import attribute, inputs, outputs, replace_ops, set_input
from .stored_weights import WEIGHTED_OPS

_ACTIVATION = "fake_quantize_dequantize_moving_average_abs_max"
_WEIGHTS = ("fake_quantize_dequantize_abs_max", "fake_channel_wise_quantize_dequantize_abs_max")
_LEVELS = 127
# Numbers of steps in the largest weight of a channel that are tried, the usual ones first.
_LARGEST = sorted(range(1, _LEVELS + 1), key=lambda number: (number & (number + 1), number))
_TOLERANCE = 1e-4  # of a step; float32 moves the largest weight by 1e-5 steps
_SAMPLES = 64  # weights of a channel that are compared first
_NEIGHBORS = (0, 1, -1, 2, -2)  # numbers in float32 around a computed abs_max


def write_linear_operators(program):
    """Write ``fake_*`` operators with constant scales as linear ones, in place.

    Others, such as those that still measure their scales, remain.
    """
    builder, view = OpBuilder(program), GraphView.of_program(program)
    for block in program.desc.blocks:
        quantized, new, changed = set(), [], False
        for op in list(block.ops):
            written = None
            if op.type == _ACTIVATION:
                written = _activation(builder, block, op)
                if written is not None:
                    quantized.add(outputs(op, "Out")[0])
            elif op.type in _WEIGHTS:
                written = _rounded_weight(builder, view, op)
            elif op.type in WEIGHTED_OPS and quantized.intersection(_data(op)):
                written = _weight_on_grid(builder, view, block, op)
            changed = changed or written is not None
            new += [op] if written is None else written
        if changed:
            replace_ops(block, new)
    program.remove_unused_parameters()


def _data(op):
    return inputs(op, "Input") or inputs(op, "X")


def _activation(builder, block, op):
    (scale,), target = inputs(op, "InScale"), outputs(op, "Out")[0]
    if scale not in builder.program.arrays or not attribute(op, "is_test", False):
        return None
    quantized = builder.variable_like(block, target, f"{target}.quantized")
    zero = builder.constant("paddleq.zero_point", 0)
    bits, source = attribute(op, "bit_length", 8), inputs(op, "X")[0]
    return [linear_op("quantize_linear", source, scale, zero, quantized, bits),
            linear_op("dequantize_linear", quantized, scale, zero, target, bits)]


def _rounded_weight(builder, view, op):
    """Write the weight before quantization, which an operator rounds, as integers."""
    value = builder.program.arrays.get(inputs(op, "X")[0])
    bits, axis = attribute(op, "bit_length", 8), attribute(op, "quant_axis", 0)
    if value is None or bits > 8:
        return None
    if op.type == _WEIGHTS[0]:
        axis = -1
    abs_max = np.abs(_by_channel(value, axis)).max(1)
    levels = np.float32(2 ** (bits - 1) - 1)
    steps = value * (levels / _broadcast(np.maximum(abs_max, np.float32(1e-30)), value, axis))
    # round_type 0 rounds ties to even, 1, the default of the operators, away from zero.
    integers = np.rint(steps)
    if attribute(op, "round_type", 1):
        integers = np.where(np.abs(steps - np.trunc(steps)) == 0.5,
                            np.trunc(steps) + np.sign(steps), integers)
    integers = integers.astype(np.int8)
    return [_dequantize(builder, view, inputs(op, "X")[0], integers, abs_max,
                        outputs(op, "Out")[0], bits, axis)]


def _weight_on_grid(builder, view, block, op):
    """Write a weight after quantization as integers, if each channel has equal steps."""
    slot = WEIGHTED_OPS[op.type]
    name = next(iter(inputs(op, slot)), None)
    value = builder.program.arrays.get(name)
    if value is None or value.dtype != np.float32 or value.ndim < 2:
        return None
    axis = _channel_axis(op, value.ndim)
    found = _grid(_by_channel(value, axis))
    if found is None:
        return None
    integers, abs_max, bits = found
    moved = np.moveaxis(value, axis, 0)
    integers = np.moveaxis(integers.reshape(moved.shape), 0, axis)
    target = builder.variable(block, f"{name}.dequantized", value.shape)
    new = _dequantize(builder, view, name, integers, abs_max, target, bits, axis)
    set_input(op, slot, target)
    return [new, op]


def _dequantize(builder, view, name, integers, abs_max, target, bits, axis):
    """Store integers, under the name of the weight if one operator reads it."""
    if len(view.consumers[name]) == 1:
        builder.program.set_parameter(name, integers)
    else:
        name = builder.parameter(f"{name}.integers", integers)
    scale = builder.parameter(f"{name}.scale", abs_max)
    zero = builder.parameter(f"{target}.zero_point", np.zeros(len(abs_max), np.float32))
    return linear_op("dequantize_linear", name, scale, zero, target, bits, axis)


def _channel_axis(op, rank):
    if op.type.endswith("conv2d_transpose"):
        return 1
    if op.type in ("mul", "matmul", "matmul_v2"):
        turned = attribute(op, "trans_y", False) or attribute(op, "transpose_Y", False)
        return rank - 2 if turned else rank - 1
    return 0


def _by_channel(value, axis):
    """Return the weights of each channel as a row; all in one row for axis -1."""
    return (value.reshape(1, -1) if axis < 0 else
            np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1))


def _broadcast(numbers, value, axis):
    shape = [1] * value.ndim
    if axis >= 0:
        shape[axis] = -1
    return numbers.reshape(shape)


def _grid(rows):
    """Return (integers, abs_max, bits) of rows with equal steps each, None for others."""
    largest = np.abs(rows).max(1)
    if not np.isfinite(largest).all():
        return None
    shares = rows.astype(np.float64) / np.where(largest > 0, largest, 1)[:, None]
    integers, counts = np.zeros(rows.shape, np.int8), np.ones(len(rows), np.int64)
    left, step = np.flatnonzero(largest > 0), max(1, rows.shape[1] // _SAMPLES)
    for count in _LARGEST:
        near = left[_fits(shares[left, ::step] * count)]
        found = near[_fits(shares[near] * count)]
        integers[found], counts[found] = np.rint(shares[found] * count), count
        left = np.setdiff1d(left, found)
        if not left.size:
            bits = max(int(counts.max()).bit_length() + 1, 2)
            return integers, _exact(rows, integers, largest, counts, 2 ** (bits - 1) - 1), bits
    return None


def _fits(steps):
    return np.abs(steps - np.rint(steps)).max(1) <= _TOLERANCE


def _exact(rows, integers, largest, counts, levels):
    """Return the numbers near ``largest * levels / counts`` that give the rows exactly."""
    plain = (largest.astype(np.float64) * levels / counts).astype(np.float32)
    best, errors = plain.copy(), np.full(len(rows), np.inf)
    for offset in _NEIGHBORS:
        tried = plain.copy()
        for _ in range(abs(offset)):
            tried = np.nextafter(tried, np.float32(np.sign(offset) * np.inf))
        made = integers.astype(np.float32) * tried[:, None] / np.float32(levels)
        found = np.abs(made - rows).max(1)
        best, errors = np.where(found < errors, tried, best), np.minimum(found, errors)
    return best
