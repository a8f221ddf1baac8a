"""Which layers to leave float so that a metric stays within a stated drop."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Dict, List, Tuple

from .._checks import check_float, check_int, wrong_type, wrong_value
from .._text import table
from ..engine import check_can_leave, leave_float, quantized_layers, quantizing_only
from ..errors import AccuracyError
from .check_deployable import check_simulates
from .sensitivity import ask, sensitivity

_logger = logging.getLogger("paddleq")


@dataclass
class AccuracyReport:
    """What it took to stay within a stated drop of a metric.

    Attributes:
        max_drop: the drop that was allowed.
        float_metric: of the model without quantization.
        quantized_metric: with all layers quantized.
        metric: of the model as it was left.
        layers: number of layers that were quantized at first.
        left_float: names of those that were made float again, worst first, each with the SQNR in
            dB that the model's output has when it alone is quantized.
        trials: for each question to the metric, how many layers were float, and its answer.

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
    trials: List[Tuple[int, float]] = field(default_factory=list)

    @property
    def drop(self):
        """The float model's metric less that of the model as it was left."""
        return self.float_metric - self.metric

    @property
    def met(self):
        """Whether the drop is within what was allowed."""
        return self.passes(self.metric)

    def passes(self, metric):
        """Whether the metric may be this low."""
        # 0.98 - 0.97 is a hair more than 0.01.
        hair = 1e-9 * max(abs(self.float_metric), abs(metric))
        return self.float_metric - metric <= self.max_drop + hair

    @property
    def evaluations(self):
        """How often the metric was asked."""
        return len(self.trials)

    def __str__(self):
        rows = [("", "metric", "drop"), ("float", f"{self.float_metric:.6g}", ""),
                ("all quantized", f"{self.quantized_metric:.6g}",
                 f"{self.float_metric - self.quantized_metric:.6g}"),
                (f"{len(self.left_float)} of {self.layers} layers float", f"{self.metric:.6g}",
                 f"{self.drop:.6g} ({self.max_drop:.6g} allowed)")]
        lines = [table(rows), f"the metric was asked {self.evaluations} times"]
        lines += [f"left float: {name} ({sqnr:.1f} dB alone)"
                  for name, sqnr in self.left_float.items()]
        return "\n".join(lines)


def keep_accuracy(model, loader, metric, max_drop, max_float=1.0, ranking_batches=4,
                  evaluations=30):
    """Make layers of a quantized model float again, worst first, until a metric is good enough.

    Layers are ranked by :func:`~paddleq.analysis.sensitivity` on a few batches, without asking the
    metric. It is asked with the first 1, 2, 4, 8... of the ranking float until it passes; bisection
    finds the smallest number; each of these layers is then tried quantized again, the least
    sensitive first. At last the model that was really changed is asked.

    Args:
        model: a quantized model with its scales, changed in place: the layers become float ones,
            in simulation, summary and export. What it computes without quantizers is what it is
            compared with.
        loader: an iterable of batches, as for :func:`paddleq.calibrate`.
        metric: called as ``metric(model)`` in evaluation mode; returns a number, larger is better.
        max_drop: how much less than the float model's the metric may be, in the metric's unit.
        max_float: the share of the quantized layers that may be made float, in (0, 1]. One layer
            at least stays quantized. Default 1.
        ranking_batches: number of batches for the ranking. Default 4.
        evaluations: try no more layers quantized again once the metric was asked this often (the
            search before that needs 3 + 2 * log2 of the number of layers at most). Default 30.

    Returns:
        :class:`AccuracyReport`. It is logged as well.

    Raises:
        AccuracyError: the drop was not met; says how near it came. The model is left as it was
            (unless the metric gives another number each time).
        ModelError: a layer is quantized as one with those after it, and cannot be left float.
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
    return AccuracySearch(loader, metric, max_drop, max_float, ranking_batches,
                          evaluations).run(model)


class AccuracySearch:
    """:func:`keep_accuracy`, its arguments checked before there is a model."""

    def __init__(self, loader, metric, max_drop, max_float=1.0, ranking_batches=4,
                 evaluations=30):
        if isinstance(loader, Iterator):
            raise wrong_value("loader", loader, "something that can be iterated again, such as a "
                              "list of batches or a DataLoader")
        if not callable(metric):
            raise wrong_type("metric", metric, "a function of the model")
        self.loader, self.metric = loader, metric
        self.max_drop = check_float("max_drop", max_drop, 0.0, float("inf"), open_high=True)
        self.max_float = check_float("max_float", max_float, 0.0, 1.0, open_low=True)
        self.ranking_batches = check_int("ranking_batches", ranking_batches, 1)
        self.evaluations = check_int("evaluations", evaluations, 1)

    def run(self, model):
        """Search, and change ``model``."""
        check_simulates(model)
        self.names = [name for name, _ in quantized_layers(model)]
        check_can_leave(model, self.names)
        self.model, self.trials = model, []
        float_metric = self._ask(self.names)
        everything = self._ask(())
        self.report = AccuracyReport(self.max_drop, float_metric, everything, everything,
                                     len(self.names), trials=self.trials)
        if not self.report.met:
            self._leave(self._search())
        _logger.info("%s", self.report)
        return self.report

    def _ask(self, left):
        with quantizing_only(self.model, [name for name in self.names if name not in left]):
            value = ask(self.metric, self.model)
        self.trials.append((len(left), value))
        return value

    def _passes(self, left):
        self.report.metric = self._ask(left)
        return self.report.met

    def _rank(self):
        ranking = sensitivity(self.model, self.loader, batch_num=self.ranking_batches).ranking()
        self.sqnr = {row.name: row.sqnr for row in ranking}
        return list(self.sqnr)

    def _search(self):
        worst = self._rank()
        most = min(int(self.max_float * len(self.names)), len(self.names) - 1, len(worst))
        low, high = 0, min(1, most)  # low fails
        while not (high and self._passes(worst[:high])):
            if high == most:
                self._fail(worst[:most])
            low, high = high, min(2 * high, most)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._passes(worst[:middle]) else (middle, high)
        left = worst[:high]
        for name in left[-2::-1]:  # without the last one it fails
            if len(self.trials) >= self.evaluations:
                break
            without = [other for other in left if other != name]
            left = without if self._passes(without) else left
        return left

    def _fail(self, left):
        report = self.report
        report.left_float = {name: self.sqnr[name] for name in left}
        drop = (f"a drop of {report.drop:.6g} from the float model's {report.float_metric:.6g}, "
                f"where {self.max_drop:.6g} is allowed")
        raise AccuracyError(
            f"with {len(left)} of {report.layers} layers float, as many as may be, the metric is "
            f"{report.metric:.6g}: {drop}; allow a larger max_drop or max_float, calibrate on "
            "more data, or train with QAT", report)

    def _leave(self, left):
        report = self.report
        report.left_float = {name: self.sqnr[name] for name in left}
        leave_float(self.model, {
            name: f"left float by quantize_with_accuracy: {sqnr:.1f} dB alone"
            for name, sqnr in report.left_float.items()})
        report.metric = ask(self.metric, self.model)
        self.trials.append((len(left), report.metric))
        if not report.met:
            raise AccuracyError(
                f"the metric said another number for the same model, {report.metric:.6g}, than "
                "during the search; make it deterministic, or average it over more data", report)
