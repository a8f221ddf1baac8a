"""What is done to Linear layers that read one input, from the float weights to the integers."""

from dataclasses import dataclass, field
from typing import Any, List, Optional

import paddle

from .._checks import wrong_type, wrong_value
from ..functional.qparams import EPS, affine_scale_zero_point
from ..functional.weight_qparams import check_weight_spec
from ..spec import PerTensor, PerToken, QuantSpec
from .base import QuantizedWeight, Rounder, Smoother, checked_weight
from .rtn import RoundToNearest


@dataclass(frozen=True)
class LinearPolicy:
    """What to do with a Linear layer.

    Args:
        weight: how its weight is quantized (granularity PerTensor, PerChannel(1) or PerGroup), or
            None to leave the layer alone.
        activation: how its input is: PerTensor, with a range found by calibration, PerToken, with
            one found while the model runs (symmetric), or None (default): it stays float.
        smoother: None (default), a :class:`SmoothQuant` or an :class:`AWQ`.
        rounder: :class:`RoundToNearest` (default) or a :class:`GPTQ`.

    Attributes:
        needs: the statistics that this takes.
        algorithm: the names of what is done, such as "SmoothQuant" or "AWQ-GPTQ"; "" for rounding.

    Raises:
        ConfigError, ConfigTypeError: parts that do not go together, or are of the wrong type.

    Examples:
        >>> from paddleq import PerChannel, PerToken, QuantSpec
        >>> from paddleq.algorithms import LinearPolicy, SmoothQuant
        >>> policy = LinearPolicy(QuantSpec(granularity=PerChannel(1)),
        ...                       QuantSpec(granularity=PerToken()), SmoothQuant(0.8))
        >>> sorted(policy.needs)
        ['abs_max']
    """

    weight: Optional[QuantSpec]
    activation: Optional[QuantSpec] = None
    smoother: Any = None
    rounder: Any = field(default_factory=RoundToNearest)

    def __post_init__(self):
        if self.weight is not None:
            check_weight_spec("weight", self.weight)
        elif self.activation is not None:
            raise wrong_value("activation", self.activation, "None where weight is")
        if not (self.smoother is None or isinstance(self.smoother, Smoother)):
            raise wrong_type("smoother", self.smoother, "None, a SmoothQuant or an AWQ")
        if not isinstance(self.rounder, Rounder):
            raise wrong_type("rounder", self.rounder, "a RoundToNearest or a GPTQ")
        if (self.weight is not None and getattr(self.smoother, "clip", False)
                and not self.rounder.takes_clips(self.weight)):
            raise wrong_value("rounder", self.rounder, "with static_groups=True, because AWQ "
                              "clips the ranges of groups which act_order would form anew (or "
                              "give AWQ clip=False)")
        if self.activation is not None:
            dynamic = isinstance(self.activation.granularity, PerToken)
            if not (dynamic or isinstance(self.activation.granularity, PerTensor)):
                raise wrong_value("activation", self.activation, "PerTensor or PerToken")
            if dynamic and not self.activation.symmetric:
                raise wrong_value("activation", self.activation, "symmetric where it is PerToken")

    @property
    def needs(self):
        """The statistics that this takes, a frozenset of what :class:`Statistics` can gather."""
        needs = self.rounder.needs
        if self.smoother is not None:
            needs = needs | self.smoother.needs
        return needs | {"range"} if self._static else needs

    @property
    def algorithm(self):
        """The names of what is done, "AWQ-GPTQ"; "" for plain rounding."""
        parts = (self.smoother, self.rounder)
        return "-".join(part.name for part in parts if part is not None and part.name)

    @property
    def _static(self):
        return self.activation is not None and isinstance(self.activation.granularity, PerTensor)


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
        >>> from paddleq.algorithms import LinearPolicy, Statistics, quantize_linears
        >>> policy = LinearPolicy(QuantSpec(granularity=PerChannel(1)), QuantSpec(bits=4))
        >>> statistics = Statistics(policy.needs)
        >>> statistics.update(paddle.to_tensor([[1.0, -3.5]]))
        >>> outcome = quantize_linears([paddle.ones([2, 2])], policy, statistics)
        >>> outcome.activation[0].tolist(), outcome.weights[0].integers.tolist()
        ([0.5], [[127, 127], [127, 127]])
    """

    weights: List[QuantizedWeight]
    input_scale: Optional[Any] = None
    activation: Optional[tuple] = None


def quantize_linears(weights, policy, stats):
    """Smooth, clip and round the weights of Linear layers that read the very same input.

    Args:
        weights: list of float [K, N_i]. They are left as they are.
        policy: a :class:`LinearPolicy` with a weight spec.
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
        >>> from paddleq.algorithms import LinearPolicy, quantize_linears
        >>> policy = LinearPolicy(QuantSpec(bits=4, granularity=PerGroup(32)))
        >>> outcome = quantize_linears([paddle.randn([64, 8])], policy, None)
        >>> list(outcome.weights[0].integers.shape), outcome.input_scale, outcome.activation
        ([64, 8], None, None)
    """
    spec = policy.weight
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
    quantized = policy.rounder.quantize_all(weights, spec, stats, clips)
    activation = _activation(policy.activation, stats) if policy._static else None
    return Outcome(quantized, input_scale, activation)


def _activation(spec, stats):
    low, high = stats.range
    with paddle.no_grad():
        if spec.symmetric:
            threshold = paddle.maximum(low.abs(), high.abs()).clip(min=EPS)
            return threshold / float(spec.quant_max), None
        scale, zero_point = affine_scale_zero_point(low, high, spec)
        return scale.astype("float32"), zero_point.astype("float32")
