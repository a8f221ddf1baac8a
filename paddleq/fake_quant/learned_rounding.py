"""Weight preprocess that rounds each weight up or down as an algorithm decided."""

from typing import Any, Optional

import numpy as np
import paddle
from paddle import nn

from ..functional import dequantize
from ..functional.fake_quant import aligned
from ..functional.qparams import as_dtype
from ..observers import FixedScaleObserver
from ..spec import QuantSpec
from .fake_quantize import FakeQuantize


class LearnedRounding(nn.Layer):
    """Round a weight to the lower or the upper neighbour on the grid of its quantizer.

    It precedes a quantizer with the same fixed scale, which finds the values on its grid. The float
    weight is kept, so that the float model stays the reference of analyses.

    Args:
        up: boolean or integer tensor of the shape of the weight: 1 rounds up, 0 down.
        abs_max: float32 [1] or [channels], scale * ``spec.quant_max``.
        spec: the :class:`~paddleq.QuantSpec` of the weight.
        zero_point: integers of the shape of ``abs_max``; None (default) for a symmetric spec.

    Attributes:
        up, abs_max, zero_point: buffers.
        limits: buffer, int64 [2]: lowest and highest integer, by which a loaded state is checked.

    Examples:
        >>> import paddle
        >>> from paddleq import QuantSpec
        >>> from paddleq.fake_quant.learned_rounding import LearnedRounding
        >>> weight = paddle.to_tensor([0.4, 0.4, 7.0])
        >>> rounding = LearnedRounding(paddle.to_tensor([1, 0, 0]), paddle.to_tensor([7.0]),
        ...                            QuantSpec(bits=4))
        >>> rounding(weight).tolist()
        [1.0, 0.0, 7.0]
    """

    def __init__(self, up, abs_max, spec: QuantSpec, zero_point=None):
        super().__init__()
        spec.require_integers("learned rounding")
        self.spec = spec
        self.register_buffer("up", as_dtype(up, paddle.int8))
        self.register_buffer("abs_max", abs_max.detach().clone())
        zero = paddle.zeros_like(abs_max, "int64") if zero_point is None else zero_point
        self.register_buffer("zero_point", zero.detach().clone())
        self.register_buffer("limits", paddle.to_tensor([spec.quant_min, spec.quant_max],
                                                        dtype="int64"))

    def forward(self, weight):
        """Return ``weight`` on the grid; the gradient passes straight through."""
        value = as_dtype(weight.detach(), paddle.float32)
        zero = None if self.spec.symmetric else self.zero_point
        low = lower_integers(value, self.abs_max, self.spec) + self.up.astype("float32")
        offset = 0.0 if zero is None else aligned(zero.astype("float32"), value, self.spec)
        integers = paddle.clip(low + offset, self.spec.quant_min, self.spec.quant_max)
        rounded = as_dtype(dequantize(integers, self.abs_max, self.spec, zero), weight.dtype)
        if weight.stop_gradient:
            return rounded
        # The sum may differ from the grid by one unit in the last place, which the quantizer
        # behind removes.
        return weight + (rounded - weight).detach()

    def extra_repr(self):
        return str(self.spec)


def grid_positions(weight, abs_max, spec):
    """Return ``weight`` in steps from the zero point, as :func:`~paddleq.functional.quantize`."""
    factor = float(spec.quant_max) * paddle.reciprocal(abs_max)
    return weight * aligned(factor, weight, spec)


def lower_integers(weight, abs_max, spec):
    """Return the integers below ``weight``, from the zero point, as float32."""
    return paddle.floor(grid_positions(weight, abs_max, spec))


def fixed_observer(abs_max: paddle.Tensor, spec: QuantSpec, zero_point: Optional[paddle.Tensor]
                   ) -> FixedScaleObserver:
    """Return an observer with the given qparams, [1] or [channels]."""
    scales = (np.asarray(abs_max.numpy(), np.float64).reshape(-1) / spec.quant_max).tolist()
    zeros: Any = 0 if zero_point is None else zero_point.numpy().reshape(-1).tolist()
    return FixedScaleObserver(spec, len(scales), scale=scales, zero_point=zeros)


def fixed_quantizer(abs_max: paddle.Tensor, spec: QuantSpec, zero_point: Optional[paddle.Tensor],
                    label: str) -> FakeQuantize:
    """Return a FakeQuantize whose scale does not follow the weight."""
    quantizer = FakeQuantize(fixed_observer(abs_max, spec, zero_point), saturate=False,
                             label=label)
    quantizer.set_state("validation")
    return quantizer
