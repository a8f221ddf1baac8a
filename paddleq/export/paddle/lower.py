"""Putting quantization into a saved float program: markers become quantize and dequantize ops."""

from dataclasses import dataclass
from typing import Optional

import numpy as np

from ...errors import ExportError
from ...nn.tracing import MARKER_FACTOR
from ...spec import PerGroup, QuantSpec
from ..program.op_builder import OpBuilder
from ..program.op_desc import attribute, inputs, outputs, replace_ops


@dataclass
class ActivationMark:
    """A quantizer in front of a layer's input."""

    layer: str
    threshold: np.ndarray  # float32 [1]
    spec: QuantSpec
    zero_point: Optional[np.ndarray] = None  # int64, of the threshold's shape; None for 0


@dataclass
class WeightMark:
    """A quantized weight.

    ``integers`` is None where the weight is on no grid that integers can hold; then ``value``
    goes into the file. ``value`` is None where there are integers only.
    """

    layer: str
    value: Optional[np.ndarray]  # float32, after preprocess, before quantization
    integers: Optional[np.ndarray]
    threshold: Optional[np.ndarray]
    spec: Optional[QuantSpec]
    dynamic: bool = True  # the threshold is max|value|, which fake_* operators compute themselves
    zero_point: Optional[np.ndarray] = None


def rewrite(program, marks, onnx_format=True):
    """Replace the markers of ``program`` by what ``marks`` says they stand for, in place."""
    Rewriter(program, marks, onnx_format).run()


class Rewriter:
    """Goes over a program; a subclass may write other things in the places of markers."""

    def __init__(self, program, marks, onnx_format):
        self.program, self.marks, self.onnx_format = program, marks, onnx_format
        self.builder = OpBuilder(program)
        self.taken = set()  # parameters whose own name the file uses for something else by now
        self.folded = {}  # parameter -> name of the float value that takes its place
        self.renamed = {}
        self.placeholders = set()  # constants in the places of weights that are integers
        self.float_uses = {
            name for block in program.desc.blocks for op in block.ops
            if marker_number(op) is None for slot in op.inputs for name in slot.arguments}

    def run(self):
        for block in self.program.desc.blocks:
            ops = []
            for op in block.ops:
                number = marker_number(op)
                if number is None:
                    ops.append(op)
                    continue
                (source,), (target,) = inputs(op, "X"), outputs(op, "Out")
                mark = self.marks[number - 1]
                write = self.activation if isinstance(mark, ActivationMark) else self.weight
                ops += write(block, mark, source, target)
            self.rename_inputs(ops)
            replace_ops(block, [op for op in ops if not self.makes_placeholder(op)])
        self.program.remove_unused_parameters()

    def activation(self, block, mark, source, target):
        bits = mark.spec.bits
        if mark.spec.binary:
            return self.builder.sign(block, source, target, float(mark.threshold[0]))
        if not self.onnx_format:
            return self.builder.fake_quantize(source, target, mark.threshold, bits)
        return self.builder.quantize_dequantize(block, source, target, mark.threshold, bits)

    def weight(self, block, mark, source, target):
        if mark.integers is None:
            return self.float_weight(mark, source, target, mark.value)
        bits, axis = mark.spec.bits, mark.spec.channel_axis
        if self.onnx_format:
            name = self.store(mark.layer, source, ".integers", mark.integers)
            scale = self.builder.parameter(f"{name}.scale", mark.threshold)
            return self.builder.dequantize_weight(block, name, scale, target, bits, axis)
        if mark.spec.binary or not mark.dynamic:
            # The fake_* operators find max|weight| themselves; where that is not the threshold
            # the weight goes into the file as it looks after quantization.
            return self.float_weight(mark, source, target, simulated_weight(mark))
        name = self.store(mark.layer, source, ".folded", mark.value)
        return self.builder.fake_quantize_weight(name, target, mark.threshold, bits, axis)

    def float_weight(self, mark, source, target, value):
        if source not in self.folded:
            self.folded[source] = self.store(mark.layer, source, ".folded", value)
        self.renamed[target] = self.folded[source]
        return []

    def store(self, layer, source, suffix, array):
        """Put ``array`` into the file, under the parameter's own name if that is free.

        A weight that is read twice is put there twice: Paddle Inference's int8 mode and
        Paddle-Lite dequantize a weight in place for each op that reads it.
        """
        if source not in self.program.arrays:
            self.placeholders.add(source)
            return self.builder.parameter(f"{layer}.weight", array)
        if source in self.float_uses or source in self.taken:
            return self.builder.parameter(source + suffix, array)
        self.taken.add(source)
        self.program.set_parameter(source, array)
        return source

    def makes_placeholder(self, op):
        made = {name for slot in op.outputs for name in slot.arguments}
        return bool(made) and made <= self.placeholders - self.float_uses

    def rename_inputs(self, ops):
        for op in ops:
            for slot in op.inputs:
                for i, name in enumerate(slot.arguments):
                    slot.arguments[i] = self.renamed.get(name, name)


def simulated_weight(mark):
    """The float weight that a :class:`WeightMark` stands for."""
    if mark.integers is None:
        return mark.value
    threshold, zero = _along_weight(mark.threshold, mark), mark.zero_point
    integers = mark.integers.astype(np.float32)
    if zero is not None:
        integers = integers - _along_weight(zero, mark).astype(np.float32)
    return integers * threshold / np.float32(mark.spec.quant_max)


def _along_weight(values, mark):
    """Numbers for each group or channel, in a shape that goes with the integers."""
    rows = mark.integers.shape[0]
    if isinstance(mark.spec.granularity, PerGroup):
        return np.repeat(values, mark.spec.granularity.size, axis=0)[:rows]
    shape = [1] * mark.integers.ndim
    if mark.spec.channel_axis is not None:
        shape[mark.spec.channel_axis] = -1
    return values.reshape(shape)


def marker_number(op):
    """The number of a marker, None for any other op."""
    if op.type != "scale" or attribute(op, "scale") != MARKER_FACTOR:
        return None
    return mark_of(attribute(op, "bias"))


def mark_of(bias):
    """The number that a marker's bias says."""
    if bias != int(bias) or bias < 1:
        raise ExportError(f"a scale op of the model has the factor {MARKER_FACTOR}, by which "
                          "paddleq marks places; use another one")
    return int(bias)
