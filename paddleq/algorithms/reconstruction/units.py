"""One layer as a unit of reconstruction: samples of its inputs and targets, loss and error."""

from typing import Any, Callable, Dict, List, Optional, cast

import numpy as np
import paddle

from .patches import Product, product
from .rounding import SoftRounding
from .settings import AdaRound

_MOST_ELEMENTS = 64 * 2 ** 20  # of the inputs of a layer: 256 MB
_BATCH_ELEMENTS = 2 ** 19  # of the inputs of one step of a depthwise convolution
_LEAST_BATCH = 64
_HELD_OUT = 8  # one in so many samples is not optimized on


class LayerSamples:
    """Sampled output positions of a layer in the batches.

    The positions of a call follow from the seed, the number of the layer and that of the call, so
    that the passes of the float and of the quantized model take the same ones.
    """

    def __init__(self, layer: Any, made: Product, number: int, settings: AdaRound) -> None:
        self.layer, self.product, self.number, self.settings = layer, made, number, settings
        self.targets: List[np.ndarray] = []
        self.inputs: List[np.ndarray] = []
        self.shapes: List[tuple] = []  # of the output of each call
        self.activation: Optional[Callable] = None

    @property
    def count(self) -> int:
        """Number of positions to collect in all batches."""
        groups, length, _ = self.product.matrix(self.layer.weight.numpy()).shape
        wanted = self.settings.samples or max(2048, min(16384, 4 * length))
        return max(64, min(wanted, _MOST_ELEMENTS // (groups * length)))

    def chosen(self, call: int, positions: int, calls: int) -> np.ndarray:
        """Return the positions of call number ``call`` of ``calls``, in all batches."""
        generator = np.random.default_rng([self.settings.seed, self.number, call])
        share = min(positions, -(-self.count // calls))
        return generator.choice(positions, share, replace=False)

    def add_target(self, y: np.ndarray, calls: int) -> None:
        """Add the float output of the next call."""
        chosen = self.chosen(len(self.shapes), self.product.positions(y), calls)
        self.shapes.append(y.shape)
        self.targets.append(self.product.outputs(y, chosen))

    def add_input(self, x: np.ndarray, calls: int) -> None:
        """Add the input of the next call, after the targets of all calls."""
        call = len(self.inputs)
        shape = self.shapes[call]
        chosen = self.chosen(call, self.product.positions(np.broadcast_to(
            np.float32(0), shape)), calls)
        self.inputs.append(self.product.inputs(x, shape, chosen))


class LayerUnit:
    """Rounding of the weight of one layer that minimizes the error of its output."""

    steps: Dict[Any, Any] = {}  # only blocks learn those of activations

    def __init__(self, name: str, samples: LayerSamples, rounding: SoftRounding) -> None:
        self.name, self.roundings = name, {name: rounding}
        generator = np.random.default_rng([samples.settings.seed, samples.number])
        inputs, targets = (np.concatenate(parts, axis=1)
                           for parts in (samples.inputs, samples.targets))
        order = generator.permutation(inputs.shape[1])
        self._inputs, self._targets = (paddle.to_tensor(each[:, order])
                                       for each in (inputs, targets))
        rows = len(order)
        self._train = rows - rows // _HELD_OUT
        bias = samples.layer.bias
        self._bias = None if bias is None else paddle.to_tensor(
            samples.product.bias(bias.numpy()))
        self._activation = samples.activation or (lambda y: y)
        with paddle.no_grad():
            self._targets = self._activation(self._targets)
            # Of the product, not of the activation's output, which may be zero almost everywhere.
            self._power = float(np.mean(np.square(targets, dtype=np.float64))) or 1.0
        elements = inputs.shape[0] * inputs.shape[2]  # of one position
        self._batch = min(self._train, samples.settings.batch_size,
                          max(_LEAST_BATCH, _BATCH_ELEMENTS // elements))

    def loss(self, weights: Dict[str, paddle.Tensor],
             generator: np.random.Generator) -> paddle.Tensor:
        """Return the loss of random samples with ``weights``."""
        start = int(generator.integers(self._train - self._batch + 1))
        return self._error(weights, start, start + self._batch) / (self._batch * self._power)

    def error(self, weights: Dict[str, paddle.Tensor], learned_steps: bool = False) -> float:
        """Return the error on samples that are not optimized on, relative to the targets."""
        first, last = self._train, self._inputs.shape[1]
        if first == last:
            first = 0
        with paddle.no_grad():
            found = self._error(weights, first, last).item()
            power = cast(float, self._targets[:, first:last].square().sum().item())
        return found / max(power, 1e-30)

    def _error(self, weights, first, last):
        y = product(self._inputs[:, first:last], weights[self.name], self._bias)
        return (self._activation(y) - self._targets[:, first:last]).square().sum()
