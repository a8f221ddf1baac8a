"""What the algorithms have in common: rounders, smoothers, and a weight that has been rounded."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Optional

import paddle

from .._checks import wrong_value
from ..config.layer_config import ALGORITHMS
from ..errors import ModelError
from ..functional import WeightQParams
from ..functional.qparams import as_dtype
from ..functional.weight_qparams import check_weight_spec

register_algorithm = ALGORITHMS.register


@dataclass
class QuantizedWeight:
    """A Linear's weight as integers.

    Attributes:
        integers: int8 or uint8 (the spec's ``storage``), [K, N], one in each element.
        grid: what they stand for, a :class:`~paddleq.functional.WeightQParams`.
        permutation: None, or int64 [K]: stored row i is row permutation[i] of the weight, and
            the layer computes x[..., permutation] @ stored.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.algorithms import RoundToNearest
        >>> quantized = RoundToNearest().quantize(paddle.eye(2), QuantSpec(bits=4))
        >>> quantized.integers.tolist(), quantized.dequantize().tolist()
        ([[7, 0], [0, 7]], [[1.0, 0.0], [0.0, 1.0]])
    """

    integers: Any
    grid: WeightQParams
    permutation: Optional[Any] = None

    def dequantize(self):
        """The float32 weight [K, N] that it stands for, rows in the weight's own order."""
        with paddle.no_grad():
            weight = self.grid.dequantize(self.integers)
            if self.permutation is None:
                return weight
            return weight.index_select(paddle.argsort(self.permutation))


class Smoother(ABC):
    """What finds a factor s for each input feature: the layer computes (x / s) @ (W * s).

    Attributes:
        name: what a summary calls it.
        needs: which :class:`Statistics` of the input it takes.

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
    def scales(self, weights, stats, spec):
        """The factor s, float32 [K].

        Args:
            weights: list of float [K, N_i] that read the same input. They are left as they are.
            stats: :class:`Statistics` of that input.
            spec: how the weights will be quantized.

        Raises:
            ConfigError, ModelError: the spec or a weight is of another kind.
            CalibrationError: the statistics saw no data.
        """

    def clips(self, weight, stats, spec):
        """By which factors the ranges of the smoothed weight should shrink, or None.

        Args:
            weight: float [K, N], multiplied by s.
            stats: :class:`Statistics` of the input divided by s.
            spec: how the weight will be quantized.

        Returns:
            None, or a float32 tensor of the grid's scale's shape, in (0, 1].
        """
        return None


class Rounder(ABC):
    """What turns the weights of Linear layers into integers.

    Attributes:
        name: what a summary calls it.
        needs: which :class:`Statistics` of the input it takes.

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

    @abstractmethod
    def quantize_all(self, weights, spec, stats=None, clips=None):
        """A :class:`QuantizedWeight` of each of several weights that read the same input.

        Args:
            weights: list of float [K, N_i]. They are left as they are.
            spec: a :class:`~paddleq.QuantSpec`, granularity PerTensor, PerChannel(1) or PerGroup.
            stats: :class:`Statistics` of the input, with what ``needs`` names.
            clips: for each weight None or a factor in (0, 1] by which the range shrinks,
                broadcasting to the grid's scale. Default: None for all.

        Raises:
            ConfigError, ModelError: the spec or a weight is of another kind.
            CalibrationError: the statistics saw no data.
        """

    def takes_clips(self, spec):
        """Whether the groups that a clip was found for are those that this makes."""
        return True

    def quantize(self, weight, spec, stats=None, clip=None):
        """A :class:`QuantizedWeight` of one weight; see :meth:`quantize_all`."""
        return self.quantize_all([weight], spec, stats, [clip])[0]


def checked_weight(weight, spec):
    """``weight`` in float32, once it is known that ``spec`` can quantize it.

    Raises:
        ConfigError: the spec is not one of a Linear's weight.
        ModelError: the weight is not a matrix or holds NaN or infinity.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.algorithms.base import checked_weight
        >>> weight = checked_weight(paddle.ones([2, 3], dtype="float16"), QuantSpec())
        >>> weight.dtype == paddle.float32
        True
    """
    check_weight_spec("spec", spec)
    if len(weight.shape) != 2 or 0 in weight.shape:
        raise ModelError("a Linear's weight is a matrix, but this one has the shape "
                         f"{list(weight.shape)}")
    with paddle.no_grad():
        weight = as_dtype(weight.detach(), paddle.float32)
        if not bool(paddle.isfinite(weight).all()):
            raise ModelError("the weight holds NaN or infinity")
    return weight


def checked_statistics(values, weight, name):
    """``values``, statistics along the input features, if they are those of ``weight``.

    Raises:
        ConfigError: they belong to another number of input features.

    Examples:
        >>> import paddle
        >>> from paddleq.algorithms.base import checked_statistics
        >>> checked_statistics(paddle.ones([3]), paddle.ones([2, 4]), "abs_max")
        Traceback (most recent call last):
            ...
        paddleq.errors.ConfigError: abs_max must be of the weight's 2 input features, but is [3]
    """
    if values.shape[0] != weight.shape[0]:
        raise wrong_value(name, list(values.shape),
                          f"of the weight's {weight.shape[0]} input features")
    return values
