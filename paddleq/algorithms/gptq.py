"""GPTQ (arXiv:2210.17323): compensate the rounding errors of weight rows in the following rows."""

import logging
from dataclasses import dataclass

import paddle

from .._checks import check_bool, check_float, check_int, wrong_value
from .._paddle_compat import scalar
from ..errors import CalibrationError
from ..functional import WeightQParams, compute_weight_qparams
from ..functional.fake_quant import round_and_clip_
from ..functional.float_formats import to_storage
from ..functional.weight_qparams import group_size
from ..observers import ChannelStats
from ..spec import PerGroup
from .base import (
    QuantizedWeight,
    Rounder,
    checked_statistics,
    checked_weight,
    register_algorithm,
)

_logger = logging.getLogger("paddleq")

_MAX_DAMPING = 1e4  # a damping of 1 suffices in float32 for a positive semidefinite matrix
# Each rounded row updates the rest of its block. Block sizes of 4 to 128 rows take about the same
# time (128 is 10 % slower), so larger blocks bring nothing.
_MAX_BLOCK_SIZE = 16


@register_algorithm("gptq")
@dataclass(frozen=True)
class GPTQ(Rounder):
    """Round a weight row by row and add the error of each row to the rows that follow.

    A row [N] belongs to one input feature. The quantization parameters are computed from the
    weight. Those of a group of rows are computed when the group is reached, from the compensated
    rows. The integers do not depend on the block size, except for values at a rounding tie.
    Features that are always 0 in the calibration data are rounded to nearest.

    Args:
        block_size: maximum number of rows that are rounded one by one before a matrix product
            applies their errors to the following rows. It affects the speed only; sizes above 16
            are equivalent to 16. Default 128, as in the paper.
        damping: added to the diagonal of the Hessian, in units of its mean, in (0, 1]. Default
            0.01. If the decomposition fails, it is multiplied by 10, with a warning.
        act_order: quantize the rows with the largest inputs first. Groups then consist of
            consecutive rows in this order, which is the ``permutation`` of the result.
            Default False.
        static_groups: compute the quantization parameters of all groups in advance, from the
            original weight, so that ``act_order`` needs no permutation. Default False.

    Raises:
        ConfigError, ConfigTypeError: an argument is out of range or of the wrong type.

    Examples:
        >>> import paddle
        >>> from paddleq import PerChannel, QuantSpec
        >>> from paddleq.algorithms import GPTQ, RoundToNearest
        >>> from paddleq.observers import ChannelStats
        >>> x = paddle.randn([256, 1]) + 0.2 * paddle.randn([256, 32])  # features are correlated
        >>> stats = ChannelStats(GPTQ.needs)
        >>> stats.update(x)
        >>> weight, spec = paddle.randn([32, 8]), QuantSpec(bits=3, granularity=PerChannel(1))
        >>> def error(rounder):
        ...     quantized = rounder.quantize(weight, spec, stats)
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
    tokens_per_feature = 4  # worse than rounding with 4096 input vectors of 1536 features

    def __post_init__(self):
        check_int("block_size", self.block_size, 1)
        check_float("damping", self.damping, 0.0, 1.0, open_low=True)
        check_bool("act_order", self.act_order)
        check_bool("static_groups", self.static_groups)

    def quantize_all(self, weights, spec, stats: ChannelStats, clips=None):
        weights = [checked_weight(weight, spec) for weight in weights]
        clips = clips or [None] * len(weights)
        regrouped = not self.accepts_clips(spec)
        if regrouped and any(clip is not None for clip in clips):
            raise wrong_value("clip", "a factor of each group", "None if act_order changes the "
                              "groups; static_groups=True keeps them")
        hessian = checked_statistics(stats.hessian, weights[0], "the Hessian")
        quantized = []
        with paddle.no_grad():
            order = inverse = None
            if self.act_order:
                order = paddle.argsort(paddle.diagonal(hessian), descending=True)
                inverse = None if regrouped else paddle.argsort(order)
            feedback = feedback_matrix(hessian, self.damping, order)
            for weight, clip in zip(weights, clips):
                integers, qparams = self._round(weight, spec, feedback, order, clip)
                if inverse is not None:
                    # index_select does not support int8.
                    integers = integers.astype("float32").index_select(inverse).astype(spec.storage)
                quantized.append(QuantizedWeight(integers, qparams, order if regrouped else None))
        return quantized

    def accepts_clips(self, spec):
        return not (self.act_order and self._has_dynamic_groups(spec))

    def _has_dynamic_groups(self, spec):
        """Return True if the parameters of a group are computed when the group is reached."""
        return isinstance(spec.granularity, PerGroup) and not self.static_groups

    def _round(self, weight, spec, feedback, order, clip):
        """Return (integers with rows in the order of quantization, qparams) of one weight."""
        rows = weight.shape[0]
        size = group_size(spec, rows)
        found = []

        def group_qparams(start, best):
            part = None if clip is None else _clip_of_group(clip, start // size, -(-rows // size))
            found.append(compute_weight_qparams(best, spec, part))
            return _per_group(found[-1]) * best.shape[0]

        def known_qparams(start, best):
            qparams = _per_group(found[0])
            return [qparams[row // size] for row in (order.tolist() if self.act_order
                                                   else range(rows))]

        if not self._has_dynamic_groups(spec):
            found.append(compute_weight_qparams(weight, spec, clip))
        if order is not None:
            weight = weight.index_select(order)
        if self._has_dynamic_groups(spec):
            run = _RowByRow(weight, feedback, spec, size, group_qparams, self.block_size)
        else:
            run = _RowByRow(weight, feedback, spec, rows, known_qparams, self.block_size)
        return run.integers(), _concat(found)


def _clip_of_group(clip, group, groups):
    """Select the clipping ratio of one group."""
    shape = getattr(clip, "shape", [])
    return clip[group:group + 1] if len(shape) == 2 and shape[0] == groups else clip


def _per_group(qparams):
    """Return (scale, zero point or None) of each group, [N] or [1]."""
    scales = qparams.scale.unbind(0)
    zeros = [None] * len(scales) if qparams.zero_point is None else qparams.zero_point.unbind(0)
    return list(zip(scales, zeros))


def _concat(groups):
    """Concatenate the quantization parameters of groups."""
    if len(groups) == 1:
        return groups[0]
    zeros = [group.zero_point for group in groups]
    return WeightQParams(groups[0].spec, paddle.concat([group.scale for group in groups]),
                         None if zeros[0] is None else paddle.concat(zeros))


class _RowByRow:
    """Rounding of the rows of a weight [K, N] with error feedback. The weight is unchanged.

    The rows are halved recursively: the upper half is rounded, one matrix product applies its
    errors to the lower half, and the same is done within each half. Almost all of the work is then
    done in large products, and single rows update only a few rows.

    ``group_qparams`` is called when a group of ``size`` rows is reached, with the number of its
    first row and the optimal real values of its rows, given the rounding of all previous rows. It
    returns (scale, zero point or None) for each row, float32 [1] or [N].
    """

    def __init__(self, weight, feedback, spec, size, group_qparams, block_size):
        self.weight, self.feedback, self.spec = weight, feedback, spec
        self.size, self.group_qparams = size, group_qparams
        self.block_size = min(block_size, _MAX_BLOCK_SIZE)
        self._errors = paddle.zeros_like(weight)
        self._qparams = []
        self._integers = []

    def integers(self):
        """Round all rows and return them in the storage dtype of the spec."""
        self._round(0, self.weight.shape[0], self.weight)
        return paddle.concat(self._integers)

    def _round(self, start, stop, target):
        """Round these rows. ``target`` holds them with the errors of all previous rows added."""
        rows = stop - start
        if rows <= self.size and len(self._qparams) == start:
            self._qparams += self.group_qparams(start, self._optimal_rows(start, stop, target))
        if rows <= self.block_size and rows <= self.size:
            self._round_block(start, target)
            return
        # Split between groups as long as there are several.
        unit = self.size if rows > self.size else self.block_size
        half = -(-rows // unit) // 2 * unit
        self._round(start, start + half, target[:half])
        errors = paddle.matmul(self.feedback[start + half:stop, start:start + half],
                               self._errors[start:start + half])
        self._round(start + half, stop, target[half:] + errors)

    def _optimal_rows(self, start, stop, target):
        """Return the optimal real values of these rows, given the previous rounded ones.

        ``target`` is optimal for the first row. The other rows are optimal given the real values,
        not the rounded values, of the rows of this block.
        """
        if not start:
            return target
        weight = self.weight[start:stop]
        # With e = weight - optimum and optimum = target + within @ e:
        # (1 + within) @ e = weight - target.
        within = self.feedback[start:stop, start:stop]
        return weight - paddle.linalg.triangular_solve(within, weight - target, upper=False,
                                                       unitriangular=True)

    def _round_block(self, start, target):
        stop = start + target.shape[0]
        # The entries of a column for rows already rounded are zero, so that no slices are needed.
        columns = self.feedback[start:stop, start:stop].unsqueeze(2).unbind(1)
        rows, rounded, errors = self.weight[start:stop].unbind(0), [], []
        for i, (scale, zero) in enumerate(self._qparams[start:stop]):
            if i:
                target = paddle.addmm(target, columns[i - 1], errors[-1].unsqueeze(0))
            q = round_and_clip_(target[i] / scale, self.spec, 0 if zero is None else zero)
            errors.append(rows[i] - q * scale)
            rounded.append(q if zero is None else q + zero)
        self._errors[start:stop] = paddle.stack(errors)
        self._integers.append(to_storage(paddle.stack(rounded), self.spec))


def feedback_matrix(hessian, damping, order=None):
    """Compute the strictly lower triangular error feedback matrix F [K, K] of GPTQ.

    Rows are quantized one after the other, in ``order``, which also is the order of the rows and
    columns of F. Row j is rounded not at w[j] but at

        t[j] = w[j] + sum over k < j of F[j, k] * (w[k] - q[k]),

    the value that minimizes the error of x @ W given the previous rows, if the following rows are
    not rounded. With H = (I + F)^T D (I + F), D diagonal, that error is the sum of
    D[j] * (t[j] - q[j]) ** 2. t[j] is row j of the updated weights of GPTQ (arXiv:2210.17323,
    arXiv:2307.13304, theorem 6). This takes one Cholesky decomposition; H is not inverted.
    """
    # Reversed: a Cholesky decomposition starts with the first row, this one with the last.
    if order is None:
        hessian = hessian.flip([0, 1])
    else:
        reverse = order.flip([0])
        # For columns gather() is three times as fast as index_select(), for rows half as fast.
        hessian = paddle.gather(hessian.index_select(reverse), reverse, axis=1)
    diagonal = paddle.diagonal(hessian).clone()
    mean = diagonal.sum() / (diagonal > 0.0).astype("float32").sum().clip(min=1.0)
    # Features that are always 0 take no part in the feedback.
    dead = diagonal <= 0.0
    diagonal = paddle.where(dead, paddle.ones_like(diagonal), diagonal / mean)
    if scalar(mean) > 0.0:
        hessian.divide_(mean)
    factor = _damped_cholesky(hessian, diagonal, damping)
    del hessian
    factor.divide_(paddle.diagonal(factor).clone().unsqueeze(1))
    return factor.flip([0, 1]).fill_diagonal_(0.0)


def _damped_cholesky(matrix, diagonal, damping):
    while damping < _MAX_DAMPING:
        factor = _cholesky(matrix.fill_diagonal_tensor_(diagonal + damping))
        if factor is not None:
            return factor
        _logger.warning("the Hessian is not positive definite with a damping of %g of its mean "
                     "diagonal; trying %g", damping, 10.0 * damping)
        damping = 10.0 * damping
    raise CalibrationError("the Hessian of the calibration data cannot be decomposed with any "
                           "damping: it holds NaN, infinity or negative eigenvalues")


def _cholesky(matrix):
    """Return the upper factor, or None if it fails. Paddle raises or returns NaN, by device."""
    try:
        factor = paddle.linalg.cholesky(matrix, upper=True)
    except (ValueError, RuntimeError):
        return None
    return factor if bool(paddle.isfinite(paddle.diagonal(factor)).all()) else None
