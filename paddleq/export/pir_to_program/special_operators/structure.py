"""Parameters, inputs, outputs, lists and TensorArrays."""

from ....errors import FormatError
from ..attributes import get
from ..convert_row import write_by_row
from ..operator_table import row

_STACK = row("stack", "stack", "x>X*", "out>Y", "axis:int")


def parameter(converter, operation):
    """Map a parameter to its existing variable."""
    (value,), name = operation.results, get(operation, "name", str)
    if name in converter.program.arrays:
        converter.bind(value, name)
        if not get(operation, "trainable", bool, True):
            converter.program.constants.add(name)
    # A parameter that is not stored (the dropout state of rnn) has no variable.


def data(converter, operation):
    """Convert an input to a ``feed``; their order is the order of the inputs."""
    (value,), name = operation.results, get(operation, "name", str)
    if name in converter.builder.names:
        raise FormatError(f"the name {name!r} of an input is taken")
    converter.builder.variable(converter.scope.desc, name, value.shape or [], value.dtype)
    converter.bind(value, name)
    converter.write("feed", {"X": "feed"}, {"Out": name}, col=converter.inputs)
    converter.inputs += 1


def fetch(converter, operation):
    """Convert an output to a ``fetch`` of a variable with the name of the output."""
    (number,), wanted = operation.operands, get(operation, "name", str)
    name = converter.name_of(number)
    if name != wanted:
        # The variable has another name: an input, a parameter, or a value fetched twice.
        source = converter.types[number]
        copy = converter.wanted.pop(number, None) or converter.builder.fresh(wanted)
        converter.program.add_variable(converter.scope.desc, copy, source.dtype,
                                       source.shape or [])
        converter.write("assign", {"X": name}, {"Out": copy})
        name = copy
    converter.write("fetch", {"X": name}, {"Out": "fetch"}, col=get(operation, "col", int))


def combine(converter, operation):
    """Register a list; legacy operators take its elements."""
    converter.lists[operation.results[0].number] = list(operation.operands)


def split(converter, operation):
    """Map results to the elements of a list."""
    (number,) = operation.operands
    for value, key in zip(operation.results, converter.lists[number]):
        converter.alias(value.number, key)


def stack(converter, operation):
    """Convert stack; a stack of numbers (a computed shape) remains separate where possible."""
    (number,), (value,) = operation.operands, operation.results
    parts = converter.lists[number]
    if get(operation, "axis", int) == 0 and all(
            converter.types[each].shape == [] and converter.types[each].dtype.startswith("int")
            for each in parts):
        converter.stack(value, parts)
    else:
        write_by_row(converter, operation, _STACK)


def create_array(converter, operation):
    (value,) = operation.results
    converter.define(value, f"array_{converter.next()}")


def write_to_array(converter, operation):
    (value,) = operation.results
    array, x, i = (converter.name_of(number) for number in operation.operands)
    converter.bind(value, array)
    converter.write("write_to_array", {"X": x, "I": i}, {"Out": array})


def read_from_array(converter, operation):
    (value,) = operation.results
    target = converter.define(value, converter.label("array_read"))
    array, i = (converter.name_of(number) for number in operation.operands)
    converter.write("read_from_array", {"X": array, "I": i}, {"Out": target})


def array_length(converter, operation):
    (array,), (value,) = operation.operands, operation.results
    target = converter.define(value, converter.label("array_length"))
    converter.write("lod_array_length", {"X": converter.name_of(array)}, {"Out": target})


def array_to_tensor(converter, operation):
    (array,), label = operation.operands, converter.label("array_to_tensor")
    out, index = operation.results
    name = converter.name_of(array)
    converter.write("tensor_array_to_tensor", {"X": name},
                    {"Out": converter.define(out, label),
                     "OutIndex": converter.define(index, label)},
                    axis=get(operation, "axis", int), use_stack=get(operation, "use_stack", bool))
