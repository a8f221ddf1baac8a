"""Configuration and result of a training by distillation."""

import math
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

from paddle import nn

from ..._checks import check_bool, check_fields, check_float, check_int, checked_field
from ...engine.calibration import length_of
from ...errors import ConfigError


def _optional(check: Callable, *limits: Any, **options: Any) -> Callable:
    return lambda name, value: None if value is None else check(name, value, *limits, **options)


_a_count = _optional(check_int, 1)
_a_number = _optional(check_float, -math.inf, math.inf)


@dataclass
class TrainConfig:
    """Length, learning rate and evaluations of a training, as in PaddleSlim's ``TrainConfig``.

    Args:
        epochs: passes over the data. Default: 1, unless ``train_iter`` is given.
        train_iter: number of steps; the data is iterated as often as needed.
        learning_rate: highest rate of a warm-up and a cosine, or a schedule, see
            :func:`~.optimization.make_schedule`. Without an ``optimizer_builder``, a number is
            relative to the magnitude of each parameter, see
            :func:`~.optimization.relative_rates`, and the default is computed from the gradient
            of the first batches, see :func:`~.optimization.automatic_rate`. With an
            ``optimizer_builder`` the rate is absolute and its default 1e-5.
        optimizer_builder: see :func:`~.optimization.make_optimizer`.
        keep_best: return the best evaluated state in place of the last one. Default True.
        eval_iter: steps between evaluations. Default: a fifth of all steps. The model is also
            evaluated before the first step and after the last one.
        logging_iter: steps between lines of the log. Default 10.
        origin_metric: known metric of the float model. An evaluation that differs from it by more
            than 0.05 is an error, as in PaddleSlim.
        target_metric: end the training when an evaluation reaches it.
        checkpoint_iter: steps between checkpoints. Default: ``eval_iter``.
        seed: of Python's, numpy's and Paddle's random generators, which are set before the data
            is iterated and restored at the end.

    Raises:
        ConfigError, ConfigTypeError: an argument is invalid.

    Examples:
        >>> from paddleq.algorithms import TrainConfig
        >>> TrainConfig(epochs=3).steps(data=[1, 2])
        6
    """

    epochs: Optional[int] = checked_field(None, _a_count)
    train_iter: Optional[int] = checked_field(None, _a_count)
    learning_rate: Union[float, Dict[str, Any], None] = None
    optimizer_builder: Any = None
    keep_best: bool = checked_field(True, check_bool)
    eval_iter: Optional[int] = checked_field(None, _a_count)
    logging_iter: int = checked_field(10, lambda name, value: check_int(name, value, 1))
    origin_metric: Optional[float] = checked_field(None, _a_number)
    target_metric: Optional[float] = checked_field(None, _a_number)
    checkpoint_iter: Optional[int] = checked_field(None, _a_count)
    seed: int = checked_field(0, lambda name, value: check_int(name, value, 0, 2 ** 31 - 1))

    def __post_init__(self) -> None:
        check_fields(self)
        if self.epochs is not None and self.train_iter is not None:
            raise ConfigError("one of epochs and train_iter must be given, but both are: "
                              f"{self.epochs} and {self.train_iter}")

    @property
    def relative(self) -> bool:
        """True if the learning rate is relative to the magnitude of each parameter."""
        return self.optimizer_builder is None and not isinstance(self.learning_rate, dict)

    def steps(self, data: Any) -> int:
        """Return the number of steps."""
        if self.train_iter is not None:
            return self.train_iter
        length = length_of(data)
        if length is None:
            raise ConfigError("train_iter must be given, because data has no length from which "
                              "the steps of an epoch could be counted")
        return max(1, length) * (self.epochs or 1)


@dataclass
class DistillResult:
    """Result of :func:`paddleq.distill`.

    Attributes:
        model: the quantized model in evaluation mode; export it with
            :func:`paddleq.save_quantized_model`.
        losses: loss of each step, a list of floats.
        metrics: list of (step, metric) of the evaluations, higher is better; step 0 is the
            calibrated model before the training.
        best_step: step whose state ``model`` has: that of the best metric, or the last one.
        steps: number of steps.

    Examples:
        >>> import paddle, paddleq
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(4, 2))
        >>> result = paddleq.distill(net, [paddle.ones([2, 4])], train_iter=2)
        >>> len(result.losses), [step for step, _ in result.metrics]
        (2, [0, 1, 2])
    """

    model: nn.Layer
    losses: List[float] = field(default_factory=list)
    metrics: List[Tuple[int, float]] = field(default_factory=list)
    best_step: int = 0
    steps: int = 0
