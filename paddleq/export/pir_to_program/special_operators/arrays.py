"""TensorArrays: the legacy operators change them in place."""

from ..attributes import op, plain


def create(converter, operation):
    """A variable is an array by its declaration alone."""
    (value,) = operation.results
    converter.define(value, f"array_{converter.next()}")


def write(converter, operation):
    """The array that results is the one that was given."""
    array, x, i = operation.operands
    (value,) = operation.results
    converter.bind(value, converter.name_of(array))
    converter.write(op("write_to_array",
                       {"X": [converter.name_of(x)], "I": [converter.name_of(i)]},
                       {"Out": [converter.name_of(array)]}, []))


def read(converter, operation):
    """One element."""
    array, i = operation.operands
    (value,) = operation.results
    target = converter.define(value, f"array_read_{converter.next()}.tmp")
    converter.write(op("read_from_array",
                       {"X": [converter.name_of(array)], "I": [converter.name_of(i)]},
                       {"Out": [target]}, []))


def length(converter, operation):
    """Number of elements."""
    (array,), (value,) = operation.operands, operation.results
    target = converter.define(value, f"array_length_{converter.next()}.tmp")
    converter.write(op("lod_array_length", {"X": [converter.name_of(array)]},
                       {"Out": [target]}, []))


def to_tensor(converter, operation):
    """All elements, concatenated or stacked."""
    (array,), label = operation.operands, f"array_to_tensor_{converter.next()}.tmp"
    out, index = operation.results
    converter.write(op("tensor_array_to_tensor", {"X": [converter.name_of(array)]},
                       {"Out": [converter.define(out, label)],
                        "OutIndex": [converter.define(index, label)]},
                       [(name, kind, plain(operation.attributes[name]))
                        for name, kind in (("axis", "int"), ("use_stack", "bool"))]))
