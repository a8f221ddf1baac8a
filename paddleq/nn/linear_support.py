"""Linear layers that an ``IntegerLinear`` can replace, and the schemes that it computes."""

from typing import Optional

from paddle import nn

from .._checks import check_int, wrong_type, wrong_value
from .._paddle_compat import own_parameters
from ..config import SkipKind, SkipReason
from ..functional.weight_qparams import check_weight_spec
from ..spec import PerGroup, PerTensor, PerToken, QuantSpec
from .layer_types import kind_of


def linear_skip_reason(layer: nn.Layer) -> Optional[SkipReason]:
    """Return the reason for which ``IntegerLinear`` cannot replace a layer, or None if it can.

    Examples:
        >>> import paddle
        >>> from paddleq.nn.linear_support import linear_skip_reason
        >>> linear_skip_reason(paddle.nn.utils.weight_norm(paddle.nn.Linear(2, 2))).kind.name
        'WEIGHT_FROM_HOOK'
        >>> linear_skip_reason(paddle.nn.Linear(2, 2)) is None
        True
    """
    if not isinstance(layer, nn.Linear):
        return SkipReason(SkipKind.NOT_LINEAR)
    if kind_of(layer) is None or "forward" in layer.__dict__:
        return SkipReason(SkipKind.OVERRIDES_FORWARD)
    if own_parameters(layer).get("weight") is None:
        return SkipReason(SkipKind.WEIGHT_FROM_HOOK)
    return None


def check_weight(spec):
    """Return ``spec``; raise a ConfigError if IntegerLinear does not support it."""
    if not isinstance(spec, QuantSpec):
        raise wrong_type("weight", spec, "a QuantSpec")
    check_int("weight.bits", spec.bits, 2, 8)
    return check_weight_spec("weight", spec)


def check_activation(spec):
    """Return ``spec``; raise as :func:`check_weight` if IntegerLinear does not support it."""
    if spec is None:
        return None
    if not isinstance(spec, QuantSpec):
        raise wrong_type("activation", spec, "a QuantSpec or None")
    check_int("activation.bits", spec.bits, 2, 8)
    per_token = isinstance(spec.granularity, PerToken)
    if not per_token and spec.granularity != PerTensor():
        raise wrong_value("activation.granularity", spec.granularity, "PerTensor() or PerToken()")
    if per_token and not (spec.symmetric and spec.signed):
        raise wrong_value("activation", spec, "symmetric and signed where it is per token")
    return spec


def scale_shape(spec, rows, columns):
    """Return the shape of the scales of a weight [rows, columns]."""
    if isinstance(spec.granularity, PerGroup):
        return [-(-rows // spec.granularity.size), columns]
    return [1, 1 if isinstance(spec.granularity, PerTensor) else columns]
