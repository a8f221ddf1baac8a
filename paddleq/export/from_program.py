"""From a saved program with quantize and dequantize operators back to markers.

So a ``.pdmodel`` that was written by anybody takes the same way to another format as a model in
memory.
"""

import numpy as np

from ..errors import ExportError
from ..nn.tracing import MARKER_FACTOR
from ..spec import PerChannel, PerTensor, QuantSpec
from .emit import replace_ops
from .program import attribute, inputs, make_op, outputs
from .rewrite import ActivationMark, WeightMark, simulated_weight


def to_marks(program):
    """Replace the quantization of ``program`` by markers in a float program, in place.

    Returns:
        What the markers stand for; empty where nothing is quantized.

    Raises:
        ExportError: quantization of a form that is not known.
    """
    reader = _Reader(program)
    for block in program.desc.blocks:
        replace_ops(block, reader.marked(block))
    program.remove_unused_parameters()
    return reader.marks


class _Reader:
    def __init__(self, program):
        self.program, self.marks = program, []

    def marked(self, block):
        """The ops of a block, with markers in place of quantization."""
        ops, quantized, converted = [], {}, {}
        for op in block.ops:
            if op.type == "quantize_linear":
                quantized[outputs(op, "Y")[0]] = op
            elif op.type == "cast" and self.integers(inputs(op, "X")[0]) is not None:
                converted[outputs(op, "Out")[0]] = inputs(op, "X")[0]
            elif op.type == "dequantize_linear":
                source = inputs(op, "X")[0]
                pair = quantized.get(source)
                source = converted.get(source, source)
                if pair is not None:
                    mark, source = self.activation(op), inputs(pair, "X")[0]
                elif self.integers(source) is not None:
                    mark = self.weight(op, source)
                    self.program.set_parameter(source, simulated_weight(mark))
                else:
                    raise ExportError(f"dequantize_linear reads {source!r}, which is neither a "
                                      "parameter of integers nor made by quantize_linear")
                self.marks.append(mark)
                ops.append(make_op("scale", {"X": source}, {"Out": outputs(op, "Y")[0]},
                                   scale=MARKER_FACTOR, bias=float(len(self.marks)),
                                   bias_after_scale=True))
            elif op.type.startswith("fake_"):
                raise ExportError(f"the model has the operator {op.type}, which keeps weights in "
                                  "float; export it anew with onnx_format=True")
            else:
                ops.append(op)
        return ops

    def integers(self, name):
        """The parameter ``name`` if it holds integers."""
        array = self.program.arrays.get(name)
        return array if array is not None and array.dtype.name in ("int8", "int16") else None

    def activation(self, op):
        threshold = self.parameter(op, "Scale").astype(np.float32)
        return ActivationMark("", threshold, spec_of(op, threshold))

    def weight(self, op, name):
        threshold, integers = self.parameter(op, "Scale").astype(np.float32), self.integers(name)
        spec = spec_of(op, threshold)
        return WeightMark(name, None, integers, threshold, spec)

    def parameter(self, op, slot):
        (name,) = inputs(op, slot)
        if name not in self.program.arrays:
            raise ExportError(f"the {slot} of {op.type} is computed by the program itself, which "
                              "an integer format cannot hold")
        return self.program.arrays[name].reshape(-1)


def spec_of(op, threshold):
    """The :class:`~paddleq.QuantSpec` of a dequantize_linear with these thresholds."""
    axis = attribute(op, "quant_axis", -1)
    per_channel = axis >= 0 and len(threshold) > 1
    return QuantSpec(attribute(op, "bit_length", 8),
                     granularity=PerChannel(axis) if per_channel else PerTensor())
