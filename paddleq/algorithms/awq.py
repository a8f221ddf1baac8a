"""AWQ (arXiv:2306.00978): scale up the weight rows of features with large activations."""

from dataclasses import dataclass
from typing import Optional, Tuple

import paddle
import paddle.nn.functional as F

from .._checks import check_bool, check_float, check_int, wrong_type
from .._paddle_compat import scalar
from ..errors import NonFiniteError
from ..functional import compute_weight_qparams
from ..functional.weight_qparams import group_rows, group_size
from ..spec import PerTensor
from .base import Smoother, checked_statistics, checked_weight, register_algorithm

_MIN_MAGNITUDE = 1e-4  # lower bound for features that are almost always 0, relative to the mean


@register_algorithm("awq")
@dataclass(frozen=True)
class AWQ(Smoother):
    """Search for a smoothing factor s per input feature and for clipping ratios.

    s = mean|x| ** ratio, for ``grids_num`` ratios 0, 1 / grids_num, ...; the layer computes
    (x / s) @ (W * s). Ratio 0 is rounding to nearest: s is 1. The search minimizes the squared
    error of x @ W, computed from the Hessian H of the input: the sum of (H @ d) * d, where d is the
    change of the weights. The clipping ratio of a group minimizes the error of its rows.

    Args:
        grids_num: number of ratios, and number of steps between clipping ratios 0 and 1. Default
            20.
        clip: search for clipping ratios between 0.5 and 1 for each group. Default True.
        ratios: tuple of the ratios to try, each in [0, 1]. Default None: those above.
        clip_factors: tuple of the clipping ratios to try, each in (0, 1]. Default None: those
            above.
        duo_scaling: use s = mean|x| ** ratio / w ** (1 - ratio), where w is the mean of the
            weights' magnitudes of a feature, each relative to the largest weight with the same
            scale. The factor 1 is tried as well. Default False.

    Raises:
        ConfigError, ConfigTypeError: an argument is out of range or of the wrong type.

    Examples:
        >>> import paddle
        >>> from paddleq import PerChannel, QuantSpec
        >>> from paddleq.algorithms import AWQ
        >>> from paddleq.observers import ChannelStats
        >>> x = paddle.randn([64, 8]) * paddle.to_tensor([30.0] + [1.0] * 7)
        >>> stats, spec = ChannelStats(AWQ.needs), QuantSpec(4, granularity=PerChannel(1))
        >>> stats.update(x)
        >>> s = AWQ().scales([paddle.randn([8, 16])], stats, spec)
        >>> bool(s[0] > 2 * s[1:].max())
        True
    """

    grids_num: int = 20
    clip: bool = True
    ratios: Optional[Tuple[float, ...]] = None
    clip_factors: Optional[Tuple[float, ...]] = None
    duo_scaling: bool = False

    name = "AWQ"
    needs = frozenset({"mean_abs", "hessian"})

    def __post_init__(self):
        check_int("grids_num", self.grids_num, 1)
        check_bool("clip", self.clip)
        check_bool("duo_scaling", self.duo_scaling)
        for name, above_zero in (("ratios", False), ("clip_factors", True)):
            if getattr(self, name) is not None:
                _check_ratios(name, getattr(self, name), above_zero)

    def scales(self, weights, stats, spec):
        weights = [checked_weight(weight, spec) for weight in weights]
        hessian = checked_statistics(stats.hessian, weights[0], "the Hessian")
        with paddle.no_grad():
            hessian = hessian / paddle.diagonal(hessian).max().clip(min=1e-30)  # no overflow
            magnitude = stats.mean_abs
            magnitude = (magnitude / magnitude.mean().clip(min=1e-30)).clip(min=_MIN_MAGNITUDE)
            best, least = None, float("inf")
            for s in self._candidates(magnitude, weights, spec):
                column = s.unsqueeze(1)
                loss = 0.0
                for weight in weights:
                    change = _round_to_nearest(weight * column, spec).divide_(
                        column.expand(weight.shape)).subtract_(weight)
                    loss += scalar(paddle.matmul(hessian, change).multiply_(change).sum())
                if loss < least:
                    best, least = s, loss
        if best is None:
            raise NonFiniteError(
                f"the error of no smoothing factor is finite in float32: inputs have magnitudes "
                f"up to {scalar(stats.mean_abs.max()):.3g} and weights up to "
                f"{max(scalar(weight.abs().max()) for weight in weights):.3g}; leave the layer "
                "float, or use another algorithm")
        return best

    def _candidates(self, magnitude, weights, spec):
        """Yield the smoothing factors to try."""
        ratios = self.ratios
        if ratios is None:
            ratios = [i / self.grids_num for i in range(self.grids_num)]
        shares = _relative_magnitudes(weights, spec) if self.duo_scaling else None
        if shares is not None:
            yield paddle.ones_like(magnitude)
        for ratio in ratios:
            s = magnitude ** ratio
            if shares is not None:
                s = s / shares ** (1.0 - ratio)
            yield s / (s.max() * s.min()).sqrt()

    def _clip_factors(self):
        if self.clip_factors is not None:
            return self.clip_factors
        return [1.0 - i / self.grids_num for i in range(max(1, self.grids_num // 2))]

    def clips(self, weight, stats, spec):
        if not self.clip:
            return None
        weight = checked_weight(weight, spec)
        hessian = checked_statistics(stats.hessian, weight, "the Hessian")
        with paddle.no_grad():
            blocks = _diagonal_blocks(hessian, group_size(spec, weight.shape[0]))
            best = least = None
            whole = isinstance(spec.granularity, PerTensor)
            for factor in self._clip_factors():
                change = group_rows(_round_to_nearest(weight, spec, factor).subtract_(weight), spec)
                loss = paddle.matmul(blocks, change).multiply_(change).sum(axis=1)
                if whole:
                    loss = loss.sum().reshape([1, 1])
                factors = paddle.full_like(loss, factor)
                if best is None or least is None:
                    best, least = factors, loss
                else:
                    best = paddle.where(loss < least, factors, best)
                    least = paddle.minimum(loss, least)
        return best


def _relative_magnitudes(weights, spec):
    """Compute the mean of |w| / max|w| over all output features; max is that of one scale."""
    axes = [0, 1, 2] if isinstance(spec.granularity, PerTensor) else [1]
    sums, columns = [], 0
    for weight in weights:
        groups = group_rows(paddle.abs(weight), spec)
        largest = groups.max(axis=axes, keepdim=True).clip(min=1e-30)
        shares = (groups / largest).reshape([-1, weight.shape[1]])[:weight.shape[0]]
        sums.append(shares.sum(axis=1))
        columns += weight.shape[1]
    return (paddle.add_n(sums) / columns).clip(min=_MIN_MAGNITUDE)


def _check_ratios(name, values, above_zero):
    if not isinstance(values, tuple) or not values:
        raise wrong_type(name, values, "a tuple of at least one float, or None")
    for value in values:
        check_float(name, value, 0.0, 1.0, open_low=above_zero)


def _diagonal_blocks(hessian, size):
    """Return the diagonal blocks of the Hessian that belong to the groups, [groups, size, size]."""
    rows = hessian.shape[0]
    blocks = [hessian[start:start + size, start:start + size] for start in range(0, rows, size)]
    missing = -rows % size
    if missing:
        blocks[-1] = F.pad(blocks[-1], [0, missing, 0, missing])
    return paddle.stack(blocks)


def _round_to_nearest(weight, spec, clip=None):
    qparams = compute_weight_qparams(weight, spec, clip)
    return qparams.dequantize(qparams.quantize(weight))
