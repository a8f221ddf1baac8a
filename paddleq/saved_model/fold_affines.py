"""Fold multiplications and additions of constants into the weighted operators of a program.

A chain of such operators is folded into the operators that compute what it reads, else into those
that read what it computes. A padded convolution cannot take an addition from its input, because
the padding is zero: the chain becomes the addition of ``shift / scale``, and the weights are
multiplied by ``scale``.
"""

import logging
from dataclasses import dataclass, field
from typing import Collection, Dict, List, Optional

import numpy as np

from ..export.markers import WeightMark
from ..export.program.op_builder import OpBuilder
from ..export.program.op_desc import (
    DENSE_TENSOR,
    dtype_of,
    make_op,
    rename_inputs,
    rename_outputs,
    replace_ops,
)
from ..export.program.program import Program
from .affine import Affine, AffineOperator, Constants, Refused, affine_operator, chain_affine
from .affine_paths import across, back
from .fold_into_weights import WeightFolding
from .layers import ProgramGraph, plan_layers
from .operators import Operator, read_operators

_logger = logging.getLogger("paddleq")


@dataclass
class AffineFolding:
    """Result of :func:`fold_affines`.

    Attributes:
        folded: variable that a chain of operators computed -> weights that it was folded into.
        kept: variable that a chain computes -> reason that it stays.
        renamed: variable that is no longer computed -> the one in its place.
        values: parameter -> its new value.
        biases: weight -> bias of an operator that had none.
        neutral: parameter with which an operator is the identity now -> weights that the operator
            was folded into.
    """

    folded: Dict[str, List[str]] = field(default_factory=dict)
    kept: Dict[str, str] = field(default_factory=dict)
    renamed: Dict[str, str] = field(default_factory=dict)
    values: Dict[str, np.ndarray] = field(default_factory=dict)
    biases: Dict[str, np.ndarray] = field(default_factory=dict)
    neutral: Dict[str, List[str]] = field(default_factory=dict)


def fold_affines(program: Program, neutral: Optional[Collection[str]] = None,
                 without_bias: Collection[str] = (),
                 marks: Optional[Dict[str, WeightMark]] = None,
                 exact_numbers: bool = False) -> AffineFolding:
    """Fold affine operators of a float program, in place.

    Args:
        neutral: parameters that may get the value with which their operator is the identity (those
            of a Layer, whose operators cannot be removed); only operators with those are folded.
            Default None: operators with any constants, which are removed.
        without_bias: weights of operators that cannot get a bias.
        marks: of quantized weights with markers in the program, by parameter; replaced by those of
            the folded weights.
        exact_numbers: fold operators whose constants are no parameters only where the result is
            the same to the last bit, which is so for products with powers of two.
    """
    return _Folder(program, neutral, without_bias, {} if marks is None else marks,
                   exact_numbers).run()


class _Folder:
    def __init__(self, program, neutral, without_bias, marks, exact_numbers):
        self.marks, self.exact_numbers = marks, exact_numbers
        self.program, self.neutral, self.without_bias = program, neutral, set(without_bias)
        self.builder = OpBuilder(program)
        self.blocks = [read_operators(block) for block in program.desc.blocks]
        self.descs = {id(op): desc for block, ops in zip(program.desc.blocks, self.blocks)
                      for op, desc in zip(ops, block.ops)}
        self.result, self.constants = AffineFolding(), Constants()
        self.added = {}  # bias that was added -> weight of its operator
        self.plan()

    def run(self):
        while True:
            self.result.kept.clear()
            if not any(map(self.fold, self.chains())):
                break
            self.plan()
        for name, reason in self.result.kept.items():
            _logger.debug("the operator that computes %s is not folded: %s", name, reason)
        if self.result.folded:
            self.remove_unread_constants()
            for block, ops in zip(self.program.desc.blocks, self.blocks):
                replace_ops(block, [self.descs[id(op)] for op in ops])
            self.program.remove_unused_parameters()
        return self.result

    def remove_unread_constants(self):
        """Remove the operators that compute constants for removed ones only."""
        read = {name for block in self.blocks for op in block for name in op.all_inputs()}
        for ops in self.blocks:
            for op in reversed(list(ops)):
                if read.isdisjoint(op.all_outputs()) and self.constants.value(
                        self.graph, op.output("Out")) is not None:
                    ops[:] = [each for each in ops if each is not op]
                    read = {name for block in self.blocks for each in block
                            for name in each.all_inputs()}

    def plan(self):
        """Compute the view of the program as it is now."""
        self.graph = ProgramGraph(self.program, self.blocks)
        bindings = plan_layers(self.program, self.blocks).values()
        self.targets = {each.target: each for each in bindings}
        self.weighted = {id(each.operator): each for each in bindings}
        self.bias_adds = {id(each.bias_add) for each in bindings if each.bias_add is not None}
        # Of each block, the variables that are its own and dense -> data type.
        self.dtypes = [{var.name: dtype_of(var) for var in block.vars
                        if not var.persistable and var.type.type == DENSE_TENSOR}
                       for block in self.program.desc.blocks]

    def chains(self):
        """Yield the longest chains of affine operators in which each is read only by the next."""
        found = [self.affine_operator(op) for block in self.blocks for op in block]
        by_source: Dict[str, List[AffineOperator]] = {}
        for each in filter(None, found):
            by_source.setdefault(each.source, []).append(each)
        used = set()
        for each in filter(None, found):
            if id(each.operator) in used:
                continue
            chain = [each]
            while True:
                used.add(id(chain[-1].operator))
                target = chain[-1].target
                after = by_source.get(target, [])
                if len(self.graph.consumers.get(target, ())) != 1 or len(after) != 1 or (
                        chain_affine(chain).then(after[0].affine) is None):
                    break
                chain += after
            yield chain

    def affine_operator(self, op):
        """Return the affine map of an operator that may be folded, else None."""
        found = None if id(op) in self.bias_adds else affine_operator(
            self.graph, self.constants, op)
        if found is None or not all(self.is_plain(name, op.block)
                                    for name in (found.source, found.target)):
            return None
        if self.neutral is not None and (
                found.neutral is None or found.constant not in self.neutral
                or len(self.graph.consumers[found.constant]) != 1):
            return None
        return found

    def is_plain(self, name, block):
        """Return True for a float variable of a block that one operator there writes."""
        return (self.dtypes[block].get(name) in ("float32", "float64")
                and name not in self.graph.rewritten
                and name in self.graph.producers and self.graph.producers[name].block == block)

    def fold(self, chain):
        """Fold a chain and return True, or note the reason that it stays."""
        affine, reasons = chain_affine(chain), []
        if not affine.multiplies and not affine.adds:
            return self.fold_identity(chain)
        if self.exact_numbers and not affine.is_exact and all(
                each.constant is None for each in chain):
            self.result.kept[chain[-1].target] = "folding its numbers would round otherwise"
            return False
        for attempt in (self.fold_back, self.fold_forward, self.fold_factors_forward,
                        self.fold_factors_back):
            try:
                attempt(chain, affine)
                return True
            except Refused as reason:
                reasons.append(str(reason))
        self.result.kept[chain[-1].target] = "; ".join(filter(None, dict.fromkeys(reasons)))
        return False

    def fold_identity(self, chain):
        """Remove a chain that changes nothing, unless it computes an output of the model."""
        readers = self.graph.consumers.get(chain[-1].target, ())
        if self.neutral is not None or any(
                op.type == "fetch" or op.block != chain[0].operator.block for op in readers):
            return False
        self.bypass(chain, [])
        return True

    def fold_back(self, chain, affine):
        """Fold a chain into the operators that compute what it reads."""
        taken = self.before(chain[0].source, chain[0].operator.block, affine)
        self.change_parameters(taken)
        self.take_place(chain, taken)

    def fold_forward(self, chain, affine):
        """Fold a chain into the operators that read what it computes."""
        taken = self.after(chain[-1].target, chain[0].operator.block, affine)
        self.change_parameters(taken)
        self.bypass(chain, taken)

    def fold_factors_forward(self, chain, affine):
        """Fold the factors of a chain forward; ``shift / scale`` is added in its place."""
        if not (affine.multiplies and affine.adds) or not affine.scale.all():
            raise Refused("")
        leave = self.addition_in_place_of(chain, affine.shift / affine.scale, affine.axis)
        taken = self.after(chain[-1].target, chain[0].operator.block,
                           Affine.of(affine.scale, 0.0, affine.axis))
        self.change_parameters(taken)
        leave(taken)

    def fold_factors_back(self, chain, affine):
        """Fold the factors of a chain back; its shift is added in its place."""
        if not (affine.multiplies and affine.adds):
            raise Refused("")
        leave = self.addition_in_place_of(chain, affine.shift, affine.axis)
        taken = self.before(chain[0].source, chain[0].operator.block,
                            Affine.of(affine.scale, 0.0, affine.axis))
        self.change_parameters(taken)
        leave(taken)

    def before(self, name, block, affine, sliced=False):
        """Return the foldings of ``affine`` of a variable by operators that compute it."""
        op = self.graph.producers.get(name)
        if op is None or not self.is_plain(name, block):
            raise Refused(f"{name} is no result of one operator of its block")
        # back() checks the other readers of what is sliced.
        if len(self.graph.consumers[name]) != 1 and not sliced:
            raise Refused(f"{name} has several readers")
        if name in self.targets:
            return [WeightFolding(self.graph, self.targets[name], affine, of_input=False)]
        return [each for part, moved in back(self.graph, op, name, affine)
                for each in self.before(part, block, moved, sliced=op.type == "slice")]

    def after(self, name, block, affine):
        """Return the foldings of ``affine`` of a variable by all operators that read it."""
        found = []
        for op in self.graph.consumers.get(name, ()):
            if op.block != block or not self.is_plain(name, block):
                raise Refused(f"{name} is read in another block")
            binding = self.weighted.get(id(op))
            if binding is None:
                found += self.after(*self.step_across(op, name, block, affine))
            elif op.input(binding.source) != name or binding.weight in self.marks:
                raise Refused(f"{name} is no data of {op.type}")
            else:
                found.append(WeightFolding(self.graph, binding, affine, of_input=True))
        if not found:
            raise Refused(f"{name} is read by no operator with a weight")
        return found

    def step_across(self, op, name, block, affine):
        target, moved = across(self.graph, op, name, affine)
        return target, block, moved

    def change_parameters(self, foldings):
        """Change the parameters of weighted operators."""
        names = [each.binding.weight for each in foldings]
        if len(set(names)) != len(names):
            raise Refused(f"{', '.join(names)} would take it twice")
        changes = [each.new_parameters(self.graph) for each in foldings]
        marks = {name: each.scaled_mark(self.marks[name]) for each, name in zip(foldings, names)
                 if name in self.marks}
        for each, name, (_, bias) in zip(foldings, names, changes):
            if bias is not None and name in self.without_bias:
                raise Refused(f"the layer of {name} cannot get a bias")
            if bias is not None and not self.is_plain(each.binding.target,
                                                      each.binding.operator.block):
                raise Refused(f"{each.binding.target} is written several times")
        self.marks.update(marks)
        for each, (values, bias) in zip(foldings, changes):
            self.program.arrays.update(values)
            for name, value in values.items():
                if name in self.added:
                    self.result.biases[self.added[name]] = value
                else:
                    self.result.values[name] = value
            if bias is not None:
                self.add_bias(each.binding, bias)

    def add_bias(self, binding, bias):
        """Add a bias to an operator without one."""
        op, block = binding.operator, self.program.desc.blocks[binding.operator.block]
        target = binding.target
        product = self.builder.variable_like(block, target, f"{target}.product",
                                             self.dtypes[op.block][target])
        self.rename_output(op, target, product)
        name = self.builder.parameter(f"{binding.weight}.bias", bias)
        last = "conv" not in op.type or str(op.get("data_format", "NCHW")).endswith("C")
        added = self.new_operator("elementwise_add", {"X": [product], "Y": [name]}, target,
                                  op.block, -1 if last else 1)
        ops = self.blocks[op.block]
        ops.insert(ops.index(op) + 1, added)
        self.result.biases[binding.weight], self.added[name] = bias, binding.weight

    def new_operator(self, kind, inputs, target, block, axis):
        op = Operator(kind, inputs, {"Out": [target]}, {"axis": axis}, block, -1)
        self.descs[id(op)] = make_op(kind, inputs, {"Out": target}, axis=axis)
        return op

    def rename_output(self, op, old, new):
        op.outputs = {slot: [new if name == old else name for name in names]
                      for slot, names in op.outputs.items()}
        rename_outputs([self.descs[id(op)]], {old: new})

    def rename_readers(self, old, new):
        for op in self.graph.consumers.get(old, ()):
            op.inputs = {slot: [new if name == old else name for name in names]
                         for slot, names in op.inputs.items()}
            rename_inputs([self.descs[id(op)]], {old: new})

    def bypass(self, chain, taken):
        """Let the readers of a chain read what the chain reads."""
        source, target = chain[0].source, chain[-1].target
        self.rename_readers(target, source)
        self.remove(chain, source, taken)

    def take_place(self, chain, taken):
        """Let the operator that computes what a chain reads write what the chain computed."""
        source, target = chain[0].source, chain[-1].target
        (writer,) = [op for op in self.blocks[chain[0].operator.block]
                     if source in op.all_outputs()]
        self.rename_output(writer, source, target)
        self.remove(chain, target, taken)
        self.result.renamed[source] = target

    def remove(self, chain, remaining, taken):
        """Remove operators; a variable in their place has the name ``remaining``."""
        weights = [each.binding.weight for each in taken]
        self.result.folded[chain[-1].target] = weights
        ops = self.blocks[chain[0].operator.block]
        for each in chain:
            ops[:] = [op for op in ops if op is not each.operator]
            if each.target != remaining:
                self.result.renamed[each.target] = remaining
            if self.neutral is not None:
                self.result.values[each.constant] = np.full_like(
                    self.program.arrays[each.constant], each.neutral)
                self.result.neutral[each.constant] = weights

    def addition_in_place_of(self, chain, shift, axis):
        """Return a function that replaces a chain by the addition of ``shift`` along an axis."""
        place, holder = chain[-1], None
        if not np.isfinite(shift.astype(np.float32)).all():
            raise Refused("the addition that would be left overflows")
        if self.neutral is not None:
            holder = next((each for each in chain if each.neutral == 0.0 and (
                self.program.arrays[each.constant].size == shift.size)), None)
            if holder is None:
                raise Refused("no parameter can hold the addition that would be left")
        source, target, block = chain[0].source, place.target, place.operator.block

        def replace(taken):
            if holder is None:
                name = self.builder.parameter(f"{target}.shift", shift.astype(
                    self.dtypes[block][source]))
                left = axis if shift.size > 1 else -1
            else:
                # A subtraction of the holder is an addition in the program from here on.
                sign = -1.0 if holder.operator.type == "elementwise_sub" else 1.0
                name, shape = holder.constant, self.program.arrays[holder.constant].shape
                left = holder.operator.get("axis", -1)
            added = self.new_operator("elementwise_add", {"X": [source], "Y": [name]}, target,
                                      block, left)
            ops = self.blocks[block]
            ops[ops.index(place.operator)] = added
            self.remove(chain, target, taken)
            if holder is not None:
                array = shift.reshape(shape).astype(self.program.arrays[name].dtype)
                self.program.arrays[name] = array
                self.result.values[name] = array if sign > 0 else -array
                del self.result.neutral[name]

        return replace
