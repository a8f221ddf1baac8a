"""Scales of quantizers over the steps of a calibration or of training."""

from dataclasses import dataclass

import paddle
from paddle import nn

from .._checks import check_int, wrong_type
from ..engine import fake_quantizers, qparams_in, quantized_layers
from ..errors import ModelError
from ..fake_quant.fake_quantize import FakeQuantize, State


class StepWatch:
    """Calls ``before()`` and ``after(step)`` around each pass of ``model`` that learns something.

    Those are the forward passes in training mode and those that calibrate; steps count from 0.

    Args:
        model: a ``paddle.nn.Layer``.
        before, after: functions.
    """

    def __init__(self, model, before, after):
        if not isinstance(model, nn.Layer):
            raise wrong_type("model", model, "a paddle.nn.Layer")
        self.model, self.before, self.after = model, before, after
        self.step = 0
        self._handles = [model.register_forward_pre_hook(self._before),
                         model.register_forward_post_hook(self._after)]

    def close(self):
        """Look no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _learns(self):
        return paddle.in_dynamic_mode() and (self.model.training or any(
            quantizer.state is State.CALIBRATION
            for _, quantizer in fake_quantizers(self.model)))

    def _before(self, _model, _inputs):
        if self._learns():
            self.before()

    def _after(self, _model, _inputs, _outputs):
        if self._learns():
            self.after(self.step)
            self.step += 1


@dataclass(frozen=True)
class Scale:
    """The scale of a quantizer at one step.

    Attributes:
        step: number of the step, from 0.
        low, high: the smallest and the largest threshold of its channels; alike for one scale.

    Examples:
        >>> from paddleq.analysis import Scale
        >>> Scale(step=0, low=0.5, high=2.0).high
        2.0
    """

    step: int
    low: float
    high: float


class ScaleHistory:
    """Writes down the scale of every quantizer while a model is calibrated or trained.

    The scale is the threshold, as Paddle has it: the largest magnitude that is not clipped.

    Args:
        model: a quantized model, or None: :meth:`record` is called by hand.
        every: write down each step whose number is a multiple of this. Default 1. (The threshold
            of KL and the like is searched anew each time, about 10 ms for a quantizer.)

    Attributes:
        scales: quantizer's name, such as ``conv1.activation_quantizer``, -> list of
            :class:`Scale`.

    Raises:
        ConfigError, ConfigTypeError, ModelError: an argument is wrong.

    Examples:
        >>> import paddle, paddleq
        >>> ptq = paddleq.PTQ("AbsmaxQuantizer")
        >>> net = ptq.quantize(paddle.nn.Sequential(paddle.nn.Linear(2, 2)))
        >>> with paddleq.analysis.ScaleHistory(net) as history:
        ...     ptq.calibrate(net, [paddle.to_tensor([[0.0, 1.0]]), paddle.to_tensor([[3.0, 0.0]])])
        2
        >>> [scale.high for scale in history.scales["0.activation_quantizer"]]
        [1.0, 3.0]
    """

    def __init__(self, model=None, every=1):
        self.every = check_int("every", every, 1)
        self.model = model
        self.scales = {}
        self._watch = None

    def __enter__(self):
        if self.model is None:
            raise ModelError("ScaleHistory needs a model to watch: ScaleHistory(model)")
        self._watch = StepWatch(self.model, lambda: None, self._after)
        return self

    def __exit__(self, *_error):
        self._watch.close()

    def _after(self, step):
        if step % self.every == 0:
            self.record(self.model, step)

    def record(self, model, step):
        """Write down the scales that the quantizers of ``model`` have now."""
        for name, threshold in thresholds(model):
            low, high = threshold.min().item(), threshold.max().item()
            self.scales.setdefault(name, []).append(Scale(step, low, high))


def thresholds(model):
    """(name, threshold) of every FakeQuantize of ``model`` that has one by now."""
    for name, layer in quantized_layers(model):
        for attribute, quantizer in layer.quantizers():
            found = qparams_now(layer, attribute, quantizer)
            if found is not None:
                yield f"{name}.{attribute}" if name else attribute, found[0]


def qparams_now(layer, attribute, quantizer):
    """(threshold, zero point or None) of a quantizer of ``layer``, while it calibrates those to be.

    None where it has none yet, and for a user's own class.
    """
    if not isinstance(quantizer, FakeQuantize):
        return None
    with paddle.no_grad():
        if quantizer.state is State.CALIBRATION and quantizer.observer.num_batches:
            return quantizer.observer.qparams()
        return qparams_in(layer, attribute, quantizer)


def part_of(quantizer_name):
    """("conv1", "activation") of "conv1.activation_quantizer": the layer and its part."""
    layer, _, attribute = quantizer_name.rpartition(".")
    return layer or "(model)", attribute.replace("_quantizer", "").replace("_", " ")
