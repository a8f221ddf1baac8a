"""Mixed bits: the number of bits of each layer, at the least cost that a metric needs."""

import logging
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Tuple, Union

from paddle import nn

from .._checks import check_choice, check_float, check_int, wrong_type, wrong_value
from .._layer_state import read_state
from ..engine import quantizing_only
from ..errors import AccuracyError, ConfigError
from ..graph.calls import patched_forwards
from .accuracy import checked_metric
from .allocation import cheapest_allocations
from .layer_costs import layer_costs
from .layer_results import check_calibrated, computed_layers
from .sensitivity import evaluate_metric, sensitivity

_logger = logging.getLogger("paddleq")
_FLOAT_BITS = 32
BIT_COSTS = ("bytes", "bit_operations")
Choice = Optional[Tuple[int, int]]  # bits of the weights and of the activations, None for float


@dataclass
class BitsReport:
    """Result of :meth:`paddleq.PTQ.quantize_with_bits`.

    Attributes:
        metric, float_metric: metric of the resulting and of the float model.
        cost: "bytes" or "bit_operations".
        cost_share: cost of the resulting model over that of the float model.
        layers: (bits of the weights, bits of the activations) by name of the layer, None for float.
        trials: (share of the cost, metric) of each evaluation.

    Examples:
        >>> from paddleq.analysis import BitsReport
        >>> report = BitsReport(-0.01, 0.0, "bytes", 0.2, {"conv": (8, 8), "fc": (4, 8)})
        >>> print(report)
        metric: -0.01, of the float model 0
        bytes: 20 % of the float model's
        8-bit weights, 8-bit activations: 1 layer
        4-bit weights, 8-bit activations: 1 layer
    """

    metric: float
    float_metric: float
    cost: str
    cost_share: float
    layers: Dict[str, Choice]
    trials: List[Tuple[float, float]] = field(default_factory=list)

    @property
    def drop(self) -> float:
        """Metric of the float model minus that of the resulting model."""
        return self.float_metric - self.metric

    def __str__(self):
        counts: Dict[Choice, int] = {}
        for choice in self.layers.values():
            counts[choice] = counts.get(choice, 0) + 1
        return "\n".join([
            f"metric: {self.metric:.6g}, of the float model {self.float_metric:.6g}",
            f"{self.cost}: {100 * self.cost_share:.3g} % of the float model's",
            *(f"{_named(choice)}: {count} layer{'s' * (count > 1)}"
              for choice, count in sorted(counts.items(), key=lambda each: each[0] or (99, 99),
                                          reverse=True))])


def _named(choice):
    if choice is None:
        return "float"
    return f"{choice[0]}-bit weights, {choice[1]}-bit activations"


def check_choices(choices: Any) -> List[Choice]:
    """Return ``choices``, pairs of bits or None, without duplicates."""
    if not isinstance(choices, (list, tuple)):
        raise wrong_type("choices", choices, "a list of (weight bits, activation bits) and None")
    found: List[Choice] = []
    for number, choice in enumerate(choices):
        name = f"choices[{number}]"
        if choice is not None:
            if not (isinstance(choice, (list, tuple)) and len(choice) == 2):
                raise wrong_type(name, choice, "(weight bits, activation bits), or None for float")
            choice = (check_int(name, choice[0], 2, 16), check_int(name, choice[1], 2, 16))
        if choice not in found:
            found.append(choice)
    if not [choice for choice in found if choice is not None]:
        raise wrong_value("choices", choices, "at least one (weight bits, activation bits)")
    return found


class BitSearch:
    """Search of the bits of each layer; the arguments are those of ``PTQ.quantize_with_bits``."""

    def __init__(self, data: Iterable, metric: Union[str, Callable[[nn.Layer], float]] = "error",
                 max_drop: Optional[float] = None, max_cost: Optional[float] = None,
                 cost: str = "bytes", ranking_batches: int = 4, evaluations: int = 30):
        if (max_drop is None) == (max_cost is None):
            raise ConfigError("quantize_with_bits needs either max_drop or max_cost, but has "
                              f"{'none' if max_drop is None else 'both'} of them")
        self.data, self.metric = data, checked_metric(metric, data)
        self.max_drop = None if max_drop is None else check_float(
            "max_drop", max_drop, 0.0, float("inf"), open_high=True)
        self.max_cost = None if max_cost is None else check_float(
            "max_cost", max_cost, 0.0, 1.0, open_low=True)
        self.cost = check_choice("cost", cost, BIT_COSTS)
        self.ranking_batches = check_int("ranking_batches", ranking_batches, 1)
        self.evaluations = check_int("evaluations", evaluations, 1)

    def run(self, models: Mapping[Choice, nn.Layer], with_float: bool) -> BitsReport:
        """Return the bits of each layer.

        Args:
            models: calibrated models that differ only in their bits, by their bits.
            with_float: layers may be float as well.
        """
        for model in models.values():
            check_calibrated(model)
        self.base = next(iter(models.values()))
        self.layers = {choice: computed_layers(model) for choice, model in models.items()}
        self.names = list(next(iter(self.layers.values())))
        self.choices: List[Choice] = [*models, *([None] if with_float else [])]
        self.trials: List[Tuple[float, float]] = []
        self.values: Dict[Tuple[int, ...], float] = {}  # metric by the numbers of the choices
        with quantizing_only(self.base, ()):
            self.float_metric = evaluate_metric(self.metric, self.base)
        self.costs = self._costs()
        found = [options for options in cheapest_allocations(self.costs, self._noise(models))
                 if any(self.choices[i] is not None for i in options)]
        options = self._cheapest_that_passes(found) if self.max_cost is None else (
            self._best_within(found, self.max_cost))
        report = BitsReport(self.values[options], self.float_metric, self.cost,
                            self._share(options), self._by_name(options), self.trials)
        _logger.info("%s", report)
        return report

    def _costs(self):
        """Return the costs of all choices of each layer."""
        kind = "bytes" if self.cost == "bytes" else "macs"
        amounts = layer_costs(self.base, islice(self.data, 1), kind)

        def bits(choice, name):
            weight, activation = choice or (_FLOAT_BITS, _FLOAT_BITS)
            if self.cost == "bytes":
                return weight / _FLOAT_BITS
            weighted = read_state(self.layers[self.choices[0]][name]).kind.weights
            return (weight if weighted else activation) * activation

        self.float_cost = sum(amount * bits(None, name) for name, amount in amounts.items()
                              if name in self.names)
        if not self.float_cost:
            raise wrong_value("cost", self.cost, "'bit_operations' for a model whose quantized "
                              "layers have no weights")
        return [[amounts[name] * bits(choice, name) for choice in self.choices]
                for name in self.names]

    def _noise(self, models):
        """Return the noise power of the output for all choices of each layer."""
        found = []
        for model in models.values():
            rows = {row.name: row.sqnr for row in
                    sensitivity(model, self.data, num_batches=self.ranking_batches)}
            found.append([0.0 if rows[name] is None else 10.0 ** (-rows[name] / 10.0)
                          for name in self.names])
        if None in self.choices:
            found.append([0.0] * len(self.names))
        return [list(row) for row in zip(*found)]

    def _by_name(self, options):
        return {name: self.choices[i] for name, i in zip(self.names, options)}

    def _share(self, options):
        return sum(row[i] for row, i in zip(self.costs, options)) / self.float_cost

    @contextmanager
    def _mixed(self, options) -> Iterator[None]:
        """While open, each layer of the base model is computed with its bits."""
        chosen = self._by_name(options)

        def forward(name, original, *args, **kwargs):
            layer = self.layers[chosen[name]][name] if chosen[name] is not None else None
            if layer is None or layer is base[name]:
                return original(*args, **kwargs)
            return layer(*args, **kwargs)

        base = next(iter(self.layers.values()))
        kept = [name for name, choice in chosen.items() if choice is not None]
        with quantizing_only(self.base, kept), patched_forwards(base, forward):
            yield

    def _drop(self, options):
        with self._mixed(options):
            value = evaluate_metric(self.metric, self.base)
        self.trials.append((self._share(options), value))
        self.values[options] = value
        return self.float_metric - value

    def _passes(self, options):
        drop = self._drop(options)
        return self.max_drop is not None and drop <= self.max_drop + 1e-9 * abs(self.float_metric)

    def _best_within(self, found, max_cost):
        fitting = [options for options in found if self._share(options) <= max_cost]
        if not fitting:
            raise wrong_value("max_cost", max_cost,
                              f"at least {self._share(found[0]):.4g}, the share of the smallest "
                              "choices")
        self._drop(fitting[-1])
        return fitting[-1]

    def _cheapest_that_passes(self, found):
        low, high = -1, len(found) - 1
        if not self._passes(found[high]):
            raise AccuracyError(
                f"with the most precise choices the drop is "
                f"{self.float_metric - self.trials[-1][1]:.6g}, where {self.max_drop:.6g} is "
                "allowed; allow a larger max_drop, or add choices with more bits, or None for "
                "float, which all layers but one may be", None)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._passes(found[middle]) else (middle, high)
        return self._cheaper(found[high])

    def _cheaper(self, options):
        """Return ``options`` with the next cheaper choice of each layer where that passes."""
        best = options

        def saving(number):
            row = self.costs[number]
            return row[best[number]] - max((cost for cost in row if cost < row[best[number]]),
                                           default=row[best[number]])

        for number in sorted(range(len(best)), key=saving, reverse=True):
            if len(self.trials) >= self.evaluations or not saving(number):
                break
            row = self.costs[number]
            cheaper = max((i for i in range(len(row)) if row[i] < row[best[number]]),
                          key=row.__getitem__)
            trial = (*best[:number], cheaper, *best[number + 1:])
            best = trial if self._passes(trial) else best
        return best
