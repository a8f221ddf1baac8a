"""Quantization of Linear layers with the same input: smooth, clip and round the weights."""

import logging
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Tuple

import paddle

from .._checks import check_choice, wrong_value
from ..config import LayerConfig
from ..functional import compute_weight_qparams
from ..functional.float_formats import to_storage
from ..functional.qparams import EPS, affine_scale_zero_point, scale_of
from ..functional.weight_qparams import check_weight_spec
from ..observers import ChannelStats, Observer
from .base import QuantizedWeight, Rounder, checked_weight, register_algorithm

_logger = logging.getLogger("paddleq")


@register_algorithm("rtn")
@dataclass(frozen=True)
class RoundToNearest(Rounder):
    """Round each weight to the nearest integer.

    Args:
        clip: "mse" shrinks each range to the share with the least squared error of the weight.
            Default None: the whole range, or that which a smoother found.

    Raises:
        ConfigError: another ``clip``.

    Examples:
        >>> import paddle
        >>> from paddleq import PerGroup, QuantSpec
        >>> from paddleq.algorithms import RoundToNearest
        >>> spec = QuantSpec(bits=4, granularity=PerGroup(64))
        >>> quantized = RoundToNearest().quantize(paddle.randn([128, 8]), spec)
        >>> list(quantized.integers.shape), list(quantized.qparams.scale.shape)
        ([128, 8], [2, 8])
    """

    clip: Optional[str] = None

    def __post_init__(self) -> None:
        check_choice("clip", self.clip, (None, "mse"))

    def quantize_all(self, weights, spec, stats=None, clips=None):
        weights = [checked_weight(weight, spec) for weight in weights]
        qparams = [compute_weight_qparams(weight, spec, self.clip if clip is None else clip)
                   for weight, clip in zip(weights, clips or [None] * len(weights))]
        return [QuantizedWeight(to_storage(each.quantize(weight), spec), each)
                for each, weight in zip(qparams, weights)]


def rounder_of(config: LayerConfig) -> Rounder:
    """Return the rounder of a configuration. Default: :class:`RoundToNearest`."""
    return RoundToNearest() if config.rounder is None else config.rounder


UNCALIBRATED = ("round", "error")
"""Ways to treat a Linear layer that needs calibration data and that none reached."""


def warn_of_few_tokens(layers: Dict[str, Tuple[LayerConfig, int, int]]) -> None:
    """Warn of layers with too little data for their rounder.

    ``layers`` maps names to (configuration, number of input vectors, number of features).
    """
    few = {name: values for name, values in layers.items()
           if 0 < values[1] < values[2] * rounder_of(values[0]).tokens_per_feature}
    if few:
        name = min(few, key=lambda name: few[name][1] / few[name][2])
        config, tokens, features = few[name]
        rounder = rounder_of(config)
        _logger.warning(
            "%d layers were calibrated on fewer than %d input vectors per feature, such as %s: %d "
            "for %d features. %s may then be worse than rounding to nearest on other data; "
            "calibrate on more tokens", len(few), rounder.tokens_per_feature, name, tokens,
            features, rounder.name)


def warn_of_uncalibrated(names: List[str]) -> None:
    """Warn of layers that are rounded to nearest because no calibration data reached them."""
    if names:
        _logger.warning("no calibration data reached %d layers, whose weights are rounded to "
                        "nearest: %s; calibrate on data that uses them, or make this an error "
                        "with uncalibrated='error'", len(names), ", ".join(names))


def check_linear_config(config: LayerConfig, name: str = "") -> None:
    """Raise unless a configuration is supported for a Linear layer."""
    if config.weight_spec is not None:
        check_weight_spec(f"{name}weight", config.weight_spec)
    elif config.activation_spec is not None:
        raise wrong_value(f"{name}activation", config.activation_spec, "None where weight is")


@dataclass
class QuantizedLinears:
    """Result of :func:`quantize_linears`.

    Attributes:
        weights: a :class:`QuantizedWeight` for each weight.
        input_scale: None, or the smoothing factor, float32 [K]: the layers divide x by it.
        activation: None, or (scale, float32 [1]; zero point, float32 [1] or None) of a static
            activation.

    Examples:
        >>> import paddle
        >>> from paddleq import PerChannel, QuantSpec
        >>> from paddleq.algorithms import quantize_linears
        >>> from paddleq.config import LayerConfig
        >>> from paddleq.observers import ChannelStats
        >>> config = LayerConfig(QuantSpec(granularity=PerChannel(1)), QuantSpec(bits=4))
        >>> stats = ChannelStats(config.needs)
        >>> stats.update(paddle.to_tensor([[1.0, -3.5]]))
        >>> result = quantize_linears([paddle.ones([2, 2])], config, stats)
        >>> result.activation[0].tolist(), result.weights[0].integers.tolist()
        ([0.5], [[127, 127], [127, 127]])
    """

    weights: List[QuantizedWeight]
    input_scale: Optional[paddle.Tensor] = None
    activation: Optional[Tuple[paddle.Tensor, Any]] = None


def quantize_linears(weights: List[paddle.Tensor], config: LayerConfig,
                     stats: Optional[ChannelStats],
                     observe: Optional[Callable[[Optional[paddle.Tensor]], Observer]] = None,
                     ) -> QuantizedLinears:
    """Smooth, clip and round the weights of Linear layers with the same input.

    Args:
        weights: list of float [K, N_i]. They are unchanged.
        config: a :class:`LayerConfig` with a weight spec.
        stats: statistics of the input, of the kinds ``config.needs``. None if there are none.
        observe: called with the smoothing factor, or None, if ``config.activation_observer()`` is
            not None. Returns that observer, updated with the inputs divided by the factor.

    Raises:
        ConfigError: there is no weight, or the config skips the layer.
        CalibrationError: the statistics are empty.

    Examples:
        >>> import paddle
        >>> from paddleq import PerGroup, QuantSpec
        >>> from paddleq.algorithms import quantize_linears
        >>> from paddleq.config import LayerConfig
        >>> config = LayerConfig(QuantSpec(bits=4, granularity=PerGroup(32)))
        >>> result = quantize_linears([paddle.randn([64, 8])], config, None)
        >>> list(result.weights[0].integers.shape), result.input_scale, result.activation
        ([64, 8], None, None)
    """
    check_linear_config(config)
    spec = config.weight_spec
    if spec is None:
        raise wrong_value("config.weight", None, "a QuantSpec: this configuration skips the layer")
    if not weights:
        raise wrong_value("weights", weights, "a list of at least one weight")
    weights = [checked_weight(weight, spec) for weight in weights]
    smoother, input_scale, clips = config.smoother, None, None
    if smoother is not None:
        assert stats is not None, smoother
        input_scale = smoother.scales(weights, stats, spec)
        weights = [weight * input_scale.unsqueeze(1) for weight in weights]
        stats = stats.divided_by(input_scale)
        clips = [smoother.clips(weight, stats, spec) for weight in weights]
    quantized = rounder_of(config).quantize_all(weights, spec, stats, clips)
    activation = None
    if config.static_activation:
        if "range" in config.needs:
            assert stats is not None, config
            activation = _from_range(config.activation_spec, *stats.range)
        else:
            assert observe is not None, config
            activation = _from_observer(observe(input_scale))
    return QuantizedLinears(quantized, input_scale, activation)


def _from_range(spec, low, high):
    """Compute (scale, zero point or None) of a range."""
    with paddle.no_grad():
        if spec.symmetric:
            abs_max = paddle.maximum(low.abs(), high.abs()).clip(min=EPS)
            return scale_of(abs_max, spec), None
        scale, zero_point = affine_scale_zero_point(low, high, spec)
        return scale.astype("float32"), zero_point.astype("float32")


def _from_observer(observer):
    """Compute (scale, zero point or None) from the qparams of an observer."""
    with paddle.no_grad():
        abs_max, zero_point = observer.qparams()
        scale = scale_of(abs_max, observer.spec)
        return scale, None if zero_point is None else zero_point.astype("float32")
