"""Lists of values, which the legacy format does not have."""

from ..attributes import get
from ..convert_row import write_by_row
from ..row_syntax import row

_STACK = row("stack", "stack", "x>X*", "out>Y", "axis:int")


def combine(converter, operation):
    """A list is only noted: the legacy operators take its members."""
    converter.lists[operation.results[0].number] = list(operation.operands)


def split(converter, operation):
    """The members of a list, each by itself."""
    (number,) = operation.operands
    for value, key in zip(operation.results, converter.lists[number]):
        converter.alias(value.number, key)


def stack(converter, operation):
    """A shape that is computed is a stack of numbers: where they can be, they stay apart."""
    (number,), (value,) = operation.operands, operation.results
    parts = converter.lists[number]
    if get(operation, "axis", int) == 0 and all(
            converter.types[each].shape == [] and converter.types[each].dtype.startswith("int")
            for each in parts):
        converter.stack(value, parts)
    else:
        write_by_row(converter, operation, _STACK)
