"""Learned steps of the activations in a block, with the gradient of LSQ."""

from collections import Counter
from typing import Any, Dict, Hashable, List, Optional, Sequence, Tuple

import paddle
from paddle import nn

from ..._paddle_compat import own_sublayers
from ...fake_quant.fake_quantize import FakeQuantize
from ...functional import learned_fake_quantize
from ...functional.lsq import learned_abs_max, learned_zero_point
from .adam import Adam


class LearnedStep:
    """Step of one activation, and the lower end of its range if its spec is affine.

    The step is that of the quantizer times exp(u) with a learned u, so that one learning rate fits
    steps of all sizes. The offset of an affine spec (LSQ+, arXiv:2004.09576) moves in ranges.

    Args:
        quantizer: a calibrated FakeQuantize.

    Attributes:
        quantizers: those that :meth:`install` changes.
    """

    def __init__(self, quantizer: FakeQuantize) -> None:
        self.quantizers: List[FakeQuantize] = []
        spec = self.spec = quantizer.spec
        self._first = quantizer.scale.detach().clone()
        self._values = [paddle.zeros_like(self._first)]
        if not spec.symmetric:
            self._range = self._first * float(spec.quant_max - spec.quant_min)
            self._first_offset = -self._first * quantizer.zero_point.astype("float32")
            self._values.append(paddle.zeros_like(self._first))
        self._adams = [Adam(each) for each in self._values]
        self._leaves: List[paddle.Tensor] = []

    def tensors(self) -> List[paddle.Tensor]:
        """Return [step] or [step, offset]."""
        step = self._first * self._values[0].exp()
        return [step] + [self._first_offset + each * self._range for each in self._values[1:]]

    def leaf(self) -> None:
        """Let :meth:`quantize` compute gradients, which :meth:`step` uses."""
        with paddle.no_grad():
            self._leaves = self.tensors()
        for each in self._leaves:
            each.stop_gradient = False

    def quantize(self, x: paddle.Tensor) -> paddle.Tensor:
        """Quantize and dequantize ``x`` with the learned step."""
        step, offset = (*self._leaves, None)[:2]
        return learned_fake_quantize(x, step, self.spec, offset)

    def step(self, learning_rate: float) -> None:
        """Update the step with the gradients of :meth:`quantize`."""
        with paddle.no_grad():
            # d loss / du = d loss / d step * step; the constant factors do not matter to Adam.
            factors = [self._leaves[0], *([] if self.spec.symmetric else [self._range])]
            for adam, leaf, factor in zip(self._adams, self._leaves, factors):
                if leaf.grad is not None:  # some batches may not reach the activation
                    adam.step(leaf.grad * factor, learning_rate)

    def install(self) -> None:
        """Store the step in the quantizers."""
        with paddle.no_grad():
            step, *offset = self.tensors()
            zero_point: Optional[Any] = None
            if offset:
                zero_point = learned_zero_point(
                    offset[0], learned_abs_max(step, self.spec), self.spec)
            for each in self.quantizers:
                each.set_qparams(step, zero_point)


def learnable_steps(model: nn.Layer, readers: Sequence[Tuple[Hashable, FakeQuantize, Any]]
                    ) -> Dict[Hashable, LearnedStep]:
    """Return key -> learned step of the quantizers that may change.

    Quantizers of one tensor with equal scales share a learned step, because runtimes quantize it
    once. Those that compute a scale for each tensor, that learn their step in training, or that
    are in several places of ``model`` keep their scales.

    Args:
        readers: (key, quantizer, tensor that it quantized) in the order of execution.
    """
    places = Counter(id(child) for layer in model.sublayers(include_self=True)
                     for child in own_sublayers(layer).values())
    found: Dict[Hashable, LearnedStep] = {}
    for number, (key, quantizer, x) in enumerate(readers):
        if key in found or not _is_learnable(quantizer) or places[id(quantizer)] != 1:
            continue
        same = [found[other] for other, earlier, y in readers[:number]
                if y is x and other in found and earlier.spec == quantizer.spec
                and _qparams(earlier) == _qparams(quantizer)]
        found[key] = same[0] if same else LearnedStep(quantizer)
        found[key].quantizers.append(quantizer)
    return found


def _is_learnable(quantizer):
    return (type(quantizer) is FakeQuantize and quantizer.initialized
            and quantizer.fake_quant_enabled and not quantizer.observer.dynamic
            and not quantizer.spec.binary)


def _qparams(quantizer):
    return quantizer.abs_max.tolist(), quantizer.zero_point.tolist()
