"""Choice of one option for each layer: the least cost for each total degradation."""

from typing import List, Sequence, Tuple

import numpy as np

_UNITS = 4096  # of the range of costs
_POINTS = 256


def cheapest_allocations(costs: Sequence[Sequence[float]], degradations: Sequence[Sequence[float]]
                         ) -> List[Tuple[int, ...]]:
    """Return allocations in the order of their costs, each with the least degradation for its cost.

    This is the multiple-choice knapsack problem, solved by dynamic programming over the cost. The
    degradations of the layers are taken to be additive, as the power of independent noise is.

    Args:
        costs: costs of the options of each layer, at least 0. Costs that are no whole numbers, or
            large ones, are rounded up to 1/4096 of the range of the total.
        degradations: degradations of the same options.

    Returns:
        Indices of the options, one for each layer, of at most 256 allocations whose degradations
        strictly decrease. The first is the cheapest one.

    Examples:
        >>> from paddleq.analysis.allocation import cheapest_allocations
        >>> # Quantized or float, which costs 4 and 1.
        >>> cheapest_allocations([[0, 4], [0, 1]], [[6, 0], [1, 0]])
        [(0, 0), (0, 1), (1, 0), (1, 1)]
    """
    steps = _whole_steps(costs)
    budget = sum(max(row) for row in steps)
    best, chosen = np.zeros(budget + 1), []
    for row, losses in zip(steps, degradations):
        options = np.full([len(row), budget + 1], np.inf)
        for option, (step, loss) in enumerate(zip(row, losses)):
            options[option, step:] = best[:budget + 1 - step] + loss
        chosen.append(options.argmin(0))
        best = options.min(0)
    found = np.append(0, np.flatnonzero(best[1:] < best[:-1]) + 1)
    if len(found) > _POINTS:
        found = found[np.unique(np.linspace(0, len(found) - 1, _POINTS).round().astype(int))]
    return [_options_of(chosen, steps, point) for point in found]


def _whole_steps(costs):
    """Return the costs less the least of each layer, as whole numbers of at most _UNITS in all."""
    extra = [[cost - min(row) for cost in row] for row in costs]
    total = sum(max(row) for row in extra)
    if total <= _UNITS and all(float(cost).is_integer() for row in extra for cost in row):
        return [[int(cost) for cost in row] for row in extra]
    return [[int(np.ceil(cost / total * _UNITS)) for cost in row] for row in extra]


def _options_of(chosen, steps, point):
    options = []
    for choice, row in zip(reversed(chosen), reversed(steps)):
        options.append(int(choice[point]))
        point -= row[options[-1]]
    return tuple(reversed(options))
