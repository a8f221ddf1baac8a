"""Which layers a model can least afford to quantize."""

import math
from dataclasses import dataclass
from typing import Optional

from ..engine import eager_evaluation, iter_batches, quantized_layers, quantizing_only
from ..errors import ConfigError, ConfigTypeError
from .check_deployable import check_simulates
from .ranked import Ranked
from .sqnr import SQNR, shown


@dataclass(frozen=True)
class Sensitivity:
    """What the model loses when one layer alone is quantized.

    Attributes:
        name, type: of the float layer.
        sqnr: SQNR of the model's output in dB; None where a metric was asked instead.
        metric: what the metric said; None where none was asked.
        drop: the float model's metric less this one.

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


class Sensitivities(Ranked):
    """What :func:`sensitivity` returns: :class:`Sensitivity` rows in the model's order.

    Attributes:
        rows: the rows.
        float_metric: the metric without quantization; None where none was asked.

    Examples:
        >>> from paddleq.analysis import Sensitivities, Sensitivity
        >>> found = Sensitivities([Sensitivity("conv1", "Conv2D", sqnr=35.0),
        ...                        Sensitivity("conv2", "Conv2D", sqnr=12.5)])
        >>> found.worst(), found["conv1"].sqnr
        (['conv2'], 35.0)
    """

    def __init__(self, rows, float_metric=None):
        super().__init__(rows)
        self.float_metric = float_metric

    def ranking(self):
        """The rows, worst first: by the lowest ``sqnr``, or by the largest ``drop``."""
        if self.float_metric is None:
            return sorted((row for row in self.rows if row.sqnr is not None),
                          key=lambda row: row.sqnr)
        return sorted(self.rows, key=lambda row: -row.drop)

    def table(self):
        """The rows as text, worst first, and a line that says what the numbers are."""
        if self.float_metric is None:
            return f"{super().table()}\nSQNR in dB of the model's output"
        return f"{super().table()}\nthe float model's metric: {self.float_metric:.6g}"

    def _titles(self):
        return ("layer", "type", *(["SQNR"] if self.float_metric is None else ["metric", "drop"]))

    def _cells(self, row):
        values = ([shown(row.sqnr)] if self.float_metric is None
                  else [f"{row.metric:.6g}", f"{row.drop:.6g}"])
        return (row.name or "(model)", row.type, *values)


def sensitivity(model, loader=None, metric=None, batch_num=None):
    """Quantize one layer at a time and see what the model's output, or a metric, loses.

    Args:
        model: a quantized model with its scales: calibrated or trained. It is not changed.
        loader: an iterable of batches, as for :func:`paddleq.calibrate`. Each runs once in float
            and once for each layer. Not needed with a metric.
        metric: called as ``metric(model)`` with ``model`` itself, in evaluation mode; returns a
            number, larger is better (return minus a loss). It is asked once in float and once for
            each layer. None (default): the SQNR of the model's output, which is finer, since it
            moves where no prediction changes yet.
        batch_num: look at this many batches. Default: all.

    Returns:
        :class:`Sensitivities`: iterate over it, ``print`` it, or ask for its ``worst(5)``.

    Raises:
        CalibrationError: the model is not calibrated, or the loader is empty.
        ModelError: the model is not quantized.
        NonFiniteError: NaN or infinity in the model's output.
        ConfigError, ConfigTypeError: neither loader nor metric, a batch that does not fit the
            model's ``forward``, or a metric that returns no finite number.

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
    check_simulates(model)
    layers = dict(quantized_layers(model))
    types = {name: type(layer)._paddleq_float_class.__name__ for name, layer in layers.items()}
    if metric is not None:
        return _by_metric(model, types, metric)
    if loader is None:
        raise ConfigError("loader must be an iterable of batches where there is no metric, but is "
                          "None")
    ratios = {name: SQNR(f"the model's output with {name or 'the model'!r} quantized")
              for name in layers}
    for args, kwargs in iter_batches(model, loader, batch_num, "quantizing one layer at a time"):
        with eager_evaluation(model):
            with quantizing_only(model, ()):
                expected = model(*args, **kwargs)
            for name, ratio in ratios.items():
                with quantizing_only(model, [name]):
                    ratio.add(expected, model(*args, **kwargs))
    return Sensitivities(Sensitivity(name, types[name], ratio.db)
                         for name, ratio in ratios.items())


def _by_metric(model, types, metric):
    from tqdm import tqdm

    with quantizing_only(model, ()):
        best = ask(metric, model)
    rows = []
    for name, kind in tqdm(types.items(), desc="quantizing one layer at a time", disable=None,
                           leave=False):
        with quantizing_only(model, [name]):
            value = ask(metric, model)
        rows.append(Sensitivity(name, kind, metric=value, drop=best - value))
    return Sensitivities(rows, best)


def ask(metric, model):
    """The number that a user's ``metric`` has for ``model``.

    Raises:
        ConfigTypeError, ConfigError: it is no function, or returns no finite number.
    """
    if not callable(metric):
        raise ConfigTypeError(f"metric must be a function of the model, but is {metric!r}")
    with eager_evaluation(model):
        value = metric(model)
    try:
        number = float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError):
        raise ConfigTypeError(f"metric must return a number, but returned {value!r}") from None
    if not math.isfinite(number):
        raise ConfigError(f"metric must return a finite number, but returned {number}")
    return number
