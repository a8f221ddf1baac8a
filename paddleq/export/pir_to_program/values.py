"""What became of each value of the PIR program.

A value is a variable, a list of values, or not written yet: a constant that may become an
attribute, or numbers that are to be stacked and may stay apart.
"""

from ...errors import FormatError
from .attributes import op
from .constants import Constant
from .pir_graph import Value
from .unsupported import unsupported
from .writer import Writer


class Values(Writer):
    """Keeps the values of a program by their numbers, and writes them when they are needed."""

    def __init__(self, parameters):
        super().__init__(parameters)
        self.names = {}  # value -> variable
        self.types = {}  # value -> Value
        self.lists = {}  # value that is a list -> values in it
        self.constants = {}  # value -> Constant, not written yet
        self.stacks = {}  # value -> (numbers that are stacked in it, where), not written yet
        self.short = {}  # (variable, scope) -> the same in int32
        self.wanted = {}  # value -> name that the variable shall have
        self.uses = {}  # value -> how many operands still to come name it
        self.changing = set()  # values that a block inside of another overwrites: no constants

    def define(self, value, name, block=None):
        """Make a variable for a value; returns the variable's name."""
        name = self.wanted.pop(value.number, None) or self.emit.fresh(name)
        self.bind(value, name)
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

    def stack(self, value, parts):
        """Note a stack of numbers; it is written only if an operator needs it as a tensor."""
        self.types[value.number] = value
        self.stacks[value.number] = parts, self.scope.placeholder()

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
            place.ops.append(op("stack", {"X": [self.name_of(each) for each in parts]},
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
            raise unsupported(operation, "changes the type of a value that is read later")
        name = self.name_of(number)
        for stack in [each for each, (parts, _) in self.stacks.items()
                      if any(self.names.get(part) == name for part in parts)]:
            self.name_of(stack)  # of the numbers before the change
            del self.stacks[stack]
        self.bind(value, name)
        self.constants.pop(number, None)
        self.short.clear()
