"""Tensors filled with constants or computed numbers."""

import numpy as np

from ....errors import FormatError
from .. import constants
from ..attributes import op, plain
from ..convert_row import write_by_row
from ..row_syntax import row

_FLAT = ("float32", "int32", "int64", "bool")  # data types of assign_value in all versions
_FULL_LIKE = row("full_like", "fill_any_like", "x>X value>value:float", attributes="dtype:dtype")


def full(converter, operation):
    """Register a constant with one number for all elements."""
    (value,) = operation.results
    shape = plain(operation.attributes["shape"])
    converter.constant(value, value.dtype, shape, [plain(operation.attributes["value"])])


def full_int_array(converter, operation):
    """Register a constant with a number for each element, usually a shape or axes."""
    (value,) = operation.results
    numbers = plain(operation.attributes["value"])
    converter.constant(value, value.dtype, [len(numbers)], numbers, each=True)


def full_with_tensor(converter, operation):
    """Convert full with a computed shape or number."""
    number, shape = operation.operands
    (value,) = operation.results
    ins, filled = {}, converter.numbers(number)
    if filled is None:
        ins["ValueTensor"] = [converter.name_of(number)]
        filled = [0.0]
    known, parts = converter.numbers(shape), converter.parts(shape)
    if known is None and parts:
        ins["ShapeTensorList"] = [converter.part(each, "ints") for each in parts]
    elif known is None:
        ins["ShapeTensor"] = [converter.name_of(shape)]
    if known is None:
        known = converter.known(shape) if parts else []  # else it precedes the tensor
    name = converter.define(value, f"fill_constant_{converter.next()}.tmp")
    converter.write(constants.fill_constant(name, value.dtype, known, filled[0], ins))


def full_like(converter, operation):
    """Convert full_like; ``fill_any_like`` has a float32 number, others are expanded."""
    x, number = operation.operands
    (value,), known = operation.results, converter.numbers(number)
    if known is not None and not converter.is_rounded(number):
        write_by_row(converter, operation, _FULL_LIKE)
        return
    label = f"full_like_{converter.next()}.tmp"
    name = converter.as_type(number, value.dtype, label, [])
    _expand_like(converter, name, converter.name_of(x), value.shape, converter.define(value, label))


def masked_fill(converter, operation):
    """Convert masked_fill to where(mask, value, x), with expanded mask and value."""
    x, mask, number = operation.operands
    (result,), source = operation.results, converter.types[x]
    label = f"masked_fill_{converter.next()}.tmp"
    if result.shape != source.shape:
        raise operation.unsupported("enlarges its input")
    target = converter.name_of(x)
    spread = {}
    for slot, each in (("Condition", mask), ("X", number)):
        name = converter.temporary(label, converter.types[each].dtype, source.shape or [])
        _expand_like(converter, converter.name_of(each), target, source.shape, name)
        spread[slot] = [name]
    converter.write(op("where", {**spread, "Y": [target]},
                       {"Out": [converter.define(result, label)]}, []))


def _expand_like(converter, name, like, shape, target):
    converter.write(op("expand_as_v2", {"X": [name], "Y": [like]}, {"Out": [target]},
                       [("target_shape", "ints", shape or [])]))


def assign_value(converter, operation):
    """Convert assign_value; data types that the legacy operator lacks are cast or stored."""
    (value,) = operation.results
    shape = plain(operation.attributes["shape"])
    numbers = plain(operation.attributes["values"])
    count = 1
    for size in shape:
        count *= size
    if count != len(numbers):
        raise FormatError(f"has {len(numbers)} values for the shape {shape}")
    label = f"assign_value_{converter.next()}.tmp"
    if operation.operands and converter.read_later(operation.operands[0]):
        converter.overwrite(operation, value, operation.operands[0])
        name = converter.names[value.number]
    else:
        name = converter.define(value, label)
    if value.dtype in _FLAT:
        converter.write(constants.assign_value(name, value.dtype, shape, numbers))
        return
    if value.dtype == "float64":
        stored = converter.program.add_parameter(converter.builder.fresh(label),
                                                 np.array(numbers, "float64").reshape(shape))
        converter.write(op("assign", {"X": [stored]}, {"Out": [name]}, []))
        return
    flat = converter.temporary(label, "float32", shape)
    converter.write(constants.assign_value(flat, "float32", shape, numbers))
    converter.cast(flat, "float32", name, value.dtype)
