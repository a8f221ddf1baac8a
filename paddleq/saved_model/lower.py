"""Write a :class:`~.saved_model.SavedModel` back into the program that was read.

Quantizers become markers at the inputs and weights of the operators of their layers; folded batch
norms become additions of a bias. Names, order and control flow of the program are kept.
"""

from collections import defaultdict
from dataclasses import replace

from ..errors import ExportError
from ..export.program.op_builder import OpBuilder
from ..export.program.op_desc import (
    all_outputs,
    inputs,
    make_op,
    outputs,
    rename_outputs,
    replace_ops,
    set_attribute,
    set_input,
    set_inputs,
    set_output,
)
from ..export.program.program import Program
from ..export.program.validate import contradictions_reported
from ..graph.fold_batch_norm import FoldedNorm
from ..nn.tracing import MARKER_FACTOR
from ..spec import PerChannel
from .layers import transposed_to

_LAST = ("NHWC", "NDHWC", "NLC")


@contradictions_reported()
def build_program(model, recorder=None) -> Program:
    """Return the program with current values; quantizers become markers of an export's recorder."""
    return _Writer(model, recorder).run()


class _Writer:
    def __init__(self, model, recorder):
        self.model, self.recorder = model, recorder
        self.program = model.parsed_program()
        self.program.arrays.update(model.parameter_arrays())
        self.builder = OpBuilder(self.program)
        self.blocks = self.program.desc.blocks
        self.ops = [list(block.ops) for block in self.blocks]
        # By place of the operator in the program:
        self.before, self.after, self.removed = defaultdict(list), defaultdict(list), set()
        self.folded = {}  # name of each layer that a batch norm was folded into -> its output
        self.output_marks = {}  # (block, variable) -> mark of its quantizer

    def run(self):
        bindings = self.model.bindings
        layers = {name: getattr(self.model, name) for name in bindings}
        for name, binding in bindings.items():
            if isinstance(layers[name], FoldedNorm):
                producer = layers[name]._folded_into
                self.fold(bindings[producer], layers[producer], binding)
        for name, binding in bindings.items():
            self.add_bias(binding, layers[name])
            if self.recorder is not None:
                self.mark_layer(binding, layers[name])
        if self.recorder is not None:
            for place, name in self.model.operator_layers.items():
                self.mark_operator(place, name)
        for block, ops in zip(self.blocks, self.ops):
            written = []
            for position, op in enumerate(ops):
                place = block.idx, position
                kept = [] if place in self.removed else [op]
                written += [*self.before[place], *kept, *self.after[place]]
            replace_ops(block, self.mark_outputs(block, written))
        if self.removed:
            self.program.remove_unused_parameters()
        return self.program

    def op(self, operator):
        return self.ops[operator.block][operator.position]

    def fold(self, binding, layer, norm):
        """Replace a folded batch norm by the addition of the bias of the layer before it."""
        op, source = self.op(norm.operator), norm.operator.input("X")
        target = norm.operator.output("Y")
        last = norm.operator.get("data_layout") in _LAST
        bias = self.builder.parameter(f"{binding.weight}.bias", layer.bias.numpy())
        if binding.bias_add is None:
            add = make_op("elementwise_add", {"X": source, "Y": bias}, {"Out": target},
                          axis=-1 if last else 1)
            op.CopyFrom(add)
        else:
            add = self.op(binding.bias_add)
            set_input(add, "Y", bias)
            set_output(add, "Out", target)
            set_attribute(add, "axis", -1 if last else 1)
            self.removed.add(norm.operator.place)
            reshape = binding.bias_add.input("Y")
            for position in binding.merged:
                each = self.ops[binding.operator.block][position]
                if each.type in ("reshape", "reshape2") and reshape in outputs(each, "Out"):
                    self.removed.add((binding.operator.block, position))
        self.folded[binding.name] = target

    def add_bias(self, binding, layer):
        """Add the bias that a layer got after the program was read."""
        bias = getattr(layer, "bias", None)
        if bias is None or "bias" in binding.parameters or binding.name in self.folded or (
                binding.operator.type == "rnn"):
            return
        op, block = self.op(binding.operator), self.blocks[binding.operator.block]
        slot = next(each.parameter for each in op.outputs if binding.target in each.arguments)
        product = self.builder.variable_like(block, binding.target, f"{binding.target}.product")
        set_output(op, slot, product)
        name = self.builder.parameter(f"{binding.weight}.bias", bias.numpy())
        convolution = "conv" in op.type
        last = binding.operator.get("data_format") in _LAST
        self.after[binding.operator.place].append(make_op(
            "elementwise_add", {"X": product, "Y": name}, {"Out": binding.target},
            axis=1 if convolution and not last else -1))

    def mark_layer(self, binding, layer):
        """Insert the markers of a layer's input, weight and output."""
        block = self.blocks[binding.operator.block]
        self.mark_input(binding.name, layer, 0, binding.operator.place, binding.source)
        mark = self.recorder.weight_mark(layer, "weight")
        if mark is not None:
            self.mark_weight(binding, mark, block)
        mark = self.recorder.output_mark(layer)
        if mark is not None:
            target = self.folded.get(binding.name, binding.target)
            self.output_marks[block.idx, target] = mark

    def mark_operator(self, place, name):
        """Insert the markers of the inputs and the output of an operator without weights."""
        layer, op = getattr(self.model, name), self.ops[place[0]][place[1]]
        for number, slot in enumerate(layer.function.slots):
            self.mark_input(name, layer, number, place, slot)
        mark = self.recorder.output_mark(layer)
        if mark is not None:
            self.output_marks[place[0], outputs(op, "Out")[0]] = mark

    def mark_input(self, name, layer, number, place, slot):
        """Insert the markers of the variables in an input slot, which share a scale."""
        hooks, mark = self.recorder.input_mark(layer, number)
        if hooks:
            raise ExportError(f"{name} has a custom preprocess or quantizer for its input, which "
                              "cannot be written into a saved program")
        if mark is None:
            return
        block, op, targets = self.blocks[place[0]], self.ops[place[0]][place[1]], []
        for source in inputs(op, slot):
            targets.append(self.builder.variable_like(block, source, f"{source}.dequantized"))
            self.before[place].append(self.marker(mark, source, targets[-1]))
        set_inputs(op, slot, targets)

    def mark_outputs(self, block, ops):
        """Return the operators of a block with the markers of outputs behind those they mark."""
        written = []
        for op in ops:
            written.append(op)
            for name in all_outputs(op):
                mark = self.output_marks.get((block.idx, name))
                if mark is not None:
                    product = self.builder.variable_like(block, name, f"{name}.before_quantizer")
                    rename_outputs([op], {name: product})
                    written.append(self.marker(mark, product, name))
        return written

    def mark_weight(self, binding, mark, block):
        weight, (reader, slot) = binding.weight, binding.weight_reader
        target = self.builder.variable(block, f"{weight}.dequantized",
                                       self.program.arrays[weight].shape)
        set_input(self.op(reader), slot, target)
        place = reader.place if reader is binding.operator else (reader.block, 0)
        self.before[place].append(self.marker(self.as_stored(binding, mark), weight, target))

    def as_stored(self, binding, mark):
        """Return the mark of a weight in the shape that the program keeps it in."""
        shape = self.program.arrays[binding.weight].shape
        changes = {name: transposed_to(shape, getattr(mark, name), binding, "weight")
                   for name in ("value", "integers") if getattr(mark, name) is not None}
        spec = mark.spec
        if binding.transposed and spec is not None and spec.channel_axis is not None:
            changes["spec"] = replace(spec, granularity=PerChannel(1 - spec.channel_axis))
        return replace(mark, **changes)

    def marker(self, mark, source, target):
        self.recorder.marks.append(mark)
        return make_op("scale", {"X": source}, {"Out": target}, scale=MARKER_FACTOR,
                       bias=float(len(self.recorder.marks)), bias_after_scale=True)
