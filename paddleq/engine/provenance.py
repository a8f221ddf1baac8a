"""How a model was quantized: front doors say it in the words of a recipe, exports write it down."""

import enum
import functools
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

import numpy as np

from .._factory import Factory
from .._layer_state import read_state, state_of


def say_method(model, method, **said):
    """Remember on ``model`` how it is quantized; what was said before is forgotten.

    Args:
        method: as a recipe calls it, or the front door's name where recipes have none.
        said: what configures it, made plain by :func:`plain`. None is not worth a word.
    """
    state_of(model).method = {"method": method, **{
        key: plain(value) for key, value in said.items() if value is not None}}


def method_of(model):
    """What front doors said of ``model``: a dict of plain values, or None.

    Of a model that was quantized in parts, a list of them, each with the name of its ``part``.
    """
    found = [(name, read_state(layer).method)
             for name, layer in model.named_sublayers(include_self=True)
             if read_state(layer).method is not None]
    if not found or not found[0][0]:
        return dict(found[0][1]) if found else None
    return [{"part": name, **said} for name, said in found]


def plain(value):
    """``value`` as numbers, texts, lists and dicts, the same ones in each process.

    Classes and functions are their names, and so is what nobody knows how to take apart.
    """
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, np.generic):
        return plain(value.item())
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)  # of a subclass YAML would keep the class
    if isinstance(value, Factory):
        return named(value.made, value.arguments)
    if isinstance(value, functools.partial):
        return named(value.func, value.keywords)
    if isinstance(value, type) or not (is_dataclass(value) or hasattr(value, "__iter__")):
        return getattr(value, "__name__", type(value).__name__)
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)
                if each.init}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    return type(value).__name__


def named(made, arguments):
    """A class and its arguments, as recipes have quantizers."""
    return {"name": made.__name__, **plain(arguments)}
