"""Descriptions of the inputs of a model, and checks of the values that a caller gives for them."""

from dataclasses import dataclass
from typing import Any, Optional, Tuple

import numpy as np

from .._checks import hint, wrong_type
from ..engine.batch import layout_advice
from ..errors import ConfigError, ConfigTypeError
from ..export.program.op_desc import dtype_of, shape_of


@dataclass(frozen=True)
class TensorInfo:
    """Name, dtype and shape of an input of a model."""

    name: str
    dtype: Any  # name of the numpy dtype, "?" if numpy has no equivalent
    shape: Optional[Tuple[Optional[int], ...]]  # None for dynamic dimensions; None if unknown

    @classmethod
    def of_variable(cls, var):
        """Description of a VarDesc of a ProgramDesc."""
        return cls(var.name, dtype_of(var),
                   tuple(None if size < 0 else size for size in shape_of(var)))

    def __str__(self):
        return f"{self.name}: {self.dtype} {_shape_text(self.shape)}"


def _shape_text(shape):
    if shape is None:
        return "of any shape"
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"


def as_numpy(value):
    """Return ``value``, a Paddle tensor or anything that numpy takes, as a numpy array."""
    return np.asarray(value.numpy() if hasattr(value, "numpy") else value)


def check_inputs(inputs, expected, convert=as_numpy):
    """Return ``inputs`` as a list of arrays that fit ``expected``, a list of :class:`TensorInfo`.

    Args:
        inputs: an array for a model with one input; else a list or tuple of arrays in order, or a
            dict by name. Paddle tensors count as arrays.
        convert: function that makes an array or a tensor of each value.
    """
    takes = f"; the model takes {len(expected)} inputs: " + "; ".join(map(str, expected))
    if isinstance(inputs, dict):
        names = [info.name for info in expected]
        for name in inputs:
            if name not in names:
                raise ConfigError(f"inputs has no place for {name!r}{hint(name, names)}{takes}")
        missing = [name for name in names if name not in inputs]
        if missing:
            raise ConfigError(f"inputs lacks {', '.join(missing)}{takes}")
        inputs = [inputs[name] for name in names]
    elif not isinstance(inputs, (list, tuple)):
        inputs = [inputs]
    if len(inputs) != len(expected):
        raise ConfigError(f"inputs has {len(inputs)} arrays{takes}")
    return [_check_input(convert(value), info, takes) for value, info in zip(inputs, expected)]


def _check_input(value, info, takes):
    dtype, shape = str(value.dtype).rpartition(".")[2], list(value.shape)
    if dtype == "object":
        raise wrong_type(f"the input {info.name!r}", value.tolist(), "a numeric array")
    if info.dtype not in ("?", dtype):
        raise ConfigTypeError(f"the input {info.name!r} must be {info.dtype}, but is {dtype}: give "
                              f"array.astype({info.dtype!r}){takes}")
    if info.shape is not None and (len(shape) != len(info.shape) or any(
            size not in (None, found) for size, found in zip(info.shape, shape))):
        raise ConfigError(f"the input {info.name!r} must have the shape {_shape_text(info.shape)}, "
                          f"but has {shape}{layout_advice(info.shape, shape)}{takes}")
    if shape and shape[0] == 0:
        raise ConfigError(f"the input {info.name!r} must hold at least one item, but has the shape "
                          f"{shape}{takes}")
    return value
