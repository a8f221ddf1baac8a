"""Putting quantization into a saved float program: markers become quantize and dequantize ops."""

import logging
from dataclasses import dataclass
from typing import Optional

import numpy as np

from ..errors import ExportError
from ..nn.tracing import MARKER_FACTOR
from ..spec import QuantSpec
from .program import attribute, inputs, make_op, outputs, set_attribute, shape_of

_logger = logging.getLogger("paddleq")


@dataclass
class ActivationMark:
    """A quantizer in front of a layer's input."""

    layer: str
    threshold: np.ndarray  # float32 [1]
    spec: QuantSpec


@dataclass
class WeightMark:
    """A quantized weight.

    ``integers`` is None where the weight is on no grid that integers can hold; then ``value``
    goes into the file.
    """

    layer: str
    value: np.ndarray  # float32, after preprocess, before quantization
    integers: Optional[np.ndarray]
    threshold: Optional[np.ndarray]
    spec: Optional[QuantSpec]
    dynamic: bool = True  # the threshold is max|value|, which fake_* operators compute themselves


def rewrite(program, marks, onnx_format=True):
    """Replace the markers of ``program`` by what ``marks`` says they stand for, in place."""
    _Rewriter(program, marks, onnx_format).run()


class _Rewriter:
    def __init__(self, program, marks, onnx_format):
        self.program, self.marks, self.onnx_format = program, marks, onnx_format
        self.names = set()
        for block in program.desc.blocks:
            self.names.update(var.name for var in block.vars)
        self.integers = {}  # parameter name -> (name of its integers, of its scale)
        self.renamed = {}

    def run(self):
        self.float_uses = {
            name for block in self.program.desc.blocks for op in block.ops
            if marker_number(op) is None for slot in op.inputs for name in slot.arguments}
        for block in self.program.desc.blocks:
            ops = []
            for op in block.ops:
                number = marker_number(op)
                if number is None:
                    ops.append(op)
                    continue
                (source,), (target,) = inputs(op, "X"), outputs(op, "Out")
                mark = self.marks[number - 1]
                if isinstance(mark, ActivationMark):
                    ops += self.activation(block, mark, source, target)
                else:
                    ops += self.weight(block, mark, source, target)
            self._rename(ops)
            # extend() copies: the list must be complete before the block is emptied.
            kept = [type(op).FromString(op.SerializeToString()) for op in ops]
            del block.ops[:]
            block.ops.extend(kept)
            for op in block.ops:
                mend(op)
        self.program.remove_unused_parameters()

    def activation(self, block, mark, source, target):
        spec = mark.spec
        if spec.binary:
            return self.sign(block, source, target, mark.threshold)
        scale = self.program.add_parameter(self.fresh(f"{target}.scale"), mark.threshold)
        if not self.onnx_format:
            return [make_op(
                "fake_quantize_dequantize_moving_average_abs_max",
                {"X": source, "InScale": scale}, {"Out": target, "OutScale": scale},
                bit_length=spec.bits, moving_rate=0.9, is_test=True, round_type=0)]
        quantized = self.like(block, target, f"{target}.quantized")
        return [self.quantize_linear(source, scale, 1, quantized, spec.bits),
                self.dequantize_linear(quantized, scale, 1, target, spec.bits, -1)]

    def weight(self, block, mark, source, target):
        if mark.integers is None:
            return self.float_weight(mark, source, target, mark.value)
        if not self.onnx_format:
            return self.fake_weight(block, mark, source, target)
        if source not in self.integers:
            name = self.parameter_name(source, ".integers")
            self.put(name, source, mark.integers)
            scale = self.program.add_parameter(self.fresh(f"{source}.scale"), mark.threshold)
            self.integers[source] = name, scale
        name, scale = self.integers[source]
        axis = mark.spec.channel_axis
        # One bit is stored as -1 and +1, which two bits' levels / 1 give back.
        bits = max(mark.spec.bits, 2)
        axis = -1 if axis is None else axis
        if mark.integers.dtype == np.int8:
            return [self.dequantize_linear(name, scale, len(mark.threshold), target, bits, axis)]
        # Paddle has no kernel that dequantizes int16: convert first.
        converted = self.like(block, target, f"{target}.converted")
        return [make_op("cast", {"X": name}, {"Out": converted}, in_dtype=1, out_dtype=5),
                self.dequantize_linear(converted, scale, len(mark.threshold), target, bits, axis)]

    def float_weight(self, mark, source, target, value):
        if source not in self.integers:
            name = self.parameter_name(source, ".folded")
            self.put(name, source, value)
            self.integers[source] = name, None
        self.renamed[target] = self.integers[source][0]
        return []

    def fake_weight(self, block, mark, source, target):
        spec = mark.spec
        if spec.binary or not mark.dynamic:
            # The operators find max|weight| themselves; where that is not the threshold the
            # weight goes into the file as it looks after quantization.
            shape = [1] * mark.integers.ndim
            if spec.channel_axis is not None:
                shape[spec.channel_axis] = -1
            value = (mark.integers.astype(np.float32) * mark.threshold.reshape(shape)
                     / np.float32(spec.levels))
            return self.float_weight(mark, source, target, value)
        if source not in self.integers:
            name = self.parameter_name(source, ".folded")
            self.put(name, source, mark.value)
            self.integers[source] = name, None
        name = self.integers[source][0]
        scale = self.fresh(f"{target}.scale")
        self.program.add_variable(block, scale, "float32", [len(mark.threshold)])
        if spec.channel_axis is None:
            return [make_op("fake_quantize_dequantize_abs_max", {"X": name},
                            {"Out": target, "OutScale": scale},
                            bit_length=spec.bits, round_type=0)]
        return [make_op("fake_channel_wise_quantize_dequantize_abs_max", {"X": name},
                        {"Out": target, "OutScale": scale},
                        bit_length=spec.bits, quant_axis=spec.channel_axis, round_type=0)]

    def sign(self, block, source, target, threshold):
        """-s below 0, +s from 0 on."""
        zero = self.zero(1)
        above = self.like(block, target, f"{target}.above", "bool")
        number = self.like(block, target, f"{target}.number")
        size = float(threshold[0])
        return [
            make_op("greater_equal", {"X": source, "Y": zero}, {"Out": above}, axis=-1,
                    force_cpu=False),
            make_op("cast", {"X": above}, {"Out": number}, in_dtype=0, out_dtype=5),
            make_op("scale", {"X": number}, {"Out": target}, scale=2.0 * size, bias=-size,
                    bias_after_scale=True),
        ]

    def quantize_linear(self, source, scale, size, target, bits):
        return make_op(
            "quantize_linear", {"X": source, "Scale": scale, "ZeroPoint": self.zero(size)},
            {"Y": target}, **self.integer_attributes(bits, -1))

    def dequantize_linear(self, source, scale, size, target, bits, axis):
        return make_op(
            "dequantize_linear", {"X": source, "Scale": scale, "ZeroPoint": self.zero(size)},
            {"Y": target}, **self.integer_attributes(bits, axis))

    @staticmethod
    def integer_attributes(bits, axis):
        # Paddle 3 clips to qmin and qmax, whatever bit_length says; Paddle 2.6 the other way.
        top = 2 ** (bits - 1) - 1
        return {"quant_axis": axis, "bit_length": bits, "qmin": -top - 1, "qmax": top,
                "round_type": 0, "is_test": True, "only_observer": False}

    def zero(self, size):
        name = f"paddleq.zero_point.{size}"
        if name not in self.program.arrays:
            self.program.add_parameter(name, np.zeros([size], np.float32))
        return name

    def like(self, block, target, name, dtype="float32"):
        """A new variable of the shape of ``target``."""
        var = next(var for var in block.vars if var.name == target)
        return self.program.add_variable(block, self.fresh(name), dtype, shape_of(var))

    def parameter_name(self, source, suffix):
        """The parameter's own name, unless somebody goes on reading the float value."""
        return self.fresh(source + suffix) if source in self.float_uses else source

    def put(self, name, source, array):
        if name == source:
            self.program.set_parameter(name, array)
        else:
            self.program.add_parameter(name, array)

    def fresh(self, name):
        unique, number = name, 0
        while unique in self.names:
            number += 1
            unique = f"{name}_{number}"
        self.names.add(unique)
        return unique

    def _rename(self, ops):
        for op in ops:
            for slot in op.inputs:
                for i, name in enumerate(slot.arguments):
                    if name in self.renamed:
                        slot.arguments[i] = self.renamed[name]


def marker_number(op):
    """The number of a marker, None for any other op."""
    if op.type != "scale" or attribute(op, "scale") != MARKER_FACTOR:
        return None
    number = attribute(op, "bias")
    if number != int(number) or number < 1:
        raise ExportError(f"a scale op of the model has the factor {MARKER_FACTOR}, by which "
                          "paddleq marks places; use another one")
    return int(number)


def mend(op):
    """Write what runtimes read and current Paddle leaves out."""
    if op.type == "relu6" and attribute(op, "threshold") is None:
        # Paddle-Lite aborts without it. Paddle dropped it in 2.5.
        set_attribute(op, "threshold", 6.0)
