"""Raise quantize and dequantize operators of a saved program to markers.

A ``.pdmodel`` from any source is then exported to another format like a model in memory.
"""

import numpy as np

from ...errors import ExportError
from ...nn.tracing import MARKER_FACTOR
from ..markers import ActivationMark, WeightMark, simulated_weight
from ..program.graph_view import GraphView
from ..program.op_desc import attribute, inputs, make_op, outputs, replace_ops
from ..program.passes.stored_weights import spec_of, stored_weights


def raise_to_markers(program):
    """Replace the quantization of ``program`` by markers in a float program, in place.

    Returns:
        List of marks; empty if nothing is quantized.

    Raises:
        ExportError: quantization of an unknown form.
    """
    raising = _MarkerRaising(program)
    for block in program.desc.blocks:
        replace_ops(block, raising.block(block))
    program.remove_unused_parameters()
    return raising.marks


class _MarkerRaising:
    def __init__(self, program):
        self.program, self.marks = program, []

    def block(self, block):
        """Return the operators of a block, with markers instead of quantization."""
        before, ops = list(block.ops), []
        producers = GraphView(before).producers
        weights = stored_weights(self.program, before)
        steps = {id(op) for weight in weights.values() for op in weight.ops[:-1]}
        last = {id(weight.ops[-1]): weight for weight in weights.values()}
        for op in before:
            if id(op) in last:
                weight = last[id(op)]
                mark = self.weight(weight)
                self.program.set_parameter(weight.name, simulated_weight(mark))
                ops.append(self.marker(mark, weight.name, weight.target))
            elif op.type == "dequantize_linear":
                source = inputs(op, "X")[0]
                quantize = producers.get(source)
                if quantize is None or quantize.type != "quantize_linear":
                    raise ExportError(f"dequantize_linear reads {source!r}, which is neither a "
                                      "parameter of integers nor made by quantize_linear")
                ops.append(self.marker(self.activation(op), inputs(quantize, "X")[0],
                                       outputs(op, "Y")[0]))
            elif op.type.startswith("fake_"):
                raise ExportError(f"the model has the operator {op.type}, which keeps weights in "
                                  "float; export it again with onnx_format=True")
            elif op.type != "quantize_linear" and id(op) not in steps:
                ops.append(op)
        return ops

    def marker(self, mark, source, target):
        self.marks.append(mark)
        return make_op("scale", {"X": source}, {"Out": target}, scale=MARKER_FACTOR,
                       bias=float(len(self.marks)), bias_after_scale=True)

    def activation(self, op):
        abs_max = self.constant(inputs(op, "Scale")[0])
        bits, axis = attribute(op, "bit_length", 8), attribute(op, "quant_axis", -1)
        return ActivationMark("", abs_max, spec_of(bits, axis, abs_max))

    def weight(self, weight):
        abs_max = self.constant(weight.scale)
        return WeightMark(weight.name, None, self.program.arrays[weight.name], abs_max,
                          weight.spec(abs_max))

    def constant(self, name):
        if name not in self.program.arrays:
            raise ExportError(f"the scales {name!r} are computed by the program itself, which an "
                              "integer format cannot represent")
        return self.program.arrays[name].reshape(-1).astype(np.float32)
