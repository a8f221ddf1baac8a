"""Sensitivity of a model to the quantization of each of its layers."""

import math
from dataclasses import dataclass
from typing import Any, Callable, Iterable, List, Optional

from paddle import nn

from .._checks import wrong_type
from ..engine import (
    eager_evaluation,
    iter_batches,
    quantized_layers,
    quantizing_only,
    run_batches,
)
from ..errors import ConfigError, ConfigTypeError
from .layer_results import LayerResults, check_calibrated
from .sqnr import SQNR, comparable_outputs, format_db


@dataclass(frozen=True)
class Sensitivity:
    """Loss of a model when only one layer is quantized.

    Attributes:
        name: name of the layer.
        type: class of the float layer.
        sqnr: SQNR of the output of the model in dB. ``None`` if a metric was evaluated.
        metric: value of the metric. ``None`` without a metric.
        drop: metric of the float model minus ``metric``.

    Examples:
        >>> from paddleq.analysis import Sensitivity
        >>> Sensitivity("conv1", "Conv2D", metric=0.97, drop=0.01).sqnr is None
        True
    """

    name: str
    type: str
    sqnr: Optional[float] = None
    metric: Optional[float] = None
    drop: Optional[float] = None


class Sensitivities(LayerResults):
    """Result of :func:`sensitivity`: :class:`Sensitivity` rows in the order of the model.

    Attributes:
        rows: the rows.
        float_metric: metric of the float model. ``None`` without a metric.

    Examples:
        >>> from paddleq.analysis import Sensitivities, Sensitivity
        >>> found = Sensitivities([Sensitivity("conv1", "Conv2D", sqnr=35.0),
        ...                        Sensitivity("conv2", "Conv2D", sqnr=12.5)])
        >>> found.worst(), found["conv1"].sqnr
        (['conv2'], 35.0)
    """

    def __init__(self, rows: Iterable[Sensitivity], float_metric: Optional[float] = None):
        super().__init__(rows)
        self.float_metric = float_metric

    def ranking(self) -> List[Sensitivity]:
        """Return the rows, worst first: lowest ``sqnr``, or largest ``drop``."""
        if self.float_metric is None:
            return sorted((row for row in self.rows if row.sqnr is not None),
                          key=lambda row: row.sqnr)
        return sorted(self.rows, key=lambda row: row.drop, reverse=True)

    def table(self) -> str:
        """Return the rows as text, worst first, and a line with the unit of the numbers."""
        if self.float_metric is None:
            return f"{super().table()}\nSQNR in dB of the output of the model"
        return f"{super().table()}\nthe float model's metric: {self.float_metric:.6g}"

    def _columns(self):
        if self.float_metric is None:
            return {"SQNR": lambda row: format_db(row.sqnr)}
        return {"metric": lambda row: f"{row.metric:.6g}", "drop": lambda row: f"{row.drop:.6g}"}


def sensitivity(model: nn.Layer, data: Optional[Iterable] = None,
                metric: Optional[Callable[[nn.Layer], float]] = None,
                num_batches: Optional[int] = None) -> Sensitivities:
    """Quantize one layer at a time and measure the loss of the output or of a metric.

    Args:
        model: quantized model with its scales, calibrated or trained. It is not changed.
        data: iterable of batches, as for :func:`paddleq.calibrate`. Each batch runs once in float
            and once for each layer. Not needed with a metric.
        metric: function ``metric(model)`` that returns a number, larger is better (negate a loss).
            It receives ``model`` in evaluation mode, once in float and once for each layer.
            Default: the SQNR of the output, which is finer because it changes before any
            prediction does. Outputs that are probabilities along the last axis are compared as
            logits.
        num_batches: number of batches to use. Default: all.

    Returns:
        :class:`Sensitivities`, which can be iterated and printed; ``worst(5)`` are the names of
        the five most sensitive layers.

    Raises:
        CalibrationError: the model is not calibrated, or there is no batch.
        ModelError: the model is not quantized.
        NonFiniteError: the output of the model is NaN or infinite.
        ConfigError, ConfigTypeError: neither data nor metric, a batch that does not fit the
            ``forward`` of the model, or a metric that does not return a finite number.

    Examples:
        >>> import paddle, paddleq
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(2, 2), paddle.nn.Linear(2, 1))
        >>> net[0].weight.set_value(paddle.to_tensor([[500.0, 0.0], [0.0, 1.0]]))
        >>> net[1].weight.set_value(paddle.to_tensor([[0.001], [1.0]]))
        >>> data = [paddle.linspace(-1, 1, 64).reshape([32, 2])]
        >>> ptq = paddleq.PTQ("AbsmaxQuantizer")
        >>> quantized = ptq.quantize(net)  # the second layer's input has a large channel
        >>> _ = ptq.calibrate(quantized, data)
        >>> paddleq.analysis.sensitivity(quantized, data).worst()
        ['1']
    """
    check_calibrated(model)
    layers = dict(quantized_layers(model))
    types = {name: layer._float_class.__name__ for name, layer in layers.items()}
    if metric is not None:
        return _by_metric(model, types, metric)
    if data is None:
        raise ConfigError("data must be an iterable of batches where there is no metric, but is "
                          "None")
    ratios = {name: SQNR(f"the model's output with {name or 'the model'!r} quantized")
              for name in layers}

    def compare(inputs):
        args, kwargs = inputs
        with eager_evaluation(model):
            with quantizing_only(model, ()):
                expected = model(*args, **kwargs)
            for name, ratio in ratios.items():
                with quantizing_only(model, [name]):
                    ratio.add(*comparable_outputs(expected, model(*args, **kwargs)))

    run_batches(compare, iter_batches(model, data, num_batches, "quantizing one layer at a time"),
                "data")
    return Sensitivities(Sensitivity(name, types[name], ratio.db)
                         for name, ratio in ratios.items())


def _by_metric(model, types, metric):
    from tqdm import tqdm

    with quantizing_only(model, ()):
        best = evaluate_metric(metric, model)
    rows = []
    for name, kind in tqdm(types.items(), desc="quantizing one layer at a time", disable=None,
                           leave=False):
        with quantizing_only(model, [name]):
            value = evaluate_metric(metric, model)
        rows.append(Sensitivity(name, kind, metric=value, drop=best - value))
    return Sensitivities(rows, best)


def evaluate_metric(metric: Callable[[nn.Layer], float], model: nn.Layer) -> float:
    """Return the value of the user's ``metric`` for ``model``, which must be a finite number."""
    if not callable(metric):
        raise wrong_type("metric", metric, "a function of the model")
    with eager_evaluation(model):
        value: Any = metric(model)
    try:
        number = float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError):
        raise ConfigTypeError(f"metric must return a number, but returned {value!r}") from None
    if not math.isfinite(number):
        raise ConfigError(f"metric must return a finite number, but returned {number}")
    return number
