"""Optimizers and learning rates from PaddleSlim's ``TrainConfig``."""

import inspect
import math
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Union

import paddle
from paddle import nn

from ..._checks import check_arguments, check_choice, check_config, check_float, wrong_type
from ...engine.state import fake_quantizers
from ...errors import ConfigError, ConfigTypeError
from ...fake_quant import PACT

WARM_UP = 0.05  # share of the steps
LEAST_RMS = 1e-3  # as in Adafactor: a parameter of zeros can be trained
# Losses of a good start and the gradients of LSQ's steps are small. Adam's usual 1e-8 would keep
# such parameters from moving.
EPSILON = 1e-12
SCALES_RATE = 30.0
RATE_BATCHES, AUTOMATIC_PART, AUTOMATIC_MOST = 4, 0.1, 1e-2
DEFAULT_RATE = 1e-5
_NEED_MORE = ("LBFGS", "ReduceOnPlateau")  # of a closure, or of a metric each step


def make_schedule(learning_rate: Union[float, Dict[str, Any], None], steps: int
                  ) -> paddle.optimizer.lr.LRScheduler:
    """Return the scheduler of a learning rate.

    Args:
        learning_rate: the highest rate of a linear warm-up over 5 % of the steps and a cosine down
            to zero; or a dict with the ``type`` of a class in ``paddle.optimizer.lr`` and its
            arguments. None: 1e-5.
        steps: number of steps of the training.
    """
    if isinstance(learning_rate, dict):
        return _build("learning_rate", learning_rate, paddle.optimizer.lr,
                      paddle.optimizer.lr.LRScheduler)
    learning_rate = DEFAULT_RATE if learning_rate is None else learning_rate
    check_float("learning_rate", learning_rate, 0.0, math.inf, open_low=True, open_high=True)
    warm = max(1, round(WARM_UP * steps))

    def factor(step):
        if step < warm:
            return (step + 1) / (warm + 1)
        return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm)))

    return paddle.optimizer.lr.LambdaDecay(float(learning_rate), factor)


def make_optimizer(builder: Union[str, Dict[str, Any], Callable, None],
                   schedule: paddle.optimizer.lr.LRScheduler,
                   parameters: List[paddle.Tensor]) -> paddle.optimizer.Optimizer:
    """Return the optimizer of an ``optimizer_builder``.

    Args:
        builder: a class name in ``paddle.optimizer``; a dict with ``optimizer`` (a dict with its
            ``type`` and arguments), ``weight_decay`` or ``regularizer``, and ``grad_clip``; or a
            function of (schedule, parameters). None: Adam with an epsilon of 1e-12.
    """
    if callable(builder):
        made = builder(schedule, parameters)
        if not isinstance(made, paddle.optimizer.Optimizer):
            raise wrong_type("the result of optimizer_builder", made,
                             "a paddle.optimizer.Optimizer")
        return made
    if builder is None:
        builder = {"optimizer": {"type": "Adam", "epsilon": EPSILON}}
    elif isinstance(builder, str):
        builder = {"optimizer": {"type": builder}}
    given = check_config("optimizer_builder", builder, {
        "optimizer": _described, "weight_decay": lambda name, value: check_float(
            name, value, 0.0, math.inf, open_high=True),
        "regularizer": _described, "grad_clip": _described})
    options: Dict[str, Any] = {}
    if "regularizer" in given and "weight_decay" in given:
        raise ConfigError("optimizer_builder must have regularizer or weight_decay, but has both")
    if "regularizer" in given:
        options["weight_decay"] = _build("optimizer_builder['regularizer']", given["regularizer"],
                                         paddle.regularizer, object)
    elif "weight_decay" in given:
        options["weight_decay"] = given["weight_decay"]
    if "grad_clip" in given:
        options["grad_clip"] = _build("optimizer_builder['grad_clip']", given["grad_clip"],
                                      paddle.nn, paddle.nn.clip.ClipGradBase)
    return _build("optimizer_builder['optimizer']", given.get("optimizer", {"type": "Adam"}),
                  paddle.optimizer, paddle.optimizer.Optimizer, learning_rate=schedule,
                  parameters=parameters, **options)


@contextmanager
def relative_rates(model: nn.Layer, parameters: Iterable[paddle.Tensor]) -> Iterator[None]:
    """Multiply the learning rate of each parameter by its root mean square while open.

    Adam changes each element by about the learning rate, whatever its magnitude. Folding spreads
    the magnitudes of weights over several powers of ten. A rate relative to the magnitude is that
    of Adafactor (arXiv:1804.04235). Parameters of quantizers, a few numbers of which the loss
    depends less than of thousands of weights that move together, have 30 times that rate. The
    factor of :class:`~paddleq.fake_quant.PACT`, which makes up for a large alpha, has no effect.
    """
    clipping = {id(layer.alpha) for layer in model.sublayers(include_self=True)
                if isinstance(layer, PACT)}
    scales = {id(each) for _, quantizer in fake_quantizers(model)
              for each in quantizer.parameters()}
    before = [(each, each.optimize_attr["learning_rate"]) for each in parameters]
    try:
        with paddle.no_grad():
            for parameter, rate in before:
                rms = math.sqrt(float((parameter * parameter).mean()))
                rate = 1.0 if id(parameter) in clipping else rate
                rate *= SCALES_RATE if id(parameter) in scales | clipping else 1.0
                parameter.optimize_attr["learning_rate"] = max(rms, LEAST_RMS) * rate
        yield
    finally:
        for parameter, rate in before:
            parameter.optimize_attr["learning_rate"] = rate


def automatic_rate(loss: float, parameters: Iterable[paddle.Tensor]) -> float:
    """Return the learning rate of which a step of Adam lowers a loss by a tenth, to first order.

    The first step of Adam changes each element by its learning rate, against the sign of its
    gradient. The least loss of a distillation is known: it is near zero. A rate from that is the
    step size of Polyak, a part of it here because later steps of Adam have the same direction.

    Args:
        loss: sum of the losses of ``RATE_BATCHES`` batches, of which one alone may be an outlier.
        parameters: with gradients of that sum and with learning rates of :func:`relative_rates`.
    """
    slope = sum(float(each.grad.abs().sum()) * each.optimize_attr["learning_rate"]
                for each in parameters if each.grad is not None)
    return min(AUTOMATIC_PART * loss / slope, AUTOMATIC_MOST) if slope > 0.0 else AUTOMATIC_MOST


def _described(name: str, value: Any) -> Dict[str, Any]:
    if isinstance(value, str):
        value = {"type": value}
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise wrong_type(name, value, "a dict with the name of a class as 'type'")
    return value


def _build(name: str, description: Dict[str, Any], module: Any, base: type, **fixed: Any) -> Any:
    """Return an instance of the class ``type`` of a module, with the other entries."""
    description = dict(_described(name, description))
    classes = {key: value for key, value in vars(module).items()
               if inspect.isclass(value) and issubclass(value, base) and value is not base
               and key not in _NEED_MORE and not key.startswith("_")}
    cls = classes[check_choice(f"{name}['type']", description.pop("type"), sorted(classes))]
    check_arguments(name, cls.__init__, description, ("self", *fixed))
    try:
        return cls(**description, **fixed)
    except (TypeError, ValueError, AssertionError) as error:
        kind: Optional[type] = ConfigTypeError if isinstance(error, TypeError) else ConfigError
        raise kind(f"{name}: {cls.__name__} does not take {description}: {error}") from error
