"""Recorder of the markers that quantizers become in the trace of a model."""

import logging
from typing import Any

import numpy as np
import paddle

from .._layer_state import read_state
from ..engine.state import quantized_layers
from ..errors import ExportError
from ..fake_quant import LSQ, PACT
from ..fake_quant.fake_quantize import FakeQuantize
from ..functional import abs_max as abs_max_of
from ..functional import dequantize, quantize
from ..nn.deployable import deployable_layers
from ..nn.input_slots import slot_name
from ..nn.integer_layer import IntegerLayer
from ..nn.kv_cache import Int8KVCache
from ..nn.tracing import MARKER_FACTOR
from ..nn.weight_parts import quantizer_name
from ..spec import PerChannel, PerTensor, QuantSpec
from .markers import ActivationMark, WeightMark, broadcast, simulated_weight
from .trace_checks import Refusals, check_ready

_logger = logging.getLogger("paddleq")


class ExportRecorder:
    """Recorder that inserts markers; marker number n has the meaning ``marks[n - 1]``.

    The marks are computed before the trace, in which tensors have no values.
    """

    def __init__(self, model, format):
        check_ready(model)
        self.marks, self._format = [], format
        self._inputs, self._weights, self._outputs = {}, {}, {}
        self._shared = {}  # id of a weight -> (its mark, the cause for which there is none)
        self.refusals = Refusals()
        self.added = {}  # names of layers that were added after quantization and that it met
        self.called = {}  # id of a layer that the trace met -> (name, layer, its marker numbers)
        self._names = {id(layer): name for name, layer in deployable_layers(model)}
        with paddle.no_grad():
            for _, layer in quantized_layers(model):
                self._mark_quantized(layer._paddleq.name, layer)
            for name, layer in deployable_layers(model):
                if isinstance(layer, IntegerLayer):
                    self._mark_integer_layer(name, layer)
                elif isinstance(layer, Int8KVCache):
                    cache: Any = layer
                    for slot in (0, 1):  # keys and values, which are integers already
                        self._inputs[id(layer), slot] = [], self.refusals.attempt(
                            layer, slot_name("activation_quantizer", slot), self._activation_mark,
                            name, "key or value", cache.spec,
                            paddle.full([1], float(cache.spec.quant_max)), None)

    def meet_added(self, name):
        """Record that the trace met a layer that was added after quantization."""
        self.added[name] = None

    def lost_layers(self, numbers, parameters):
        """Return name -> layer that the trace met, but the program does not contain.

        Args:
            numbers: of the markers in the program.
            parameters: names of its parameters, for layers without markers.
        """
        lost = {}
        for name, layer, marks in self.called.values():
            tensors = {each.name for each in [*layer.parameters(), *layer.buffers()]}
            if marks and numbers.isdisjoint(marks) or (
                    not marks and tensors and tensors.isdisjoint(parameters)):
                lost[name] = layer
        return lost

    def mark(self, x, meaning, layer):
        """Return ``x`` behind a new marker for ``meaning``."""
        self.marks.append(meaning)
        self._call(layer).append(len(self.marks))
        return paddle.scale(x, scale=MARKER_FACTOR, bias=float(len(self.marks)))

    def _activation_mark(self, name, part, spec, abs_max, zero_point):
        if spec.element is not None:
            raise ExportError(
                f"the {part} of {name} is quantized to {spec}, for which no runtime has operators; "
                "quantize the weights alone, whose values are computed in the file, or evaluate "
                "the model in dynamic mode")
        self._format.check_spec(f"the {part} of {name}", spec, False)
        _check_finite(f"the {part} of {name}", abs_max * float(spec.quant_max))
        return ActivationMark(name, _float32(abs_max), spec, _zero_point(zero_point, spec))

    def _mark_weight(self, layer, name, make, *args):
        weight = getattr(layer, name)
        if id(weight) not in self._shared:
            self._shared[id(weight)] = (
                self.refusals.attempt(layer, quantizer_name(name), make, *args),
                self.refusals.cause(layer, quantizer_name(name)))
        self._weights[id(layer), name], cause = self._shared[id(weight)]
        if cause is not None:
            self.refusals.add(layer, quantizer_name(name), cause)

    def _mark_quantized(self, name, layer):
        for slot in range(len(layer._paddleq.kind.inputs)):
            self._inputs[id(layer), slot] = self.refusals.attempt(
                layer, slot_name("activation_quantizer", slot),
                self._hooks_and_mark, name, layer, slot) or ([], None)
        for call in range(layer._paddleq.calls):
            attribute = slot_name("output_quantizer", call)
            output = getattr(layer, attribute, None)
            if output is not None and self._has_scale(name, layer, attribute, output):
                self._outputs[id(layer), call] = self.refusals.attempt(
                    layer, attribute, self._activation_mark, name, "output", output.spec,
                    output.abs_max, output.zero_point)
        for weight in layer._paddleq.kind.weights:
            quantizer = layer.weight_parts(weight)[1]
            if quantizer is not None and self._has_scale(
                    name, layer, quantizer_name(weight), quantizer):
                self._mark_weight(layer, weight, _weight_mark, self._format, layer, weight)

    def _hooks_and_mark(self, name, layer, slot):
        """Return (callables that remain in the graph, mark or None) of an input of a layer."""
        preprocess, quantizer = layer.input_parts(slot)
        hooks = [] if preprocess is None else [preprocess]
        if quantizer is None:
            return hooks, None
        if not isinstance(quantizer, FakeQuantize):
            _logger.warning("%s: the activation quantizer %s is exported as the operators it "
                            "consists of; runtimes compute this layer in float", name,
                            type(quantizer).__name__)
            return [*hooks, quantizer], None
        if not self._has_scale(name, layer, slot_name("activation_quantizer", slot), quantizer):
            return hooks, None
        abs_max = quantizer.abs_max
        _check_learned(f"the input of {name}", quantizer)
        if PACT.clips(preprocess) and quantizer.bounded and quantizer.spec.symmetric:
            abs_max, hooks = paddle.minimum(abs_max, preprocess.bound()), []
        elif preprocess is not None and _is_redundant(preprocess, quantizer):
            hooks = []
        return hooks, self._activation_mark(name, "input", quantizer.spec, abs_max,
                                            quantizer.zero_point)

    def _has_scale(self, name, layer, attribute, quantizer):
        if not isinstance(quantizer, FakeQuantize) or quantizer.initialized:
            return True
        full = f"{name}.{attribute}" if name else attribute
        self.refusals.add(layer, attribute, full + _skipped(quantizer))
        return False

    def _call(self, layer):
        """Record that the trace met a layer and return the numbers of its markers."""
        name = read_state(layer).name or self._names.get(id(layer), "")
        return self.called.setdefault(id(layer), (name or "(model)", layer, []))[2]

    def _refused(self, x, layer, attribute):
        """Return ``x`` behind a marker if a part of the layer cannot be exported, else None."""
        cause = self.refusals.cause(layer, attribute)
        return None if cause is None else self.mark_refused(x, layer, cause)

    def mark_refused(self, x, layer, cause):
        """Return ``x`` behind a marker that shows if the program contains a refused part."""
        x = self.mark(x, WeightMark("", None, None, None, None), layer)
        self.refusals.meet(cause, len(self.marks))
        return x

    def _mark_integer_layer(self, name, layer):
        for slot, spec in enumerate(layer.input_specs):
            if spec is not None:
                self._inputs[id(layer), slot] = [], self.refusals.attempt(
                    layer, slot_name("activation_quantizer", slot), self._activation_mark, name,
                    "input", spec, *layer.qparams(slot_name("activation", slot), spec))
        if layer.output_spec is not None:
            self._outputs[id(layer), 0] = self.refusals.attempt(
                layer, "output_quantizer", self._activation_mark, name, "output",
                layer.output_spec, *layer.qparams("output", layer.output_spec))
        if self._format.stores_integers_of(layer):
            for weight, spec in layer.weight_specs.items():
                if spec.element is None:  # otherwise the operators that decode it are traced
                    self._mark_weight(layer, weight, _integer_weight_mark, self._format, name,
                                      layer, weight, spec)

    def input_mark(self, layer, slot):
        """Return (callables that stay in the graph, mark or None) of an input of a layer."""
        self._call(layer)
        self.refusals.meet(self.refusals.cause(layer, slot_name("activation_quantizer", slot)))
        return self._inputs.get((id(layer), slot), ([], None))

    def weight_mark(self, layer, name):
        """Return the mark of a weight, None if the weight stays float."""
        self._call(layer)
        self.refusals.meet(self.refusals.cause(layer, quantizer_name(name)))
        return self._weights.get((id(layer), name))

    def output_mark(self, layer, call=0):
        """Return the mark of the output of a layer, None if it stays float."""
        self._call(layer)
        self.refusals.meet(self.refusals.cause(layer, slot_name("output_quantizer", call)))
        return self._outputs.get((id(layer), call))

    def activation(self, x, layer, slot):
        refused = self._refused(x, layer, slot_name("activation_quantizer", slot))
        if refused is not None:
            return refused
        hooks, mark = self.input_mark(layer, slot)
        for hook in hooks:
            x = hook(x)
        return x if mark is None else self.mark(x, mark, layer)

    def output(self, y, layer, call=0):
        refused = self._refused(y, layer, slot_name("output_quantizer", call))
        if refused is not None:
            return refused
        mark = self.output_mark(layer, call)
        return y if mark is None else self.mark(y, mark, layer)

    def weight(self, weight, layer, name):
        refused = self._refused(weight, layer, quantizer_name(name))
        if refused is not None:
            return refused
        mark = self.weight_mark(layer, name)
        return weight if mark is None else self.mark(weight, mark, layer)

    def stored_weight(self, layer, name="weight"):
        mark = self.weight_mark(layer, name)
        if mark is None:
            return None
        # A placeholder that the lowering replaces by the integers.
        return self.mark(paddle.zeros(list(mark.integers.shape)), mark, layer)


def _skipped(quantizer):
    count = quantizer.skipped_batches.item()
    return f" (its {count} batches with NaN or infinite values were skipped)" if count else ""


def _check_finite(name, values):
    """Raise ExportError for weights, or products of a scale and the largest integer squared."""
    if not paddle.isfinite(values).all().item():
        raise ExportError(
            f"{name} has a value or a scale that is not finite, or too large to dequantize in "
            "float32; load a checkpoint from before the training diverged, or calibrate again")


def _check_learned(name, quantizer):
    """Raise ExportError for a trained step with which all values that training saw become 0."""
    if isinstance(quantizer, LSQ) and quantizer.rounds_all_to_zero:
        largest, levels = quantizer.largest.item(), quantizer.spec.quant_max
        raise ExportError(
            f"{name} has the learned scale {quantizer.scale.max().item():.6g}, with which all "
            f"values become 0: the largest that training saw is {largest:.6g}, which a scale of "
            f"{largest / levels:.6g} represents. The training diverged: load a checkpoint from "
            "before that and lower the learning rate (LSQ's learning_rate), or call set_qparams()")


def _is_redundant(preprocess, quantizer):
    """Return True if quantization gives the same integers with and without ``preprocess``.

    The usual case is a clipping range that contains the range of the quantizer. The hook is
    evaluated on values across eight times the range, in steps finer than the quantizer's.
    """
    spec, abs_max = quantizer.spec, quantizer.abs_max
    zero_point = None if spec.symmetric else quantizer.zero_point
    reach = 8.0 * abs_max.item()
    points = min(16 * spec.quant_max, 1 << 18)
    values = paddle.linspace(-reach, reach, 2 * points + 1).reshape([1, -1, 1, 1])
    try:
        after = preprocess(values)
    except Exception:  # a hook for other shapes only remains in the graph
        return False
    if after.shape != values.shape:
        return False
    after, values = (quantize(each, abs_max, spec, zero_point) for each in (after, values))
    return (after == values).all().item()


def _weight_mark(format, layer, name):
    layer_name, parameter = layer._paddleq.name, getattr(layer, name)
    _check_finite(f"{layer_name}.{name}", parameter)
    preprocess, quantizer = layer.weight_parts(name)
    value = parameter if preprocess is None else preprocess(parameter)
    if isinstance(quantizer, FakeQuantize):
        spec = quantizer.spec
        abs_max, zero_point = quantizer.qparams_of(value)
        if spec.element is not None:
            value = dequantize(quantize(value, abs_max, spec), abs_max, spec)
            return WeightMark(layer_name, _float32(value), None, None, None)
        format.check_spec(f"{layer_name}.{name}", spec, True)
        integers, observer = quantize(value, abs_max, spec, zero_point), quantizer.observer
        return WeightMark(layer_name, _float32(value), _integers(integers, spec),
                          _float32(abs_max), spec, observer.dynamic and observer.abs_max_only,
                          _zero_point(zero_point, spec))
    value = quantizer(value)
    floats = _float32(value)
    for granularity in (PerTensor(), PerChannel(layer._paddleq.kind.weights[name])):
        for bits in range(2, 9):  # integers of 8 bits if they fit
            spec = QuantSpec(bits, granularity=granularity)
            largest = abs_max_of(value, spec)
            integers = _integers(quantize(value, largest, spec), spec)
            mark = WeightMark(layer_name, floats, integers, _float32(largest), spec)
            deviation = np.abs(simulated_weight(mark) - floats)
            if (deviation <= np.float32(1e-6) * broadcast(mark.abs_max, mark)).all():
                return mark
    _logger.warning("%s.%s: what its own weight quantizer %s returns lies on no grid of at most 8 "
                    "bits with max|w| at its end; it is exported as float", layer_name, name,
                    type(quantizer).__name__)
    return WeightMark(layer_name, floats, None, None, None)


def _integer_weight_mark(format, name, layer, weight, spec):
    """Mark of a weight that a layer stores as integers, without a float value."""
    format.check_spec(f"{name}.{weight}", spec, True)
    abs_max, zero_point = layer.qparams(weight, spec)
    return WeightMark(name, None, _integers(layer.integers(weight), spec), _float32(abs_max), spec,
                      dynamic=False, zero_point=_zero_point(zero_point, spec))


def _integers(levels, spec):
    return levels.numpy().astype(spec.storage)


def _zero_point(zero_point, spec):
    return None if spec.symmetric else zero_point.astype("int64").numpy()


def _float32(tensor):
    return tensor.astype("float32").numpy().copy()
