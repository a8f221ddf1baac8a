"""Values of the PIR program, and the variables and operators of the converted one.

A value is a variable, a list of values, or not written yet: a constant that may become an
attribute, or stacked numbers that may remain separate. Shapes, axes and bounds are operands in PIR;
legacy operators take attributes, tensors, or lists of scalars.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ...errors import FormatError
from ..program.op_builder import OpBuilder
from ..program.pdiparams import MOST_DIMENSIONS
from ..program.program import Program
from .attributes import dtype_code, is_float32, op
from .pir_graph import Value


@dataclass
class Constant:
    """Tensor that is known before the program runs, and is written only where it is needed."""

    value: Value
    shape: list
    numbers: list  # one for all elements, or one for each element
    place: Any  # position of the operator that writes it
    kind: str  # of the legacy operator: "fill_constant" (one number) or "assign_value"

    def op(self, name):
        """Create the legacy operator that writes it to the variable ``name``."""
        if self.kind == "assign_value":
            return assign_value(name, self.value.dtype, self.shape, self.numbers)
        return fill_constant(name, self.value.dtype, self.shape, self.numbers[0])


def fill_constant(name, dtype, shape, number, ins=None):
    """Create an operator that fills a tensor with one number."""
    text = _text(number, dtype)  # exact where a float32 is not
    number = float(number)
    if math.isfinite(number) and abs(number) > 3.4028234663852886e38:
        number = math.copysign(math.inf, number)
    return op("fill_constant", ins or {}, {"Out": name}, {
        "shape": ("longs", shape), "dtype": ("dtype", dtype), "value": ("float", number),
        "str_value": ("str", text), "force_cpu": ("bool", False), "place_type": ("int", -1)})


def _text(number, dtype):
    if not math.isfinite(number):
        return str(float(number))  # nan, inf, -inf
    if dtype == "bool":
        return str(int(bool(number)))
    return repr(float(number)) if dtype.startswith(("float", "bfloat")) else str(int(number))


_SLOTS = {"bool": ("bool_values", "ints", int), "float32": ("fp32_values", "floats", float),
          "float64": ("fp64_values", "float64s", float), "int32": ("int32_values", "ints", int),
          "int64": ("int64_values", "longs", int)}


def assign_value(name, dtype, shape, numbers):
    """Create an operator that writes a number for each element."""
    values = {slot: (kind, list(map(read, numbers)) if each == dtype else [])
              for each, (slot, kind, read) in _SLOTS.items()}
    return op("assign_value", {}, {"Out": name},
              {"shape": ("ints", shape), "dtype": ("dtype", dtype), **values})


class Scope:
    """Block that is being written."""

    def __init__(self, desc):
        self.desc = desc
        self.ops = []  # an entry may be a list of operators, which are inserted there later

    def placeholder(self):
        """Reserve the position of the next operator; return (scope, list for its operators)."""
        self.ops.append([])
        return self, self.ops[-1]

    def finish(self):
        """Write the operators to the description."""
        for entry in self.ops:
            self.desc.ops.extend(entry if isinstance(entry, list) else [entry])


class Values:
    """Values of a program by number, which are written when they are needed."""

    def __init__(self, parameters):  # name -> (array, dtype name)
        self.program = Program.empty()
        for name, (array, dtype) in parameters.items():
            self.program.add_parameter(name, array, dtype)
        self.builder = OpBuilder(self.program)
        self.scope = Scope(self.program.desc.blocks[0])  # the block that is being written
        self.versions = {}  # operator -> version, if runtimes check it
        self.names = {}  # value -> variable
        self.values = {}  # variable -> values that it holds or held
        self.types = {}  # value -> Value
        self.lists = {}  # value that is a list -> values in it
        self.constants = {}  # value -> Constant, not written yet
        self.stacks = {}  # value -> (stacked numbers, position), not written yet
        self.short = {}  # (variable, scope) -> int32 copy
        self.wanted = {}  # value -> reserved name of its variable
        self.uses = Counter()  # value -> number of operands still to come that refer to it
        self.changing = set()  # values that an inner block overwrites: no constants
        self.inputs = 0  # number of inputs of the program so far
        self._made = 0

    def next(self):
        """Return a number for the variables of the next operator."""
        self._made += 1
        return self._made - 1

    def label(self, kind):
        """Return a name for the variables of the next operator."""
        return f"{kind}_{self.next()}.tmp"

    def temporary(self, kind, dtype, shape):
        """Add a variable that corresponds to no value of the PIR program."""
        return self.builder.variable(self.scope.desc, f"{kind}.{self.next()}", shape or [], dtype)

    def write(self, kind, ins, outs, typed=None, **values):
        """Add an operator to the current block; see :func:`.attributes.op`."""
        self.scope.ops.append(op(kind, ins, outs, typed, **values))

    def cast(self, source, source_type, target, target_type):
        self.write("cast", {"X": source}, {"Out": target}, in_dtype=dtype_code(source_type),
                   out_dtype=dtype_code(target_type))

    def define(self, value, name, block=None):
        """Add a variable for a value and return its name."""
        name = self.wanted.pop(value.number, None) or self.builder.fresh(name)
        self.bind(value, name)
        return self.program.add_variable(block or self.scope.desc, name, value.dtype,
                                         value.shape or [], kind="array" if value.array else
                                         "tensor")

    def define_list(self, value, name):
        self.lists[value.number] = [(value.number, i) for i in range(len(value.elements))]
        return [self.define(Value(key, element.dtype, element.shape), f"{name}.{key[1]}")
                for key, element in zip(self.lists[value.number], value.elements)]

    def bind(self, value, name):
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

    def constant(self, value, shape, numbers, kind="fill_constant"):
        """Register a constant, which is written only if an operator needs it as a tensor."""
        self.types[value.number] = value
        self.constants[value.number] = Constant(value, shape, numbers, self.scope.placeholder(),
                                                kind)
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
            scope, ops = constant.place
            name = self.define(constant.value, constant.kind, scope.desc)
            ops.append(constant.op(name))
            return name
        if number in self.stacks:
            parts, (scope, ops) = self.stacks[number]
            name = self.define(self.types[number], self.label("stack"), scope.desc)
            ops.append(op("stack", {"X": [self.name_of(each) for each in parts]}, {"Y": name},
                          axis=0))
            return name
        kind = "a list" if number in self.lists else "empty"
        raise FormatError(f"the value {number} is {kind} where a tensor is expected")

    def names_of(self, number):
        return [self.name_of(each) for each in self.lists.get(number, [number])]

    def read_later(self, number):
        """Return True if an operation still to come reads the variable of a value."""
        name = self.names.get(number)
        if name is None:
            return self.uses[number] > 0
        # A value without remaining uses gets no further ones.
        self.values[name] = [each for each in self.values[name] if self.uses.get(each, 0) > 0]
        return any(self.names[each] == name for each in self.values[name])

    def overwrite(self, operation, value, number):
        """Write a result to the variable of an operand, in place; return its name."""
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
        return name

    def numbers(self, number) -> Any:
        """Return the Python numbers of a constant or of a list of constants; None if computed."""
        if number in self.constants:
            return self.constants[number].numbers
        if number in self.lists:
            parts = [self.numbers(each) for each in self.lists[number]]
            if all(part is not None and len(part) == 1 for part in parts):
                return [part[0] for part in parts]
        return None

    def is_rounded(self, number):
        """Return True if a float32, the type of attributes, cannot represent a constant."""
        constant = self.constants[number]
        return constant.value.dtype != "float32" and not is_float32(constant.numbers[0])

    def parts(self, number):
        """Return the values in a list or a stack of numbers, [] for any other value."""
        return self.lists.get(number) or self.stacks.get(number, [[]])[0]

    def known(self, number):
        """Return the numbers in a list or 1-D tensor, -1 for computed ones; [] if not countable."""
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

    def counted(self, number, kind):
        """Return the variable of a computed shape or bound, cast to int32 for legacy operators.

        Paddle 3 computes them in int64. Paddle-Lite would read the bytes as int32, and OpenVINO
        does not compare both types.
        """
        name, source = self.name_of(number), self.types[number]
        if source.dtype != "int64" or kind not in ("int", "ints"):
            return name
        key = name, self.scope  # a variable of an inner block is not visible outside
        if key not in self.short:
            self.short[key] = self.temporary("cast", "int32", source.shape)
            self.cast(name, "int64", self.short[key], "int32")
        return self.short[key]

    def part(self, number, kind):
        """Return the variable of one number of a shape, whose attribute has the type ``kind``.

        Paddle-Lite has no 0-D constants.
        """
        constant = self.constants.get(number)
        if constant is None or constant.shape:
            return self.counted(number, kind)
        return self._filled("fill_constant", "int32" if kind == "ints" else constant.value.dtype,
                            [1], constant.numbers[0])

    def apart(self, number, name):
        """Split a 1-D tensor of known length into variables of one number each."""
        source = self.types[number]
        if not source.shape or len(source.shape) > 1 or source.shape[0] < 1:
            raise FormatError(f"the value {number} is no list of known length")
        parts = [self.temporary("unbind", source.dtype, []) for _ in range(source.shape[0])]
        self.write("unbind", {"X": name}, {"Out": parts}, axis=0)
        return parts

    def as_type(self, number, dtype, label, shape=(1,)):
        """Return the variable of one number, with the data type ``dtype``."""
        known = self.numbers(number)
        if known is not None:
            return self._filled(label, dtype, list(shape), known[0])
        source = self.types[number]
        if source.dtype == dtype:
            return self.name_of(number)
        name = self.temporary(label, dtype, source.shape)
        self.cast(self.name_of(number), source.dtype, name, dtype)
        return name

    def _filled(self, label, dtype, shape, number):
        name = self.temporary(label, dtype, shape)
        self.scope.ops.append(fill_constant(name, dtype, shape, number))
        return name
