"""Calibration of Linear layers in forward passes that the user runs.

After :func:`start`, each layer collects statistics of its input. After enough batches it quantizes
its weight and computes like the layer that :func:`finish` replaces it with. Each layer sees the
inputs of the float model; :mod:`.layerwise.driver` instead gives each layer the outputs of the
quantized layers before it.
"""

import logging
from typing import Any, Dict

import paddle
from paddle import nn

from .._checks import wrong_value
from .._layer_state import Note, NoteKind, read_state, state_of
from .._paddle_compat import remove_hooks
from ..config import LayerConfig, SkipKind, SkipReason
from ..engine.hooks import update_collector
from ..engine.state import warn_uncalled
from ..errors import CalibrationError, ModelError, PaddleqError
from ..nn.class_swap import float_class, replace_layers, rollback_on_error, swapped_class
from ..nn.integer_linear import IntegerLinear
from ..observers import ChannelStats
from .float_ranges import OutputErrorObserver
from .linear import quantize_linears, warn_of_few_tokens, warn_of_uncalibrated

_logger = logging.getLogger("paddleq")


def start(model: nn.Layer, configs: Dict[str, LayerConfig], num_batches: int) -> None:
    """Make Linear layers collect statistics of their inputs, in place.

    One forward pass of ``model`` is one batch, however often it calls a layer. If a layer is called
    outside of the model, each call is one batch. After ``num_batches`` it quantizes its weight.
    The caller rolls back after an error.
    """
    for config in configs.values():
        if config.smoother is not None and config.activation_observer() is not None:
            raise wrong_value("activation", config.activation,
                              f"a QuantSpec with {config.smoother.name}, because an observer needs "
                              "the smoothed activations in a second pass over the data")
    layers = dict(model.named_sublayers(include_self=True))
    calibration = _Calibration()
    for name, config in configs.items():
        layer = layers[name]
        calibrator = _Calibrator(name, layer, config, num_batches, calibration)
        calibration.layers.append(calibrator)
        state_of(layer).calibrator = calibrator
        layer.__dict__.pop("forward", None)  # the method of the float class
        layer.__class__ = swapped_class(CalibratingLinear, type(layer))
    state_of(model).calibration = calibration
    model.register_forward_pre_hook(calibration.begin_batch)
    model.register_forward_post_hook(calibration.end_batch)


def finish(model: nn.Layer, uncalibrated: str = "float") -> None:
    """Replace the calibrated layers by the quantized ones, in place.

    Layers that no batch reached become float layers again, with a warning. With ``uncalibrated``
    "round", layers that fewer batches reached than the model ran are quantized on those, or
    rounded to nearest if there were none.
    """
    calibration = read_state(model).calibration
    if calibration is None:
        raise ModelError("model is not being calibrated; call quantize() on it first")
    layers = [layer for layer in calibration.layers if not layer.read_outside]
    reason = SkipReason(SkipKind.WEIGHT_READ_OUTSIDE)
    if not layers:
        raise ModelError(f"no layer is left to quantize: {calibration.layers[0].name}: {reason}")
    missing = [layer for layer in layers if layer.quantized is None]
    uncalled = [layer for layer in missing if not layer.batches]
    if uncalibrated == "round" and calibration.batches >= layers[0].num_batches:
        for layer in missing:
            layer.quantize()
        warn_of_uncalibrated([layer.name for layer in uncalled])
        missing, uncalled = [], []
    if len(uncalled) < len(missing) or len(uncalled) == len(layers):
        listed = ", ".join(f"{layer.name} ({layer.batches})" for layer in missing)
        raise CalibrationError(
            f"calibration needs {missing[0].num_batches} batches, but {len(missing)} of "
            f"{len(layers)} layers saw fewer: {listed}; run the model on more batches, "
            "call quantize() on the float model with another batch_num or without these layers, or "
            "convert with uncalibrated='round' if the model ran often enough")
    warn_of_few_tokens({layer.name: layer.data for layer in layers if layer.data})
    with rollback_on_error(model):
        state_of(model).calibration = None
        remove_hooks(model, lambda hook: getattr(hook, "__self__", None) is calibration)
        for each in calibration.layers:
            if each.read_outside:
                _make_float(each.layer, reason)
                _logger.warning("%s stays float: %s", each.name, reason)
        for each in uncalled:
            _make_float(each.layer, SkipReason(SkipKind.NOT_CALLED))
        warn_uncalled([layer.name for layer in uncalled])
        replace_layers(model, [(layer.layer, layer.quantized) for layer in layers
                               if layer.quantized is not None])


def _make_float(layer, reason):
    layer.__class__ = float_class(layer)
    state = state_of(layer)
    state.calibrator, state.reason = None, reason
    state.notes = Note(NoteKind.FLOAT, detail=str(reason)),


class CalibratingLinear(nn.Layer):
    """Mixin of a ``paddle.nn.Linear`` that records calibration statistics until it is converted.

    The layer stays the same object with the same parameters under the same names.
    """

    prefix = "Calibrating"

    def __getattr__(self, name):
        if name == "weight":
            self._paddleq.calibrator.on_weight_read()
        return super().__getattr__(name)

    def swapped_forward(self, args, kwargs):
        x = args[0] if args else kwargs["input"]
        return self._paddleq.calibrator.run(x, lambda: self._float_class.forward(self, x))

    def extra_repr(self):
        return f"{super().extra_repr()}, {self._paddleq.calibrator}"


class _Calibration:
    """Calibrated layers of a model, and the begin and end of a batch."""

    def __init__(self):
        self.layers = []
        self.in_model = False
        self.batches = 0  # forward passes of the model

    def begin_batch(self, model, inputs) -> Any:
        self.in_model = True
        for layer in self.layers:
            layer.saw_batch = False  # set by a forward pass that failed

    def end_batch(self, model, inputs, outputs) -> Any:
        self.in_model = False
        self.batches += 1
        self._count(self.layers)

    def end_call(self, layer):
        if not self.in_model:
            self._count([layer])

    def _count(self, layers):
        from tqdm import tqdm

        ready = [layer for layer in layers if layer.count_batch()]
        # No progress bar for a single layer, nor without a terminal.
        for layer in tqdm(ready, desc="quantizing", disable=None if len(ready) > 1 else True,
                          leave=False):
            layer.quantize()
        if ready and all(
                layer.quantized is not None or layer.read_outside for layer in self.layers):
            _logger.info("%d layers calibrated and quantized", len(self.layers))


class _Calibrator:
    """Statistics of one layer, and the quantized layer once there is one."""

    def __init__(self, name, layer, config, num_batches, calibration):
        self.name, self.layer = name or "(model)", layer
        self.config, self.num_batches = config, num_batches
        # saw_batch: in the current batch data reached the layer; quantized: the IntegerLinear
        self.batches, self.saw_batch, self.quantized = 0, False, None
        self.data = None  # (config, input vectors, features) once the layer is quantized
        self.read_outside = False  # the forward of another layer read the weight
        self._runs = False
        self._stats: Any = ChannelStats(config.needs)  # None once the layer is quantized
        self._observer: Any = config.activation_observer()
        if isinstance(self._observer, OutputErrorObserver):
            self._observer.bind_weight(layer.weight)
        self._calibration = calibration

    def run(self, x, forward):
        if self.quantized is not None:
            return self.quantized(x)
        if not paddle.in_dynamic_mode():
            raise ModelError("model is being calibrated and cannot be traced; run its batches in "
                             "dynamic mode, then call convert()")
        tokens = self._stats.tokens
        update_collector(self._stats, [x], f"{self.name}, batch: {self.batches}")
        # An expert without tokens in a batch has not seen the batch.
        if self._stats.tokens > tokens:
            self.saw_batch = True
            if self._observer is not None:
                self._observer.update(x)
        self._runs = True
        try:
            y = forward()
        finally:
            self._runs = False
        self._calibration.end_call(self)
        return y

    def on_weight_read(self):
        """Note a read of the weight outside of the layer's forward, in a forward of the model."""
        self.read_outside |= self._calibration.in_model and not self._runs

    def count_batch(self):
        """Count the batch that ended and return True if it was the last one to collect."""
        self.batches += self.saw_batch and self.quantized is None
        self.saw_batch = False
        return (self.quantized is None and not self.read_outside
                and self.batches >= self.num_batches)

    def quantize(self):
        """Create the quantized layer from the statistics."""
        config, stats = self.config, self._stats
        self.data = config, stats.tokens, self.layer.weight.shape[0]
        if config.needs_data and not stats.tokens:
            config, stats = config.without_data(), None
        try:
            result = quantize_linears([self.layer.weight], config, stats,
                                      lambda _: self._observer)
        except PaddleqError as error:
            raise type(error)(f"{error}; layer: {self.name}") from error
        self.quantized = IntegerLinear.from_linear(
            self.layer, result.weights[0], config.activation_spec, result.activation,
            result.input_scale, config.algorithm)
        self._stats = self._observer = None  # a Hessian is at least as large as the weight

    def __str__(self):
        if self.quantized is not None:
            return self.quantized.quant_type
        return f"calibrating: {self.batches} of {self.num_batches} batches"
