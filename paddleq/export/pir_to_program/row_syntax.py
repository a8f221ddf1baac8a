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
from typing import Any, Dict, Iterator, NamedTuple, Optional, Tuple

_INPUT = re.compile(r"(?P<pir>\w+)>(?P<legacy>\w+|-)(?P<many>\*)?(?P<optional>\?)?"
                    r"(:(?P<type>\w+)(\|((?P<tensor>\w+)|-))?(\|(?P<tensors>\w+))?)?$")
_OUTPUT = re.compile(r"(?P<pir>\w*)>(?P<legacy>\w+|-)(?P<many>\*)?(=(?P<alias>\w+))?$")
_ATTRIBUTE = re.compile(r"(?P<fixed>!)?(?P<pir>\w+)(>(?P<legacy>\w+|-))?(:(?P<type>\w+))?"
                        r"(=(?P<default>.*))?$")
_FLAGS = ("many", "optional", "fixed")

_READ = {"int": int, "long": int, "float": float, "str": str, "dtype": str, "bool": "true".__eq__}


class Input(NamedTuple):
    """Operand. With a ``type`` it is an attribute of the legacy operator if it is constant."""

    pir: str
    legacy: str
    many: bool
    optional: bool
    type: Optional[str]
    tensor: Optional[str]  # slot for a computed tensor
    tensors: Optional[str]  # slot for a list of computed tensors


class Output(NamedTuple):
    """Result. ``alias`` is the operand whose variable it overwrites."""

    pir: str
    legacy: str
    many: bool
    alias: Optional[str]


class Parameter(NamedTuple):
    """Attribute. ``fixed``: it must have its default."""

    pir: str
    legacy: str
    type: str
    default: object
    fixed: bool


class Row(NamedTuple):
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
               tuple(Input(**entry) for entry in _entries(_INPUT, inputs)),
               tuple(Output(**entry) for entry in _entries(_OUTPUT, outputs)),
               tuple(_parameter(**entry) for entry in _entries(_ATTRIBUTE, attributes)),
               tuple(_parameter(**entry) for entry in _entries(_ATTRIBUTE, added)))


def _entries(pattern, texts) -> Iterator[Dict[str, Any]]:
    for text in texts.split():
        match = pattern.match(text)
        if match is None:
            raise ValueError(f"{text!r} is no entry of the operator table")
        yield {name: bool(part) if name in _FLAGS else part
               for name, part in match.groupdict().items()}


def _parameter(pir, legacy, type, default, fixed):
    if default is not None:
        default = (_READ[type](default) if type in _READ else
                   [_READ[type[:-1]](each) for each in default.split(",") if each])
    return Parameter(pir, legacy or pir, type or "", default, fixed)
