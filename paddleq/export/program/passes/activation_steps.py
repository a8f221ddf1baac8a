"""Quantization of activations to other numbers of bits than 8, by arithmetic operators.

Paddle Inference's int8 mode (2.6 to 3.3) refuses a ``quantize_linear`` of another number of bits.
The operators are those of :mod:`paddleq.functional.fake_quant`, in the same order. A quantizer with
a step of 1 rounds up to 8 bits, ``floor`` more. The layer behind them is computed in float.
"""

from typing import Any, NamedTuple, Tuple

import numpy as np

from ..graph_view import GraphView
from ..op_builder import OpBuilder, linear_op
from ..op_desc import inputs, make_op, outputs, replace_ops
from .float_operators import remove_rounding

_UNIT = 127.0  # abs_max of 8 bits with a step of 1


class ActivationSteps(NamedTuple):
    """Operators that quantize and dequantize an activation."""

    source: str  # name of the activation
    target: str  # name of the result
    scale: str  # name of the parameter with abs_max
    bits: int
    ops: Tuple[Any, ...]


def quantize_in_steps(builder, block, source, target, scale, bits):
    """Return the operators that quantize ``source`` to ``bits`` and dequantize it."""
    levels = 2 ** (bits - 1) - 1
    abs_max = builder.program.arrays[scale].astype(np.float32)
    factor = builder.parameter(f"{target}.factor",
                               np.float32(levels) * (np.float32(1.0) / abs_max))

    def new(name, dtype="float32"):
        return builder.variable_like(block, target, f"{target}.{name}", dtype)

    steps, clipped, product = new("steps"), new("clipped"), new("product")
    ops = [make_op("elementwise_mul", {"X": source, "Y": factor}, {"Out": steps}, axis=-1),
           make_op("clip", {"X": steps}, {"Out": clipped}, min=-levels - 1.0, max=float(levels))]
    if bits < 8:
        unit = builder.constant("paddleq.unit_step", _UNIT)
        zero = builder.constant("paddleq.zero_point", 0)
        integers, rounded = new("quantized"), new("rounded")
        ops += [linear_op("quantize_linear", clipped, unit, zero, integers, 8),
                linear_op("dequantize_linear", integers, unit, zero, rounded, 8)]
    else:
        rounding, rounded = _round_half_even(builder, block, clipped, new)
        ops += rounding
    return [*ops,
            make_op("elementwise_mul", {"X": rounded, "Y": scale}, {"Out": product}, axis=-1),
            make_op("elementwise_div",
                    {"X": product, "Y": builder.constant(f"paddleq.levels_{levels}", levels)},
                    {"Out": target}, axis=-1)]


def _round_half_even(builder, block, source, new):
    """Return (operators, name of the result): ``floor`` rounds halves up, odd ones are lowered."""
    raised, up, rest, tie, half, floor, even, rounded = (
        new(name, "bool" if name == "tie" else "float32")
        for name in ("raised", "up", "rest", "tie", "half", "floor", "even", "rounded"))

    def scale(x, out, factor, bias=0.0):
        return make_op("scale", {"X": x}, {"Out": out}, scale=factor, bias=bias,
                       bias_after_scale=True)

    return [
        scale(source, raised, 1.0, 0.5),
        make_op("floor", {"X": raised}, {"Out": up}),
        make_op("elementwise_sub", {"X": up, "Y": source}, {"Out": rest}, axis=-1),
        make_op("equal", {"X": rest, "Y": builder.constant("paddleq.half", 0.5)}, {"Out": tie},
                axis=-1),
        scale(up, half, 0.5),
        make_op("floor", {"X": half}, {"Out": floor}),
        scale(floor, even, 2.0),
        make_op("where", {"Condition": tie, "X": even, "Y": up}, {"Out": rounded}),
    ], rounded


def activation_steps(program, ops):
    """Find what :func:`quantize_in_steps` wrote: id of the last operator -> ActivationSteps."""
    view = GraphView(ops)
    found = [_steps(program, view, op) for op in ops if op.type == "elementwise_div"]
    return {id(steps.ops[-1]): steps for steps in found if steps is not None}


def _steps(program, view, division):
    levels, product = _number(program, division), view.source(division, "X", "elementwise_mul")
    scale = None if product is None else _number(program, product)
    if levels is None or scale is None or levels + 1 != 2 ** (int(levels).bit_length()):
        return None
    chain, op = [product, division], view.source(product, "X")
    if op is not None and op.type == "where":
        up = view.source(op, "Y", "floor")
        if up is None:
            return None
        even = view.source(op, "X")
        floor = view.source(even, "X") if even is not None else None
        tie = view.source(op, "Condition")
        rest = view.source(tie, "X") if tie is not None else None
        half = view.source(floor, "X") if floor is not None else None
        raised = view.source(up, "X")
        rounding = [raised, up, rest, tie, half, floor, even, op]
        clip = None if raised is None else view.source(raised, "X", "clip")
    else:
        quantize = None if op is None or op.type != "dequantize_linear" else view.source(
            op, "X", "quantize_linear")
        if quantize is None or _scale_of(program, quantize) != _UNIT:
            return None
        rounding, clip = [quantize, op], view.source(quantize, "X", "clip")
    first = None if clip is None else view.source(clip, "X", "elementwise_mul")
    if first is None or None in rounding or _number(program, first) is None:
        return None
    return ActivationSteps(inputs(first, "X")[0], outputs(division, "Out")[0],
                           inputs(product, "Y")[0], int(levels + 1).bit_length(),
                           (first, clip, *rounding, *chain))


def _number(program, op):
    """Value of the second operand if that is a parameter with one number, else None."""
    array = program.arrays.get(inputs(op, "Y")[0])
    return array.item() if array is not None and array.size == 1 else None


def _scale_of(program, quantize):
    array = program.arrays.get(inputs(quantize, "Scale")[0])
    return None if array is None or array.size != 1 else array.item()


def restore_quantizers(program):
    """Undo :func:`quantize_in_steps` and the rounding of float inputs, in place."""
    remove_rounding(program)
    builder = OpBuilder(program)
    for block in program.desc.blocks:
        _restore(builder, block)
    program.remove_unused_parameters()


def _restore(builder, block):
    ops = list(block.ops)
    found, removed, replaced = activation_steps(builder.program, ops).values(), set(), {}
    for steps in found:
        zero = builder.constant("paddleq.zero_point", 0)
        quantized = builder.variable_like(block, steps.target, f"{steps.target}.integers")
        removed.update(id(op) for op in steps.ops)
        replaced[id(steps.ops[-1])] = [
            linear_op("quantize_linear", steps.source, steps.scale, zero, quantized, steps.bits),
            linear_op("dequantize_linear", quantized, steps.scale, zero, steps.target, steps.bits)]
    if found:
        replace_ops(block, [new for op in ops for new in replaced.get(
            id(op), [] if id(op) in removed else [op])])
