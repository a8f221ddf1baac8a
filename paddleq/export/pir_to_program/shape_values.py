"""Shapes, axes and bounds: Python numbers if they are constant, variables if they are computed.

In PIR they are operands of an operation. Legacy operators take attributes, tensors, or lists of
scalars.
"""

from ...errors import FormatError
from ..program.pdiparams import MOST_DIMENSIONS
from .attributes import is_float32, op
from .constants import fill_constant
from .values import Values


class ShapeValues(Values):
    """Constant and computed numbers of values."""

    def numbers(self, number):
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
        return constant.dtype != "float32" and not is_float32(constant.numbers[0])

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
            short = self.temporary("cast", "int32", source.shape or [])
            self.cast(name, "int64", short, "int32")
            self.short[key] = short
        return self.short[key]

    def part(self, number, kind):
        """Return the variable of one number of a shape, whose attribute has the type ``kind``.

        Paddle-Lite has no 0-D constants.
        """
        constant = self.constants.get(number)
        if constant is None or constant.shape:
            return self.counted(number, kind)
        dtype = "int32" if kind == "ints" else constant.dtype
        name = self.temporary("fill_constant", dtype, [1])
        self.write(fill_constant(name, dtype, [1], constant.numbers[0]))
        return name

    def apart(self, number, name):
        """Split a 1-D tensor of known length into variables of one number each."""
        source = self.types[number]
        if not source.shape or len(source.shape) > 1 or source.shape[0] < 1:
            raise FormatError(f"the value {number} is no list of known length")
        parts = [self.temporary("unbind", source.dtype, []) for _ in range(source.shape[0])]
        self.write(op("unbind", {"X": [name]}, {"Out": parts}, [("axis", "int", 0)]))
        return parts

    def as_type(self, number, dtype, label, shape=(1,)):
        """Return the variable of one number, with the data type ``dtype``."""
        known = self.numbers(number)
        if known is not None:
            name = self.temporary(label, dtype, list(shape))
            self.write(fill_constant(name, dtype, list(shape), known[0]))
            return name
        source = self.types[number]
        if source.dtype == dtype:
            return self.name_of(number)
        name = self.temporary(label, dtype, source.shape or [])
        self.cast(self.name_of(number), source.dtype, name, dtype)
        return name
