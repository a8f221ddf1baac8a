"""Quantized layers: float layers whose class is replaced by a subclass with quantizers.

The layer stays the same object with the same parameters under the same names. So references to it
(two parents, a plain list, an optimizer, a hook) stay valid, a layer that is used twice stays
shared, and a float checkpoint loads.
"""

import copy
import threading
from typing import Any, Tuple, Type

import paddle
from paddle import nn

from .._layer_state import QuantizationState, state_of
from .._paddle_compat import LoadNotice, is_traced, own_sublayers, record_programs
from ..errors import ModelError, StateError
from ..fake_quant import PACT
from ..fake_quant.fake_quantize import FakeQuantize, State
from ..fake_quant.learned_rounding import LearnedRounding
from ..graph.calls import argument_names
from ..graph.dataflow import PRODUCERS
from . import tracing
from .block import block_output
from .bn_folding import NormFolding
from .call_numbers import next_call
from .class_swap import substituted, swapped_class
from .input_slots import add_call, is_float_tensor, map_inputs, slot_name
from .layer_types import kind_of
from .weight_parts import adopt_roundings, preprocess_name, quantizer_name


class QuantizedLayer(LoadNotice):
    """Mixin of all quantized layers.

    Attributes:
        activation_quantizer, activation_quantizer_1, ...: FakeQuantize of each input.
        weight_quantizer (or the parameter's name + "_quantizer"): FakeQuantize of a weight.
        activation_preprocess, weight_preprocess: layers that run before the quantizers.
        output_quantizer: FakeQuantize of the output of the layer, or of the block that begins with
            it (:mod:`.block`).
        norm_folding: computation with a folded batch norm (:mod:`.bn_folding`).

    All are optional.
    """

    prefix = "Quantized"
    _paddleq: QuantizationState
    _float_class: Type[nn.Layer]

    def swapped_forward(self, args, kwargs):
        """Compute the layer's forward with quantized inputs, weights and output."""
        if self._paddleq.thread not in (None, threading.get_ident()):
            raise busy_error(self._paddleq.name)
        record_programs(self)
        call = next_call(self)
        args, kwargs = self.quantize_inputs(args, kwargs, call)
        folding = getattr(self, "norm_folding", None)
        if folding is not None and folding.norm is not None:
            y = folding.compute(self, args, kwargs)
        else:
            weights = {name: self.quantized_weight(name) for name in self._paddleq.kind.weights}
            y = self.float_forward(weights, args, kwargs)
        return block_output(self, y) if self._paddleq.kind.weights else (
            self.quantize_output(y, call))

    def float_forward(self, weights, args, kwargs):
        """Compute the float forward with ``weights`` (name -> tensor) as parameters."""
        with substituted(self, weights):
            inner = self._paddleq.forward
            if inner is not None:
                return inner(*args, **kwargs)
            return self._float_class.forward(self, *args, **kwargs)

    def quantize_inputs(self, args, kwargs, call=0):
        """Return the arguments of a call with the quantized inputs in place of the float ones.

        Args:
            call: number of the call in the forward pass; see :mod:`.call_numbers`.
        """
        state = self._paddleq
        if state.compute_float:
            return args, kwargs
        if state.kind.weights:  # its calls share the quantizers
            self._watch_range(args, call)
            call = 0
        elif call >= state.calls and not self._takes_call(call):
            return args, kwargs
        return map_inputs(self, args, kwargs, self._quantize_input, call)

    def _watch_range(self, args, call):
        """Keep the largest magnitude of the first input of each call while calibrating."""
        quantizer, ranges = self.input_parts(0)[1], self._paddleq.call_ranges
        if not (isinstance(quantizer, FakeQuantize) and quantizer.state is State.CALIBRATION
                and quantizer.observer_enabled and args and is_float_tensor(args[0])
                and paddle.in_dynamic_mode() and 0 not in args[0].shape):
            return
        if call or len(ranges) != 1:  # of layers that are called once, on the first batch only
            ranges[call] = max(ranges.get(call, 0.0), args[0].detach().abs().max().item())

    def _takes_call(self, call):
        """Add quantizers for a further call in a forward pass if they are observing.

        Returns:
            False if the inputs of the call are not to be quantized.

        Raises:
            StateError: the quantizers have been calibrated on fewer calls.
        """
        state, quantizers = self._paddleq, [q for _, q in self.quantizers()
                                            if isinstance(q, FakeQuantize)]
        if not state.templates or quantizers and not any(
                q.fake_quant_enabled or q.state is not State.VALIDATION for q in quantizers):
            return False
        if tracing.recorder() is not None or not paddle.in_dynamic_mode() or not all(
                q.state is State.CALIBRATION or q.state is State.QAT and (
                    self.training or not q.initialized) for q in quantizers):
            raise StateError(
                f"{state.name or 'the model'} is called more often in a forward pass than it has "
                f"quantizers for, which is {state.calls} times; run a batch with all calls in "
                "calibration or training first, or create it with calls=...")
        if any(not p.stop_gradient for part in state.templates.values() for p in part.parameters()):
            raise StateError(
                f"{state.name or 'the model'} is called {call + 1} times in a forward pass and its "
                f"quantizers have parameters, which an optimizer must know: create the "
                f"{self._float_class.__name__} with calls={call + 1}")
        while state.calls <= call:
            add_call(self)
        return True

    def _quantize_input(self, slot, x):
        recorder = tracing.recorder()
        if recorder is not None:
            return recorder.activation(x, self, slot)
        preprocess, quantizer = self.input_parts(slot)
        if (PACT.clips(preprocess) and isinstance(quantizer, FakeQuantize)
                and quantizer.bounded and quantizer.spec.symmetric):
            if not self.training:
                # alpha limits abs_max, as in an export.
                return quantizer.clipped(x, preprocess.bound())
            clipping = preprocess.clipping(x)
            if quantizer.can_clip(clipping):
                return quantizer(x, clipping)
            return quantizer(preprocess(x), bound=preprocess.bound())
        return _run(x, preprocess, quantizer)

    def quantize_output(self, y, call=0):
        """Quantize the output of the layer, or of the block that begins with it."""
        quantizer = getattr(self, slot_name("output_quantizer", call), None)
        if quantizer is None or self._paddleq.compute_float or not is_float_tensor(y):
            return y
        recorder = tracing.recorder()
        return quantizer(y) if recorder is None else recorder.output(y, self, call)

    def drop_part(self, attribute):
        """Remove the quantizer or preprocess ``attribute``."""
        delattr(self, attribute)
        self._paddleq.templates.pop(attribute, None)
        self._paddleq.parts = tuple(name for name in self._paddleq.parts if name != attribute)

    def input_parts(self, slot) -> Tuple[Any, Any]:
        """Return (preprocess or None, quantizer or None) of input number ``slot``."""
        return (getattr(self, slot_name("activation_preprocess", slot), None),
                getattr(self, slot_name("activation_quantizer", slot), None))

    def quantized_weight(self, name, weight=None):
        """Return the preprocessed and quantized weight.

        Args:
            weight: tensor to quantize in place of the parameter ``name``.
        """
        # Not _parameters: attribute access converts a parameter to a variable while tracing.
        weight = getattr(self, name) if weight is None else weight
        if self._paddleq.compute_float:
            return weight
        recorder = tracing.recorder()
        if recorder is not None:
            return recorder.weight(weight, self, name)
        preprocess, quantizer = self.weight_parts(name)
        if isinstance(preprocess, LearnedRounding) and not quantizer.fake_quant_enabled:
            return weight  # the rounding is part of the quantization
        return _run(weight, preprocess, quantizer)

    def weight_to_quantize(self, name):
        """Return the parameter ``name``, with the batch norm folded in if the layer trains so."""
        folding = getattr(self, "norm_folding", None)
        if name == "weight" and folding is not None and folding.norm is not None:
            return folding.folded_weight(self)
        return getattr(self, name)

    def weight_parts(self, name) -> Tuple[Any, Any]:
        """Return (preprocess or None, quantizer or None) of the parameter ``name``."""
        return (getattr(self, preprocess_name(name), None),
                getattr(self, quantizer_name(name), None))

    def _before_load(self, prefix, root, state):
        adopt_roundings(self, prefix, root, state)

    def children(self):
        # paddle.flops counts layers without children only. apply(), train() and state_dict() do not
        # call children() and reach the quantizers.
        ours = {id(own_sublayers(self)[name]) for name in self._paddleq.parts
                if name in own_sublayers(self)}
        return (child for child in super().children() if id(child) not in ours)

    def apply(self, fn):
        for child in list(own_sublayers(self).values()):
            if child is not None:
                child.apply(fn)
        fn(self)
        return self

    def quantizers(self):
        """Return (attribute name, quantizer) pairs, including user-defined quantizers."""
        kind = self._paddleq.kind
        names = [slot_name("activation_quantizer", slot) for slot in range(len(kind.inputs))]
        names += [quantizer_name(name) for name in kind.weights]
        names += [slot_name("output_quantizer", call) for call in range(self._paddleq.calls)]
        return [(n, getattr(self, n)) for n in names if getattr(self, n, None) is not None]

    def extra_repr(self):
        inner = super().extra_repr()
        parts = [f"{n.replace('_quantizer', '')}={getattr(q, 'spec', type(q).__name__)}"
                 for n, q in self.quantizers()]
        return ", ".join([inner] * bool(inner) + parts)


def busy_error(name):
    """Return the error of a call from a thread other than that which calibrates or analyses."""
    return ModelError(
        f"{name or 'the model'} is being calibrated or analysed in another thread, in which it "
        "computes other values; wait until that ends, or run it on a copy (copy.deepcopy)")


def _run(x, preprocess, quantizer):
    x = x if preprocess is None else preprocess(x)
    return x if quantizer is None else quantizer(x)


def is_quantized(layer):
    """Return True if the layer itself, not a sublayer, is quantized."""
    return isinstance(layer, QuantizedLayer)


def build_parts(layer, config, name, shared):
    """Return attribute name -> quantizer or preprocess of a float layer, which is not changed.

    Layers that share a weight share its quantizer: ``shared`` is from the id of a parameter to
    (quantizer, preprocess).
    """
    kind: Any = kind_of(layer)
    parts = {}
    if config.activation is not None:
        for slot in range(len(kind.inputs)):
            attribute = slot_name("activation_quantizer", slot)
            parts[attribute], parts[slot_name("activation_preprocess", slot)] = _build(
                config.activation_quantizer, config.activation_quantize,
                config.activation_preprocess, f"{name}.{attribute}")
    if config.weight is not None:
        for weight, axis in kind.weights.items():
            parameter = getattr(layer, weight)
            if id(parameter) not in shared:
                shared[id(parameter)] = _build(
                    config.weight_quantizer, config.weight_quantize, config.weight_preprocess,
                    f"{name}.{quantizer_name(weight)}", axis, parameter.shape[axis])
            parts[quantizer_name(weight)], parts[preprocess_name(weight)] = shared[id(parameter)]
    if config.output is not None:
        parts["output_quantizer"] = config.output.build(label=f"{name}.output_quantizer")
    if config.norm_fold is not None and isinstance(layer, PRODUCERS):
        parts["norm_folding"] = NormFolding(config.norm_fold.one_conv, config.norm_fold.freeze_at)
    return {attribute: part for attribute, part in parts.items() if part is not None}


def make_quantized(layer, name, parts):
    """Make a float layer a quantized layer with the ``parts`` of :func:`build_parts`, in place."""
    state = state_of(layer)
    override = layer.__dict__.pop("forward", None)
    if override is not None and not is_traced(layer):
        # The user replaced forward on the instance: it is called with quantized inputs.
        state.forward = override
    state.kind, state.name = kind_of(layer), name
    state.arguments, state.parts = argument_names(layer), tuple(parts)
    layer.__class__ = swapped_class(QuantizedLayer, type(layer))
    for attribute, part in parts.items():
        if isinstance(part, nn.Layer):
            for each in [part, *part.sublayers()]:
                each.training = layer.training
        setattr(layer, attribute, part)
    if not state.kind.weights:
        state.templates = {attribute: copy.deepcopy(part) for attribute, part in parts.items()
                           if isinstance(part, nn.Layer) and attribute != "norm_folding"}
        for _ in range(1, getattr(layer, "calls", 1) if state.templates else 1):
            add_call(layer)


def make_float(layer):
    """Remove all quantization from a layer, in place; the inverse of :func:`make_quantized`."""
    state = layer._paddleq
    for attribute in state.parts:
        delattr(layer, attribute)
    layer.__class__ = layer._float_class
    if state.forward is not None:
        layer.__dict__["forward"] = state.forward
    layer._paddleq = QuantizationState(
        notes=state.notes, reason=state.reason, provenance=state.provenance,
        example_call=state.example_call, first_batch_action=state.first_batch_action,
        fold_on_export=state.fold_on_export)


def _build(config, quantize, preprocess, label, axis=None, channels=None):
    if quantize is None:
        quantizer = config.build(axis, channels, label)
    else:
        quantizer = quantize()
        if isinstance(quantizer, FakeQuantize) and axis is not None:
            quantizer.reduce = None  # all processes have the same weight
    return quantizer, preprocess() if preprocess is not None else None
