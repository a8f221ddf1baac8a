"""From a PIR program to a ProgramDesc, operation by operation."""

from dataclasses import dataclass
from typing import List

from ...errors import ExportError, FormatError, UnsupportedOperatorError
from ..emit import Emitter
from ..params import MOST_DIMENSIONS
from ..program import Program, make_op
from . import attributes
from .constants import Constant, fill_constant
from .pir import Value
from .rows import Input

# What Paddle notes about an operation and what no runtime reads.
IGNORED = {"struct_name", "op_callstack", "place", "op_role", "op_dist_attr", "op_namescope",
           "chunk_id", "symbol", "stop_gradient", "persistable", "origin_id", "comp_op_name"}
# What a program that contradicts itself runs into.
CONTRADICTIONS = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError)
_IN_INT32 = {"OutSize", "SizeTensor"}  # tensors that Paddle 2.6 reads as int32


@dataclass
class Place:
    """Where an operator goes that may or may not be needed later on."""

    block: object
    ops: List[object]


class Scope:
    """A block that is being written: its description, and its operators so far."""

    def __init__(self, desc):
        self.desc = desc
        self.ops = []

    def placeholder(self):
        """A list in the place of the next operator; what it will hold, comes here."""
        later = []
        self.ops.append(later)
        return Place(self, later)

    def finish(self):
        """Move the operators into the description."""
        for entry in self.ops:
            self.desc.ops.extend(entry if isinstance(entry, list) else [entry])


class Converter:
    """Writes one program.

    Attributes:
        program: the :class:`~paddleq.export.program.Program` that is being written.
        scope: the block that is being written.
    """

    def __init__(self, parameters, rows, specials):
        self.program = Program.empty()
        for name, (array, dtype) in parameters.items():
            self.program.add_parameter(name, array, dtype)
        self.emit = Emitter(self.program)
        self.inputs = 0
        self.rows, self.specials = rows, specials
        self.scope = Scope(self.program.desc.blocks[0])
        self.names = {}  # value -> variable
        self.types = {}  # value -> Value
        self.lists = {}  # value that is a list -> values in it
        self.constants = {}  # value -> Constant, not written yet
        self.stacks = {}  # value -> (numbers that are stacked in it, where), not written yet
        self.short = {}  # (variable, scope) -> the same in int32
        self.wanted = {}  # value -> name that the variable shall have
        self.uses = {}  # value -> how many operands still to come name it
        self.changing = set()  # values that a block inside of another overwrites: no constants
        self.versions = {}  # operator -> its version, where a runtime must know
        self.made = 0

    def run(self, pir):
        """Write the program of ``pir``."""
        self._count_uses(pir.block)
        self._reserve_fetches(pir.block)
        self.block(pir.block)
        self.scope.finish()
        for name, version in sorted(self.versions.items()):
            pair = self.program.desc.op_version_map.pair.add()
            pair.op_name, pair.op_version.version = name, version
        return self.program

    def open_block(self):
        """A block inside of the one that is being written."""
        return Scope(self.program.add_block(self.scope.desc))

    def add_input(self, name):
        """The operator that takes the next input of the model."""
        self.write(make_op("feed", {"X": "feed"}, {"Out": name}, col=self.inputs))
        self.inputs += 1

    def block(self, block):
        """Write the operations of a block into the scope that is open."""
        for operation in block.operations:
            try:
                self.operation(operation)
            except ExportError:
                raise
            except CONTRADICTIONS as error:
                said = error if isinstance(error, FormatError) else (
                    f"the program contradicts itself: {type(error).__name__}: {error}")
                raise FormatError(f"{operation.place}: {said}") from error

    def operation(self, operation):
        """Write one operation."""
        for number in operation.operands:
            self.uses[number] -= 1
        name = operation.name
        in_place = (name.endswith("_") and name not in self.rows and name not in self.specials
                    and bool(operation.operands))
        if in_place:
            name = name[:-1]
        if name in self.specials:
            if in_place and self.read_later(operation.operands[0]):
                raise self.unsupported(operation, "changes a value that is read later")
            self.specials[name](self, operation)
        elif name in self.rows:
            self.by_row(operation, self.rows[name], in_place)
        else:
            raise self.unsupported(operation, "is not in paddleq's operator table")

    def unsupported(self, operation, why):
        """The error for an operation that cannot be converted."""
        where = operation.attributes.get("struct_name")
        where = where.value if where else None
        return UnsupportedOperatorError(
            f"the operator {operation.name}{f' in {where}' if where else ''} {why}; see the page "
            "on .pdmodel from PIR in the documentation for what converts and how to add an "
            "operator", operation.name, where)

    # Values

    def define(self, value, name, block=None):
        """Make a variable for a value; returns the variable's name."""
        name = self.wanted.pop(value.number, None) or self.emit.fresh(name)
        self.names[value.number] = name
        self.types[value.number] = value
        self.program.add_variable(block or self.scope.desc, name, value.dtype, value.shape or [],
                                  kind="array" if value.array else "tensor")
        return name

    def define_list(self, value, name):
        """Make variables for the values in a list; returns their names."""
        keys = [(value.number, i) for i in range(len(value.elements))]
        self.lists[value.number] = keys
        return [self.define(Value(key, element.dtype, element.shape), f"{name}.{i}")
                for i, (key, element) in enumerate(zip(keys, value.elements))]

    def bind(self, value, name):
        """Let a value live in a variable that exists."""
        self.names[value.number] = name
        self.types[value.number] = value

    def expect(self, numbers, times):
        """Count further operands that will name these values."""
        for number in numbers:
            self.uses[number] += times

    def read_later(self, number):
        """Whether something still to come reads the variable of a value, by whatever number."""
        name = self.names.get(number)
        return self.uses[number] > 0 or name is not None and any(
            self.uses.get(each, 0) > 0 for each, its in self.names.items() if its == name)

    def overwrite(self, operation, value, number):
        """Let a result take the variable of an operand: what reads that sees the change."""
        if self.types[number].dtype != value.dtype:
            raise self.unsupported(operation, "changes the type of a value that is read later")
        name = self.name_of(number)
        for stack in [each for each, (parts, _) in self.stacks.items()
                      if any(self.names.get(part) == name for part in parts)]:
            self.name_of(stack)  # of the numbers before the change
            del self.stacks[stack]
        self.bind(value, name)
        self.constants.pop(number, None)
        self.short.clear()

    def alias(self, new, old):
        """Make value ``new`` the same as ``old``."""
        for table in (self.names, self.types, self.lists, self.constants, self.stacks):
            if old in table:
                table[new] = table[old]

    def constant(self, value, dtype, shape, numbers, each=False):
        """Note a constant; it is written only if an operator needs it as a tensor."""
        self.types[value.number] = value
        made = Constant(value, dtype, shape, numbers, self.scope.placeholder(), each)
        self.constants[value.number] = made
        if value.number in self.changing:
            self.name_of(value.number)
            del self.constants[value.number]

    def name_of(self, number):
        """The variable that holds a value."""
        if number in self.names:
            return self.names[number]
        if number in self.constants:
            constant = self.constants[number]
            place = constant.place
            name = self.define(constant.value, constant.kind, place.block.desc)
            place.ops.append(constant.op(name))
            return name
        if number in self.stacks:
            parts, place = self.stacks[number]
            name = self.define(self.types[number], f"stack_{self.next()}.tmp", place.block.desc)
            place.ops.append(attributes.op("stack", {"X": [self.name_of(each) for each in parts]},
                                           {"Y": [name]}, [("axis", "int", 0)]))
            return name
        if number in self.lists:
            raise FormatError(f"the value {number} is a list where a tensor is expected")
        raise FormatError(f"the value {number} is empty where a tensor is expected")

    def names_of(self, number):
        """The variables that hold the values in a list."""
        if number not in self.lists:
            return [self.name_of(number)]
        return [self.name_of(each) for each in self.lists[number]]

    def numbers(self, number):
        """The Python numbers of a constant, or of a list of constants; None if it is computed."""
        if number in self.constants:
            return self.constants[number].numbers
        if number in self.lists:
            parts = [self.numbers(each) for each in self.lists[number]]
            if all(part is not None and len(part) == 1 for part in parts):
                return [part[0] for part in parts]
        return None

    def parts(self, number):
        """The values in a list or a stack of numbers; [] for any other value."""
        return self.lists.get(number) or self.stacks.get(number, [[]])[0]

    def apart(self, number, name):
        """Variables for each of the numbers in a 1-D tensor of known length."""
        source = self.types[number]
        if not source.shape or len(source.shape) > 1 or source.shape[0] < 1:
            raise FormatError(f"the value {number} is no list of known length")
        parts = [self.temporary("unbind", source.dtype, []) for _ in range(source.shape[0])]
        self.write(attributes.op("unbind", {"X": [name]}, {"Out": parts}, [("axis", "int", 0)]))
        return parts

    def temporary(self, kind, dtype, shape):
        """A new variable that no value of the PIR program stands for."""
        return self.emit.variable(self.scope.desc, f"{kind}.{self.next()}", shape, dtype)

    def next(self):
        """A number for the next operator's variables."""
        self.made += 1
        return self.made - 1

    def write(self, op):
        """Add an operator to the block that is being written."""
        self.scope.ops.append(op)

    # Rows

    def by_row(self, operation, row, in_place=False):
        """Write one operation as its row says."""
        given = dict(operation.attributes)
        misfit = attributes.misfit(row, given)
        if misfit:
            raise self.unsupported(operation, f"has {misfit}, which is all that the legacy "
                                              f"operator {row.legacy} does")
        ins, values = self._inputs(operation, row, given)
        values += attributes.of_row(row, given, operation)
        hook = attributes.HOOKS.get(row.pir)
        if hook is not None:
            values = hook(self, operation, values)
        left = set(given) - IGNORED
        if left:
            raise self.unsupported(operation, f"has attributes that its row does not know: "
                                              f"{', '.join(sorted(left))}")
        outs = self._outputs(operation, row, in_place)
        self.write(attributes.op(row.legacy, ins, outs, values))

    def _inputs(self, operation, row, given):
        operands, ins, values = list(operation.operands), {}, []
        self.operand_of = {}
        for slot in row.inputs:
            if slot.pir in given:  # an attribute in this version of Paddle, an operand in others
                values.append((slot.legacy, slot.type, attributes.plain(given.pop(slot.pir))))
                continue
            if not operands:
                if slot.optional:
                    continue
                raise FormatError(f"the operand {slot.pir!r} is missing")
            number = operands.pop(0)
            self.operand_of[slot.pir] = number
            if slot.legacy == "-" or number == 0 and slot.optional:
                continue
            if number == 0:
                raise FormatError(f"the operand {slot.pir!r} is empty")
            if slot.legacy in _IN_INT32:
                ins[slot.legacy] = [self._counted(each, "ints")
                                    for each in self.lists.get(number) or [number]]
            elif slot.type is None:
                ins[slot.legacy] = (self.names_of(number) if slot.many
                                    else [self.name_of(number)])
            else:
                self._constant_input(operation, slot, number, ins, values)
        if any(operands):
            raise FormatError(f"has {len(operation.operands)} operands, more than its row knows")
        return ins, values

    def _constant_input(self, operation, slot: Input, number, ins, values):
        numbers = self.numbers(number)
        if numbers is not None and not (slot.type == "float" and slot.tensor
                                        and self.is_rounded(number)):
            values.append((slot.legacy, slot.type, numbers))
            return
        known = self.known(number)
        if number in self.stacks and slot.tensors:
            ins[slot.tensors] = [self.part(each, slot.type) for each in self.stacks[number][0]]
            values.append((slot.legacy, slot.type, known))
        elif slot.tensor and number not in self.lists:
            ins[slot.tensor] = [self._counted(number, slot.type)]
            if slot.type == "ints":
                values.append((slot.legacy, slot.type, known))
            elif slot.type == "longs":
                values.append((slot.legacy, slot.type, []))  # else it would overrule the tensor
        elif slot.tensors and (number in self.lists or known):
            ins[slot.tensors] = ([self.part(each, slot.type) for each in self.lists[number]]
                                 if number in self.lists else
                                 self.apart(number, self._counted(number, slot.type)))
            values.append((slot.legacy, slot.type, known))
        else:
            raise self.unsupported(operation, f"has a computed {slot.pir!r}, which the legacy "
                                              "operator only takes as a number")

    def is_rounded(self, number):
        """Whether a constant is more than a float32, which attributes are, can hold."""
        constant = self.constants[number]
        return constant.dtype != "float32" and not attributes.is_float32(constant.numbers[0])

    def part(self, number, kind):
        """The variable of one number of a shape, whose attribute is of the type ``kind``.

        Paddle-Lite has no constants without dimension.
        """
        constant = self.constants.get(number)
        if constant is None or constant.shape:
            return self._counted(number, kind)
        dtype = "int32" if kind == "ints" else constant.dtype
        name = self.temporary("fill_constant", dtype, [1])
        self.write(fill_constant(name, dtype, [1], constant.numbers[0]))
        return name

    def _counted(self, number, kind):
        """The variable of a computed shape or bound, in int32 where the legacy operator's own is.

        Paddle 3 counts in int64. Paddle-Lite would read the bytes as int32, and OpenVINO refuses
        to compare both.
        """
        name, source = self.name_of(number), self.types[number]
        if source.dtype != "int64" or kind not in ("int", "ints"):
            return name
        key = name, self.scope  # a variable of an inner block is not seen outside
        if key not in self.short:
            short = self.temporary("cast", "int32", source.shape or [])
            self.write(attributes.op("cast", {"X": [name]}, {"Out": [short]},
                                     [("in_dtype", "dtype", "int64"),
                                      ("out_dtype", "dtype", "int32")]))
            self.short[key] = short
        return self.short[key]

    def known(self, number):
        """The numbers in a list or a 1-D tensor, -1 where they are computed; [] if uncountable."""
        parts = self.parts(number)
        if parts:
            known = [self.numbers(each) for each in parts]
            return [-1 if each is None else each[0] for each in known]
        shape = self.types[number].shape
        if not shape or len(shape) > 1 or shape[0] < 1:
            return []
        if shape[0] > MOST_DIMENSIONS:
            raise FormatError(f"a list of {shape[0]} sizes or axes, of which a tensor has at most "
                              f"{MOST_DIMENSIONS}")
        return [-1] * shape[0]

    def _outputs(self, operation, row, in_place):
        outs, label = {}, f"{row.legacy}_{self.next()}.tmp"
        results = list(operation.results)
        for i, slot in enumerate(row.outputs):
            if not slot.pir:
                outs[slot.legacy] = [self._extra(operation, label, i)]
                continue
            if not results:
                continue  # older versions had fewer, or this one is not made
            value = results.pop(0)
            if value.number == 0 or slot.legacy == "-":
                continue
            alias = slot.alias
            if in_place and i == 0 and self.read_later(operation.operands[0]):
                alias = row.inputs[0].pir
            if alias is not None:
                self.overwrite(operation, value, self.operand_of[alias])
                outs[slot.legacy] = [self.names[value.number]]
            elif slot.many:
                outs[slot.legacy] = self.define_list(value, f"{label}_{i}")
            elif value.dtype is None:
                raise FormatError(f"the result {slot.pir!r} is a list")
            else:
                outs[slot.legacy] = [self.define(value, f"{label}_{i}")]
        return outs

    def _extra(self, operation, label, i):
        """XShape: the legacy operator's note of the shape before; nothing reads it here."""
        source = self.types[operation.operands[0]]
        return self.emit.variable(self.scope.desc, f"{label}_{i}", [0, *(source.shape or [])],
                                  source.dtype)

    # Before the first operation

    def _count_uses(self, block, inside=False):
        for operation in block.operations:
            if inside and operation.name.endswith("_"):
                self.changing.update(self._overwritten(operation))
            for number in operation.operands:
                self.uses[number] = self.uses.get(number, 0) + 1
            for each in operation.blocks:
                self._count_uses(each, inside=True)

    def _overwritten(self, operation):
        row = self.rows.get(operation.name)
        aliases = {slot.alias for slot in row.outputs if slot.alias} if row else None
        return [number for i, number in enumerate(operation.operands)
                if (i == 0 if aliases is None else row.inputs[i].pir in aliases)]

    def _reserve_fetches(self, block):
        """Let what is fetched have the name of its fetch."""
        names = set()
        fed = {value.number: attributes.text(operation, "name") for operation in block.operations
               if operation.name == "data" for value in operation.results}
        for operation in block.operations:
            if operation.name != "fetch":
                continue
            name = attributes.text(operation, "name")
            if operation.operands and fed.get(operation.operands[0]) == name:
                continue  # Paddle lets an input that is fetched directly keep its name
            if name in names:
                raise FormatError(f"two outputs have the name {name!r}")
            names.add(name)
            number = operation.operands[0] if operation.operands else 0
            if number not in self.wanted and not self.emit.taken(name):
                self.emit.fresh(name)
                self.wanted[number] = name


def convert(pir, parameters, rows, specials) -> Program:
    """The :class:`~paddleq.export.program.Program` that computes what ``pir`` does.

    Args:
        pir: a :class:`~.pir.PirProgram`.
        parameters: name -> (array, dtype name).
        rows: the operator table, PIR name -> :class:`~.rows.Row`.
        specials: PIR name -> function that writes it.

    Raises:
        FormatError: the PIR program contradicts itself.
        UnsupportedOperatorError: an operation has no legacy counterpart.
    """
    return Converter(parameters, rows, specials).run(pir)
