"""Sizes, axes and bounds: Python numbers where they are known, variables where they are computed.

PIR gives them to an operation as tensors. The legacy operators take attributes, tensors, or lists
of scalars.
"""

from ...errors import FormatError
from ..program.pdiparams import MOST_DIMENSIONS
from .attributes import is_float32, op
from .constants import fill_constant
from .values import Values


class Numbers(Values):
    """Answers what is known of the values that stand for numbers."""

    def numbers(self, number):
        """The Python numbers of a constant, or of a list of constants; None if it is computed."""
        if number in self.constants:
            return self.constants[number].numbers
        if number in self.lists:
            parts = [self.numbers(each) for each in self.lists[number]]
            if all(part is not None and len(part) == 1 for part in parts):
                return [part[0] for part in parts]
        return None

    def is_rounded(self, number):
        """Whether a constant is more than a float32, which attributes are, can hold."""
        constant = self.constants[number]
        return constant.dtype != "float32" and not is_float32(constant.numbers[0])

    def parts(self, number):
        """The values in a list or a stack of numbers; [] for any other value."""
        return self.lists.get(number) or self.stacks.get(number, [[]])[0]

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

    def counted(self, number, kind):
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
            self.cast(name, "int64", short, "int32")
            self.short[key] = short
        return self.short[key]

    def part(self, number, kind):
        """The variable of one number of a shape, whose attribute is of the type ``kind``.

        Paddle-Lite has no constants without dimension.
        """
        constant = self.constants.get(number)
        if constant is None or constant.shape:
            return self.counted(number, kind)
        dtype = "int32" if kind == "ints" else constant.dtype
        name = self.temporary("fill_constant", dtype, [1])
        self.write(fill_constant(name, dtype, [1], constant.numbers[0]))
        return name

    def apart(self, number, name):
        """Variables for each of the numbers in a 1-D tensor of known length."""
        source = self.types[number]
        if not source.shape or len(source.shape) > 1 or source.shape[0] < 1:
            raise FormatError(f"the value {number} is no list of known length")
        parts = [self.temporary("unbind", source.dtype, []) for _ in range(source.shape[0])]
        self.write(op("unbind", {"X": [name]}, {"Out": parts}, [("axis", "int", 0)]))
        return parts

    def as_type(self, number, dtype, label, shape=(1,)):
        """The variable of one number, in the element type ``dtype``."""
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
