"""Blocks as units of reconstruction: what several layers learn minimizes one error."""

from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, cast

import numpy as np
import paddle
from paddle import nn

from ...engine.calibration import map_leaves
from ...fake_quant.fake_quantize import FakeQuantize
from ...functional import fake_quantize
from ...graph.calls import patched_forwards, tensors_in
from .activation_steps import learnable_steps
from .rounding import SoftRounding
from .settings import BRECQ

_HELD_OUT = 8  # one in so many batches is not optimized on


class Reached(BaseException):
    """Ends a forward pass. Not an Exception, which models may handle."""


class BlockUnit:
    """Roundings of the weights of the layers of a block.

    Args:
        run: computes the block on captured inputs and returns its output.
        layers: its quantized layers with a SoftRounding, by name.
        inputs: for each batch, the inputs in the quantized model.
        float_inputs: the same in the float model.
        targets: for each batch, the output in the float model.
    """

    def __init__(self, name: str, run: Callable[[Any], Any], layers: Dict[str, Any],
                 roundings: Dict[str, SoftRounding], inputs: Sequence[Any],
                 float_inputs: Sequence[Any], targets: Sequence[Any], settings: BRECQ,
                 model: nn.Layer) -> None:
        self.name, self.layers, self.roundings, self.settings = name, layers, roundings, settings
        self._run, self._inputs, self._float_inputs = run, inputs, float_inputs
        self._targets = [float_tensors(each) for each in targets]
        count = len(inputs)
        self._train = max(1, count - max(1, count // _HELD_OUT)) if count > 1 else 1
        # One error for each output, relative to its mean square.
        self._powers = [max(1e-30, float(np.mean([each[place].square().mean().item()
                                                  for each in self._targets])))
                        for place in range(len(self._targets[0]))]
        self._quantizers = {  # of the inputs of the layers, and of their outputs
            (name, part): quantizer for name, layer in layers.items()
            for part, quantizer in layer.quantizers()
            if isinstance(quantizer, FakeQuantize) and part != "weight_quantizer"}
        self.steps = learnable_steps(model, self._readers()) if settings.learn_steps else {}

    def _readers(self):
        """Return (key, quantizer, tensor that it quantizes) in the order of execution."""
        found: List[tuple] = []

        def record(key, original, x):
            found.append((key, self._quantizers[key], x))
            return original(x)

        with paddle.no_grad(), patched_forwards(self._quantizers, record):
            self._run(self._inputs[0])
        return found

    def loss(self, weights: Dict[str, paddle.Tensor],
             generator: np.random.Generator) -> paddle.Tensor:
        """Return the loss of a random batch with ``weights``."""
        number = int(generator.integers(self._train))
        inputs, targets = self._inputs[number], self._targets[number]
        if self.settings.mixed_inputs and self.settings.asymmetric:
            inputs = mixed(inputs, self._float_inputs[number], self.settings.drop_probability)
        rows = self._rows(targets, generator)
        if rows is not None:
            inputs, targets = (_chosen(each, rows, targets[0].shape[0])
                               for each in (inputs, targets))
        with self._substituted(weights, self.settings.drop_probability, self.steps):
            outputs = float_tensors(self._run(inputs))
        total = 0.0
        for found, target, power in zip(outputs, targets, self._powers):
            channels = target.shape[1] if len(target.shape) > 3 else target.shape[-1]
            total = total + (found - target).square().mean() * (channels / power)
        return cast(paddle.Tensor, total)

    def _rows(self, targets, generator):
        """Return the entries of a batch that a step uses, None for all."""
        first = {each.shape[0] if each.shape else 0 for each in targets}
        count = first.pop()
        if first or count <= self.settings.images:
            return None
        return np.sort(generator.choice(count, self.settings.images, replace=False))

    def error(self, weights: Dict[str, paddle.Tensor], learned_steps: bool = False) -> float:
        """Return the error on batches that are not optimized on, with quantized activations."""
        steps = self.steps if learned_steps else {}
        first = self._train if len(self._inputs) > self._train else 0
        errors = []
        with paddle.no_grad(), self._substituted(weights, 0.0, steps):
            for inputs, targets in zip(self._inputs[first:], self._targets[first:]):
                outputs = float_tensors(self._run(inputs))
                errors.append(np.mean([
                    (found - target).square().mean().item() / power for found, target, power
                    in zip(outputs, targets, self._powers)]))
        return float(np.mean(errors))

    @contextmanager
    def _substituted(self, weights, drop, steps) -> Iterator[None]:
        """Compute with these weights, and quantize each element of an activation or not.

        Args:
            drop: probability that it is not quantized.
            steps: key of a quantizer -> learned step in place of its own.
        """
        def weight_of(name, original, x):
            return weights[name]

        def activation(key, original, x):
            if drop >= 1.0:
                return x
            quantizer = self._quantizers[key]
            if key in steps:
                quantized = steps[key].quantize(x)
            else:
                abs_max, zero_point = quantizer.qparams_of(x)
                quantized = fake_quantize(x, abs_max, quantizer.spec, saturate=True,
                                          zero_point=zero_point)
            if drop <= 0.0:
                return quantized
            return paddle.where(paddle.rand(x.shape) < drop, x, quantized)

        with ExitStack() as stack:
            stack.enter_context(patched_forwards(
                {name: self.layers[name].weight_quantizer for name in weights}, weight_of))
            stack.enter_context(patched_forwards(self._quantizers, activation))
            yield


def float_tensors(value: Any) -> List[paddle.Tensor]:
    """Return the float tensors in a nested value."""
    return [each for each in tensors_in(value) if paddle.is_floating_point(each)]


def mixed(quantized: Any, floats: Any, drop: float) -> Any:
    """Return inputs of which each element is that of ``floats`` with the probability ``drop``."""
    others = iter(tensors_in(floats))

    def choose(x):
        if not isinstance(x, paddle.Tensor):
            return x
        other = next(others)
        if not paddle.is_floating_point(x) or x.shape != other.shape:
            return x
        return paddle.where(paddle.rand(x.shape) < drop, other, x)

    return _map_sorted(choose, quantized)


def _map_sorted(function, value):
    """Apply ``function`` to the leaves of a nested value in the order of :func:`tensors_in`."""
    if isinstance(value, dict):
        found = {key: _map_sorted(function, value[key]) for key in sorted(value, key=str)}
        return {key: found[key] for key in value}
    return map_leaves(function, value) if not isinstance(value, (list, tuple)) else type(value)(
        _map_sorted(function, each) for each in value)


def _chosen(value, rows, count):
    """Return the ``rows`` of the tensors in a nested value that have ``count`` of them."""
    index = paddle.to_tensor(rows)

    def choose(x):
        batched = isinstance(x, paddle.Tensor) and len(x.shape) and x.shape[0] == count
        return paddle.index_select(x, index) if batched else x

    return map_leaves(choose, value)


def find_blocks(model: nn.Layer, names: Sequence[str], calls: Dict[str, int],
                most: int) -> List[List[str]]:
    """Return the blocks of a Layer: [name of the sublayer, names of quantized layers in it].

    Args:
        names: the quantized layers with a learned rounding.
        calls: calls in a forward pass, by name of a sublayer, "" for the model.
        most: number of quantized layers in a block, at most.
    """
    found: List[List[str]] = []
    sublayers = dict(model.named_sublayers(include_self=True))

    def visit(name):
        prefix = f"{name}." if name else ""
        inside = [each for each in names if each == name or each.startswith(prefix)]
        if not inside:
            return
        if name in names or (calls.get(name) == 1 and 1 < len(inside) <= most):
            found.append([name, *inside])
            return
        for child, layer in sublayers[name].named_children():
            if layer is not None and f"{prefix}{child}" in sublayers:
                visit(f"{prefix}{child}")

    visit("")
    return found


def capture(run: Callable[[], Any], layer: nn.Layer) -> Optional[tuple]:
    """Return the (args, kwargs) of the call of ``layer`` in ``run()``, which ends there."""
    held: List[tuple] = []

    def forward(_, original, *args, **kwargs):
        held.append((args, kwargs))
        raise Reached

    with patched_forwards({"": layer}, forward), suppress(Reached):
        run()
    return held[0] if held else None
