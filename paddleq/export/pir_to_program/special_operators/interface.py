"""What a program shares with whoever runs it: parameters, inputs and outputs."""

from ....errors import FormatError
from ..attributes import get, op, text


def parameter(converter, operation):
    """It has its variable already."""
    (value,) = operation.results
    name = text(operation, "name")
    if name in converter.program.arrays:
        converter.bind(value, name)
        if not get(operation, "trainable", bool, True):
            converter.program.constants.add(name)
    # A reader of one that is not stored (rnn's dropout state is declared so) finds it empty.


def data(converter, operation):
    """An input: an operator ``feed``, in whose order the model takes them."""
    (value,) = operation.results
    name = text(operation, "name")
    if converter.emit.taken(name):
        raise FormatError(f"the name {name!r} of an input is taken")
    converter.emit.variable(converter.scope.desc, name, value.shape or [], value.dtype)
    converter.bind(value, name)
    converter.add_input(name)


def fetch(converter, operation):
    """An output: an operator ``fetch`` of a variable that has the output's name."""
    (number,), wanted = operation.operands, text(operation, "name")
    name = converter.name_of(number)
    if name != wanted:
        # The value has another name already: an input, a parameter, or fetched twice.
        source = converter.types[number]
        copy = converter.wanted.pop(number, None) or converter.emit.fresh(wanted)
        converter.program.add_variable(converter.scope.desc, copy, source.dtype,
                                       source.shape or [])
        converter.write(op("assign", {"X": [name]}, {"Out": [copy]}, []))
        name = copy
    converter.write(op("fetch", {"X": [name]}, {"Out": ["fetch"]},
                       [("col", "int", get(operation, "col", int))]))
