"""The operator table, which ``operator_table.txt`` holds: PIR operation -> legacy operator.

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
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Tuple

_INPUT = re.compile(r"(?P<pir>\w+)>(?P<legacy>\w+|-)(?P<many>\*)?(?P<optional>\?)?"
                    r"(:(?P<type>\w+)(\|((?P<tensor>\w+)|-))?(\|(?P<tensors>\w+))?)?$")
_OUTPUT = re.compile(r"(?P<pir>\w*)>(?P<legacy>\w+|-)(?P<many>\*)?(=(?P<alias>\w+))?$")
_ATTRIBUTE = re.compile(r"(?P<fixed>!)?(?P<pir>\w+)(>(?P<legacy>\w+|-))?(:(?P<type>\w+))?"
                        r"(=(?P<default>.*))?$")
_FLAGS = ("many", "optional", "fixed")

_READ = {"int": int, "long": int, "float": float, "str": str, "dtype": str, "bool": "true".__eq__}


class Entry(NamedTuple):
    """Operand, result or attribute."""

    pir: str
    legacy: str
    many: bool = False  # a list of tensors
    optional: bool = False
    type: Optional[str] = None  # of an attribute, also of a constant operand that becomes one
    tensor: Optional[str] = None  # slot for a computed tensor
    tensors: Optional[str] = None  # slot for a list of computed tensors
    alias: Optional[str] = None  # operand whose variable the result overwrites
    default: object = None
    fixed: bool = False  # the attribute must have its default


class Row(NamedTuple):
    """Row of the table: PIR operation ``pir`` becomes the legacy operator ``legacy``."""

    pir: str
    legacy: str
    inputs: Tuple[Entry, ...]
    outputs: Tuple[Entry, ...]
    attributes: Tuple[Entry, ...]
    added: Tuple[Entry, ...]


def row(pir, legacy, inputs="x>X", outputs="out>Out", attributes="", added=""):
    """Parse the strings of a :class:`Row`."""
    return Row(pir, legacy, _entries(_INPUT, inputs), _entries(_OUTPUT, outputs),
               _entries(_ATTRIBUTE, attributes), _entries(_ATTRIBUTE, added))


def _entries(pattern, texts):
    return tuple(_entry(pattern, text) for text in texts.split())


def _entry(pattern, text):
    match = pattern.match(text)
    if match is None:
        raise ValueError(f"{text!r} is no entry of the operator table")
    parts: Dict[str, Any] = {name: bool(part) if name in _FLAGS else part
                             for name, part in match.groupdict().items()}
    kind, default = parts.get("type") or "", parts.get("default")
    if default is not None:
        parts["default"] = (_READ[kind](default) if kind in _READ else
                            [_READ[kind[:-1]](each) for each in default.split(",") if each])
    return Entry(**{**parts, "legacy": parts["legacy"] or parts["pir"]})


def _families():
    """Read the table: name of a family of operators -> its rows."""
    text = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
    families = {}
    for line in re.sub(r"\n +", " ", text).splitlines():
        if line.startswith("["):
            rows = families[line.strip("[]")] = []
        elif line and not line.startswith("#"):
            names, *columns = line.split(" | ")
            columns = dict(column.split(" ", 1) for column in columns)
            for name in names.split():
                pir, _, legacy = name.partition(":")
                rows.append(row(pir, legacy or pir, **columns))
    return families


FAMILIES = _families()
ROWS = {each.pir: each for rows in FAMILIES.values() for each in rows}
