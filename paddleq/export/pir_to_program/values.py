"""Map of the values of the PIR program to variables.

A value is a variable, a list of values, or not written yet: a constant that may become an
attribute, or stacked numbers that may remain separate.
"""

from ...errors import FormatError
from .attributes import op
from .constants import Constant
from .pir_graph import Value
from .writer import Writer


class Values(Writer):
    """Values of a program by number, which are written when they are needed."""

    def __init__(self, parameters):
        super().__init__(parameters)
        self.names = {}  # value -> variable
        self.values = {}  # variable -> values that it holds or held
        self.types = {}  # value -> Value
        self.lists = {}  # value that is a list -> values in it
        self.constants = {}  # value -> Constant, not written yet
        self.stacks = {}  # value -> (stacked numbers, position), not written yet
        self.short = {}  # (variable, scope) -> int32 copy
        self.wanted = {}  # value -> reserved name of its variable
        self.uses = {}  # value -> number of operands still to come that refer to it
        self.changing = set()  # values that an inner block overwrites: no constants

    def define(self, value, name, block=None):
        """Add a variable for a value and return its name."""
        name = self.wanted.pop(value.number, None) or self.builder.fresh(name)
        self.bind(value, name)
        self.program.add_variable(block or self.scope.desc, name, value.dtype, value.shape or [],
                                  kind="array" if value.array else "tensor")
        return name

    def define_list(self, value, name):
        """Add variables for the values in a list and return their names."""
        keys = [(value.number, i) for i in range(len(value.elements))]
        self.lists[value.number] = keys
        return [self.define(Value(key, element.dtype, element.shape), f"{name}.{i}")
                for i, (key, element) in enumerate(zip(keys, value.elements))]

    def bind(self, value, name):
        """Map a value to an existing variable."""
        self.names[value.number] = name
        self.values.setdefault(name, []).append(value.number)
        self.types[value.number] = value

    def alias(self, new, old):
        """Make the value ``new`` an alias of ``old``."""
        for table in (self.names, self.types, self.lists, self.constants, self.stacks):
            if old in table:
                table[new] = table[old]
        if old in self.names:
            self.values[self.names[old]].append(new)

    def constant(self, value, dtype, shape, numbers, each=False):
        """Register a constant, which is written only if an operator needs it as a tensor."""
        self.types[value.number] = value
        made = Constant(value, dtype, shape, numbers, self.scope.placeholder(), each)
        self.constants[value.number] = made
        if value.number in self.changing:
            self.name_of(value.number)
            del self.constants[value.number]

    def stack(self, value, parts):
        """Register stacked numbers, which are written only if an operator needs a tensor."""
        self.types[value.number] = value
        self.stacks[value.number] = parts, self.scope.placeholder()

    def name_of(self, number):
        """Return the variable of a value; write the value if necessary."""
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
        """Return the variables of the values in a list."""
        if number not in self.lists:
            return [self.name_of(number)]
        return [self.name_of(each) for each in self.lists[number]]

    def expect(self, numbers, times):
        """Add to the number of operands still to come that refer to these values."""
        for number in numbers:
            self.uses[number] += times

    def read_later(self, number):
        """Return True if an operation still to come reads the variable of a value."""
        name = self.names.get(number)
        if name is None:
            return self.uses[number] > 0
        # A value without remaining uses gets no further ones.
        self.values[name] = [each for each in self.values[name] if self.uses.get(each, 0) > 0]
        return any(self.names[each] == name for each in self.values[name])

    def overwrite(self, operation, value, number):
        """Write a result to the variable of an operand, in place."""
        if self.types[number].dtype != value.dtype:
            raise operation.unsupported("changes the type of a value that is read later")
        name = self.name_of(number)
        for stack in [each for each, (parts, _) in self.stacks.items()
                      if any(self.names.get(part) == name for part in parts)]:
            self.name_of(stack)  # of the numbers before the change
            del self.stacks[stack]
        self.bind(value, name)
        self.constants.pop(number, None)
        self.short.clear()
