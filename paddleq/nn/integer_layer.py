"""Frozen form of every layer type: quantized weights and fixed activation scales."""

import dataclasses
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

import paddle
from paddle import nn

from .._layer_state import state_of
from .._paddle_compat import own_parameters
from ..errors import FormatError, ModelError, StateError
from ..fake_quant import PACT
from ..fake_quant.fake_quantize import FakeQuantize
from ..functional import dequantize, fake_quantize, quantize
from ..functional.float_formats import from_storage, to_storage
from ..functional.qparams import as_dtype, scale_of
from ..graph.calls import argument_names
from ..spec import QuantSpec
from . import tracing
from .block import block_output
from .call_numbers import next_call
from .class_swap import copied_attributes, float_class, swapped_class
from .deployable import DeployableLayer, check_fields, describe_spec, spec_from, spec_name
from .input_slots import is_float_tensor, map_inputs, slot_name
from .layer_types import kind_of
from .quantized_layer import QuantizedLayer, make_float

_FIELDS = ("layer", "weights", "inputs", "output")


class IntegerLayer(nn.Layer, DeployableLayer):
    """Layer whose weights are integers and whose activation scales are fixed.

    It is a mixin of the classes that :meth:`freeze` gives to layers of registered types, and the
    base class of special forms such as :class:`~paddleq.nn.IntegerLinear`. A frozen layer stays the
    same object. In ``state_dict`` it has each weight as int8, int16, uint8 or uint16 under the name
    of the parameter, with ``<weight>_scale`` and, for an affine spec, ``<weight>_zero_point``;
    ``activation_scale``, ``activation_1_scale``, ... of the quantized inputs and ``output_scale``.
    A scale is the step: w = (q - zero_point) * scale. Weights in a float data type are its codes,
    uint8.
    """

    prefix = "Frozen"
    algorithm = ""  # name of the weight quantization algorithm; "" for rounding to nearest
    quantized_linearly = True  # the operator dequantize_linear can dequantize the weights
    weight_specs: Mapping[str, QuantSpec]
    input_specs: Sequence[Optional[QuantSpec]]
    output_spec: Optional[QuantSpec] = None  # of the layer or of the block that begins with it

    @classmethod
    def freeze(cls, layer: nn.Layer, weights: Mapping[str, Tuple[Any, Any, Any, QuantSpec]],
               inputs: Sequence[Optional[tuple]] = (), output: Optional[tuple] = None) -> None:
        """Make a float layer an integer layer, in place.

        ``weights`` has (integers, scale, zero point or None, spec) for names of parameters,
        ``inputs`` (scale, zero point or None, spec), or None, of each input, as ``output``.
        """
        state = state_of(layer)
        kind: Any = kind_of(layer)
        state.calls = max(1, len(inputs) // max(1, len(kind.inputs)))
        state.kind = dataclasses.replace(kind, inputs=kind.inputs * state.calls)
        state.arguments = argument_names(layer)
        layer.__class__ = swapped_class(cls, type(layer))
        layer.weight_specs = {name: each[-1] for name, each in weights.items()}
        layer.input_specs = tuple(each and each[-1] for each in inputs)
        layer.output_spec = output and output[-1]
        for name, (integers, scale, zero_point, _) in weights.items():
            del own_parameters(layer)[name]
            layer.register_buffer(name, integers)
            layer._register_qparams(name, scale, zero_point)
        for slot, each in enumerate(inputs):
            if each is not None:
                layer._register_qparams(slot_name("activation", slot), *each[:2])
        if output is not None:
            layer._register_qparams("output", *output[:2])

    def _register_qparams(self, name, scale, zero_point):
        self.register_buffer(f"{name}_scale", scale)
        if zero_point is not None:
            self.register_buffer(f"{name}_zero_point", zero_point)

    def swapped_forward(self, args, kwargs):
        """Compute the layer's forward with dequantized weights and quantized activations."""
        call, state = next_call(self), self._paddleq
        if state.kind.weights or not any(self.input_specs):
            call = 0
        elif call >= state.calls:
            raise StateError(f"{state.name or 'the layer'} has fixed scales for {state.calls} "
                             "calls in a forward pass, but is called more often; calibrate the "
                             "model on batches with all calls before it is frozen")
        args, kwargs = map_inputs(self, args, kwargs, self._quantize_input, call)
        weights = {name: self._weight(name) for name in self.weight_specs}
        return block_output(self, self.float_forward(weights, args, kwargs))

    float_forward = QuantizedLayer.float_forward

    def _quantize_input(self, slot, x):
        spec = self.input_specs[slot] if slot < len(self.input_specs) else None
        if spec is None:
            return x
        recorder = tracing.recorder()
        if recorder is not None:
            return recorder.activation(x, self, slot)
        return self._fake_quantize(x, slot_name("activation", slot), spec)

    def quantize_output(self, y):
        """Quantize and dequantize the output of the layer, or of the block that begins with it."""
        if self.output_spec is None or not is_float_tensor(y):
            return y
        recorder = tracing.recorder()
        if recorder is not None:
            return recorder.output(y, self)
        return self._fake_quantize(y, "output", self.output_spec)

    def _fake_quantize(self, x, name, spec):
        abs_max, zero_point = self.qparams(name, spec)
        return fake_quantize(x, abs_max, spec, zero_point=zero_point)

    def qparams(self, name: str, spec: QuantSpec) -> tuple:
        """Return (abs_max, zero point or None) of a weight or of ``activation``."""
        abs_max = as_dtype(getattr(self, f"{name}_scale"), paddle.float32) * float(spec.quant_max)
        return abs_max, None if spec.symmetric else getattr(self, f"{name}_zero_point")

    def _weight(self, name):
        recorder = tracing.recorder()
        stored = None if recorder is None else recorder.stored_weight(self, name)
        return self.dequantized_weight(name) if stored is None else stored

    def integers(self, name: str = "weight") -> paddle.Tensor:
        """Return the integers, or the numbers of a float data type, as float32, not packed."""
        return from_storage(getattr(self, name), self.weight_specs[name])

    def dequantized_weight(self, name: str = "weight") -> paddle.Tensor:
        """Return the float32 weight that the integers represent."""
        spec = self.weight_specs[name]
        abs_max, zero_point = self.qparams(name, spec)
        return dequantize(self.integers(name), abs_max, spec, zero_point)

    @property
    def weight_spec(self) -> Optional[QuantSpec]:
        """QuantSpec of the first weight, None if there is none."""
        return next(iter(self.weight_specs.values()), None)

    @property
    def activation_spec(self) -> Optional[QuantSpec]:
        """QuantSpec of the first quantized input, None if all are float."""
        return next((spec for spec in self.input_specs if spec is not None), None)

    @property
    def quant_type(self) -> str:
        """Scheme in short, such as ``W8-per_channel-A8-per_tensor``."""
        specs = (("W", self.weight_spec), ("A", self.activation_spec))
        return "-".join(filter(None, [self.algorithm, *(
            f"{letter}{spec_name(spec)}" for letter, spec in specs if spec is not None)]))

    def description(self) -> Dict[str, Any]:
        if self._paddleq.block is not None:
            raise ModelError(f"the layer {self._paddleq.name!r} is fused with the layers after it, "
                             "which a checkpoint cannot hold; export the model instead")
        return {"layer": self._float_class.__name__,
                "weights": {name: describe_spec(spec) for name, spec in self.weight_specs.items()},
                "inputs": _described_inputs(self.input_specs),
                "output": describe_spec(self.output_spec)}

    @classmethod
    def in_place_of(cls, layer, description):
        fields = check_fields("an IntegerLayer", description, _FIELDS)
        if not (isinstance(fields["weights"], dict) and isinstance(fields["inputs"], list)):
            raise FormatError("an IntegerLayer must have a dict of weights and a list of inputs")
        weights = {name: spec_from(spec) for name, spec in fields["weights"].items()}
        inputs = [spec_from(spec) for spec in fields["inputs"]]
        output = spec_from(fields["output"])
        new = nn.Layer.__new__(type(layer))
        object.__setattr__(new, "__dict__", copied_attributes(layer))
        if isinstance(layer, IntegerLayer):
            if layer.description() != {**fields, "inputs": _described_inputs(inputs)}:
                raise ModelError("its integer form is another one in the checkpoint")
            return new
        kind = kind_of(layer)
        if float_class(layer).__name__ != fields["layer"] or kind is None or not (
                set(weights) <= set(kind.weights) and _fit(inputs, kind)):
            raise ModelError(f"it must be a {fields['layer']}, but is a {type(layer).__name__}")
        cls.freeze(
            new,
            {name: (paddle.zeros(getattr(layer, name).shape, "int32").astype(spec.storage),
                    *_empty_qparams(spec, getattr(layer, name)), spec)
             for name, spec in weights.items()},
            [spec and (*_empty_qparams(spec), spec) for spec in inputs],
            output and (*_empty_qparams(output), output))
        return new

    def extra_repr(self):
        return ", ".join(filter(None, [super().extra_repr(), self.quant_type]))


def _fit(inputs, kind):
    """Return True if a layer of a kind can have these inputs, of several calls without weights."""
    count = len(kind.inputs or ())
    return len(inputs) <= count or not kind.weights and count and len(inputs) % count == 0


def _described_inputs(specs):
    return [describe_spec(spec) for spec in specs] if any(specs) else []


def _empty_qparams(spec, weight=None):
    channels = 1 if spec.channel_axis is None or weight is None else (
        weight.shape[spec.channel_axis])
    return (paddle.zeros([channels]),
            None if spec.symmetric else paddle.zeros([channels], "int64"))


def freeze_quantized(layer: nn.Layer, shared: dict) -> None:
    """Make a layer that simulates quantization an integer layer, in place."""
    state = layer._paddleq
    weights = {}
    with paddle.no_grad():
        for name in state.kind.weights:
            preprocess, quantizer = layer.weight_parts(name)
            if quantizer is None:
                continue
            _check_quantizer(state.name, quantizer)
            parameter = getattr(layer, name)
            if id(parameter) not in shared:  # layers share the integer form as before
                value = parameter if preprocess is None else preprocess(parameter)
                # The parameter is kept, so that no other one gets its id.
                (abs_max, zero_point), spec = quantizer.qparams_of(value), quantizer.spec
                integers = to_storage(quantize(value, abs_max, spec, zero_point), spec)
                shared[id(parameter)] = parameter, (
                    integers, scale_of(abs_max, spec), zero_point, spec)
            weights[name] = shared[id(parameter)][1]
        inputs = [_fixed_input(layer, slot) for slot in range(len(state.kind.inputs))]
        quantizer = getattr(layer, "output_quantizer", None)
        if quantizer is not None and state.calls > 1:
            raise ModelError(f"{state.name} is called {state.calls} times in a forward pass and "
                             "its outputs are quantized, which freeze() cannot keep; export the "
                             "model instead")
        output = quantizer and _fixed(state.name, quantizer)
    make_float(layer)
    IntegerLayer.freeze(layer, weights, inputs, output)
    frozen = layer._paddleq
    frozen.name, frozen.block, frozen.notes = state.name, state.block, state.notes


def _fixed_input(layer, slot):
    preprocess, quantizer = layer.input_parts(slot)
    name = layer._paddleq.name
    if quantizer is None:
        if preprocess is None:
            return None
        raise ModelError(f"{name} has a preprocess of its input, which freeze() cannot keep")
    return _fixed(name, quantizer, preprocess)


def _fixed(name, quantizer, preprocess=None):
    _check_quantizer(name, quantizer)
    abs_max = quantizer.abs_max
    if preprocess is not None:
        if not (PACT.clips(preprocess) and quantizer.bounded and quantizer.spec.symmetric):
            raise ModelError(f"{name} has the preprocess {type(preprocess).__name__} of its input, "
                             "which freeze() cannot keep; export the model instead")
        abs_max = paddle.minimum(abs_max, preprocess.bound())
    if quantizer.observer.dynamic:
        raise ModelError(f"{name} quantizes each input with a scale of its own; freeze() needs "
                         "an observer with a fixed scale")
    spec = quantizer.spec
    zero_point = None if spec.symmetric else quantizer.zero_point.detach().clone()
    return scale_of(abs_max.detach(), spec), zero_point, spec


def _check_quantizer(name, quantizer):
    if not isinstance(quantizer, FakeQuantize):
        raise ModelError(f"{name} has the quantizer {type(quantizer).__name__}, whose scale is not "
                         "known; freeze() needs FakeQuantize or a class derived from it")
