"""Write a :class:`~.saved_model.SavedModel` back into the program that was read.

Quantizers become markers at the inputs and weights of the operators of their layers; folded batch
norms become additions of a bias. Names, order and control flow of the program are kept.
"""

from collections import defaultdict
from dataclasses import replace

from ..errors import ExportError
from ..export.program.op_builder import OpBuilder
from ..export.program.op_desc import (
    make_op,
    outputs,
    replace_ops,
    set_attribute,
    set_input,
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
        self.folded = set()  # names of the layers that a batch norm was folded into

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
        for block, ops in zip(self.blocks, self.ops):
            written = []
            for position, op in enumerate(ops):
                place = block.idx, position
                kept = [] if place in self.removed else [op]
                written += [*self.before[place], *kept, *self.after[place]]
            replace_ops(block, written)
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
        self.folded.add(binding.name)

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
        hooks, mark = self.recorder.input_mark(layer, 0)
        if hooks:
            raise ExportError(f"{binding.name} has a custom preprocess or quantizer for its "
                              "input, which cannot be written into a saved program")
        if mark is not None:
            source = binding.operator.input(binding.source)
            target = self.builder.variable_like(block, source, f"{source}.dequantized")
            self.before[binding.operator.place].append(self.marker(mark, source, target))
            set_input(self.op(binding.operator), binding.source, target)
        mark = self.recorder.weight_mark(layer, "weight")
        if mark is not None:
            self.mark_weight(binding, mark, block)
        if self.recorder.output_mark(layer) is not None:
            raise ExportError(f"{binding.name} has a quantizer for its output, which cannot be "
                              "written into a saved program")

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
