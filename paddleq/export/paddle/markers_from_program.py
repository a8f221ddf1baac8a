"""Raise quantize and dequantize operators of a saved program to markers.

A ``.pdmodel`` from any source is then exported to another format like a model in memory.
"""

from ...errors import ExportError
from ...nn.tracing import MARKER_FACTOR
from ..markers import ActivationMark, simulated_weight
from ..program.graph_view import GraphView
from ..program.op_desc import attribute, inputs, make_op, outputs, replace_ops
from ..program.passes.activation_steps import restore_quantizers
from ..program.passes.fake_operators import write_linear_operators
from ..program.passes.stored_weights import spec_of, stored_weights
from ..program.validate import contradictions_reported


@contradictions_reported()
def raise_to_markers(program, partly=False):
    """Replace the quantization of ``program`` by markers in place, and return the marks.

    Args:
        partly: leave operators that markers do not represent, which otherwise raise ExportError.
    """
    marks = []
    restore_quantizers(program)
    write_linear_operators(program)
    for block in program.desc.blocks:
        left = _not_represented(program, block) if partly else ()
        replace_ops(block, _with_markers(program, block, marks, left))
    program.remove_unused_parameters()
    return marks


def _not_represented(program, block):
    """Return the ids of operators of quantization that markers do not represent."""
    ops = list(block.ops)
    view, left = GraphView(ops), set()
    weights = {id(weight.ops[-1]): weight for weight in stored_weights(program, ops).values()}
    for op in ops:
        weight = weights.get(id(op))
        scale = weight.scale if weight else next(iter(inputs(op, "Scale")), None)
        quantize = view.source(op, "X", "quantize_linear")
        if weight and scale not in program.arrays:
            left.update(map(id, weight.ops))
        elif op.type == "dequantize_linear" and not weight and (
                quantize is None or scale not in program.arrays):
            left.update(map(id, (op, *filter(None, [quantize]))))
        elif op.type.startswith("fake_"):
            left.add(id(op))
    # A quantizer stays for all that read its integers, or for none.
    for op in ops:
        quantize = view.source(op, "X", "quantize_linear")
        if quantize is not None and op.type != "dequantize_linear":
            left.add(id(quantize))
    return left


def _with_markers(program, block, marks, left):
    """Yield the operators of a block, with markers instead of quantization."""
    ops = list(block.ops)
    view, weights = GraphView(ops), stored_weights(program, ops).values()
    steps = {id(op) for weight in weights for op in weight.ops[:-1]}
    last = {id(weight.ops[-1]): weight for weight in weights}
    for op in ops:
        if id(op) in left:
            yield op
        elif id(op) in last:
            weight = last[id(op)]
            _abs_max(program, weight.scale)
            mark = weight.mark(program.arrays)
            program.set_parameter(weight.name, simulated_weight(mark))
            yield _marker(marks, mark, weight.name, weight.target)
        elif op.type == "dequantize_linear":
            quantize = view.source(op, "X", "quantize_linear")
            if quantize is None:
                raise ExportError(f"dequantize_linear reads {inputs(op, 'X')[0]!r}, which is "
                                  "neither a parameter of integers nor made by quantize_linear")
            abs_max = _abs_max(program, inputs(op, "Scale")[0])
            spec = spec_of(attribute(op, "bit_length", 8), attribute(op, "quant_axis", -1), abs_max)
            yield _marker(marks, ActivationMark("", abs_max, spec), inputs(quantize, "X")[0],
                          outputs(op, "Y")[0])
        elif op.type.startswith("fake_"):
            raise ExportError(f"the model has the operator {op.type}, which computes its scales; "
                              "export it again with onnx_format=True")
        elif op.type != "quantize_linear" and id(op) not in steps:
            yield op


def _marker(marks, mark, source, target):
    marks.append(mark)
    return make_op("scale", {"X": source}, {"Out": target}, scale=MARKER_FACTOR,
                   bias=float(len(marks)), bias_after_scale=True)


def _abs_max(program, name):
    if name not in program.arrays:
        raise ExportError(f"the scales {name!r} are computed by the program itself, which an "
                          "integer format cannot represent")
    return program.arrays[name].reshape(-1).astype("float32")
