"""Round to nearest: every weight by itself."""

from dataclasses import dataclass

from ..functional import grid_of
from .base import QuantizedWeight, checked_weight


@dataclass(frozen=True)
class RoundToNearest:
    """Each weight becomes the nearest integer of the grid.

    Examples:
        >>> import paddle
        >>> from paddleq import PerGroup, QuantSpec
        >>> from paddleq.algorithms import RoundToNearest
        >>> spec = QuantSpec(bits=4, granularity=PerGroup(64))
        >>> quantized = RoundToNearest().quantize(paddle.randn([128, 8]), spec)
        >>> list(quantized.integers.shape), list(quantized.grid.scale.shape)
        ([128, 8], [2, 8])
    """

    name = ""
    needs = frozenset()

    def quantize(self, weight, spec, stats=None, clip=None):
        """A :class:`QuantizedWeight`.

        Args:
            weight: float [K, N].
            spec: a :class:`~paddleq.QuantSpec`, granularity PerTensor, PerChannel(1) or PerGroup.
            stats: not used.
            clip: factor in (0, 1] by which the range shrinks, broadcasting to the grid's scale.

        Raises:
            ConfigError, ModelError: the spec or the weight is of another kind.
        """
        weight = checked_weight(weight, spec)
        grid = grid_of(weight, spec, clip)
        return QuantizedWeight(grid.quantize(weight).astype(spec.storage), grid)
