"""Tensors filled with constants or computed numbers."""

import math

import numpy as np

from ....errors import FormatError
from ..attributes import plain
from ..convert_row import write_by_row
from ..operator_table import row
from ..values import assign_value as constant_values
from ..values import fill_constant

_FLAT = ("float32", "int32", "int64", "bool")  # data types of assign_value in all versions
_FULL_LIKE = row("full_like", "fill_any_like", "x>X value>value:float", attributes="dtype:dtype")


def full(converter, operation):
    """Register a constant with one number for all elements."""
    (value,) = operation.results
    shape, number = (plain(operation.attributes[name]) for name in ("shape", "value"))
    converter.constant(value, shape, [number])


def full_int_array(converter, operation):
    """Register a constant with a number for each element, usually a shape or axes."""
    (value,) = operation.results
    numbers = plain(operation.attributes["value"])
    converter.constant(value, [len(numbers)], numbers, "assign_value")


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
    name = converter.define(value, converter.label("fill_constant"))
    converter.scope.ops.append(fill_constant(name, value.dtype, known, filled[0], ins))


def full_like(converter, operation):
    """Convert full_like; ``fill_any_like`` has a float32 number, others are expanded."""
    x, number = operation.operands
    (value,), known = operation.results, converter.numbers(number)
    if known is not None and not converter.is_rounded(number):
        write_by_row(converter, operation, _FULL_LIKE)
        return
    label = converter.label("full_like")
    name = converter.as_type(number, value.dtype, label, [])
    _expand_like(converter, name, converter.name_of(x), value.shape, converter.define(value, label))


def masked_fill(converter, operation):
    """Convert masked_fill to where(mask, value, x), with expanded mask and value."""
    x, mask, number = operation.operands
    (result,), source = operation.results, converter.types[x]
    label = converter.label("masked_fill")
    if result.shape != source.shape:
        raise operation.unsupported("enlarges its input")
    target, spread = converter.name_of(x), {}
    for slot, each in (("Condition", mask), ("X", number)):
        spread[slot] = converter.temporary(label, converter.types[each].dtype, source.shape)
        _expand_like(converter, converter.name_of(each), target, source.shape, spread[slot])
    converter.write("where", {**spread, "Y": target}, {"Out": converter.define(result, label)})


def _expand_like(converter, name, like, shape, target):
    converter.write("expand_as_v2", {"X": name, "Y": like}, {"Out": target},
                    target_shape=list(shape or []))


def assign_value(converter, operation):
    """Convert assign_value; data types that the legacy operator lacks are cast or stored."""
    (value,), label = operation.results, converter.label("assign_value")
    shape, numbers = (plain(operation.attributes[name]) for name in ("shape", "values"))
    if math.prod(shape) != len(numbers):
        raise FormatError(f"has {len(numbers)} values for the shape {shape}")
    if operation.operands and converter.read_later(operation.operands[0]):
        name = converter.overwrite(operation, value, operation.operands[0])
    else:
        name = converter.define(value, label)
    if value.dtype == "float64":
        stored = converter.program.add_parameter(converter.builder.fresh(label),
                                                 np.array(numbers, "float64").reshape(shape))
        converter.write("assign", {"X": stored}, {"Out": name})
        return
    dtype = value.dtype if value.dtype in _FLAT else "float32"
    flat = name if dtype == value.dtype else converter.temporary(label, dtype, shape)
    converter.scope.ops.append(constant_values(flat, dtype, shape, numbers))
    if flat != name:
        converter.cast(flat, dtype, name, value.dtype)
