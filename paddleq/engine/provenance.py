"""Provenance: the method and configuration a model was quantized with, which exports record."""

import enum
import functools
import platform
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import paddle

from .._layer_state import read_state, state_of


def versions():
    """Return the versions of the packages that every export and measurement depends on."""
    from .. import __version__

    return {"paddleq": __version__, "paddle": paddle.__version__, "numpy": np.__version__,
            "python": platform.python_version()}


def set_provenance(model, method, **config):
    """Record the quantization method of ``model``, in place of an earlier record."""
    state_of(model).provenance = {"method": method, **{
        key: plain_value(value) for key, value in config.items() if value is not None}}


def provenance_of(model):
    """Return the record of :func:`set_provenance`, a dict of plain values, or None.

    For a model that was quantized in parts, return a list of records, each with the name of its
    ``part``.
    """
    found = [(name, record) for name, layer in model.named_sublayers(include_self=True)
             if (record := read_state(layer).provenance) is not None]
    if not found or not found[0][0]:
        return dict(found[0][1]) if found else None
    return [{"part": name, **record} for name, record in found]


def plain_value(value) -> Any:
    """Convert ``value`` to numbers, strings, lists and dicts, the same in each process."""
    if isinstance(value, (enum.Enum, np.generic)):
        return plain_value(value.value if isinstance(value, enum.Enum) else value.item())
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)  # YAML would store the class of a subclass
    if isinstance(value, functools.partial):
        return plain_factory(value.func, value.keywords)
    if isinstance(value, type) or not (is_dataclass(value) or hasattr(value, "__iter__")):
        return getattr(value, "__name__", type(value).__name__)
    if is_dataclass(value):
        return {each.name: plain_value(getattr(value, each.name)) for each in fields(value)
                if each.init}
    if isinstance(value, Mapping):
        return {str(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain_value(item) for item in value), key=str)
    return type(value).__name__


def plain_factory(made, arguments):
    """Return the name of a class and its arguments in the form of quantizers in recipes."""
    return {"name": made.__name__, **plain_value(arguments)}
