"""Multiplications and additions of constants in a program, as affine maps along one axis."""

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np
import paddle

from .functions import FUNCTIONS
from .layers import ProgramGraph, is_marker
from .operators import Arguments, Operator

# Operators that are evaluated where all their inputs are constants.
_CONSTANT = {
    "fill_constant", "assign_value", "assign", "share_data", "reshape2", "reshape", "unsqueeze2",
    "unsqueeze", "squeeze2", "squeeze", "transpose2", "transpose", "flatten_contiguous_range",
    "cast", "scale", "elementwise_add", "elementwise_sub", "elementwise_mul", "elementwise_div",
    "elementwise_pow", "pow", "sqrt", "rsqrt", "square", "exp", "reciprocal", "sigmoid", "softplus",
    "abs", "relu", "concat", "stack", "slice",
}
_LARGEST_CONSTANT = 1 << 20  # elements
_ELEMENTWISE = ("elementwise_mul", "elementwise_div", "elementwise_add", "elementwise_sub")


class Refused(Exception):
    """An affine map cannot be moved; the message is the reason."""


@dataclass(frozen=True)
class Affine:
    """Map ``x -> scale * x + shift`` with numbers, or with one of each for each channel.

    Attributes:
        scale, shift: float64 arrays with one element, or with one for each channel.
        axis: axis of the channels, not negative; None if both arrays have one element.
    """

    scale: np.ndarray
    shift: np.ndarray
    axis: Optional[int] = None

    @classmethod
    def of(cls, scale: Any, shift: Any, axis: Optional[int] = None) -> "Affine":
        """Return the map; an axis of one channel is left out."""
        scale, shift = (np.asarray(each, np.float64).reshape(-1) for each in (scale, shift))
        return cls(scale, shift, axis if max(scale.size, shift.size) > 1 else None)

    @property
    def multiplies(self) -> bool:
        """True unless the scale is 1."""
        return bool((self.scale != 1).any())

    @property
    def adds(self) -> bool:
        """True unless the shift is 0."""
        return bool((self.shift != 0).any())

    @property
    def is_exact(self) -> bool:
        """True if it multiplies by powers of two alone, which rounds nothing."""
        return not self.adds and bool((np.abs(np.frexp(self.scale)[0]) == 0.5).all())

    def then(self, after: "Affine") -> Optional["Affine"]:
        """Return the map followed by ``after``; None if their channels are on different axes."""
        if None not in (self.axis, after.axis) and self.axis != after.axis:
            return None
        return Affine.of(after.scale * self.scale, after.scale * self.shift + after.shift,
                         self.axis if after.axis is None else after.axis)

    def per_channel(self, channels: int) -> Tuple[np.ndarray, np.ndarray]:
        """Return scale and shift with one element for each of ``channels``."""
        return np.broadcast_to(self.scale, channels), np.broadcast_to(self.shift, channels)


@dataclass
class AffineOperator:
    """An operator that computes an affine map with constants.

    Attributes:
        operator: the operator.
        source, target: variables that it maps from and to.
        affine: the map.
        constant: parameter that is its only constant; None for constants of other kinds.
        neutral: value of the elements of that parameter with which the operator is the identity;
            None if there is none.
    """

    operator: Operator
    source: str
    target: str
    affine: Affine
    constant: Optional[str] = None
    neutral: Optional[float] = None


class Constants:
    """Values of the variables of a program that do not depend on its inputs."""

    def __init__(self) -> None:
        self._values: Dict[str, Optional[np.ndarray]] = {}

    def value(self, graph: ProgramGraph, name: Optional[str]) -> Optional[np.ndarray]:
        """Return the value of a variable, None if it is no constant of at most 2^20 elements."""
        if name is None:
            return None
        if graph.is_parameter(name):
            array = graph.arrays[name]
            return array if array.size <= _LARGEST_CONSTANT else None
        if name not in self._values:
            self._values[name] = None  # while it is computed
            self._values[name] = self._computed(graph, name)
        return self._values[name]

    def _computed(self, graph, name):
        op = graph.producers.get(name)
        size = np.prod([max(each, 1) for each in graph.shapes.get(name, [])])
        if (op is None or op.type not in _CONSTANT or name in graph.rewritten
                or op.type not in FUNCTIONS or op.output("Out") != name
                or size > _LARGEST_CONSTANT):
            return None
        inputs = {}
        for slot, names in op.inputs.items():
            given = [self.value(graph, each) for each in names]
            values = [value for value in given if value is not None]
            if len(values) < len(given):
                return None
            inputs[slot] = [paddle.to_tensor(np.ascontiguousarray(value)).reshape(value.shape)
                            for value in values]
        with paddle.no_grad():
            found = FUNCTIONS[op.type](Arguments(op, inputs, ("Out",)))
        if isinstance(found, dict):
            found = found.get("Out")
        return found.numpy() if isinstance(found, paddle.Tensor) else None


def affine_operator(graph: ProgramGraph, constants: Constants,
                    op: Operator) -> Optional[AffineOperator]:
    """Return the affine map with finite constants that an operator computes, else None."""
    reader = None if is_marker(op) else _READERS.get(op.type)
    found = None if reader is None else reader(graph, constants, op)
    if found is None or found.source not in graph.shapes or not (
            np.isfinite(found.affine.scale).all() and np.isfinite(found.affine.shift).all()):
        return None
    return found


def _elementwise(graph, constants, op):
    x, y = op.input("X"), op.input("Y")
    if op.get("scale_x", 1.0) != 1.0 or op.get("Scale_x", 1.0) != 1.0:
        return None
    swapped = constants.value(graph, y) is None
    source, name = (y, x) if swapped else (x, y)
    value, shape = constants.value(graph, name), graph.shapes.get(source)
    if value is None or value.dtype.kind != "f" or shape is None or constants.value(
            graph, source) is not None:
        return None
    aligned = _aligned(value, shape, op.get("axis", -1), swapped)
    if aligned is None:
        return None
    vector, axis = aligned
    kind = op.type.rpartition("_")[2]
    affine = _of_kind(kind, vector.astype(np.float64), axis, swapped)
    if affine is None:
        return None
    parameter = name if graph.is_parameter(name) else None
    neutral = None if swapped and kind == "sub" else float(kind in ("mul", "div"))
    return AffineOperator(op, source, op.output("Out"), affine, parameter, neutral)


def _of_kind(kind, value, axis, swapped):
    if kind == "mul":
        return Affine.of(value, 0.0, axis)
    if kind == "add":
        return Affine.of(1.0, value, axis)
    if kind == "sub":
        return Affine.of(-1.0, value, axis) if swapped else Affine.of(1.0, -value, axis)
    return None if swapped or not value.all() else Affine.of(1.0 / value, 0.0, axis)


def _aligned(value, shape, axis, swapped):
    """Return (vector, axis) of a constant that broadcasts along one axis, else None."""
    rank = len(shape)
    if value.ndim > rank:
        return None
    if value.size == 1:
        return value.reshape(-1), None
    if swapped and axis not in (-1, rank - value.ndim):
        return None
    first = rank - value.ndim if axis == -1 else axis
    full = [1] * first + list(value.shape)
    if len(full) > rank:  # axes of size 1 at the end are dropped
        if any(size != 1 for size in full[rank:]):
            return None
        full = full[:rank]
    full += [1] * (rank - len(full))
    long = [i for i, size in enumerate(full) if size != 1]
    if len(long) != 1 or shape[long[0]] != full[long[0]]:
        return None
    return value.reshape(-1), long[0]


def _scale(graph, constants, op):
    factor, shift = np.float64(op.get("scale", 1.0)), np.float64(op.get("bias", 0.0))
    if op.input("ScaleTensor") is not None:
        value = constants.value(graph, op.input("ScaleTensor"))
        if value is None or value.size != 1:
            return None
        factor = np.float64(value.reshape(-1)[0])
    if not op.get("bias_after_scale", True):
        shift = shift * factor
    return AffineOperator(op, op.input("X"), op.output("Out"), Affine.of(factor, shift))


def _affine_channel(graph, constants, op):
    shape = graph.shapes.get(op.input("X"))
    scale, bias = (constants.value(graph, op.input(slot)) for slot in ("Scale", "Bias"))
    if shape is None or scale is None or bias is None:
        return None
    last = op.get("data_layout", "NCHW") == "NHWC"
    return AffineOperator(op, op.input("X"), op.output("Out"),
                          Affine.of(scale, bias, len(shape) - 1 if last else 1))


_READERS: Dict[str, Callable[[ProgramGraph, Constants, Operator], Optional[AffineOperator]]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise), "scale": _scale,
    "affine_channel": _affine_channel}


def chain_affine(chain: List[AffineOperator]) -> Affine:
    """Return the map that operators compute one after the other."""
    affine = chain[0].affine
    for each in chain[1:]:
        both = affine.then(each.affine)
        assert both is not None, each.target
        affine = both
    return affine
