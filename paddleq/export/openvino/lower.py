"""Lower markers to operators that are converted to FakeQuantize and to integer constants.

OpenVINO's Paddle frontend decomposes ``quantize_linear`` into arithmetic that its low-precision
transformations do not recognize. The markers become operators of their own types here, which
:mod:`.reader` converts with functions of this module.
"""

import numpy as np

from ...spec import PerGroup
from ..markers import ActivationMark, broadcast
from ..paddle.lower import ProgramLowering
from ..program.graph_view import GraphView
from ..program.op_desc import inputs, make_op
from .graph_workarounds import is_positive

_PRODUCTS = ("mul", "matmul", "matmul_v2")


class OpenVinoLowering(ProgramLowering):
    """Replace the markers of a program, in place.

    Attributes:
        converters: type of a new operator -> function (opset, input) that returns its output.
    """

    def __init__(self, program, marks):
        super().__init__(program, marks)
        self.converters = {}
        self._results = {}  # parameters of a quantizer -> its result
        self._positive = {}  # name of a node -> True if it has no negative value
        view = GraphView.of_program(program)
        activations = {target for op in view.producers.values() for marker in [self.marker_of(op)]
                       if marker for number, _, target in [marker]
                       if isinstance(marks[number - 1], ActivationMark)}
        # Variables that transposed convolutions read.
        self._transposed = {name for name, ops in view.consumers.items()
                            if any(op.type.endswith("conv2d_transpose") for op in ops)}
        # Variables that only products with float inputs read.
        self._float_products = {
            name for name, ops in view.consumers.items()
            if all(op.type in _PRODUCTS and inputs(op, "Y") == [name]
                   and activations.isdisjoint(inputs(op, "X")) for op in ops)}

    def quantize_dequantize(self, marker):
        mark, target = marker.mark, marker.target
        key = (marker.block.idx, marker.source, mark.spec, mark.abs_max.tobytes(),
               None if mark.zero_point is None else mark.zero_point.tobytes())
        if key in self._results:  # several layers read one tensor with one scale
            return [make_op("assign", {"X": self._results[key]}, {"Out": target})]
        self._results[key] = target

        def convert(ov, x):
            if target in self._transposed and not is_positive(x, self._positive):
                return rounded(ov, x, mark)
            return fake_quantize(ov, x, mark)

        return [self._operator(marker, marker.source, "activation", convert)]

    def integer_weight(self, marker):
        mark = marker.mark
        name = self.store(marker, mark.integers, ".integers")
        # Products with float inputs read 4 bits while they compute; int8 kernels want 8.
        packed = mark.spec.bits <= 4 and not mark.spec.binary and (
            marker.target in self._float_products)
        return [self._operator(marker, name, "weight",
                               lambda ov, x: dequantized(ov, x, mark, packed))]

    def _operator(self, marker, source, kind, convert):
        name = f"paddleq_{kind}_{len(self.converters)}"
        self.converters[name] = convert
        return make_op(name, {"X": source}, {"Out": marker.target})


def fake_quantize(ov, x, mark):
    """Return a FakeQuantize of an :class:`~paddleq.export.markers.ActivationMark`.

    The low-precision transformations of OpenVINO want 256 levels: fewer integers are a tensor that
    is clipped before.
    """
    spec, scale = mark.spec, mark.abs_max.astype(np.float64) / mark.spec.quant_max
    zero = 0 if mark.zero_point is None else mark.zero_point.astype(np.float64)
    bounds = np.iinfo(spec.storage).min, np.iinfo(spec.storage).max

    def values(limit):
        found = ((limit - zero) * scale).astype(np.float32)
        if found.size == 1:
            return found.reshape([])
        shape = [1] * x.get_partial_shape().rank.get_length()
        shape[spec.channel_axis] = -1
        return found.reshape(shape)

    if (spec.quant_min, spec.quant_max) != bounds:
        x = _clipped(ov, x, values(spec.quant_min), values(spec.quant_max))
    low, high = (ov.constant(values(limit)) for limit in bounds)
    return ov.fake_quantize(x, low, high, low, high, bounds[1] - bounds[0] + 1)


def rounded(ov, x, mark):
    """Quantize and dequantize in arithmetic, which OpenVINO computes in float.

    For transposed convolutions of signed integers, whose int8 kernel of OpenVINO 2026.4 accesses
    memory beyond its tensors: some runs give other values, some end the process.
    """
    spec, zero = mark.spec, 0 if mark.zero_point is None else mark.zero_point.astype(np.float64)
    scale = mark.abs_max.astype(np.float64) / spec.quant_max
    if scale.size > 1:
        shape = [1] * x.get_partial_shape().rank.get_length()
        shape[spec.channel_axis] = -1
        scale, zero = scale.reshape(shape), np.reshape(zero, shape) if np.ndim(zero) else zero
    step = ov.constant(scale.astype(np.float32))
    integers = ov.round(ov.divide(x, step), "half_to_even")
    low, high = ((limit - zero) * np.ones_like(scale) for limit in (spec.quant_min, spec.quant_max))
    integers = _clipped(ov, integers.output(0), low, high)
    return ov.multiply(integers, step)


def _clipped(ov, x, low, high):
    if low.size > 1:
        low, high = (ov.constant(each.astype(np.float32)) for each in (low, high))
        return ov.minimum(ov.maximum(x, low), high)
    if x.get_node().get_type_name() == "Clamp":
        known = x.get_node().get_attributes()
        if low <= known["min"] and known["max"] <= high:
            return x
    return ov.clamp(x, low.item(), high.item())


def dequantized(ov, x, mark, packed):
    """Return the float weight of a :class:`~paddleq.export.markers.WeightMark` of integers.

    ``packed``: store two integers in a byte.
    """
    integers, shape = mark.integers, list(mark.integers.shape)
    levels = 1 if mark.spec.binary else mark.spec.quant_max
    scale, zero = mark.abs_max.astype(np.float64) / levels, mark.zero_point
    if packed:
        x = _integers(ov, integers, packed)
    grouped = isinstance(mark.spec.granularity, PerGroup) and (
        shape[0] % mark.spec.granularity.size == 0)
    if grouped:
        # The form that products of OpenVINO decompress while they compute.
        size = mark.spec.granularity.size
        inner = [shape[0] // size, size, *shape[1:]]
        x = ov.reshape(x, ov.constant(np.array(inner, np.int64)), special_zero=False)
        scale, zero = (None if each is None else np.expand_dims(each, 1) for each in (scale, zero))
    else:
        scale, zero = (None if each is None else broadcast(each, mark) for each in (scale, zero))
    assert scale is not None
    value = ov.convert(x, "f32")
    if zero is not None and np.any(zero):
        zero = _integers(ov, zero.astype(integers.dtype), packed)
        value = ov.subtract(value, ov.convert(zero, "f32"))
    value = ov.multiply(value, ov.constant(scale.astype(np.float32)))
    if grouped:
        value = ov.reshape(value, ov.constant(np.array(shape, np.int64)), special_zero=False)
    return value


def _integers(ov, array, packed):
    """Return a constant of integers; of 4 bits if ``packed``."""
    if not packed:
        return ov.constant(array)
    from openvino import Shape, Type
    from openvino.op import Constant

    kind = Type.i4 if array.dtype.kind == "i" else Type.u4
    return Constant(kind, Shape(array.shape), array.reshape(-1).tolist())
