"""Batches of data as arguments of a model, and errors for batches that do not fit it."""

import re
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import paddle
from paddle import nn

from .._paddle_compat import convolution_groups, data_format, dtype_name, raised_by_paddle
from ..errors import ConfigError, ConfigTypeError, PaddleqError

_CONVOLUTIONS = (nn.Conv1D, nn.Conv2D, nn.Conv3D)
_TRANSPOSED = (nn.Conv1DTranspose, nn.Conv2DTranspose, nn.Conv3DTranspose)
_Described = Dict[str, Tuple[str, List[int]]]  # name of an input -> (dtype, shape)


class Batch(tuple):
    """The (args, kwargs) of a call of a model for one batch of data.

    Attributes:
        name: text for messages, such as "batch 3 of data".
        names: names of the positional arguments.
        reference: the inputs of the first batch that ran, which later ones are compared with; one
            dict of all batches.
    """

    name: str
    names: List[str]
    reference: Dict[str, Any]

    @classmethod
    def of(cls, args: List[Any], kwargs: Dict[str, Any], names: List[str], name: str,
           reference: Dict[str, Any]) -> "Batch":
        batch = cls((args, kwargs))
        batch.name, batch.names, batch.reference = name, names, reference
        return batch

    def check(self) -> None:
        """Raise ConfigError if an input has no items."""
        for name, (_, shape) in self.inputs().items():
            if shape and shape[0] == 0:
                raise ConfigError(f"{self.name} must hold at least one item, but its input "
                                  f"{name!r} has the shape {shape}")

    def inputs(self) -> _Described:
        """Return the data types and shapes of the tensors by name."""
        return {name: (dtype_name(x.dtype), list(x.shape)) for name, x in self._tensors()}

    def _tensors(self) -> Iterator[Tuple[str, paddle.Tensor]]:
        args, kwargs = self
        for position, value in enumerate(args):
            name = self.names[position] if position < len(self.names) else str(position)
            yield from _tensors_in(name, value)
        for name, value in kwargs.items():
            yield from _tensors_in(name, value)

    @contextmanager
    def errors_named(self) -> Iterator[None]:
        """Raise the error of :meth:`misfit` for an error that the model raises while open."""
        try:
            yield
        except Exception as error:
            misfit = self.misfit(error)
            if misfit is None:
                raise
            raise misfit from error
        if not self.reference:
            self.reference.update(name=self.name, inputs=self.inputs())

    def misfit(self, error: Exception) -> Optional[Exception]:
        """Return the error for a batch on which a model raised ``error``.

        None if ``error`` does not come from data types and shapes.
        """
        if type(error) in (ConfigError, ConfigTypeError):  # of a SavedModel, which has a signature
            return type(error)(f"{self.name}: {error}")
        if isinstance(error, (PaddleqError, MemoryError)) or type(error).__module__ != "builtins":
            return None
        found = self.inputs()
        problems = [*self._as_dict(), *self._differences(found), *self._refused(error)]
        if not problems and not raised_by_paddle(error):
            return None
        listed = ", ".join(f"{name!r} is {dtype} {shape}" for name, (dtype, shape) in found.items())
        reason = " ".join(re.sub(r"\[operator.*|\(at .*?\)|\[Hint:", "", str(error)).split())
        types = any("dtype" in kind for kind, _ in problems)
        return (ConfigTypeError if types else ConfigError)(
            f"{self.name} does not fit the model: "
            + "; ".join(dict.fromkeys(text for _, text in problems))
            + ("; " if problems else "") + f"its inputs: {listed or 'no tensor'}; the model raised "
            f"{type(error).__name__}: {reason[:300]}")

    def _as_dict(self) -> Iterator[Tuple[str, str]]:
        args, kwargs = self
        if args and isinstance(args[0], Mapping):
            yield "keys", (f"forward takes {', '.join(map(repr, self.names))}, and its first "
                           f"argument was a dict of {', '.join(map(repr, args[0]))}")

    def _differences(self, found: _Described) -> Iterator[Tuple[str, str]]:
        """Yield (kind, text) of each input that differs from those of the first batch."""
        for name, (dtype, shape) in self.reference.get("inputs", {}).items():
            if name not in found:
                continue
            other = found[name]
            if other[0] != dtype:
                yield "dtype", (f"the input {name!r} must be {dtype} as in "
                                f"{self.reference['name']}, but is {other[0]}")
            if len(shape) != len(other[1]) or shape[1:] != other[1][1:]:
                yield "shape", (f"the input {name!r} must have the shape "
                                f"[any, {', '.join(map(str, shape[1:]))}] as in "
                                f"{self.reference['name']}, but has {other[1]}"
                                f"{layout_advice(shape, other[1])}")

    def _refused(self, error: Exception) -> Iterator[Tuple[str, str]]:
        """Yield (kind, text) of each requirement of the layer that raised that is not met."""
        trace, calls = error.__traceback__, []
        while trace is not None:
            calls.append(trace.tb_frame.f_locals)
            trace = trace.tb_next
        given = {id(x): name for name, x in self._tensors()}
        for variables in reversed(calls):
            layer = variables.get("self")
            needs = _requirements(layer) if isinstance(layer, nn.Layer) else None
            if needs is None:
                continue
            x = next(_first_tensor(variables), None)
            if x is None:
                return
            (dtypes, shape, axis), dtype = needs, dtype_name(x.dtype)
            place = f"the input {given[id(x)]!r}" if id(x) in given else "its input"
            kind = type(layer).__name__
            if dtype not in dtypes:
                yield "dtype", (f"{place} of a {kind} must be {' or '.join(dtypes)}, but is "
                                f"{dtype}")
            if shape and (len(x.shape) < len(shape) or shape[axis] != str(x.shape[axis])
                          or "..." not in shape and len(x.shape) != len(shape)):
                wanted = [int(size) if size.isdigit() else None for size in shape]
                yield "shape", (f"{place} of a {kind} must have the shape "
                                f"[{', '.join(shape)}], but has {list(x.shape)}"
                                f"{layout_advice(wanted, list(x.shape))}")
            return


def layout_advice(expected: Sequence[Optional[int]], found: Sequence[int]) -> str:
    """Return advice for a batch of images whose channels are on the other end, or ""."""
    if len(expected) < 3 or len(expected) != len(found):
        return ""
    last = list(range(len(found)))
    to_first, to_last = [0, last[-1], *last[1:-1]], [0, *last[2:], 1]
    for order in (to_first, to_last):
        moved = [found[axis] for axis in order]
        if moved != found and all(size in (None, there)
                                  for size, there in zip(expected[1:], moved[1:])):
            return f" (transpose it: x.transpose({order}))"
    return ""


def _requirements(layer) -> Optional[Tuple[Tuple[str, ...], List[str], int]]:
    """Return (data types, shape, axis that is checked) of the input of a layer, None if unknown."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, paddle.Tensor):
        return None
    dtype = dtype_name(weight.dtype)
    if isinstance(layer, nn.Embedding):
        return ("int64", "int32"), [], 0
    if not dtype.startswith(("float", "bfloat")):
        return None
    if isinstance(layer, nn.Linear):
        return (dtype,), ["...", str(weight.shape[0])], -1
    if isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED)):
        channels = (weight.shape[0] if isinstance(layer, _TRANSPOSED)
                    else weight.shape[1] * convolution_groups(layer))
        axis = data_format(layer).index("C")
        shape = ["any"] * len(weight.shape)
        shape[axis] = str(channels)
        return (dtype,), shape, axis
    return None


def _first_tensor(variables):
    for name in ("x", "input", "inputs", "args"):
        value = variables.get(name)
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(each, paddle.Tensor):
                yield each


def _tensors_in(name, value):
    if isinstance(value, paddle.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _tensors_in(f"{name}[{key!r}]", each)
    elif isinstance(value, (list, tuple)):
        for number, each in enumerate(value):
            yield from _tensors_in(f"{name}[{number}]", each)
