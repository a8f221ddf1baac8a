"""Base classes and registry of weight algorithms."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, List, Optional

import paddle

from .._checks import wrong_value
from ..config.layer_config import ALGORITHMS
from ..errors import ModelError
from ..functional import WeightQParams
from ..functional.qparams import as_dtype
from ..functional.weight_qparams import check_weight_spec
from ..observers import ChannelStats
from ..spec import QuantSpec

register_algorithm = ALGORITHMS.register


@dataclass
class QuantizedWeight:
    """Weight of a Linear layer as integers, or as codes of a float data type.

    Attributes:
        integers: int8 or uint8 (``spec.storage``), [K, N], not packed; the codes of a float data
            type.
        qparams: scale and zero point, a :class:`~paddleq.functional.WeightQParams`.
        permutation: None, or int64 [K]: stored row i is row permutation[i] of the weight, and the
            layer computes x[..., permutation] @ stored.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.algorithms import RoundToNearest
        >>> quantized = RoundToNearest().quantize(paddle.eye(2), QuantSpec(bits=4))
        >>> quantized.integers.tolist(), quantized.dequantize().tolist()
        ([[7, 0], [0, 7]], [[1.0, 0.0], [0.0, 1.0]])
    """

    integers: paddle.Tensor
    qparams: WeightQParams
    permutation: Optional[paddle.Tensor] = None

    def dequantize(self) -> paddle.Tensor:
        """Compute the float32 weight [K, N], rows in their original order."""
        with paddle.no_grad():
            weight = self.qparams.dequantize(self.integers)
            if self.permutation is None:
                return weight
            return weight.index_select(paddle.argsort(self.permutation))


class Smoother(ABC):
    """Algorithm that computes a smoothing factor s per input feature: (x / s) @ (W * s).

    Attributes:
        name: name in a summary.
        needs: kinds of :class:`~paddleq.observers.ChannelStats` of the input that it uses.

    Examples:
        >>> import paddle
        >>> from paddleq.algorithms import Smoother
        >>> class NoSmoothing(Smoother):
        ...     def scales(self, weights, stats, spec):
        ...         return paddle.ones([weights[0].shape[0]])
        >>> NoSmoothing().scales([paddle.zeros([2, 3])], None, None).tolist()
        [1.0, 1.0]
    """

    name = ""
    needs = frozenset()

    @abstractmethod
    def scales(self, weights: List[paddle.Tensor], stats: ChannelStats,
               spec: QuantSpec) -> paddle.Tensor:
        """Compute the smoothing factor s, float32 [K].

        Args:
            weights: list of float [K, N_i] of layers with the same input. They are unchanged.
            stats: statistics of that input.
            spec: quantization of the weights.

        Raises:
            ConfigError, ModelError: the spec or a weight is not supported.
            CalibrationError: the statistics are empty.
        """

    def clips(self, weight: paddle.Tensor, stats: ChannelStats,
              spec: QuantSpec) -> Optional[paddle.Tensor]:
        """Compute the clipping ratios of the smoothed weight.

        Args:
            weight: float [K, N], multiplied by s.
            stats: statistics of the input divided by s.
            spec: quantization of the weight.

        Returns:
            None, or float32 of the shape of the weight's scale, in (0, 1].
        """
        return None


class Rounder(ABC):
    """Algorithm that converts the weights of Linear layers to integers or a float data type.

    Attributes:
        name: name in a summary.
        needs: kinds of :class:`~paddleq.observers.ChannelStats` of the input that it uses.
        tokens_per_feature: number of input vectors per input feature below which it may be worse
            than rounding to nearest. Default 0.
        float_only: True if it supports float data types only. Default False.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.algorithms import RoundToNearest, Rounder
        >>> class Halves(Rounder):
        ...     def quantize_all(self, weights, spec, stats=None, clips=None):
        ...         return RoundToNearest().quantize_all([w / 2 for w in weights], spec)
        >>> Halves().quantize(paddle.eye(2), QuantSpec(bits=4)).dequantize().tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """

    name = ""
    needs = frozenset()
    tokens_per_feature = 0
    float_only = False

    @abstractmethod
    def quantize_all(self, weights: List[paddle.Tensor], spec: QuantSpec,
                     stats: Optional[ChannelStats] = None,
                     clips: Optional[List[Any]] = None) -> List[QuantizedWeight]:
        """Quantize the weights of layers with the same input.

        Args:
            weights: list of float [K, N_i]. They are unchanged.
            spec: a :class:`~paddleq.QuantSpec`, granularity PerTensor, PerChannel(1), PerGroup or
                PerBlock.
            stats: statistics of the input, of the kinds ``needs``.
            clips: for each weight None or the clipping ratio in (0, 1] of its range, which
                broadcasts to the scale. Default: None for all.

        Raises:
            ConfigError, ModelError: the spec or a weight is not supported.
            CalibrationError: the statistics are empty.
        """

    def accepts_clips(self, spec: QuantSpec) -> bool:
        """Return True if clipping ratios of the groups of ``spec`` can be used."""
        return True

    def quantize(self, weight: paddle.Tensor, spec: QuantSpec,
                 stats: Optional[ChannelStats] = None, clip: Any = None) -> QuantizedWeight:
        """Quantize one weight; see :meth:`quantize_all`."""
        return self.quantize_all([weight], spec, stats, [clip])[0]


def checked_weight(weight: paddle.Tensor, spec: QuantSpec) -> paddle.Tensor:
    """Return ``weight`` in float32 after checking that ``spec`` can quantize it."""
    check_weight_spec("spec", spec)
    if len(weight.shape) != 2 or 0 in weight.shape:
        raise ModelError("the weight of a Linear layer must be a matrix, but has the shape "
                         f"{list(weight.shape)}")
    with paddle.no_grad():
        weight = as_dtype(weight.detach(), paddle.float32)
        if not bool(paddle.isfinite(weight).all()):
            raise ModelError("the weight holds NaN or infinity")
    return weight


def checked_statistics(values: paddle.Tensor, weight: paddle.Tensor, name: str) -> paddle.Tensor:
    """Return ``values`` after checking that they have the input features of ``weight``."""
    if values.shape[0] != weight.shape[0]:
        raise wrong_value(name, list(values.shape),
                          f"of the weight's {weight.shape[0]} input features")
    return values
