"""Which schemes an ``IntegerLinear`` computes."""

from .._checks import check_int, wrong_type, wrong_value
from ..functional.weight_qparams import check_weight_spec
from ..spec import PerGroup, PerTensor, PerToken, QuantSpec


def check_weight(spec):
    """``spec``, if the layer can hold a weight so; else a ConfigError or ConfigTypeError."""
    if not isinstance(spec, QuantSpec):
        raise wrong_type("weight", spec, "a QuantSpec")
    check_int("weight.bits", spec.bits, 2, 8)
    return check_weight_spec("weight", spec)


def check_activation(spec):
    """``spec``, if the layer can quantize its input so; else the errors of :func:`check_weight`."""
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
    """The shape of the scales of a weight [rows, columns]."""
    if isinstance(spec.granularity, PerGroup):
        return [-(-rows // spec.granularity.size), columns]
    return [1, 1 if isinstance(spec.granularity, PerTensor) else columns]
