"""Write models with channels last with channels first.

Convolutions and other operators with channels last (``data_format="NHWC"``, NLC, NDHWC) are refused
by OpenVINO's Paddle frontend, by ONNX and, in some surroundings, by oneDNN in Paddle Inference;
some runtimes ignore the order. Weights are stored in the same way for both orders.

Each tensor between such operators is computed with channels first too, with the operators of
:mod:`.layout_rules`, so that transposes remain only where the order matters to another operator:
a network that has channels last throughout gets one at each end. Quantizers are repeated rather
than separated from the operator that reads them.
"""

import numpy as np

from ..op_builder import OpBuilder
from ..op_desc import (
    all_inputs,
    all_outputs,
    change_attribute,
    dtype_of,
    inputs,
    make_op,
    outputs,
    replace_ops,
    shape_of,
)
from .layout_orders import FIRST, LAST, Orders, sub_blocks
from .layout_rules import has_channels_last, to_first, to_last


def to_channels_first(program, marks=()):
    """Convert operators with channels last, and operators between them, in place.

    ``marks`` are those of a program with markers in the place of quantizers.
    """
    if not any(has_channels_last(op) for block in program.desc.blocks for op in block.ops):
        return
    builder = OpBuilder(program)
    for block in program.desc.blocks:
        if any(map(has_channels_last, block.ops)):
            _Rewrite(builder, block, Orders(program, block, marks)).run()
    program.remove_unused_parameters()


class _Rewrite:
    """New operators of a block."""

    def __init__(self, builder, block, orders):
        self._builder, self._block, self._orders = builder, block, orders
        self._ops = []
        self._forms = {}  # (variable, order) -> variable with its value in that order
        self._made = set()  # variables that this rewrite added
        self._renamed = {}  # variables of these -> name that other operators need
        self._constants = {}

    def run(self):
        before = {name for op in self._orders.ops for name in self._orders.writes(op)}
        for op in self._orders.ops:
            if not self._is_deferred(op):
                self._add(op)
        for op in self._ops:
            for entry in (*op.inputs, *op.outputs):
                entry.arguments[:] = [self._renamed.get(name, name) for name in entry.arguments]
        replace_ops(self._block, self._ops)
        self._remove_variables(before | self._made)

    def _is_deferred(self, op):
        """Return True for quantizers, which are written where they are read."""
        return any(self._orders.quantizers.get(name) is op for name in all_outputs(op))

    def _add(self, op):
        takes, gives = self._orders.of(op)
        if takes != gives:
            self._forms[outputs(op, "Out")[0], gives] = self._form(inputs(op, "X")[0], takes)
            return
        new = type(op).FromString(op.SerializeToString())
        found = self._orders.conversions[id(op)] if takes else None
        taken = set() if found is None else set(found.takes)
        viewed = {} if found is None else {(slot, i): axes for slot, i, axes in found.views}
        for entry in new.inputs:
            for i, name in enumerate(entry.arguments):
                place = entry.parameter, i
                if place in viewed:
                    entry.arguments[i] = self._operand(op, name, viewed[place])
                else:
                    entry.arguments[i] = (self._form(name, FIRST) if place in taken
                                          else self._bound(name) if op.type == "fetch"
                                          or sub_blocks(op) else self._form(name, LAST))
        for name in self._orders.reads(op) if sub_blocks(op) else ():
            self._bound(name)
        for name, value in ({} if found is None else found.attributes).items():
            change_attribute(new, name, value)
        self._ops.append(new)
        self._set_outputs(op, new, [] if found is None else found.gives)

    def _set_outputs(self, op, new, slots):
        for name in self._orders.writes(op):
            for order in (LAST, FIRST):
                self._forms.pop((name, order), None)
        for entry in new.outputs:
            for i, name in enumerate(entry.arguments if entry.parameter in slots else ()):
                entry.arguments[i] = inner = self._variable(name, f"{name}.first", FIRST)
                self._forms[name, FIRST] = inner
                if name in self._orders.fixed:
                    self._form(name, LAST)

    def _form(self, name, order):
        """Return the variable with the value of ``name`` in an order; write it if necessary."""
        found = self._forms.get((name, order))
        if found is not None:
            return found
        quantizer = self._orders.quantizers.get(name)
        if quantizer is not None:
            found = self._quantized(quantizer, name, order)
        elif order == FIRST:
            found = self._variable(name, f"{name}.first", FIRST)
            self._transpose(self._form(name, LAST), found, to_first)
        else:
            first, found = self._forms.get((name, FIRST)), name
            if first is not None:
                self._transpose(first, name, to_last)
        self._forms[name, order] = found
        return found

    def _quantized(self, quantizer, name, order):
        new = type(quantizer).FromString(quantizer.SerializeToString())
        (source,) = inputs(quantizer, "X")
        found = name if order == LAST else self._variable(name, f"{name}.first", FIRST)
        changes = {source: self._form(source, order), name: found}
        for entry in (*new.inputs, *new.outputs):
            entry.arguments[:] = [changes.get(each, each) for each in entry.arguments]
        self._ops.append(new)
        return found

    def _bound(self, name):
        """Write the value of ``name`` into the variable of that name, and return the name."""
        found = self._form(name, LAST)
        if found == name or self._renamed.get(found) == name:
            return name
        if found in self._made and found not in self._renamed:
            self._renamed[found] = name
        else:
            self._ops.append(make_op("assign", {"X": found}, {"Out": name}))
            self._forms[name, LAST] = name
        return name

    def _operand(self, op, name, axes):
        """Return a smaller operand of ``op`` with channels first, after ``axes`` were added."""
        if name in self._orders.constants:
            parameter, shape = self._orders.constants[name]
            return self._constant(op, parameter, shape, axes)
        full = found = self._form(name, LAST)
        if axes:
            shape = self._expanded(self._orders.shapes[name], axes)
            full, shadow = (self._builder.variable(self._block, f"{name}.{word}", dims, dtype)
                            for word, dims, dtype in (("full", shape, self._dtype(name)),
                                                      ("full.shape", [0], "float32")))
            self._ops.append(make_op("unsqueeze2", {"X": found}, {"Out": full, "XShape": shadow},
                                     axes=list(axes)))
        first = self._variable(full, f"{name}.first", FIRST)
        self._transpose(full, first, to_first)
        return first

    @staticmethod
    def _expanded(shape, axes):
        shape = list(shape)
        for axis in axes:
            shape.insert(axis, 1)
        return shape

    def _constant(self, op, parameter, shape, axes):
        program = self._builder.program
        shape = self._expanded(shape, axes)
        first = [shape[axis] for axis in to_first(len(shape))]
        is_bias = program.arrays[parameter].ndim == 1 and self._orders.follows_convolution(op)
        key = parameter, tuple(shape), is_bias
        if key in self._constants:
            return self._constants[key]
        if is_bias:  # a form that later passes recognize
            found = self._builder.variable(self._block, f"{parameter}.first", first,
                                           self._dtype(parameter))
            shadow = self._builder.variable(self._block, f"{found}.shape", [0])
            self._ops.append(make_op("reshape2", {"X": parameter}, {"Out": found, "XShape": shadow},
                                     shape=first))
        else:
            array = program.arrays[parameter].reshape(shape).transpose(to_first(len(shape)))
            found = program.add_parameter(self._builder.fresh(f"{parameter}.first"),
                                          np.ascontiguousarray(array), self._dtype(parameter))
        self._constants[key] = found
        return found

    def _dtype(self, name):
        return dtype_of(self._builder.program.variable(name, self._block))

    def _variable(self, name, target, order):
        """Add a variable for the value of ``name`` in an order."""
        var = self._builder.program.variable(name, self._block)
        shape = shape_of(var)
        axes = to_first(len(shape)) if order == FIRST else range(len(shape))
        made = self._builder.variable(self._block, target, [shape[axis] for axis in axes],
                                      dtype_of(var))
        self._made.add(made)
        return made

    def _transpose(self, source, target, axes):
        shape = shape_of(self._builder.program.variable(source, self._block))
        shadow = self._builder.variable(self._block, f"{target}.shape", [0])
        self._made.add(shadow)
        self._ops.append(make_op("transpose2", {"X": source}, {"Out": target, "XShape": shadow},
                                 axis=axes(len(shape))))

    def _remove_variables(self, names):
        """Remove those of ``names`` from the block that no operator refers to any more."""
        program = self._builder.program
        used = {name for block in program.desc.blocks for op in block.ops
                for name in (*all_inputs(op), *all_outputs(op))}
        unused = {var.name for var in self._block.vars if not var.persistable} & names - used
        if unused:
            program.remove_variables(self._block, unused)
