"""What is done to Linear layers that read one input, from the float weights to the integers."""

from dataclasses import dataclass
from typing import Any, List, Optional

import paddle

from .._checks import wrong_value
from ..config import LayerConfig
from ..functional.qparams import EPS, affine_scale_zero_point
from ..functional.weight_qparams import check_weight_spec
from .base import QuantizedWeight, Rounder, checked_weight
from .rtn import RoundToNearest


@dataclass
class Outcome:
    """What :func:`quantize_linears` found.

    Attributes:
        weights: a :class:`QuantizedWeight` for each weight.
        input_scale: None, or float32 [K]: the layers compute with x / input_scale.
        activation: None, or (scale: the step, float32 [1]; zero point, float32 holding an
            integer [1], or None) of a static activation.

    Examples:
        >>> import paddle
        >>> from paddleq import PerChannel, QuantSpec
        >>> from paddleq.algorithms import Statistics, quantize_linears
        >>> from paddleq.config import LayerConfig
        >>> policy = LayerConfig(QuantSpec(granularity=PerChannel(1)), QuantSpec(bits=4))
        >>> statistics = Statistics(policy.needs)
        >>> statistics.update(paddle.to_tensor([[1.0, -3.5]]))
        >>> outcome = quantize_linears([paddle.ones([2, 2])], policy, statistics)
        >>> outcome.activation[0].tolist(), outcome.weights[0].integers.tolist()
        ([0.5], [[127, 127], [127, 127]])
    """

    weights: List[QuantizedWeight]
    input_scale: Optional[Any] = None
    activation: Optional[tuple] = None


def rounder_of(config: LayerConfig) -> Rounder:
    """Return the rounder of a configuration; the default rounds to nearest."""
    return RoundToNearest() if config.rounder is None else config.rounder


def check_linear_config(config: LayerConfig, name: str = "") -> None:
    """Raise unless a :class:`~paddleq.config.LayerConfig` is one of a Linear layer.

    Args:
        name: prefix of the argument names in messages, such as "fc.".

    Raises:
        ConfigError: the weight's granularity is not PerTensor, PerChannel(1) or PerGroup, or the
            activation is quantized without the weight.
    """
    if config.weight_spec is not None:
        check_weight_spec(f"{name}weight", config.weight_spec)
    elif config.activation_spec is not None:
        raise wrong_value(f"{name}activation", config.activation_spec, "None where weight is")


def quantize_linears(weights, policy, stats):
    """Smooth, clip and round the weights of Linear layers that read the very same input.

    Args:
        weights: list of float [K, N_i]. They are left as they are.
        policy: a :class:`LayerConfig` with a weight spec.
        stats: :class:`Statistics` of the input, with what ``policy.needs``; may be None where
            that is nothing.

    Returns:
        An :class:`Outcome`.

    Raises:
        ConfigError: there is no weight, or the policy leaves the layer alone.
        CalibrationError: the statistics saw no data.

    Examples:
        >>> import paddle
        >>> from paddleq import PerGroup, QuantSpec
        >>> from paddleq.algorithms import quantize_linears
        >>> from paddleq.config import LayerConfig
        >>> policy = LayerConfig(QuantSpec(bits=4, granularity=PerGroup(32)))
        >>> outcome = quantize_linears([paddle.randn([64, 8])], policy, None)
        >>> list(outcome.weights[0].integers.shape), outcome.input_scale, outcome.activation
        ([64, 8], None, None)
    """
    check_linear_config(policy)
    spec = policy.weight_spec
    if spec is None:
        raise wrong_value("policy.weight", None, "a QuantSpec: this policy leaves a layer alone")
    if not weights:
        raise wrong_value("weights", weights, "a list of at least one weight")
    weights = [checked_weight(weight, spec) for weight in weights]
    smoother, input_scale, clips = policy.smoother, None, None
    if smoother is not None:
        input_scale = smoother.scales(weights, stats, spec)
        weights = [weight * input_scale.unsqueeze(1) for weight in weights]
        stats = stats.divided_by(input_scale)
        clips = [smoother.clips(weight, stats, spec) for weight in weights]
    quantized = rounder_of(policy).quantize_all(weights, spec, stats, clips)
    activation = _activation(policy.activation_spec, stats) if policy.static_activation else None
    return Outcome(quantized, input_scale, activation)


def _activation(spec, stats):
    low, high = stats.range
    with paddle.no_grad():
        if spec.symmetric:
            threshold = paddle.maximum(low.abs(), high.abs()).clip(min=EPS)
            return threshold / float(spec.quant_max), None
        scale, zero_point = affine_scale_zero_point(low, high, spec)
        return scale.astype("float32"), zero_point.astype("float32")
