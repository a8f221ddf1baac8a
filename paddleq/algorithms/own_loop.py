"""Calibrating Linear layers in the forward passes that a user runs himself.

From :func:`start` on each layer observes what it reads. After enough batches it quantizes its
weight, and computes as the layer that :func:`finish` puts in its place. Every layer is by itself
here; :mod:`.layerwise.driver` goes through a model in order and shows each layer what the quantized ones
before it give.
"""

import logging

import paddle

from .._paddle_compat import forward_hooks
from ..errors import CalibrationError, ModelError, NonFiniteError, PaddleqError
from ..nn.calibrating import watch
from ..nn.class_swap import replace_layers
from ..nn.integer_linear import IntegerLinear
from .linear import quantize_linears
from .statistics import Statistics

_ATTRIBUTE = "_paddleq_calibration"
_logger = logging.getLogger("paddleq")


def start(model, policies, batch_num):
    """Let the layers ``policies`` observe, in place.

    One forward pass of ``model`` is one batch, however often it calls a layer. A layer that is
    called by itself, outside of one, counts each call.

    Args:
        model: a ``paddle.nn.Layer``.
        policies: name of a ``paddle.nn.Linear`` in the model -> its :class:`LayerConfig`.
        batch_num: batches after which a layer quantizes its weight.
    """
    layers = dict(model.named_sublayers(include_self=True))
    calibration = _Calibration()
    for name, policy in policies.items():
        watcher = _Watcher(name, layers[name], policy, batch_num, calibration)
        calibration.watchers.append(watcher)
        watch(layers[name], watcher)
    model.__dict__[_ATTRIBUTE] = calibration
    model.register_forward_pre_hook(calibration.begin_batch)
    model.register_forward_post_hook(calibration.end_batch)


def finish(model):
    """Put the quantized layers in the place of those that observed, in place.

    Raises:
        ModelError: nobody called :func:`start` for this model.
        CalibrationError: names the layers that saw too few batches, and how many each saw. The
            model is left as it was.
    """
    calibration = model.__dict__.get(_ATTRIBUTE)
    if calibration is None:
        raise ModelError("model is not being calibrated; call quantize() on it first")
    calibration.check_complete()
    del model.__dict__[_ATTRIBUTE]
    for hooks in forward_hooks(model):
        for key in [key for key, hook in hooks.items()
                    if getattr(hook, "__self__", None) is calibration]:
            del hooks[key]
    replace_layers(model, [(watcher.layer, watcher.deployed) for watcher in calibration.watchers])


class _Calibration:
    """All layers of a model that observe, and where a batch begins and ends."""

    def __init__(self):
        self.watchers = []
        self._running = False

    def begin_batch(self, model, inputs):
        self._running = True
        for watcher in self.watchers:
            watcher.saw_batch = False  # what a pass that failed left

    def end_batch(self, model, inputs, outputs):
        self._running = False
        self._count(self.watchers)

    def layer_ran(self, watcher):
        if not self._running:
            self._count([watcher])

    def _count(self, watchers):
        from tqdm import tqdm

        ready = [watcher for watcher in watchers if watcher.count_batch()]
        # Silent where there is no terminal; one layer needs no bar.
        for watcher in tqdm(ready, desc="quantizing", disable=None if len(ready) > 1 else True,
                            leave=False):
            watcher.quantize()
        if ready and all(watcher.deployed is not None for watcher in self.watchers):
            _logger.info("%d layers calibrated and quantized", len(self.watchers))

    def check_complete(self):
        """Raise unless every layer is quantized."""
        lacking = [watcher for watcher in self.watchers if watcher.deployed is None]
        if lacking:
            listed = ", ".join(f"{watcher.name} ({watcher.batches})" for watcher in lacking)
            raise CalibrationError(
                f"calibration needs {lacking[0].batch_num} batches, but {len(lacking)} of "
                f"{len(self.watchers)} layers saw fewer: {listed}; run the model on more batches, "
                "or quantize() it anew with another batch_num or without these layers")


class _Watcher:
    """What is known of one layer until another takes its place.

    Attributes:
        batches: how many batches it saw.
        saw_batch: whether it saw the one that is running.
        deployed: the :class:`IntegerLinear`, once there is one.
    """

    def __init__(self, name, layer, policy, batch_num, calibration):
        self.name, self.layer = name or "(model)", layer
        self.policy, self.batch_num = policy, batch_num
        self.batches, self.saw_batch, self.deployed = 0, False, None
        self._statistics = Statistics(policy.needs)
        self._calibration = calibration

    def run(self, x, forward):
        if self.deployed is not None:
            return self.deployed(x)
        if not paddle.in_dynamic_mode():
            raise ModelError("model is being calibrated and cannot be traced; run its batches in "
                             "dynamic mode, then call convert()")
        self._observe(x)
        y = forward()
        self._calibration.layer_ran(self)
        return y

    def _observe(self, x):
        before = self._statistics.tokens
        try:
            self._statistics.update(x)
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}; layer: {self.name}, batch: {self.batches}") from None
        # An expert that gets no token of a batch has not seen it.
        self.saw_batch |= self._statistics.tokens > before

    def count_batch(self):
        """Whether the batch that ended was the last one to observe."""
        self.batches += self.saw_batch and self.deployed is None
        self.saw_batch = False
        return self.deployed is None and self.batches >= self.batch_num

    def quantize(self):
        """Make the layer to deploy of what was observed."""
        try:
            outcome = quantize_linears([self.layer.weight], self.policy, self._statistics)
        except PaddleqError as error:
            raise type(error)(f"{error}; layer: {self.name}") from error
        self.deployed = IntegerLinear.from_linear(
            self.layer, outcome.weights[0], self.policy.activation_spec, outcome.activation,
            outcome.input_scale, self.policy.algorithm)
        self._statistics = None  # a Hessian is as large as the weight, or larger

    def __str__(self):
        if self.deployed is not None:
            return self.deployed.quant_type
        return f"calibrating: {self.batches} of {self.batch_num} batches"
