"""Scales of float data types as AMCT computes them: "ofmr" and "quantile"."""

from dataclasses import dataclass
from typing import Any, List, Optional, Tuple

import paddle

from .._checks import check_int, wrong_type, wrong_value
from ..errors import CalibrationError, NonFiniteError
from ..functional import WeightQParams, round_to_format
from ..functional.float_formats import to_storage
from ..functional.qparams import as_dtype
from ..observers import ChannelStats, MovingAverageMinMaxObserver
from ..observers.base import Observer
from ..spec import PerChannel, PerTensor, QuantSpec
from .base import (
    QuantizedWeight,
    Rounder,
    checked_statistics,
    checked_weight,
    register_algorithm,
)

EXPONENTS = tuple(range(-5, 6))
"""Exponents of the scales that AMCT tries."""


@register_algorithm("ofmr")
@dataclass(frozen=True)
class OFMR(Rounder):
    """Choose the scale of a weight, a power of two, that changes the outputs of its layer least.

    AMCT's output feature map reconstruction for float data types: each candidate quantizes the
    weight alone, and the one with the smallest squared error of x @ W on the calibration data is
    taken, for the whole weight or for each output. The error is computed from the Hessian of the
    input.

    Args:
        exponents: of the powers of two to try. Default -5 to 5, as in AMCT.

    Raises:
        ConfigError, ConfigTypeError: an invalid ``exponents``.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.algorithms import OFMR
        >>> from paddleq.observers import ChannelStats
        >>> stats = ChannelStats(OFMR.needs)
        >>> stats.update(paddle.rand([64, 4]))
        >>> weight = paddle.full([4, 2], 3e-5)
        >>> OFMR().quantize(weight, QuantSpec(dtype="hifloat8"), stats).qparams.scale.tolist()
        [[0.03125]]
    """

    exponents: Tuple[int, ...] = EXPONENTS

    name = "OFMR"
    float_only = True
    needs = frozenset({"hessian"})

    def __post_init__(self) -> None:
        check_exponents(self.exponents)

    def quantize_all(self, weights: List[paddle.Tensor], spec: QuantSpec,
                     stats: Optional[ChannelStats] = None,
                     clips: Optional[List[Any]] = None) -> List[QuantizedWeight]:
        if spec.element is None or not isinstance(spec.granularity, (PerTensor, PerChannel)):
            raise wrong_value("spec", spec, "a float data type, PerTensor or PerChannel, for OFMR")
        if any(clip is not None for clip in clips or []):
            raise wrong_value("clip", "a factor", "None for OFMR, which searches the scale")
        if stats is None:
            raise CalibrationError("OFMR needs calibration data")
        weights = [checked_weight(weight, spec) for weight in weights]
        hessian = checked_statistics(stats.hessian, weights[0], "the Hessian")
        with paddle.no_grad():
            hessian = hessian / paddle.diagonal(hessian).max().clip(min=1e-30)  # no overflow
            return [self._quantized(weight, spec, hessian) for weight in weights]

    def _quantized(self, weight, spec, hessian):
        best: Any = None
        for exponent in self.exponents:
            scale = 2.0 ** exponent
            change = round_to_format(weight / scale, spec.element).scale_(scale) - weight
            loss = paddle.matmul(hessian, change).multiply_(change).sum(axis=0, keepdim=True)
            if isinstance(spec.granularity, PerTensor):
                loss = loss.sum().reshape([1, 1])
            scales = paddle.full_like(loss, scale)
            if best is None:
                best = loss, scales
            else:
                better = loss < best[0]
                best = (paddle.where(better, loss, best[0]), paddle.where(better, scales, best[1]))
        loss, scales = best
        if not bool(paddle.isfinite(loss).all()):
            raise NonFiniteError("OFMR: the error of no scale is finite in float32")
        qparams = WeightQParams(spec, scales)
        return QuantizedWeight(to_storage(qparams.quantize(weight), spec), qparams)


def check_exponents(exponents: Any) -> None:
    """Raise unless ``exponents`` is a tuple of at least one int."""
    if not isinstance(exponents, tuple) or not exponents:
        raise wrong_type("exponents", exponents, "a tuple of at least one int")
    for each in exponents:
        check_int("exponents", each, -100, 100)


class OutputErrorObserver(Observer):
    """Scale of the input of a Linear, a power of two, that changes its output least.

    AMCT's output feature map reconstruction: each candidate quantizes the input alone, and the one
    with the smallest mean squared error of x @ W, summed over the batches, is taken.

    Args:
        spec: of a float data type, PerTensor.
        channels: unused.
        exponents: of the powers of two to try. Default -5 to 5, as in AMCT.

    Raises:
        CalibrationError: a tensor is observed before :meth:`bind_weight`.
    """

    online = False

    def __init__(self, spec: Optional[QuantSpec] = None, channels: Optional[int] = None,
                 exponents: Tuple[int, ...] = EXPONENTS) -> None:
        super().__init__(spec, channels)
        if self.spec.element is None or not isinstance(self.spec.granularity, PerTensor):
            raise wrong_value("spec", self.spec, "a float data type, PerTensor")
        check_exponents(exponents)
        self.exponents = exponents
        self._float_buffer("losses", [len(exponents)], dtype="float64")
        self.bind_weight(None)

    def bind_weight(self, weight: Optional[paddle.Tensor]) -> None:
        """Set the weight [K, N] of the layer, which is not copied."""
        object.__setattr__(self, "_layer_weight", weight)  # not a parameter of the observer

    def _update(self, x):
        weight, element = self._layer_weight, self.spec.element
        assert element is not None
        if weight is None:
            raise CalibrationError("ofmr searches the scale of an input by the output of its "
                                   "layer, which this calibration does not give; use "
                                   "paddleq.amct.quantize, or another observer")
        if 0 in x.shape:
            return
        x, weight = as_dtype(x, paddle.float32), as_dtype(weight.detach(), paddle.float32)
        losses = []
        for exponent in self.exponents:
            scale = 2.0 ** exponent
            change = round_to_format(x / scale, element).scale_(scale) - x
            losses.append(paddle.matmul(change, weight).square().mean())
        self._assign("losses", self.losses + paddle.stack(losses).astype("float64").reshape([-1]))

    def _merge(self, other):
        self._assign("losses", self.losses + other.losses)

    def abs_max(self):
        best = self.exponents[int(self.losses.argmin().item())]
        return paddle.full([1], 2.0 ** best * self.spec.quant_max, dtype="float32")


class QuantileObserver(MovingAverageMinMaxObserver):
    """Moving average of max|x| of each batch, which AMCT calls quantile.

    The first batch initializes it; then q = 0.99 * q + 0.01 * max|x|.
    """

    def _measure(self, x):
        measured = super()._measure(x)
        if not measured:
            return []
        low, high = measured
        most = paddle.maximum(-low, high)
        return [-most, most]
