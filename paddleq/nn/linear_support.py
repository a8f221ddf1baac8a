"""Conditions under which ``IntegerLinear`` can replace a layer."""

from typing import Optional

from paddle import nn

from .._paddle_compat import own_parameters
from ..config import SkipKind, SkipReason
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
