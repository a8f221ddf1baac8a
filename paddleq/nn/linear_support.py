"""Which layers an ``IntegerLinear`` can take the place of."""

from paddle import nn

from .._paddle_compat import own_parameters
from .layer_types import kind_of


def why_no_linear(layer):
    """Why an :class:`~paddleq.nn.IntegerLinear` cannot take the place of a layer; "" if it can.

    Examples:
        >>> import paddle
        >>> from paddleq.nn.linear_support import why_no_linear
        >>> why_no_linear(paddle.nn.utils.weight_norm(paddle.nn.Linear(2, 2)))
        'its weight is computed by a hook (weight_norm, spectral_norm); remove that first'
        >>> why_no_linear(paddle.nn.Linear(2, 2))
        ''
    """
    if not isinstance(layer, nn.Linear):
        return "only Linear is quantized"
    if kind_of(layer) is None or "forward" in layer.__dict__:
        return "its class overrides forward, so its weights are not known to be used as usual"
    if own_parameters(layer).get("weight") is None:
        return "its weight is computed by a hook (weight_norm, spectral_norm); remove that first"
    return ""
