"""Configuration of one layer: quantizers of its tensors and algorithms for its weight."""

from dataclasses import dataclass, replace
from typing import Any, Callable, FrozenSet, List, Optional, Union

from .._checks import check_choice, wrong_type, wrong_value
from .._distributed import check_reduce
from .._registry import Registry
from ..errors import ConfigError
from ..fake_quant.fake_quantize import FakeQuantize
from ..observers import (
    AbsMaxObserver,
    CurrentAbsMaxObserver,
    CurrentMinMaxObserver,
    MinMaxObserver,
    Observer,
)
from ..observers.base import OBSERVERS
from ..spec import PerBlock, PerChannel, PerTensor, PerToken, QuantSpec

MIN_MAX = "min_max"
# Smoother and Rounder classes by name. paddleq.algorithms, above this package, registers its own.
ALGORITHMS: "Registry[Callable]" = Registry("algorithm")


def activation_observers() -> List[str]:
    """Return the names of the registered observers for one range of the activations."""
    return [name for name, cls in OBSERVERS.items()
            if not any(getattr(cls, flag, False) for flag in ("dynamic", "fixed", "per_channel"))]


def check_activation_observer(name: str, value: Any) -> str:
    """Return ``value`` if it is one of :func:`activation_observers`."""
    return check_choice(name, value, activation_observers())


def static_activation(spec: Optional[QuantSpec], observer: str = MIN_MAX
                      ) -> Union[QuantSpec, "QuantizerConfig", None]:
    """Return ``LayerConfig.activation`` of inputs whose range the named observer computes."""
    if spec is None or observer == MIN_MAX:
        return spec
    return QuantizerConfig(OBSERVERS[observer], spec)


@dataclass(frozen=True)
class QuantizerConfig:
    """Configuration of the fake-quantizer of one tensor.

    Args:
        observer: called as ``observer(spec, channels)``, returns a
            :class:`~paddleq.observers.Observer`. May be None where ``quantizer`` is given.
        spec: the quantization. A :class:`~paddleq.PerChannel` granularity means one scale for
            each output channel of the layer, whatever its axis.
        saturate: the gradient is zero for values outside of the range. Default False, as in
            PaddleSlim.
        quantizer: factory that replaces FakeQuantize and the observer: called as
            ``quantizer(spec=..., label=...)``, with ``channel_len=...`` where it is known,
            returns a subclass of FakeQuantize, such as :class:`~paddleq.LSQ`.
        reduce: "max" (default), "mean" or None, as for :class:`~paddleq.FakeQuantize`. Weights
            are not reduced.

    Examples:
        >>> from paddleq.config import QuantizerConfig
        >>> from paddleq.observers import AbsMaxObserver
        >>> config = QuantizerConfig(AbsMaxObserver)
        >>> type(config.build()).__name__
        'FakeQuantize'
    """

    observer: Optional[Callable] = None
    spec: QuantSpec = QuantSpec()
    saturate: bool = False
    quantizer: Optional[Callable] = None
    reduce: Optional[str] = "max"

    def __post_init__(self) -> None:
        check_reduce("reduce", self.reduce)

    @property
    def per_channel(self) -> bool:
        """True if each channel has a scale."""
        return isinstance(self.spec.granularity, PerChannel)

    def build(self, axis: Optional[int] = None, channels: Optional[int] = None,
              label: str = "") -> FakeQuantize:
        """Return a new FakeQuantize, of a weight if ``axis`` is given.

        Args:
            axis, channels: output channel axis of a weight, and its length.
            label: name of the quantizer for messages.
        """
        spec, reduce = self.spec, self.reduce if axis is None else None
        if not isinstance(spec.granularity, (PerTensor, PerChannel)):
            raise wrong_value("granularity", spec.granularity,
                              "PerTensor or PerChannel for a fake-quantizer")
        if self.per_channel and axis is not None:
            spec = replace(spec, granularity=PerChannel(axis))
        if self.quantizer is not None:
            known = self.per_channel and channels is not None
            quantizer = self.quantizer(spec=spec, label=label,
                                       **({"channel_len": channels} if known else {}))
            if reduce != "max":  # otherwise the factory may have set it
                quantizer.reduce = reduce
            return quantizer
        if self.observer is None:
            raise wrong_value("observer", None, "an observer, unless quantizer is given")
        return FakeQuantize(self.observer(spec, channels), saturate=self.saturate, label=label,
                            reduce=reduce)


@dataclass(frozen=True)
class NormFold:
    """Training of a layer with the batch norm behind it folded into its weight.

    Args:
        one_conv: compute the layer once a step. False: twice, the first time for the statistics
            of the batch.
        freeze_at: training steps after which the running statistics replace those of the batch
            and stop moving.

    Examples:
        >>> from paddleq.config import LayerConfig, NormFold
        >>> LayerConfig(norm_fold=NormFold(one_conv=False, freeze_at=1000)).norm_fold.one_conv
        False
    """

    one_conv: bool = True
    freeze_at: int = 10_000_000


@dataclass(frozen=True)
class LayerConfig:
    """Configuration of one layer.

    Args:
        weight: a :class:`~paddleq.QuantSpec` or a :class:`QuantizerConfig`; None (default) leaves
            the weight float.
        activation: the same for the inputs of the layer. With granularity
            :class:`~paddleq.PerToken` or an MX data type their scales are computed while the model
            runs.
        smoother: :class:`~paddleq.algorithms.SmoothQuant`, :class:`~paddleq.algorithms.AWQ`, the
            name of a registered algorithm ("smoothquant", "awq") or None (default). Linear only.
        rounder: :class:`~paddleq.algorithms.GPTQ`, the name of a registered algorithm ("gptq",
            "rtn"), or None (default) to round to nearest. Linear only.
        kv_cache: "per_channel" or "per_token" for quantized keys and values, of a
            ``paddle.nn.MultiHeadAttention`` or a :class:`~paddleq.nn.KVCache`; None (default)
            leaves them float.
        kv_cache_dtype: data type of the keys and values: "int8" (default), "float8_e4m3fn",
            "float8_e5m2" or "hifloat8".
        output: a :class:`QuantizerConfig` for the output of the layer, or of the block of layers
            that it begins, or None (default).
        norm_fold: a :class:`NormFold`, or None (default) to compute a batch norm as a layer.
        weight_preprocess, activation_preprocess: classes built once for each layer and called
            on the tensor before it is quantized, or None (default).
        weight_quantize, activation_quantize: classes built once for each layer and called
            instead of the fake-quantizer, or None (default).

    Raises:
        ConfigTypeError: an argument is of another type.
        ConfigError: arguments that exclude each other.

    Examples:
        >>> from paddleq import PerChannel, PerToken, QuantSpec
        >>> from paddleq.algorithms import SmoothQuant
        >>> from paddleq.config import LayerConfig
        >>> config = LayerConfig(QuantSpec(granularity=PerChannel(1)),
        ...                      QuantSpec(granularity=PerToken()), SmoothQuant(0.8))
        >>> config.algorithm, sorted(config.needs)
        ('SmoothQuant', ['abs_max'])
    """

    weight: Union[QuantSpec, QuantizerConfig, None] = None
    activation: Union[QuantSpec, QuantizerConfig, None] = None
    smoother: Any = None
    rounder: Any = None
    kv_cache: Optional[str] = None
    output: Optional[QuantizerConfig] = None
    norm_fold: Optional[NormFold] = None
    weight_preprocess: Any = None
    activation_preprocess: Any = None
    weight_quantize: Any = None
    activation_quantize: Any = None
    kv_cache_dtype: str = "int8"

    def __post_init__(self) -> None:
        for name in ("weight", "activation", "output"):
            value = getattr(self, name)
            if not (value is None or isinstance(value, (QuantSpec, QuantizerConfig))):
                raise wrong_type(name, value, "a QuantSpec, a QuantizerConfig or None")
        for name, method, expected in (
                ("smoother", "scales", "None, a SmoothQuant or an AWQ"),
                ("rounder", "quantize_all", "None, a RoundToNearest or a GPTQ")):
            value = getattr(self, name)
            if isinstance(value, str):
                value = ALGORITHMS[ALGORITHMS.check(value, name)]()
                object.__setattr__(self, name, value)
            # Checked by interface: the algorithms are defined in a package above this one.
            if value is not None and (isinstance(value, type) or not hasattr(value, method)):
                raise wrong_type(name, value, expected)
        check_choice("kv_cache", self.kv_cache, (None, "per_channel", "per_token"))
        check_choice("kv_cache_dtype", self.kv_cache_dtype,
                     ("int8", "float8_e4m3fn", "float8_e5m2", "hifloat8"))
        for side in ("weight", "activation"):
            for part in ("preprocess", "quantize"):
                if getattr(self, side) is None and getattr(self, f"{side}_{part}") is not None:
                    raise ConfigError(f"{side}_{part} needs {side}, which is None: the {side} "
                                      "stays float")
        weight, activation = self.weight_spec, self.activation_spec
        if (weight is not None and getattr(self.smoother, "clip", False)
                and self.rounder is not None and not self.rounder.accepts_clips(weight)):
            raise wrong_value("rounder", self.rounder, "with static_groups=True, because AWQ "
                              "clips the ranges of groups that act_order would change (or "
                              "use AWQ with clip=False)")
        if (weight is not None and weight.dtype is None
                and getattr(self.rounder, "float_only", False)):
            raise wrong_value("rounder", self.rounder, "another one for integers")
        if (weight is not None and getattr(self.smoother, "clip", False)
                and isinstance(weight.granularity, PerBlock)):
            raise wrong_value("smoother", self.smoother, "AWQ(clip=False) for PerBlock weights, "
                              "because AWQ clips the ranges of single columns")
        if activation is not None:
            blocks = activation.data_type is not None and activation.data_type.block
            if not (blocks or isinstance(activation.granularity, (PerTensor, PerToken))):
                raise wrong_value("activation", activation, "PerTensor or PerToken, or of an MX "
                                  "data type")
            if isinstance(activation.granularity, PerToken) and not activation.symmetric:
                raise wrong_value("activation", activation, "symmetric where it is PerToken")

    @property
    def weight_spec(self) -> Optional[QuantSpec]:
        """The QuantSpec of the weight, or None."""
        return self.weight.spec if isinstance(self.weight, QuantizerConfig) else self.weight

    @property
    def activation_spec(self) -> Optional[QuantSpec]:
        """The QuantSpec of the inputs, or None."""
        return (self.activation.spec if isinstance(self.activation, QuantizerConfig)
                else self.activation)

    @property
    def weight_quantizer(self) -> Optional[QuantizerConfig]:
        """The QuantizerConfig of the weight: absolute maximum, or min and max if asymmetric."""
        return _quantizer(self.weight, CurrentAbsMaxObserver, CurrentMinMaxObserver)

    @property
    def activation_quantizer(self) -> Optional[QuantizerConfig]:
        """The QuantizerConfig of the inputs: absolute maximum, or min and max if asymmetric."""
        return _quantizer(self.activation, AbsMaxObserver, MinMaxObserver)

    @property
    def static_activation(self) -> bool:
        """True if the inputs have one scale that calibration finds."""
        spec = self.activation_spec
        return spec is not None and isinstance(spec.granularity, PerTensor)

    @property
    def needs(self) -> FrozenSet[str]:
        """Kinds of :class:`~paddleq.observers.ChannelStats` that are collected."""
        default = self.static_activation and isinstance(self.activation, QuantSpec)
        needs = frozenset({"range"} if default else ())
        return needs.union(*(part.needs for part in (self.smoother, self.rounder)
                             if part is not None))

    @property
    def needs_data(self) -> bool:
        """True if a Linear layer cannot be quantized without calibration data."""
        return self.static_activation or bool(self.needs)

    def without_data(self) -> "LayerConfig":
        """Return the configuration for a Linear layer that no calibration data reached.

        The weight is rounded to nearest, and activations with a fixed scale stay float.
        """
        return replace(self, smoother=None, rounder=None,
                       activation=None if self.static_activation else self.activation)

    def activation_observer(self) -> Optional[Observer]:
        """Create the observer of a static activation of a Linear layer.

        None if :class:`~paddleq.observers.ChannelStats` give the range: ``activation`` is a
        QuantSpec.
        """
        if not (self.static_activation and isinstance(self.activation, QuantizerConfig)):
            return None
        if self.activation.observer is None:
            raise wrong_value("activation.observer", None, "an observer for a Linear layer whose "
                              "weight is converted by an algorithm")
        return self.activation.observer(self.activation.spec)

    @property
    def algorithm(self) -> str:
        """Names of the algorithms, "AWQ-GPTQ"; "" for rounding to nearest."""
        return "-".join(part.name for part in (self.smoother, self.rounder)
                        if part is not None and part.name)


def _quantizer(given, symmetric, asymmetric):
    if not isinstance(given, QuantSpec):
        return given
    return QuantizerConfig(symmetric if given.symmetric else asymmetric, given)
