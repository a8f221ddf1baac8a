"""Scales of quantizers over the steps of calibration or training."""

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Tuple

import paddle
from paddle import nn

from .._checks import check_int, check_layer
from .._paddle_compat import scalar
from ..engine import fake_quantizers, quantized_layers
from ..engine.summary import qparams_in
from ..errors import ModelError
from ..fake_quant.fake_quantize import FakeQuantize, State


class StepHooks:
    """Calls of ``before(model, step)`` and ``after(model, step)`` around training steps."""

    def __init__(self, after: Callable[[nn.Layer, int], None],
                 before: Optional[Callable[[nn.Layer, int], None]] = None):
        self.after, self.before = after, before
        self.step = 0
        self._handles = []

    def attach(self, model: nn.Layer) -> None:
        """Add the hooks to ``model``."""
        check_layer("model", model)
        self._handles = [model.register_forward_pre_hook(self._before),
                         model.register_forward_post_hook(self._after)]

    def remove(self) -> None:
        """Remove the hooks. Steps continue to count when they are attached again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before(self, model, _inputs) -> Any:
        if self.before is not None and _is_step(model):
            self.before(model, self.step)

    def _after(self, model, _inputs, _outputs) -> Any:
        if _is_step(model):
            self.after(model, self.step)
            self.step += 1


def _is_step(model):
    return paddle.in_dynamic_mode() and (model.training or any(
        quantizer.state is State.CALIBRATION for _, quantizer in fake_quantizers(model)))


@dataclass(frozen=True)
class Scale:
    """The scale of a quantizer at one step.

    Attributes:
        step: number of the step, from 0.
        low: smallest scale of its channels.
        high: largest scale of its channels; equal to ``low`` for one scale.

    Examples:
        >>> from paddleq.analysis import Scale
        >>> Scale(step=0, low=0.5, high=2.0).high
        2.0
    """

    step: int
    low: float
    high: float


class ScaleHistory:
    """Record the scales of all quantizers during calibration or training.

    Use it as a context manager.

    Args:
        model: quantized model. ``None`` if :meth:`record` is called by hand.
        every: record each step whose number is a multiple of this. Default 1. Histogram observers
            such as KL search their scale at each recorded step, about 10 ms per quantizer.

    Attributes:
        scales: name of the quantizer, such as ``conv1.activation_quantizer``, -> list of
            :class:`Scale`.

    Raises:
        ConfigError, ConfigTypeError, ModelError: an argument is wrong.

    Examples:
        >>> import paddle, paddleq
        >>> ptq = paddleq.PTQ("AbsmaxQuantizer")
        >>> net = ptq.quantize(paddle.nn.Sequential(paddle.nn.Linear(2, 2)))
        >>> with paddleq.analysis.ScaleHistory(net) as history:
        ...     ptq.calibrate(net, [paddle.full([1, 2], 127.0), paddle.full([1, 2], 381.0)])
        2
        >>> [scale.high for scale in history.scales["0.activation_quantizer"]]
        [1.0, 3.0]
    """

    def __init__(self, model: Optional[nn.Layer] = None, every: int = 1):
        self.every = check_int("every", every, 1)
        self.model = model
        self.scales: Dict[str, List[Scale]] = {}
        self._hooks = StepHooks(self._after)

    def __enter__(self):
        if self.model is None:
            raise ModelError("ScaleHistory needs a model: ScaleHistory(model)")
        self._hooks.attach(self.model)
        return self

    def __exit__(self, *_error):
        self._hooks.remove()

    def _after(self, model, step):
        if step % self.every == 0:
            self.record(model, step)

    def record(self, model: nn.Layer, step: int) -> None:
        """Record the current scales of the quantizers of ``model``."""
        for name, layer in quantized_layers(model):
            for attribute, quantizer in layer.quantizers():
                found = current_qparams(layer, attribute, quantizer)
                if found is not None:
                    low, high = scalar(found[0].min()), scalar(found[0].max())
                    self.scales.setdefault(full_name(name, attribute), []).append(
                        Scale(step, low, high))


def current_qparams(layer: nn.Layer, attribute: str, quantizer: nn.Layer
                    ) -> Optional[Tuple[paddle.Tensor, Optional[paddle.Tensor]]]:
    """Return (scale, zero point or None) of a quantizer of ``layer``.

    While the quantizer calibrates, compute them from the statistics so far. Return ``None`` before
    the first batch and for classes of the user.
    """
    if not isinstance(quantizer, FakeQuantize):
        return None
    with paddle.no_grad():
        if quantizer.state is State.CALIBRATION and quantizer.observer.num_batches:
            abs_max, zero_point = quantizer.observer.qparams()
            return abs_max / float(quantizer.spec.quant_max), zero_point
        return qparams_in(layer, attribute, quantizer)


def full_name(layer: str, attribute: str) -> str:
    """Return the name in the model of a sublayer that is an attribute of the layer ``layer``."""
    return f"{layer}.{attribute}" if layer else attribute


def split_quantizer_name(quantizer_name: str) -> Tuple[str, str]:
    """Split "conv1.activation_quantizer" into the layer "conv1" and its part "activation"."""
    layer, _, attribute = quantizer_name.rpartition(".")
    return layer or "(model)", attribute.replace("_quantizer", "").replace("_", " ")
