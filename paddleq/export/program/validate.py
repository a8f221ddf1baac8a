"""Validation of a program that was read, before code relies on its structure.

Paddle ends the process on many inconsistent programs. The rules are those that each program of
Paddle satisfies: its operators fit the descriptions that the installed Paddle has of them, and
refer to variables and blocks that exist.
"""

import math
from contextlib import contextmanager

from ..._paddle_compat import operator_descriptions
from ...errors import FormatError, PaddleqError
from .op_desc import (
    DENSE_TENSOR,
    TENSOR_ARRAY,
    all_inputs,
    all_outputs,
    attribute,
    attribute_value,
    inputs,
    outputs,
    tensor_of,
)
from .pdiparams import MOST_DIMENSIONS

MOST_ELEMENTS = 2 ** 62  # more cannot be addressed, and products of sizes stay in 64 bits
_MOST_CREATED = 2 ** 27  # elements of a tensor that attributes alone describe
_LARGEST_SIZE = 2 ** 24  # of a window, a stride or a padding
_CONTAINERS = range(DENSE_TENSOR, 19)  # VarType.Type of framework.proto
_INTERFACE = {"feed": ("X", "Out"), "fetch": ("X", "Out")}
# Types of attributes that Paddle versions use in place of each other.
_NUMBER, _NUMBERS = (0, 1, 6, 9, 15, 16), (3, 4, 7, 11, 12, 17)
_VARIABLES = (13, 14)  # one that holds a list of numbers, or one for each number
_KIND = {**dict.fromkeys(_NUMBER, "a number"), **dict.fromkeys(_NUMBERS, "a list of numbers"),
         2: "a text", 5: "a list of texts", 8: "a block", 10: "a list of blocks"}
# Attributes of sizes that no tensor limits.
_SIZES = ("strides", "paddings", "dilations", "ksize", "pooled_height", "pooled_width",
          "output_padding", "out_d", "out_h", "out_w", "depth", "groups", "hidden_size",
          "input_size", "num_layers", "repeat_times", "expand_times", "upscale_factor", "offset")
_POSITIVE = ("strides", "dilations", "groups", "num_layers", "hidden_size", "input_size")
_VIEWS = ("reshape", "reshape2")  # the size is that of the input
# Errors that inconsistent programs and parameters cause.
CONTRADICTIONS = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError,
                  AssertionError, RecursionError)


@contextmanager
def contradictions_reported(where="the program"):
    """Raise FormatError for errors that an inconsistent program causes."""
    try:
        yield
    except PaddleqError:
        raise
    except (*CONTRADICTIONS, *_encode_error()) as error:
        raise FormatError(f"{where} contradicts itself: {type(error).__name__}: {error}") from error


def _encode_error():
    from google.protobuf.message import EncodeError

    return (EncodeError,)


def validate(desc, path):
    """Raise FormatError, with the ``path``, unless a ProgramDesc is consistent."""
    with contradictions_reported(path):
        try:
            _check_program(desc)
        except ValueError as error:
            raise FormatError(f"{path} is damaged: {error}") from error


def _check_program(desc):
    if not desc.IsInitialized():
        raise ValueError(f"it has no {', '.join(desc.FindInitializationErrors()[:3])}")
    if not desc.blocks:
        raise ValueError("it has no block")
    visible = []  # names of the variables that each block can read
    for number, block in enumerate(desc.blocks):
        parent = block.parent_idx
        if block.idx != number or not (parent == -1 if number == 0 else 0 <= parent < number):
            raise ValueError(f"block {number} has the number {block.idx} and the parent {parent}")
        names = [_checked_variable(var) for var in block.vars]
        if len(set(names)) != len(names):
            raise ValueError(f"block {number} has two variables of one name")
        visible.append({*names, *(visible[parent] if number else ())})
    for block, names in zip(desc.blocks, visible):
        for position, op in enumerate(block.ops):
            _check_name(op.type, "the type of an operator")
            try:
                _check_operator(desc, op, names)
            except ValueError as error:
                raise ValueError(f"the operator {op.type}, number {position} of block {block.idx}: "
                                 f"{error}") from error
    _check_interface(desc.blocks[0])


def _check_name(name, what):
    # A text that is no UTF-8 is bytes.
    if not isinstance(name, str) or not name or not name.isprintable():
        raise ValueError(f"{what} is {name!r:.60}")


def _checked_variable(var):
    _check_name(var.name, "the name of a variable")
    if var.type.type in (DENSE_TENSOR, TENSOR_ARRAY):
        dims = list(tensor_of(var).dims)
        if tensor_of(var).data_type in _CONTAINERS:
            raise ValueError(f"the elements of {var.name!r} are no numbers")
        if (len(dims) > MOST_DIMENSIONS or any(size < -1 for size in dims)
                or math.prod(max(size, 1) for size in dims) > MOST_ELEMENTS):
            raise ValueError(f"the shape of {var.name!r} is {str(dims):.80}")
    return var.name


def _check_operator(desc, op, names):
    for name in (*all_inputs(op), *all_outputs(op)):
        _check_name(name, "the name of a variable")
        if name not in names:
            raise ValueError(f"no variable is called {name!r}")
    attributes = {}
    for attr in op.attrs:
        _check_name(attr.name, "the name of an attribute")
        if attr.name in attributes:
            raise ValueError(f"the attribute {attr.name!r} is there twice")
        attributes[attr.name] = attr
        if attr.type in (8, 10):
            blocks = [attr.block_idx] if attr.type == 8 else attr.blocks_idx
            if not all(0 < number < len(desc.blocks) for number in blocks):
                raise ValueError(f"the attribute {attr.name!r} is the block {list(blocks)}, but "
                                 f"there are {len(desc.blocks)}")
        for name in ([attr.var_name] if attr.type == 13 else attr.vars_name):
            if name not in names:  # a variable in place of a constant
                raise ValueError(f"no variable is called {name!r}")
    known = operator_descriptions().get(op.type)
    if known is not None:
        _check_slots("input", op.inputs, known.inputs)
        _check_slots("output", op.outputs, known.outputs)
        for described in known.attrs:
            attr = attributes.get(described.name)
            if attr is not None and attr.type not in _VARIABLES and (
                    _KIND.get(attr.type) != _KIND.get(described.type)):
                raise ValueError(f"the attribute {attr.name!r} is {_KIND.get(attr.type)}, not "
                                 f"{_KIND.get(described.type)}")
    for name in _SIZES:
        if name in attributes and attributes[name].type not in _VARIABLES:
            # A slice may go backwards.
            _check_sizes(name, attribute_value(attributes[name]), op.type != "strided_slice")
    shape = attribute(op, "shape")
    if isinstance(shape, list) and op.type not in _VIEWS and (
            math.prod(max(size, 1) for size in shape) > _MOST_CREATED):
        raise ValueError(f"its shape {str(shape):.80} has more than {_MOST_CREATED} elements")


def _check_sizes(name, value, positive):
    sizes = value if isinstance(value, list) else [value]
    if len(sizes) > 2 * MOST_DIMENSIONS or not all(
            isinstance(size, (int, float)) and abs(size) <= _LARGEST_SIZE for size in sizes):
        raise ValueError(f"the attribute {name!r} is {str(value):.80}")
    if positive and name in _POSITIVE and not all(size > 0 for size in sizes):
        raise ValueError(f"the attribute {name!r} must be positive, but is {str(value):.80}")


def _check_slots(kind, entries, described):
    given = {}
    for entry in entries:
        _check_name(entry.parameter, f"the name of an {kind}")
        if entry.parameter in given:
            raise ValueError(f"the {kind} {entry.parameter!r} is there twice")
        given[entry.parameter] = len(entry.arguments)
    known = {slot.name: slot for slot in described}
    unknown = [name for name, count in given.items() if count and name not in known]
    if unknown:
        raise ValueError(f"it has no {kind} {unknown[0]!r}")
    for name, slot in known.items():
        optional = slot.dispensable or slot.extra or (kind == "output" and slot.intermediate)
        if not given.get(name) and not optional:
            raise ValueError(f"the {kind} {name!r} is missing")
        if given.get(name, 0) > 1 and not slot.duplicable:
            raise ValueError(f"the {kind} {name!r} has {given[name]} variables")


def _check_interface(block):
    for kind, slots in _INTERFACE.items():
        found = [op for op in block.ops if op.type == kind]
        columns = [attribute(op, "col", 0) for op in found]
        if len(set(columns)) != len(columns) or any(
                not 0 <= column < len(found) for column in columns):
            raise ValueError(f"the places of its {kind} operators are {str(columns):.80}")
        for op in found:
            if len(inputs(op, slots[0])) != 1 or len(outputs(op, slots[1])) != 1:
                raise ValueError(f"a {kind} operator has not one input and one output")
