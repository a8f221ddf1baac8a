"""Checks of arguments.

Messages name the argument, its value and the accepted values.
"""

import difflib
import inspect
import os
from dataclasses import field, fields
from typing import Any, Callable, Dict, Iterable, Mapping, Optional, Tuple

from .errors import ConfigError, ConfigTypeError


def _shown(value):
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."


def wrong_type(name: str, value: Any, expected: str) -> ConfigTypeError:
    """Return the error for an argument that is not of the ``expected`` type."""
    return ConfigTypeError(
        f"{name} must be {expected}, but is {_shown(value)} of type {type(value).__name__}")


def wrong_value(name: str, value: Any, expected: str) -> ConfigError:
    """Return the error for an argument that is not one of the ``expected`` values."""
    return ConfigError(f"{name} must be {expected}, but is {_shown(value)}")


def check_int(name: str, value: Any, low: Optional[int] = None,
              high: Optional[int] = None) -> int:
    """Return ``value`` if it is an int (a bool is not) in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(name, value, "an int")
    if (low is not None and value < low) or (high is not None and value > high):
        bounds = f"an int in [{low}, {high}]" if high is not None else f"an int of at least {low}"
        raise wrong_value(name, value, bounds)
    return value


def check_float(name: str, value: Any, low: float, high: float, open_low: bool = False,
                open_high: bool = False) -> float:
    """Return ``value`` as float if it is a number between low and high."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong_type(name, value, "a float")
    inside = (value > low if open_low else value >= low) and (
        value < high if open_high else value <= high)
    if not inside:  # also catches NaN
        left, right = "(" if open_low else "[", ")" if open_high else "]"
        raise wrong_value(name, value, f"in {left}{low}, {high}{right}")
    return float(value)


def check_bool(name: str, value: Any) -> bool:
    """Return ``value`` if it is a bool."""
    if not isinstance(value, bool):
        raise wrong_type(name, value, "a bool")
    return value


def check_choice(name: str, value: Any, choices: Iterable) -> Any:
    """Return ``value`` if it is one of ``choices``."""
    choices = list(choices)
    try:
        known = value in choices
    except (TypeError, ValueError):
        known = False
    if not known:
        listed = ", ".join(repr(c) for c in choices)
        raise ConfigError(f"{name} must be one of {listed}, but is {_shown(value)}"
                          + hint(value, choices))
    return value


def check_layer(name: str, value: Any, expected: str = "a paddle.nn.Layer") -> None:
    """Raise unless ``value`` is a Layer."""
    from paddle import nn  # here, so that the command's help does not wait for Paddle

    if not isinstance(value, nn.Layer):
        if isinstance(getattr(value, "network", None), nn.Layer):  # paddle.Model
            expected += f" ({name}.network is one)"
        raise wrong_type(name, value, expected)


def check_metric(name: str, value: Any, expected: str = "a function of the model") -> None:
    """Raise unless ``value`` is a function that can be called with one argument, a model."""
    if not callable(value):
        raise wrong_type(name, value, expected)
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # some built-in ones
        return
    try:
        signature.bind(None)
    except TypeError:
        shown = f"{getattr(value, '__name__', type(value).__name__)}{signature}"
        raise ConfigTypeError(f"{name} must be {expected}, but {shown} cannot be called with the "
                              "model as its only argument; wrap it: lambda model: ...") from None


def check_path(name: str, path: Any, expected: str) -> str:
    """Return ``path`` as a str if it is a str or ``os.PathLike`` that is not empty."""
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str) or (
            not os.fspath(path)):
        raise wrong_type(name, path, expected)
    if not is_path(os.fspath(path)):
        raise wrong_value(name, path, f"{expected}; the system has no names with NUL or characters "
                          "that it cannot encode")
    return os.fspath(path)


def is_path(text: str) -> bool:
    """Return True if the system can have a file of that name."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def check_prefix(name: str, path: Any) -> str:
    """Return ``path`` as a str if it can be the prefix of files to write, such as 'out/model'."""
    path = check_path(name, path, "a file prefix such as 'out/model'")
    if os.path.basename(path) == "" or os.path.isdir(path):
        raise wrong_value(name, path, "the prefix of files such as 'out/model', not a folder")
    return path


def check_known_keys(owner: str, given: Iterable, known: Iterable) -> None:
    """Raise for keys of ``given`` that are not in ``known``, naming the nearest valid one."""
    for key in given:
        if key not in known:
            listed = ", ".join(sorted(known)) or "none"
            raise ConfigError(f"{owner} does not know {key!r}{hint(key, known)}; "
                              f"valid: {listed}")


def check_name_parts(name: str, value: Any, kinds: tuple = (list, tuple),
                     expected: str = "a list of str") -> Tuple[str, ...]:
    """Return ``value``, parts of names in a collection of one of ``kinds``, as a tuple."""
    if not isinstance(value, kinds) or not all(isinstance(part, str) for part in value):
        raise wrong_type(name, value, expected)
    if not all(value):
        raise wrong_value(name, value, "a part of a name, or a list of them; every name contains "
                          "the empty one")
    return tuple(value)


def check_config(owner: str, given: Any, checks: Mapping[str, Callable[[str, Any], Any]],
                 required: Iterable[str] = (), optional: bool = False) -> Dict[str, Any]:
    """Return the checked values of a configuration.

    Args:
        owner: name of the configuration for messages.
        checks: key -> function that is called as ``check(name, value)`` and returns the value.
        optional: None means an empty dict. Default False.
    """
    if optional and given is None:
        return {}
    if not isinstance(given, dict):
        raise wrong_type(owner, given, "a dict or None" if optional else "a dict")
    check_known_keys(owner, given, checks)
    for key in required:
        if key not in given:
            raise ConfigError(f"{owner} must have the key {key!r}, but has "
                              f"{', '.join(map(repr, given)) or 'none'}")
    return {key: checks[key](f"{owner}[{key!r}]", value) for key, value in given.items()}


def checked_field(default: Any, check: Callable[[str, Any], Any]) -> Any:
    """Return a dataclass field whose value is passed to ``check(name, value)``.

    The ``__post_init__`` of the dataclass must be :func:`check_fields`, or call it.
    """
    return field(default=default, metadata={"check": check})


def check_fields(instance: Any) -> None:
    """Replace the values of the checked fields of a dataclass by those that the checks return."""
    for each in fields(instance):
        if "check" in each.metadata:
            value = each.metadata["check"](each.name, getattr(instance, each.name))
            object.__setattr__(instance, each.name, value)


def check_arguments(owner: str, function: Callable, given: Iterable,
                    reserved: Iterable[str] = ()) -> None:
    """Raise for keyword arguments that ``function`` does not take, or that the caller reserves."""
    parameters = inspect.signature(function).parameters.values()
    if not any(each.kind is each.VAR_KEYWORD for each in parameters):
        check_known_keys(owner, given, {each.name for each in parameters} - set(reserved))


def hint(word: Any, known: Iterable) -> str:
    """Return " (did you mean ...?)" with the entry of ``known`` nearest to ``word``, or ""."""
    names = {k.lower(): k for k in known if isinstance(k, str)}
    near = difflib.get_close_matches(str(word).lower(), names, n=1, cutoff=0.5)
    return f" (did you mean {names[near[0]]!r}?)" if near else ""
