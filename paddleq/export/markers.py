"""Markers in a traced program, and their lowering to the operators of a format.

The export traces the float model with a marker in the place of each quantizer (see
:mod:`paddleq.nn.tracing`). A lowering replaces the markers by quantize and dequantize operators.
:class:`MarkerLowering` is the part that all formats share; ``paddle/lower.py``, ``pir/lower.py``
and ``onnx/lower.py`` access their graphs and emit their operators.
"""

import abc
from dataclasses import dataclass
from typing import NamedTuple, Optional, Union

import numpy as np

from ..errors import ExportError
from ..nn.tracing import MARKER_FACTOR
from ..spec import PerGroup, QuantSpec


@dataclass
class ActivationMark:
    """Quantizer of an activation."""

    layer: str
    abs_max: np.ndarray  # float32 [1]; the scale is abs_max / spec.quant_max
    spec: QuantSpec
    zero_point: Optional[np.ndarray] = None  # int64, of the shape of abs_max; None for 0


@dataclass
class WeightMark:
    """Quantized weight.

    ``integers`` is None if no integers represent the weight; then ``value`` is stored. ``value`` is
    None if there are only integers.
    """

    layer: str
    value: Optional[np.ndarray]  # float32, after preprocessing, before quantization
    integers: Optional[np.ndarray]
    abs_max: Optional[np.ndarray]
    spec: Optional[QuantSpec]
    dynamic: bool = True  # abs_max is max|value|, which fake_* operators compute themselves
    zero_point: Optional[np.ndarray] = None


class Marker(NamedTuple):
    """Marker operator in a block of a graph."""

    number: int  # position of the mark among all marks, from 1
    mark: Union[ActivationMark, WeightMark]
    block: object
    source: object  # input variable
    target: object  # output variable


class MarkerLowering(abc.ABC):
    """Replace the markers of a graph by the operators of a format, in place.

    Variables are identified by names or numbers, as the graph does. Marker number n denotes
    ``marks[n - 1]``.
    """

    float_suffix = ".folded"  # of the name of a changed float weight beside the original

    def __init__(self, marks, inputs_of, outputs_of):
        self.marks = marks
        # Functions that return the variables that an operator reads and writes.
        self.inputs_of, self.outputs_of = inputs_of, outputs_of
        self.renamed = {}  # variable -> variable that replaces it
        self.float_uses = set()  # variables that operators other than markers read
        self._taken = set()  # parameters whose name is used for another value
        self._folded = {}  # parameter -> parameter with the float value that replaces it
        self._placeholders = set()  # constants in the place of weights that are integers

    def run(self):
        blocks = [(block, list(ops)) for block, ops in self.blocks()]
        self.float_uses = {name for block, ops in blocks for op in ops
                           if self.marker_of(op) is None for name in self.inputs_of(op)}
        # The renames of all blocks precede their application.
        lowered = [(block, [new for op in ops for new in self._lowered(block, op)])
                   for block, ops in blocks]
        for block, ops in lowered:
            self.rename_inputs(ops)
            self.set_operations(block, [op for op in ops if not self._is_placeholder(op)])

    def _lowered(self, block, op):
        found = self.marker_of(op)
        if found is None:
            return [op]
        number, source, target = found
        marker = Marker(number, self.marks[number - 1], block,
                        self.renamed.get(source, source), target)
        lower = self.activation if isinstance(marker.mark, ActivationMark) else self.weight
        return lower(marker)

    def activation(self, marker):
        """Return the operators that quantize an activation."""
        if marker.mark.spec.binary:
            return self.sign(marker, float(marker.mark.abs_max[0]))
        return self.quantize_dequantize(marker)

    def weight(self, marker):
        """Store a weight and return the operators that dequantize it."""
        if marker.mark.integers is None:
            return self.float_weight(marker, marker.mark.value)
        return self.integer_weight(marker)

    def float_weight(self, marker, value):
        if marker.source not in self._folded:
            self._folded[marker.source] = self.store(marker, value, self.float_suffix)
        self.renamed[marker.target] = self._folded[marker.source]
        return []

    def store(self, marker, array, suffix):
        """Store ``array``, under the name of the original parameter if that is free.

        A weight with two markers is stored twice: Paddle Inference's int8 mode and Paddle-Lite
        dequantize a weight in place for each operator that reads it.
        """
        source = marker.source
        name = self.parameter_name(source)
        if name is None:
            self._placeholders.add(source)
            return self.add_parameter(f"{marker.mark.layer}.weight", array)
        if source in self.float_uses or source in self._taken:
            return self.add_parameter(name + suffix, array)
        self._taken.add(source)
        self.set_parameter(source, array)
        return source

    def _is_placeholder(self, op):
        made = set(self.outputs_of(op))
        return bool(made) and made <= self._placeholders - self.float_uses

    def marker_numbers(self):
        """Return the set of the numbers of all markers of the graph."""
        found = [self.marker_of(op) for _, ops in self.blocks() for op in ops]
        return {each[0] for each in found if each is not None}

    @abc.abstractmethod
    def blocks(self):
        """Pairs (block, its operators in order), outer blocks first."""

    def set_operations(self, block, ops):
        """Replace the operators of a block, which is a list by default."""
        block[:] = ops

    @abc.abstractmethod
    def rename_inputs(self, ops):
        """Replace input variables of operators as ``renamed`` says."""

    @abc.abstractmethod
    def marker_of(self, op):
        """Return (number, source, target) of a marker, None for any other operator."""

    @abc.abstractmethod
    def parameter_name(self, source):
        """Name of the parameter of a variable, None if it is no parameter."""

    @abc.abstractmethod
    def add_parameter(self, name, array):
        """Add a parameter and return its variable."""

    @abc.abstractmethod
    def set_parameter(self, source, array):
        """Replace the value of a parameter."""

    @abc.abstractmethod
    def sign(self, marker, size):
        """Operators that binarize an activation: -size for x < 0, +size for x >= 0."""

    @abc.abstractmethod
    def quantize_dequantize(self, marker):
        """Operators that quantize and dequantize an activation."""

    @abc.abstractmethod
    def integer_weight(self, marker):
        """Store a weight of integers and return the operators that dequantize it."""


def simulated_weight(mark):
    """Quantize and dequantize the weight of a :class:`WeightMark`."""
    if mark.integers is None:
        return mark.value
    abs_max, integers = broadcast(mark.abs_max, mark), mark.integers.astype(np.float32)
    if mark.zero_point is not None:
        integers = integers - broadcast(mark.zero_point, mark).astype(np.float32)
    return integers * abs_max / np.float32(mark.spec.quant_max)


def broadcast(values, mark):
    """Values of groups or channels, in a shape that broadcasts with the integers."""
    rows = mark.integers.shape[0]
    if isinstance(mark.spec.granularity, PerGroup):
        return np.repeat(values, mark.spec.granularity.size, axis=0)[:rows]
    shape = [1] * mark.integers.ndim
    if mark.spec.channel_axis is not None:
        shape[mark.spec.channel_axis] = -1
    return values.reshape(shape)


def marker_number(factor, bias):
    """Number of a marker by the attributes of a scale operator, None if it is no marker."""
    if factor != MARKER_FACTOR:
        return None
    if bias != int(bias) or bias < 1:
        raise ExportError(f"the model has a scale operator with the factor {MARKER_FACTOR}, which "
                          "paddleq reserves for markers; use another factor")
    return int(bias)
