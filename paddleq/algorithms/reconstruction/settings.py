"""Settings of AdaRound and block reconstruction, and their result."""

from dataclasses import dataclass, field, replace
from functools import partial
from math import cos, pi
from typing import Any, Dict, List, Optional, Tuple

from paddle import nn

from ..._checks import (
    check_bool,
    check_choice,
    check_fields,
    check_float,
    check_int,
    checked_field,
    wrong_type,
)
from ..._registry import Registry
from ...engine.provenance import plain_factory
from ...engine.summary import table
from ...fake_quant.learned_rounding import LearnedRounding

# Name of a rounding of weights -> its settings; "round" (to nearest) is not one.
ROUND_TYPES: "Registry[Any]" = Registry("round_type")
register_round_type = ROUND_TYPES.register
NEAREST = "round"


_positive = partial(check_float, low=0.0, high=float("inf"), open_low=True, open_high=True)
_share = partial(check_float, low=0.0, high=1.0)


@register_round_type("adaround")
@dataclass
class AdaRound:
    """AdaRound (arXiv:2004.10568): learn for each weight if it is rounded up or down.

    Layer by layer, in the order of execution, the rounding minimizes the squared error of the
    layer's output, behind its activation function. The default is asymmetric reconstruction: the
    inputs come from the quantized layers before, the targets from the float model.

    Args:
        iterations: optimization steps of each layer. Default 1000.
        learning_rate: of Adam. Default: 10 / iterations, at least 1e-2, so that each weight can
            reach its other neighbour.
        regularization: weight of the regularizer sum(1 - |2h - 1|^beta). The squared error beside
            it is that of the output divided by its mean square, summed over the channels, so that
            the scale of a layer does not matter. Default 0.01.
        warm_start: share of the iterations without the regularizer. Default 0.2.
        beta_start, beta_end: exponent after the warm start and at the end; it falls linearly.
            Default 20 and 2.
        batch_size: number of output positions of a step, fewer where they have many inputs.
            Default 256.
        samples: number of output positions of a layer that are collected over all batches.
            Default: four for each input of a position, between 2048 and 16384, and at most 256 MB.
        asymmetric: take the inputs of a layer from the quantized model. False: from the float
            model. Default True.
        seed: of the choice of positions and of batches. Default 0.
        epochs: number of iterations for each batch of the data, in place of ``iterations``.
            Default None.

    Raises:
        ConfigError, ConfigTypeError: a value is out of range or of the wrong type.

    Examples:
        >>> from paddleq.algorithms import AdaRound
        >>> AdaRound(iterations=200).beta(120)  # halfway after the warm start
        11.0
    """

    iterations: int = checked_field(1000, partial(check_int, low=1))
    learning_rate: Optional[float] = checked_field(None, lambda name, value: (
        None if value is None else _positive(name, value)))
    regularization: float = checked_field(0.01, partial(
        check_float, low=0.0, high=float("inf"), open_high=True))
    warm_start: float = checked_field(0.2, partial(_share, open_high=True))
    beta_start: float = checked_field(20.0, _positive)
    beta_end: float = checked_field(2.0, _positive)
    batch_size: int = checked_field(256, partial(check_int, low=1))
    samples: Optional[int] = checked_field(None, lambda name, value: (
        None if value is None else check_int(name, value, 1)))
    asymmetric: bool = checked_field(True, check_bool)
    seed: int = checked_field(0, partial(check_int, low=0))
    epochs: Optional[int] = checked_field(None, lambda name, value: (
        None if value is None else check_int(name, value, 1)))

    def __post_init__(self) -> None:
        check_fields(self)

    def for_batches(self, count: int) -> "AdaRound":
        """Return the settings for so many batches: ``iterations`` follow from ``epochs``."""
        return self if self.epochs is None else replace(
            self, iterations=self.epochs * count, epochs=None)

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.learning_rate or max(1e-2, 10.0 / self.iterations)

    def beta(self, step: int) -> Optional[float]:
        """Return the exponent of the regularizer at a step; None in the warm start."""
        start = int(self.warm_start * self.iterations)
        if step < start:
            return None
        done = (step - start) / max(1, self.iterations - start)
        return self.beta_start + (self.beta_end - self.beta_start) * done


@register_round_type("brecq")
@dataclass
class BRECQ(AdaRound):
    """BRECQ (arXiv:2102.05426): learn the roundings of all weights of a block together.

    They minimize the squared error of the output of the block, in which activations are float while
    the roundings are learned. The blocks of a :class:`paddleq.SavedModel` are the stages between
    which one tensor passes; those of another Layer are its sublayers of at most ``most_layers``
    quantized layers that are called once in a forward pass. A layer outside of them is a block of
    its own.

    Args:
        least_layers: number of quantized layers in a block of a SavedModel, at least. Default 3.
        most_layers: number of quantized layers in a sublayer that is one block, at most. Default 8.
        images: entries of a batch of which a step uses the output. Default 8.
        iterations, learning_rate, regularization, warm_start, beta_start, beta_end, asymmetric,
            seed, epochs: as for :class:`AdaRound`.

    Raises:
        ConfigError, ConfigTypeError: a value is out of range or of the wrong type.

    Examples:
        >>> from paddleq.algorithms import BRECQ
        >>> BRECQ(iterations=500).least_layers
        3
    """

    least_layers: int = checked_field(3, partial(check_int, low=1))
    most_layers: int = checked_field(8, partial(check_int, low=1))
    images: int = checked_field(8, partial(check_int, low=1))

    drop_probability = 1.0  # of the quantization of an activation in a step
    mixed_inputs = False
    learn_steps = False


@register_round_type("qdrop")
@dataclass
class QDrop(BRECQ):
    """QDrop (arXiv:2203.05740): BRECQ with the quantization of activations dropped at random.

    In each step, each element of an activation in the block is quantized or float at random, and so
    are those of its input, if ``asymmetric`` is True. The steps of the activations are learned with
    the roundings, with the gradient of LSQ. For few bits of activations.

    Args:
        drop_probability: share of the elements that stay float. Default 0.5.
        learn_steps: learn the steps of the activations too, and the offsets of affine ones.
            Quantizers of one tensor keep one step. Default True.
        step_learning_rate: of Adam for the logarithm of a step; it falls to zero as a cosine.
            Default: 4 / iterations, at most 0.02.
        iterations, learning_rate, regularization, warm_start, beta_start, beta_end, asymmetric,
            least_layers, most_layers, images, seed, epochs: as for :class:`BRECQ`.

    Raises:
        ConfigError, ConfigTypeError: a value is out of range or of the wrong type.

    Examples:
        >>> from paddleq.algorithms import QDrop
        >>> QDrop(drop_probability=0.25).drop_probability
        0.25
    """

    drop_probability: float = checked_field(0.5, _share)
    learn_steps: bool = checked_field(True, check_bool)
    step_learning_rate: Optional[float] = checked_field(None, lambda name, value: (
        None if value is None else _positive(name, value)))
    mixed_inputs = True

    def step_rate_at(self, iteration: int) -> float:
        """Return the learning rate of the steps of activations."""
        rate = self.step_learning_rate or min(0.02, 4.0 / self.iterations)
        return 0.5 * rate * (1.0 + cos(pi * iteration / self.iterations))


@dataclass
class ReconstructionReport:
    """Result of :func:`~paddleq.algorithms.reconstruct`.

    Attributes:
        errors: name of a layer or block -> (error of rounding to nearest, error of the learned
            rounding): the mean square of the difference from the float output, divided by the mean
            square of that output.
        skipped: name of a layer -> reason that its weight is rounded to nearest.
        seconds: duration.

    Examples:
        >>> from paddleq.algorithms import ReconstructionReport
        >>> print(ReconstructionReport({"conv1": (0.02, 0.005)}, {}, 1.5))
        layer | nearest | learned
        ------+---------+--------
        conv1 | 0.02    | 0.005
        1.5 s
    """

    errors: Dict[str, Tuple[float, float]] = field(default_factory=dict)
    skipped: Dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def __str__(self) -> str:
        rows: List[Tuple[str, ...]] = [("layer", "nearest", "learned")]
        rows += [(name, f"{before:.4g}", f"{after:.4g}")
                 for name, (before, after) in self.errors.items()]
        lines = [table(rows), *(f"{name}: rounded to nearest: {reason}"
                                for name, reason in self.skipped.items())]
        return "\n".join([*lines, f"{self.seconds:.1f} s"])


def parse_round_type(name: str, value: Any) -> Optional[AdaRound]:
    """Return the settings of a rounding: an instance, or the defaults of a name.

    None for "round", to nearest.
    """
    if isinstance(value, AdaRound):
        return value
    if not isinstance(value, str):
        raise wrong_type(name, value, "a name such as 'adaround', or an AdaRound")
    check_choice(name, value, [NEAREST, *ROUND_TYPES])
    return None if value == NEAREST else ROUND_TYPES[value]()


def recorded_round_type(settings: Optional[AdaRound]) -> Any:
    """Return settings as provenance records them, None for rounding to nearest."""
    return None if settings is None else plain_factory(type(settings), vars(settings))


def has_learned_rounding(model: nn.Layer) -> bool:
    """Return True if a layer of ``model`` has a weight with a learned rounding."""
    return any(isinstance(layer, LearnedRounding) for layer in model.sublayers())
