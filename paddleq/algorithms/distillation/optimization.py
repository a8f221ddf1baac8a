"""Optimizers and learning rates from PaddleSlim's ``TrainConfig``."""

import inspect
import math
from typing import Any, Callable, Dict, List, Optional, Union

import paddle

from ..._checks import check_arguments, check_choice, check_config, check_float, wrong_type
from ...errors import ConfigError, ConfigTypeError

WARM_UP = 0.05  # share of the steps
_NEED_MORE = ("LBFGS", "ReduceOnPlateau")  # of a closure, or of a metric each step


def make_schedule(learning_rate: Union[float, Dict[str, Any]], steps: int
                  ) -> paddle.optimizer.lr.LRScheduler:
    """Return the scheduler of a learning rate.

    Args:
        learning_rate: the highest rate of a linear warm-up over 5 % of the steps and a cosine down
            to zero; or a dict with the ``type`` of a class in ``paddle.optimizer.lr`` and its
            arguments.
        steps: number of steps of the training.
    """
    if isinstance(learning_rate, dict):
        return _build("learning_rate", learning_rate, paddle.optimizer.lr,
                      paddle.optimizer.lr.LRScheduler)
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
            function of (schedule, parameters). None: Adam.
    """
    if callable(builder):
        made = builder(schedule, parameters)
        if not isinstance(made, paddle.optimizer.Optimizer):
            raise wrong_type("the result of optimizer_builder", made,
                             "a paddle.optimizer.Optimizer")
        return made
    if builder is None or isinstance(builder, str):
        builder = {"optimizer": {"type": builder or "Adam"}}
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
