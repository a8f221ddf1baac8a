"""GPTQ (arXiv:2210.17323): what a row of the weight loses by rounding, later rows make up for."""

from dataclasses import dataclass

import paddle

from .._checks import check_bool, check_float, check_int, wrong_value
from ..functional import WeightQParams, compute_weight_qparams
from ..functional.weight_qparams import group_size
from ..spec import PerGroup
from .base import QuantizedWeight, Rounder, checked_statistics, checked_weight, register_algorithm
from .error_feedback import feedback_matrix
from .gptq_rows import RowByRow


@register_algorithm("gptq")
@dataclass(frozen=True)
class GPTQ(Rounder):
    """Rounds row after row; each is moved first by what the errors of the earlier ones call for.

    A row [N] belongs to one input feature. The grid is found from the weight, that of a group of
    rows when its turn comes, from the rows as they have been moved by then. The same integers
    come out whatever the block size, but for values that lie on a border of rounding. Features
    that were always 0 during calibration are rounded to nearest.

    Args:
        block_size: how many rows at most are rounded one by one before a matrix product passes on
            what they leave. It matters for the speed only, and above 16 not even for that: halves
            within halves are faster than the paper's blocks. Default 128, as there.
        damping: added to the Hessian's diagonal, in units of its mean, above 0 and at most 1.
            Default 0.01. If the Hessian cannot be decomposed it is raised tenfold, with a warning.
        act_order: quantize the rows with the largest inputs first. Groups are then made of
            consecutive rows of this order, which becomes the ``permutation`` of the result.
            Default False.
        static_groups: find the grids of all groups first, from the weight as it was, so that
            ``act_order`` needs no permutation. Default False.

    Raises:
        ConfigError, ConfigTypeError: an argument is out of range or of the wrong type.

    Examples:
        >>> import paddle
        >>> from paddleq import PerChannel, QuantSpec
        >>> from paddleq.algorithms import GPTQ, RoundToNearest, Statistics
        >>> x = paddle.randn([256, 1]) + 0.2 * paddle.randn([256, 32])  # features are correlated
        >>> statistics = Statistics(GPTQ.needs)
        >>> statistics.update(x)
        >>> weight, spec = paddle.randn([32, 8]), QuantSpec(bits=3, granularity=PerChannel(1))
        >>> def error(rounder):
        ...     quantized = rounder.quantize(weight, spec, statistics)
        ...     return (x @ (quantized.dequantize() - weight)).norm().item()
        >>> error(GPTQ()) < 0.5 * error(RoundToNearest())
        True
    """

    block_size: int = 128
    damping: float = 0.01
    act_order: bool = False
    static_groups: bool = False

    name = "GPTQ"
    needs = frozenset({"hessian"})

    def __post_init__(self):
        check_int("block_size", self.block_size, 1)
        check_float("damping", self.damping, 0.0, 1.0, open_low=True)
        check_bool("act_order", self.act_order)
        check_bool("static_groups", self.static_groups)

    def quantize_all(self, weights, spec, stats, clips=None):
        weights = [checked_weight(weight, spec) for weight in weights]
        clips = clips or [None] * len(weights)
        regrouped = not self.takes_clips(spec)
        if regrouped and any(clip is not None for clip in clips):
            raise wrong_value("clip", "a factor of each group", "None where act_order forms new "
                              "groups; static_groups=True keeps them")
        hessian = checked_statistics(stats.hessian, weights[0], "the Hessian")
        quantized = []
        with paddle.no_grad():
            order = back = None
            if self.act_order:
                order = paddle.argsort(paddle.diagonal(hessian), descending=True)
                back = None if regrouped else paddle.argsort(order)
            feedback = feedback_matrix(hessian, self.damping, order)
            for weight, clip in zip(weights, clips):
                integers, grid = self._rounded(weight, spec, feedback, order, clip)
                if back is not None:
                    # (Paddle selects no rows of int8.)
                    integers = integers.astype("float32").index_select(back).astype(spec.storage)
                quantized.append(QuantizedWeight(integers, grid, order if regrouped else None))
        return quantized

    def takes_clips(self, spec):
        return not (self.act_order and self._groups_move(spec))

    def _groups_move(self, spec):
        """Whether the grid of a group is found when its turn comes."""
        return isinstance(spec.granularity, PerGroup) and not self.static_groups

    def _rounded(self, weight, spec, feedback, order, clip):
        """(integers, their rows in the order of quantization, and grid) of one weight."""
        rows = weight.shape[0]
        size = group_size(spec, rows)
        grids = []

        def find_grid(start, best):
            part = None if clip is None else _part_of(clip, start // size, -(-rows // size))
            grids.append(compute_weight_qparams(best, spec, part))
            return _steps_of(grids[-1]) * best.shape[0]

        def known_grid(start, best):
            steps = _steps_of(grids[0])
            return [steps[row // size] for row in (order.tolist() if self.act_order
                                                   else range(rows))]

        if not self._groups_move(spec):
            grids.append(compute_weight_qparams(weight, spec, clip))
        if order is not None:
            weight = weight.index_select(order)
        if self._groups_move(spec):
            run = RowByRow(weight, feedback, spec, size, find_grid, self.block_size)
        else:
            run = RowByRow(weight, feedback, spec, rows, known_grid, self.block_size)
        return run.integers(), _joined(grids)


def _part_of(clip, group, groups):
    """The factor of one group, of a factor that broadcasts to all groups."""
    shape = getattr(clip, "shape", [])
    return clip[group:group + 1] if len(shape) == 2 and shape[0] == groups else clip


def _steps_of(grid):
    """(scale, zero point or None) of each group, [N] or [1]."""
    scales = grid.scale.unbind(0)
    zeros = [None] * len(scales) if grid.zero_point is None else grid.zero_point.unbind(0)
    return list(zip(scales, zeros))


def _joined(grids):
    """The grid of all groups, of the grids of each."""
    if len(grids) == 1:
        return grids[0]
    zeros = [grid.zero_point for grid in grids]
    return WeightQParams(grids[0].spec, paddle.concat([grid.scale for grid in grids]),
                None if zeros[0] is None else paddle.concat(zeros))
