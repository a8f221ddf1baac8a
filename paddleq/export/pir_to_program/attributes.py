"""Attributes: read those of PIR, write those of legacy operators."""

import math
import struct
from typing import Any

import numpy as np

from ...errors import FormatError
from ..program.op_desc import TYPES, make_op, set_attribute
from ..program.pdiparams import CODES

_KINDS = {"a_bool": bool, "a_i32": int, "a_i64": int, "a_index": int, "a_str": str, "a_dtype": str}
_SPECIAL = {"INF": math.inf, "-INF": -math.inf, "NaN": math.nan}
_LIMITS = {"int": 2 ** 31, "long": 2 ** 63}
_CASTS = {"int": int, "long": int, "float": float, "float64": float, "bool": bool}
_LISTS = ("ints", "longs", "floats", "bools", "float64s", "strs")


def plain(attribute) -> Any:
    """Return the Python value of a PIR attribute: a number, a string or a list of them."""
    kind, value = attribute
    if kind == "a_array":
        return [plain(each) for each in value]
    if kind == "a_intarray":
        return [_checked(each, int) for each in _checked(value, list)]
    if kind == "a_scalar":  # [type, number]
        if len(_checked(value, list)) < 2:
            raise FormatError(f"{value!r} is no scalar")
        return value[1]
    if kind in ("a_f32", "a_f64"):
        return _SPECIAL[value] if value in _SPECIAL else _checked(value, (int, float)) * 1.0
    if kind not in _KINDS:
        raise FormatError(f"attributes of the type {kind!r} are not supported")
    return _checked(value, _KINDS[kind])


def _checked(value, kind):
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise FormatError(f"{str(value)[:50]!r} is not of type {kind}")
    return value


def get(operation, name, kind, *default):
    """Return an attribute of a Python type."""
    if name not in operation.attributes:
        if default:
            return default[0]
        raise FormatError(f"has no attribute {name!r}")
    return _checked(plain(operation.attributes[name]), kind)


def of_row(row, operation, given):
    """Return the legacy attributes of a row, and remove those of PIR from ``given``."""
    values = {}
    for entry in row.attributes:
        if entry.pir in given:
            value = plain(given.pop(entry.pir))
        elif entry.default is None and entry.legacy != "-":
            raise FormatError(f"has no attribute {entry.pir!r}")
        else:
            value = entry.default
        if entry.fixed and value != entry.default:
            raise operation.unsupported(
                f"has {entry.pir} = {value} instead of {entry.default}, which is all that the "
                f"legacy operator {row.legacy} does")
        if entry.legacy != "-" and not entry.fixed:
            values[entry.legacy] = entry.type, value
    values.update((entry.legacy, (entry.type, entry.default)) for entry in row.added)
    return values


def op(kind, ins, outs, typed=None, **values):
    """Create a legacy operator without empty inputs.

    Attributes are in ``typed`` (name -> (type, value)) and ``values``, whose types are inferred.
    """
    made = make_op(kind, {slot: names for slot, names in ins.items() if names}, outs)
    values = {name: (TYPES[type(value)], value) for name, value in values.items()}
    for name, (kind, value) in {**(typed or {}), **values}.items():
        kind, value = _cast(name, kind, value)
        set_attribute(made, name, value, kind)
    return made


def _cast(name, type_name, value):
    if type_name == "dtype":
        return "int", dtype_code(value)
    if type_name == "scalars":
        dtype, numbers = value
        kind = (bool if dtype == "bool" else int if "int" in dtype else float)
        return type_name, [kind(number) for number in numbers]
    if type_name in _LISTS:
        value = value if isinstance(value, list) else [value]
        return type_name, [_cast(name, type_name[:-1], each)[1] for each in value]
    if isinstance(value, list):
        if len(value) != 1:
            raise FormatError(f"{name} is one number, not the list {str(value)[:50]}")
        value = value[0]
    limit = _LIMITS.get(type_name)
    if limit is not None and (value != int(value) or not -limit <= value < limit):
        raise FormatError(f"{name} = {value} does not fit into {type_name}")
    return type_name, _CASTS.get(type_name, str)(value)


def is_float32(number):
    """Return True if a float32 represents a number exactly."""
    try:
        return struct.unpack("f", struct.pack("f", number))[0] == number or number != number
    except OverflowError:
        return False


def dtype_code(name):
    """Return the code of a data type; -1 for undefined, the type of the input."""
    if name.startswith("Undefined"):
        return -1
    if name not in CODES:
        raise FormatError(f"element type {name!r} is not supported")
    return CODES[name]


def _reduction(converter, operation, values):
    """Set ``reduce_all`` if there are no axes, and ``in_dtype`` beside ``out_dtype``."""
    source, axes = converter.types[operation.operands[0]], values["dim"][1]
    if "reduce_all" not in values:
        values["reduce_all"] = "bool", not axes
    elif not axes or len(axes) == len(source.shape or []):
        values["reduce_all"] = "bool", True
    if not str(values["out_dtype"][1]).startswith(("-1", "Undefined")):
        values["in_dtype"] = "int", CODES[source.dtype]


def _strided(converter, operation, values):
    """Set ``infer_flags``: -1 for computed bounds, 1 for constants."""
    computed = any(converter.numbers(number) is None for number in operation.operands[1:])
    values["infer_flags"] = "ints", [-1 if computed else 1] * len(values["axes"][1])


def _counted_axis(converter, operation, values):
    """Make a negative axis positive: the legacy operator writes out of bounds for it."""
    axis, rank = values["dim"][1], len(converter.types[operation.operands[0]].shape)
    values["dim"] = "int", axis + rank if axis < 0 else axis


def _scale_factors(converter, operation, values):
    """Choose scale factors of float32 with the sizes and the ratios of those of float64.

    Paddle 3.3 computes with float64, 3.1 with float32; 1 / 1.7 differs by a digit from the
    reciprocal of the float32 next to 1.7, which moves each interpolated value.
    """
    factors = values["scale"][1]
    before, after = (each.shape or [] for each in (converter.types[operation.operands[0]],
                                                   operation.results[0]))
    axes = slice(1, -1) if values["data_layout"][1].endswith("C") else slice(2, None)
    sides = list(zip(factors, before[axes], after[axes]))
    if not len(factors) == len(before[axes]) == len(after[axes]):
        return
    gathered = values["interp_method"][1] == "nearest"  # by passes/nearest_interpolation.py
    found = [_float32_factor(*each, gathered) for each in sides]
    if None not in found:
        values["scale"] = "floats", found
    elif all(min(side, size) > 0 and np.float32(side / size) == np.float32(1 / factor)
             for factor, side, size in sides):
        values["scale"] = "floats", []
        names = ("out_d", "out_h", "out_w")[-len(sides):]
        values.update((name, ("int", size)) for name, (_, _, size) in zip(names, sides))


def _float32_factor(factor, side, size, gathered):
    """Return a float32 with the ratio of ``factor`` that gives a side its size, None without one.

    A dynamic side is scaled by the float32 next to ``factor``, or by any one if ``gathered``.
    """
    nearest = np.float32(factor)
    for each in (nearest, np.nextafter(nearest, np.float32(0)),
                 np.nextafter(nearest, np.float32(np.inf))):
        sizes = int(side * float(each)), int(np.float32(side) * each)
        fits = (sizes == (size, size) if min(side, size) > 0 else gathered or each == nearest)
        if factor > 0 and fits and np.float32(1 / float(each)) == np.float32(1 / factor):
            return float(each)
    return None


HOOKS = {
    **dict.fromkeys((f"{kind}_interp" for kind in ("linear", "bilinear", "trilinear", "bicubic",
                                                   "nearest")), _scale_factors),
    **dict.fromkeys(("sum", "mean", "max", "min", "prod", "all", "any", "amax", "amin",
                     "frobenius_norm"), _reduction),
    **dict.fromkeys(("repeat_interleave", "repeat_interleave_with_tensor_index"),
                    _counted_axis),
    "strided_slice": _strided,
}
