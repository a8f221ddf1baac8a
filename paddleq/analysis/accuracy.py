"""Accuracy-aware quantization: restore layers until a metric is good enough, at the least cost."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Callable, Dict, Iterable, List, Tuple, Union, cast

from paddle import nn

from .._checks import (
    check_arguments,
    check_choice,
    check_float,
    check_int,
    check_metric,
    wrong_type,
    wrong_value,
)
from ..engine import quantizing_only
from ..engine.freeze import check_restorable, restore_float
from ..engine.fuse_blocks import separate_inputs
from ..engine.summary import table
from ..errors import AccuracyError, ConfigError
from .allocation import cheapest_allocations
from .float_agreement import METRICS, FloatAgreement
from .layer_costs import COSTS, layer_costs
from .layer_results import check_calibrated, computed_layers
from .sensitivity import evaluate_metric, sensitivity

_logger = logging.getLogger("paddleq")
_FREE = 1 / 4096  # share of the total for which a layer without cost counts in the search


@dataclass
class AccuracyReport:
    """Result of :func:`keep_accuracy`.

    Attributes:
        max_drop: allowed drop of the metric.
        float_metric, quantized_metric: metric with no layer and with all layers quantized.
        metric: metric of the resulting model.
        layers: number of layers that were quantized at first.
        left_float: names of the layers that were restored to float, worst first, each with the
            SQNR in dB of the output of the model when only this layer is quantized.
        costs: share of the cost of each layer of ``left_float``.
        cost: cost of the search: "layers", "macs" or "bytes".
        cost_share: share of it in the layers that were restored to float.
        trials: (number of float layers, metric) of each evaluation.

    Examples:
        >>> from paddleq.analysis import AccuracyReport
        >>> report = AccuracyReport(max_drop=0.01, float_metric=0.98, quantized_metric=0.7,
        ...                         metric=0.97, layers=20, left_float={"head": 9.3})
        >>> report.met, round(report.drop, 3)
        (True, 0.01)
    """

    max_drop: float
    float_metric: float
    quantized_metric: float
    metric: float
    layers: int
    left_float: Dict[str, float] = field(default_factory=dict)
    cost: str = "layers"
    cost_share: float = 0.0
    trials: List[Tuple[int, float]] = field(default_factory=list)
    costs: Dict[str, float] = field(default_factory=dict)

    @property
    def drop(self) -> float:
        """Metric of the float model minus that of the resulting model."""
        return self.float_metric - self.metric

    @property
    def met(self) -> bool:
        """True if the drop is within the allowed one."""
        # In floating point 0.98 - 0.97 is slightly more than 0.01.
        tolerance = 1e-9 * max(abs(self.float_metric), abs(self.metric))
        return self.drop <= self.max_drop + tolerance

    @property
    def evaluations(self) -> int:
        """Number of evaluations of the metric."""
        return len(self.trials)

    def __str__(self):
        rows = [("", "metric", "drop"), ("float", f"{self.float_metric:.6g}", ""),
                ("all quantized", f"{self.quantized_metric:.6g}",
                 f"{self.float_metric - self.quantized_metric:.6g}"),
                (f"{len(self.left_float)} of {self.layers} layers float{self._shown_cost()}",
                 f"{self.metric:.6g}", f"{self.drop:.6g} ({self.max_drop:.6g} allowed)")]
        lines = [table(rows), f"evaluations of the metric: {self.evaluations}"]
        if self.left_float:
            lines.append(table([("left float", "SQNR alone", f"share of {self.cost}"),
                                *((name, f"{sqnr:.1f} dB", f"{100 * self.costs.get(name, 0):.3g} %")
                                  for name, sqnr in self.left_float.items())]))
        return "\n".join(lines)

    def _shown_cost(self):
        return "" if self.cost == "layers" else f", {100 * self.cost_share:.3g} % of {self.cost}"


def keep_accuracy(model: nn.Layer, data: Iterable,
                  metric: Union[str, Callable[[nn.Layer], float]], max_drop: float,
                  max_float: float = 1.0, ranking_batches: int = 4, evaluations: int = 30,
                  cost: str = "layers") -> AccuracyReport:
    """Restore layers of a quantized model to float, at the least cost that a metric needs.

    The loss of each layer is measured once by :func:`~paddleq.analysis.sensitivity` on a few
    batches, without the metric. Dynamic programming gives the layers to restore for each cost. The
    metric is evaluated for the 1st, 2nd, 4th, 8th... of these choices until it passes; bisection
    finds the cheapest one. Each of its layers is then quantized again as a trial, the one with the
    highest cost first. Finally the changed model is evaluated.

    Args:
        model: quantized model with its scales, changed in place: the layers become float in
            simulation, summary and export. The reference is the model without its quantizers. It
            may be a :class:`paddleq.SavedModel`.
        data: iterable of batches, as for :func:`paddleq.calibrate`.
        metric: function ``metric(model)`` that returns a number, larger is better. It receives the
            model in evaluation mode. Or a comparison with the float model on ``data``, for which
            no labels are needed: "error", the relative L2 distance of the outputs, or "labels",
            the share of the positions of the outputs with another largest value along the last
            axis, where that is longer than 1. They are the drop. The batches are kept in memory.
        max_drop: allowed drop from the metric of the float model, in the unit of the metric.
        max_float: share of the cost that may be restored to float, in (0, 1]. At least one layer
            stays quantized. Default 1.
        ranking_batches: number of batches for the sensitivities. Default 4.
        evaluations: number of evaluations after which no further trial is made. The search before
            the trials needs at most 3 + 2 * log2(number of choices), of which there are as many as
            layers for the cost "layers" and at most 256. Default 30.
        cost: "layers" (default), the number of layers, "macs", their multiplications, or "bytes",
            those of their weights. Of layers without weights, as ``scope="full"`` has them, as few
            as the metric needs are restored.

    Returns:
        :class:`AccuracyReport`, which is logged as well.

    Raises:
        AccuracyError: the drop was not met; the error states the best result. The model is
            unchanged, unless the metric is not deterministic.
        ModelError: a layer is quantized together with those after it and cannot be restored.
        CalibrationError, NonFiniteError, ConfigError, ConfigTypeError: see
            :func:`~paddleq.analysis.sensitivity`.

    Examples:
        >>> import paddle, paddleq
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(2, 2), paddle.nn.Linear(2, 1))
        >>> net[0].weight.set_value(paddle.to_tensor([[500.0, 0.0], [0.0, 1.0]]))
        >>> net[1].weight.set_value(paddle.to_tensor([[0.001], [1.0]]))
        >>> x = paddle.linspace(0, 1, 32).reshape([16, 2])
        >>> expected, ptq = net(x), paddleq.PTQ("AbsmaxQuantizer")
        >>> quantized = ptq.quantize(net)
        >>> _ = ptq.calibrate(quantized, [x])
        >>> def metric(model):
        ...     return -(model(x) - expected).abs().max()
        >>> report = paddleq.analysis.keep_accuracy(quantized, [x], metric, max_drop=0.05)
        >>> list(report.left_float), report.met
        (['1'], True)
    """
    return AccuracySearch(data, metric, max_drop, max_float, ranking_batches, evaluations,
                          cost).run(model)


def accuracy_search(settings: Any, data: Iterable) -> "AccuracySearch":
    """Return the search of a mapping with arguments of :func:`keep_accuracy`, ``accuracy``."""
    if not isinstance(settings, Mapping):
        raise wrong_type("accuracy", settings, "a mapping with arguments of "
                         "paddleq.analysis.keep_accuracy")
    check_arguments("accuracy", AccuracySearch, settings, ("data",))
    for name in ("metric", "max_drop"):
        if name not in settings:
            raise ConfigError(f"accuracy must have {name!r}, but has "
                              f"{', '.join(settings) or 'no key'}")
    return AccuracySearch(data, **settings)


def checked_metric(metric: Any, data: Iterable) -> Callable[[nn.Layer], float]:
    """Return ``metric``, or that of its name on ``data``, which can be iterated again."""
    if isinstance(data, Iterator):
        raise wrong_value("data", data, "an iterable that can be iterated again, such as a "
                          "list of batches or a DataLoader")
    if isinstance(metric, str):
        return FloatAgreement(check_choice("metric", metric, METRICS), data)
    check_metric("metric", metric, f"a function of the model, or one of {METRICS}")
    return cast(Callable[[nn.Layer], float], metric)


class AccuracySearch:
    """Implementation of :func:`keep_accuracy` that checks its arguments without a model."""

    def __init__(self, data: Iterable, metric: Union[str, Callable[[nn.Layer], float]],
                 max_drop: float, max_float: float = 1.0, ranking_batches: int = 4,
                 evaluations: int = 30, cost: str = "layers"):
        self.data, self.metric = data, checked_metric(metric, data)
        self.cost = check_choice("cost", cost, COSTS)
        self.max_drop = check_float("max_drop", max_drop, 0.0, float("inf"), open_high=True)
        self.max_float = check_float("max_float", max_float, 0.0, 1.0, open_low=True)
        self.ranking_batches = check_int("ranking_batches", ranking_batches, 1)
        self.evaluations = check_int("evaluations", evaluations, 1)

    def run(self, model: nn.Layer) -> AccuracyReport:
        """Search the layers to restore and restore them in ``model``."""
        check_calibrated(model)
        self.names = list(computed_layers(model))
        check_restorable(model, self.names)
        self.model, self.trials = model, []
        with separate_inputs(model):
            return self._run()

    def _run(self):
        float_metric = self._evaluate(self.names)
        quantized_metric = self._evaluate(())
        self.report = AccuracyReport(self.max_drop, float_metric, quantized_metric,
                                     quantized_metric, len(self.names), cost=self.cost,
                                     trials=self.trials)
        if not self.report.met:
            self._restore(self._search())
        _logger.info("%s", self.report)
        return self.report

    def _evaluate(self, left):
        with quantizing_only(self.model, [name for name in self.names if name not in left]):
            value = evaluate_metric(self.metric, self.model)
        self.trials.append((len(left), value))
        return value

    def _passes(self, left):
        self.report.metric = self._evaluate(left)
        return self.report.met

    def _measure(self):
        """Measure the SQNR and the cost of each layer, worst first."""
        found = sensitivity(self.model, self.data, num_batches=self.ranking_batches)
        self.sqnr = {row.name: row.sqnr for row in found.ranking() if row.sqnr is not None}
        costs = layer_costs(self.model, islice(self.data, 1), self.cost)
        self.costs = {name: costs[name] for name in self.sqnr}

    def _choices(self):
        """Return the layers to restore, worst first, for increasing costs; none at first."""
        names, total = list(self.sqnr), sum(self.costs.values())
        most = self.max_float * total
        # Layers without weights cost no bytes: restore as few of them as the metric needs.
        prices = {name: cost or total * _FREE or 1.0 for name, cost in self.costs.items()}
        noise = [10.0 ** (-self.sqnr[name] / 10.0) for name in names]
        found = ([name for name, option in zip(names, options) if option]
                 for options in cheapest_allocations([[0, prices[name]] for name in names],
                                                     [[power, 0.0] for power in noise]))
        return [left for left in found if len(left) < len(self.names)
                and sum(self.costs[name] for name in left) <= most * (1 + 1e-9)]

    def _search(self):
        self._measure()
        choices = self._choices()
        most = len(choices) - 1
        low, high = 0, min(1, most)  # low fails
        while not (high and self._passes(choices[high])):
            if high == most:
                self._raise_not_met(choices[most])
            low, high = high, min(2 * high, most)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._passes(choices[middle]) else (middle, high)
        left = choices[high]
        for name in sorted(left, key=lambda name: (-self.costs[name], -self.sqnr[name])):
            if len(self.trials) >= self.evaluations or len(left) == 1:
                break
            without = [other for other in left if other != name]
            left = without if self._passes(without) else left
        return left

    def _raise_not_met(self, left):
        report = self.report
        self._report_left(left)
        raise AccuracyError(
            f"with {len(left)} of {report.layers} layers float, as max_float allows, the metric is "
            f"{report.metric:.6g}: a drop of {report.drop:.6g} from the float model's "
            f"{report.float_metric:.6g}, where {self.max_drop:.6g} is allowed; allow a larger "
            "max_drop or max_float, calibrate on more data, or train with QAT", report)

    def _report_left(self, left):
        self.report.left_float = {name: self.sqnr[name] for name in left}
        total = sum(self.costs.values())
        self.report.costs = {name: self.costs[name] / total if total else 0.0 for name in left}
        self.report.cost_share = sum(self.report.costs.values())

    def _restore(self, left):
        report = self.report
        self._report_left(left)
        restore_float(self.model, {
            name: f"left float by quantize_with_accuracy: {sqnr:.1f} dB alone"
            for name, sqnr in report.left_float.items()})
        report.metric = evaluate_metric(self.metric, self.model)
        self.trials.append((len(left), report.metric))
        if not report.met:
            raise AccuracyError(
                f"the metric of the same model is {report.metric:.6g} now, which differs from its "
                "value during the search; make the metric deterministic, or average it over more "
                "data", report)
