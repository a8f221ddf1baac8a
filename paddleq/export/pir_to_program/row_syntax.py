"""Syntax of the rows of the operator table.

A row maps a PIR operation to a legacy operator, slot by slot, in four short strings:

- inputs, in PIR's order of operands: ``x>X`` is a tensor, ``x>X*`` a list of tensors,
  ``bias>Bias?`` may be absent, ``seed>-`` is not passed on. ``axis>axis:int`` becomes an
  attribute and has to be a constant; ``axis>axis:int|AxisTensor`` goes into that slot if it is
  computed, and ``shape>shape:ints|Shape|ShapeTensor`` into the last slot if it is a list of
  tensors.
- outputs: ``out>Out``, ``out>Out*`` for a list, ``mean_out>MeanOut=mean`` for one that overwrites
  the operand ``mean``, ``>XShape`` for one that only the legacy operator has.
- attributes: ``axis>dim:ints``; ``axis:int`` where both names are the same; ``clip:bool=true``
  where older files lack it; ``!stable:bool=false`` must have this value, because the legacy
  operator does nothing else; ``sparse>-`` is not passed on.
- attributes that only the legacy operator has: ``axis:int=-1``.

Types: int, long, float, str, bool, ints, longs, floats, bools, dtype.
"""

import re
from dataclasses import dataclass
from typing import Optional, Tuple

_INPUT = re.compile(r"(?P<pir>\w+)>(?P<legacy>\w+|-)(?P<many>\*)?(?P<optional>\?)?"
                    r"(:(?P<type>\w+)(\|(?P<tensor>\w+|-))?(\|(?P<tensors>\w+))?)?$")
_OUTPUT = re.compile(r"(?P<pir>\w*)>(?P<legacy>\w+|-)(?P<many>\*)?(=(?P<alias>\w+))?$")
_ATTRIBUTE = re.compile(r"(?P<fixed>!)?(?P<pir>\w+)(>(?P<legacy>\w+|-))?(:(?P<type>\w+))?"
                        r"(=(?P<default>.*))?$")

_READ = {
    "int": int, "long": int, "float": float, "str": str, "dtype": str,
    "bool": {"true": True, "false": False}.__getitem__,
    "ints": lambda text: [int(each) for each in text.split(",") if each],
    "longs": lambda text: [int(each) for each in text.split(",") if each],
    "floats": lambda text: [float(each) for each in text.split(",") if each],
    "bools": lambda text: [each == "true" for each in text.split(",") if each],
}


@dataclass(frozen=True)
class Input:
    """Operand. With a ``type`` it is an attribute of the legacy operator if it is constant."""

    pir: str
    legacy: str
    many: bool
    optional: bool
    type: Optional[str]
    tensor: Optional[str]  # slot for a computed tensor
    tensors: Optional[str]  # slot for a list of computed tensors


@dataclass(frozen=True)
class Output:
    """Result. ``alias`` is the operand whose variable it overwrites."""

    pir: str
    legacy: str
    many: bool
    alias: Optional[str]


@dataclass(frozen=True)
class Parameter:
    """Attribute. ``fixed``: it must have its default."""

    pir: str
    legacy: str
    type: str
    default: object
    fixed: bool


@dataclass(frozen=True)
class Row:
    """Row of the table: PIR operation ``pir`` becomes the legacy operator ``legacy``."""

    pir: str
    legacy: str
    inputs: Tuple[Input, ...]
    outputs: Tuple[Output, ...]
    attributes: Tuple[Parameter, ...]
    added: Tuple[Parameter, ...]


def row(pir, legacy, inputs="x>X", outputs="out>Out", attributes="", added=""):
    """Parse the strings of a :class:`Row`."""
    return Row(pir, legacy,
               tuple(_input(text) for text in inputs.split()),
               tuple(_output(text) for text in outputs.split()),
               tuple(_parameter(text) for text in attributes.split()),
               tuple(_parameter(text) for text in added.split()))


def _match(pattern, text):
    match = pattern.match(text)
    if match is None:
        raise ValueError(f"{text!r} is no entry of the operator table")
    return match


def _input(text):
    match = _match(_INPUT, text)
    tensor = None if match["tensor"] == "-" else match["tensor"]
    return Input(match["pir"], match["legacy"], bool(match["many"]), bool(match["optional"]),
                 match["type"], tensor, match["tensors"])


def _output(text):
    match = _match(_OUTPUT, text)
    return Output(match["pir"], match["legacy"], bool(match["many"]), match["alias"])


def _parameter(text):
    match = _match(_ATTRIBUTE, text)
    default = None if match["default"] is None else _READ[match["type"]](match["default"])
    return Parameter(match["pir"], match["legacy"] or match["pir"], match["type"] or "",
                     default, bool(match["fixed"]))
