"""Reader of the PIR program that Paddle 3 saves as JSON.

The file lists operations in the order in which they run; each refers to the values that it
reads by number and assigns numbers to its results. All validation is done here, so that the rest of
the converter can rely on the structure.
"""

import gc
import json
import math
import os
from dataclasses import dataclass, field
from typing import Any, Dict, List, NamedTuple, Optional

from ...errors import FormatError, UnsupportedOperatorError
from ..program.pdiparams import MOST_DIMENSIONS

# Dialect numbers in the file. "p" is a shorthand for builtin.parameter.
_DIALECTS = {"0": "builtin.", "1": "", "2": "cf."}

_ELEMENTS = {"t_bool": "bool", "t_ui8": "uint8", "t_i8": "int8", "t_i16": "int16",
             "t_i32": "int32", "t_i64": "int64", "t_f16": "float16", "t_bf16": "bfloat16",
             "t_f32": "float32", "t_f64": "float64"}
_DEEPEST = 64  # nested blocks; known models have three
_BITS = 64  # of an integer
_LARGEST = 2 ** 62  # elements: more cannot be addressed, and products of sizes stay in 64 bits
# Values and numbers read through lists: each is written where it is read, so that a small file
# could require any number of them.
_MOST_LISTED = 10 ** 6


class Attribute(NamedTuple):
    """Typed attribute; ``kind`` is Paddle's name of the type (``a_i32``, ``a_array`` ...)."""

    kind: str
    value: Any


@dataclass
class Value:
    """Result of an operation."""

    number: Any  # (identifier, position) in a list; 0 for no result
    dtype: Optional[str] = None  # None for a list of values
    shape: Optional[List[int]] = None  # -1 for unknown dimensions; None if the rank is unknown
    elements: List["Value"] = field(default_factory=list)  # of a list
    array: bool = False  # a TensorArray


@dataclass
class Operation:
    """Operation. ``name`` has no prefix for Paddle's operators (``pd_op``)."""

    name: str
    operands: List[int]
    results: List[Value]
    attributes: Dict[str, Attribute]
    blocks: List["Block"]

    @property
    def layer(self):
        """Name of the layer that the operation comes from, if the file has it."""
        found = self.attributes.get("struct_name")
        return found.value if found else None

    @property
    def place(self):
        """Name and layer of the operation, for messages."""
        return f"{self.name} at {self.layer}" if self.layer else self.name

    def unsupported(self, why):
        """Create the error for an operation without legacy counterpart."""
        return UnsupportedOperatorError(
            f"the operator {self.name}{f' in {self.layer}' if self.layer else ''} {why}; see the "
            "page on .pdmodel from PIR in the documentation for the supported operators and how to "
            "add one", self.name, self.layer)


@dataclass
class Block:
    """Operations in the order in which they run, and the arguments of the block."""

    arguments: List[Value]
    operations: List[Operation]

    def all_operations(self):
        """Iterate over the operations, each followed by those of its blocks."""
        for operation in self.operations:
            yield operation
            for inner in operation.blocks:
                yield from inner.all_operations()

    def stored_parameters(self):
        """Parameters in the file of parameters, name -> :class:`Value`."""
        return {each.attributes["name"].value: each.results[0] for each in self.operations
                if each.name == "builtin.parameter" and each.attributes["stored"].value}


def read_pir(path) -> Block:
    """Read a ``.json`` file; raise FormatError if it is missing, damaged or another format."""
    if not os.path.isfile(path):
        raise FormatError(f"there is no file {path}")
    collecting = gc.isenabled()
    gc.disable()  # collections take ten times as long as reading a large program
    try:
        with open(path, encoding="utf-8") as file:
            return _program(json.load(file))
    except FormatError as error:
        raise FormatError(f"{path} is no PIR program that can be read: {error}") from error
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is no JSON: {error}") from error
    finally:
        if collecting:
            gc.enable()


def _program(content):
    head = _get(content, "base_code", dict, "the file")
    if head.get("magic") != "pir":
        raise FormatError(f"its magic is {_quoted(head.get('magic'))}, not 'pir'")
    version = _get(head, "version", int, "base_code")
    if version < 0:
        raise FormatError(f"its version is {version}")
    regions = _get(_get(content, "program", dict, "the file"), "regions", list, "program")
    if len(regions) != 1:
        raise FormatError(f"program has {len(regions)} regions instead of one")
    return _Reader().region(regions[0], "program", 0)


class _Reader:
    def __init__(self):
        self.defined = {0}
        self.visible = {0}
        self.parameters = set()
        self.lists = {}  # value that is a list -> how many are in it
        self.listed = 0

    def region(self, region, where, depth):
        if depth > _DEEPEST:
            raise FormatError(f"blocks are nested deeper than {_DEEPEST}")
        blocks = _get(region, "blocks", list, where)
        if len(blocks) != 1:
            raise FormatError(f"a region of {where} has {len(blocks)} blocks instead of one")
        arguments = [self.value(each, where) for each in _get(blocks[0], "args", list, where)]
        operations = [self.operation(each, depth)
                      for each in _get(blocks[0], "ops", list, where)]
        for made in [arguments, *(operation.results for operation in operations)]:
            self.visible.difference_update(value.number for value in made)
        self.visible.add(0)
        return Block(arguments, operations)

    def operation(self, content, depth):
        name = _name(_get(content, "#", str, "an operation"))
        if name == "builtin.parameter":
            return self.parameter(content)
        operands = [_get(each, "%", int, name) for each in _get(content, "I", list, name)]
        for number in operands:
            if number not in self.visible:
                raise FormatError(f"{name} reads the value {number}, which nothing before it makes")
            self.listed += self.lists.get(number, 0)
        if self.listed > _MOST_LISTED:
            raise FormatError(f"its lists are read for more than {_MOST_LISTED} values in all")
        regions = _get(content, "regions", list, name) if "regions" in content else ()
        blocks = [self.region(each, name, depth + 1) for each in regions]
        attributes = {}
        for each in _get(content, "A", list, name):
            key = _get(each, "N", str, name)
            if key in attributes:
                raise FormatError(f"{name} has two attributes {key!r}")
            attributes[key] = _attribute(_get(each, "AT", dict, name), f"{name}.{key}", 0)
        results = [self.value(each, name) for each in _get(content, "O", list, name)]
        if name == "builtin.combine" and [len(each.elements) for each in results] != [
                len(operands)]:
            raise FormatError(f"{name} makes something else than a list of its operands")
        numbers = attributes["value"].value if "value" in attributes else None
        if name == "full_int_array" and isinstance(numbers, list):
            self.lists.update((each.number, len(numbers)) for each in results)
        return Operation(name, operands, results, attributes, blocks)

    def parameter(self, content):
        details = _get(content, "A", list, "a parameter")
        if len(details) != 4 or not isinstance(details[3], str) or not details[3]:
            raise FormatError("a parameter has something else than three flags and its name")
        if details[3] in self.parameters:
            raise FormatError(f"the parameter {details[3]!r} is there twice")
        self.parameters.add(details[3])
        value = self.value(_get(content, "O", dict, "a parameter"), "a parameter")
        # [persistable, stop_gradient, trainable]: others than persistable ones are not stored.
        flags = content["OA"] if isinstance(content.get("OA"), list) else []
        return Operation("builtin.parameter", [], [value],
                         {"name": Attribute("a_str", details[3]),
                          "stored": Attribute("a_bool", flags[:1] != [0]),
                          "trainable": Attribute("a_bool", flags[2:3] != [0])}, [])

    def value(self, content, where):
        number = _get(content, "%" if isinstance(content, dict) and "%" in content else "#",
                      int, where)
        if number and number in self.defined:
            raise FormatError(f"{where} makes the value {number}, which exists already")
        self.defined.add(number)
        self.visible.add(number)
        value = _typed(number, _get(content, "TT", dict, where), where)
        if value.elements:
            self.lists[number] = len(value.elements)
        return value


def _typed(number, content, where, nested=False):
    kind = _get(content, "#", str, where)
    if kind == "NULL":
        return Value(0)
    kind = kind.split(".")[-1]
    details = content.get("D")
    if kind == "t_vec" and isinstance(details, list) and not nested:
        return Value(number, elements=[_typed(0, each, where, nested=True) for each in details])
    array = kind == "t_dense_tensor_array"
    if (kind == "t_dtensor" or array) and isinstance(details, list) and len(details) >= 2:
        element = _get(details[0], "#", str, where).split(".")[-1]
        if element not in _ELEMENTS:
            raise FormatError(f"{where}: element type {element!r} is not supported")
        return Value(number, _ELEMENTS[element], _shape(details[1], where), array=array)
    raise FormatError(f"{where}: value type {kind!r} is not supported")


def _shape(shape, where):
    if not isinstance(shape, list):
        raise FormatError(f"{where}: {_quoted(shape)} is no shape")
    if len(shape) > MOST_DIMENSIONS:
        raise FormatError(f"{where}: a shape of {len(shape)} dimensions; {MOST_DIMENSIONS} are the "
                          "most that Paddle knows")
    for size in shape:
        if type(size) is not int:
            raise FormatError(f"{where}: {_quoted(size)} is no size of a dimension")
    if math.prod(max(size, 1) for size in shape) > _LARGEST:
        raise FormatError(f"{where}: the shape {str(shape)[:200]} has more elements than memory "
                          "addresses")
    # Paddle multiplies sizes, including -1, when it flattens.
    return [max(size, -1) for size in shape]


def _attribute(content, where, depth):
    kind = _get(content, "#", str, where).split(".")[-1]
    value = content.get("D", content.get("VD"))  # VD: infinities and NaN, which JSON lacks
    if kind == "a_array":
        if not isinstance(value, list) or depth > 2:
            raise FormatError(f"{where}: {_quoted(value)} is no list of values")
        return Attribute(kind, [_attribute(each, where, depth + 1) for each in value])
    if kind == "a_str" and not isinstance(value, str):
        raise FormatError(f"{where}: {_quoted(value)} is no text")
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, int) and number.bit_length() > _BITS:
            raise FormatError(f"{where}: an integer of {number.bit_length()} bits")
    return Attribute(kind, value)


def _name(coded):
    if coded == "p":
        return "builtin.parameter"
    dialect, _, name = coded.partition(".")
    if not dialect or not name:
        raise FormatError(f"{_quoted(coded)} is no name of an operation")
    if dialect not in _DIALECTS:
        # Another dialect (a custom operator): kept with its prefix for the message.
        return coded
    return _DIALECTS[dialect] + name


def _get(content, key, kind, where) -> Any:
    value = content.get(key) if isinstance(content, dict) else None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise FormatError(f"{where} has no {key!r} of type {kind.__name__}")
    return value


def _quoted(value):
    """Describe an unexpected value briefly, without the contents of lists and objects."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    return repr(value)[:50]
