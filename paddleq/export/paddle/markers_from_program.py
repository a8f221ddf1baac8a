"""From a saved program with quantize and dequantize operators back to markers.

So a ``.pdmodel`` that was written by anybody takes the same way to another format as a model in
memory.
"""

import numpy as np

from ...errors import ExportError
from ...nn.tracing import MARKER_FACTOR
from ..program.op_desc import attribute, inputs, make_op, outputs, replace_ops
from ..program.passes.stored_weights import spec_of, stored_weights
from .lower import ActivationMark, WeightMark, simulated_weight


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
        before, ops, quantized = list(block.ops), [], {}
        weights = stored_weights(self.program, before)
        steps = {id(op) for weight in weights.values() for op in weight.ops[:-1]}
        last = {id(weight.ops[-1]): weight for weight in weights.values()}
        for op in before:
            if id(op) in last:
                weight = last[id(op)]
                mark = self.weight(weight)
                self.program.set_parameter(weight.name, simulated_weight(mark))
                ops.append(self.marker(mark, weight.name, weight.target))
            elif op.type == "quantize_linear":
                quantized[outputs(op, "Y")[0]] = op
            elif op.type == "dequantize_linear":
                source = inputs(op, "X")[0]
                if source not in quantized:
                    raise ExportError(f"dequantize_linear reads {source!r}, which is neither a "
                                      "parameter of integers nor made by quantize_linear")
                ops.append(self.marker(self.activation(op), inputs(quantized[source], "X")[0],
                                       outputs(op, "Y")[0]))
            elif op.type.startswith("fake_"):
                raise ExportError(f"the model has the operator {op.type}, which keeps weights in "
                                  "float; export it anew with onnx_format=True")
            elif id(op) not in steps:
                ops.append(op)
        return ops

    def marker(self, mark, source, target):
        self.marks.append(mark)
        return make_op("scale", {"X": source}, {"Out": target}, scale=MARKER_FACTOR,
                       bias=float(len(self.marks)), bias_after_scale=True)

    def activation(self, op):
        threshold = self.thresholds(inputs(op, "Scale")[0])
        bits, axis = attribute(op, "bit_length", 8), attribute(op, "quant_axis", -1)
        return ActivationMark("", threshold, spec_of(bits, axis, threshold))

    def weight(self, weight):
        threshold = self.thresholds(weight.scale)
        return WeightMark(weight.name, None, self.program.arrays[weight.name], threshold,
                          weight.spec(threshold))

    def thresholds(self, name):
        if name not in self.program.arrays:
            raise ExportError(f"the thresholds {name!r} are computed by the program itself, which "
                              "an integer format cannot hold")
        return self.program.arrays[name].reshape(-1).astype(np.float32)
