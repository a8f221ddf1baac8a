"""Configuration of ``PTQ`` and options of its algorithms."""

import inspect
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

from ..._checks import (
    check_bool,
    check_fields,
    check_float,
    check_int,
    check_known_keys,
    check_name_parts,
    checked_field,
    wrong_type,
    wrong_value,
)
from ...algorithms import (
    ALGORITHMS,
    AWQ,
    GPTQ,
    Rounder,
    RoundToNearest,
    Smoother,
    SmoothQuant,
)
from ...config import LayerConfig
from ...config.layer_config import MIN_MAX, check_activation_observer, static_activation
from ...errors import ConfigError
from ...spec import PerChannel, PerGroup, PerTensor, PerToken, QuantSpec
from .enums import (
    BackendTarget,
    OutliersSuppressionType,
    PrecisionRecovery,
    PTQMode,
    QuantDtype,
    QuantGranularity,
    check_enum,
)

INT4, INT8 = QuantDtype.INT4, QuantDtype.INT8
PER_TENSOR, PER_CHANNEL = QuantGranularity.PER_TENSOR, QuantGranularity.PER_CHANNEL
PER_TOKEN, PER_GROUP = QuantGranularity.PER_TOKEN, QuantGranularity.PER_GROUP

def _check_floats(name, value, open_low):
    values = value if isinstance(value, (list, tuple)) else [value]
    if not values:
        raise ConfigError(f"{name} must hold at least one float, but is {value!r}")
    return tuple(check_float(name, each, 0, 1, open_low=open_low) for each in values)


@dataclass(frozen=True)
class SmoothQuantConfig:
    """Options of ``OutliersSuppressionType.SMOOTH``.

    Args:
        alpha: migration strength, in [0, 1]. A larger value moves more of the range of the
            activations into the weights, for larger outliers. Default 0.5.

    Raises:
        ConfigTypeError, ConfigError: for a value of another type, or out of range.

    Examples:
        >>> from paddleq.golden_stick import SmoothQuantConfig
        >>> SmoothQuantConfig(alpha=0.7)
        SmoothQuantConfig(alpha=0.7)
    """

    alpha: float = checked_field(0.5, partial(check_float, low=0, high=1))

    __post_init__ = check_fields

    def algorithm(self) -> SmoothQuant:
        """Return the algorithm with these options."""
        return SmoothQuant(self.alpha)


@dataclass(frozen=True)
class ActivationObserverConfig:
    """Options of ``act_quant_dtype=int8`` with the granularity ``PER_TENSOR``.

    Args:
        observer: name of the observer that computes the range, e.g. "KL", "hist" or "mse".
            Default "min_max".

    Raises:
        ConfigTypeError, ConfigError: for a value of another type, or an unknown name.

    Examples:
        >>> from paddleq.golden_stick import ActivationObserverConfig
        >>> ActivationObserverConfig("KL")
        ActivationObserverConfig(observer='KL')
    """

    observer: str = checked_field(MIN_MAX, check_activation_observer)

    __post_init__ = check_fields


@dataclass(frozen=True)
class AWQConfig:
    """Options of ``OutliersSuppressionType.AWQ``.

    Args:
        duo_scaling: compute the factors of the input channels from weights and activations, not
            from activations alone. Default True.
        smooth_alpha: exponents to try, each in [0, 1]; a float or a list of them. Default
            ``[i / 20 for i in range(20)]``.
        weight_clip_ratio: factors to try on the range of a group of weights, each in (0, 1]; a
            float or a list of them. Default ``[1 - i / 20 for i in range(10)]``.

    Raises:
        ConfigTypeError, ConfigError: for a value of another type, out of range, or an empty list.

    Examples:
        >>> from paddleq.golden_stick import AWQConfig
        >>> AWQConfig(smooth_alpha=[0.0, 0.5], weight_clip_ratio=1.0)
        AWQConfig(duo_scaling=True, smooth_alpha=(0.0, 0.5), weight_clip_ratio=(1.0,))
    """

    duo_scaling: bool = checked_field(True, check_bool)
    smooth_alpha: Union[float, Tuple[float, ...]] = checked_field(
        tuple(i / 20 for i in range(20)), partial(_check_floats, open_low=False))
    weight_clip_ratio: Union[float, Tuple[float, ...]] = checked_field(
        tuple(1 - i / 20 for i in range(10)), partial(_check_floats, open_low=True))

    __post_init__ = check_fields

    def algorithm(self) -> AWQ:
        """Return the algorithm with these options."""
        return AWQ(ratios=self.smooth_alpha, clip_factors=self.weight_clip_ratio,
                   clip=self.weight_clip_ratio != (1.0,), duo_scaling=self.duo_scaling)


@dataclass(frozen=True)
class GPTQQuantConfig:
    """Options of ``PrecisionRecovery.GPTQ``.

    Args:
        block_size: rows that are rounded before their errors are propagated to the other rows.
            Affects the speed, not the result. Default 128.
        desc_act: round the rows with the largest activations first. Default False.
        damp_percent: share of the mean of the Hessian's diagonal that is added to it, in (0, 1].
            Default 0.01.
        static_groups: fix the scales of all groups before any row is rounded. Default False.

    Raises:
        ConfigTypeError, ConfigError: for a value of another type, or out of range.

    Examples:
        >>> from paddleq.golden_stick import GPTQQuantConfig
        >>> GPTQQuantConfig(desc_act=True).block_size
        128
    """

    block_size: int = checked_field(128, partial(check_int, low=1))
    desc_act: bool = checked_field(False, check_bool)
    damp_percent: float = checked_field(
        0.01, partial(check_float, low=0, high=1, open_low=True))
    static_groups: bool = checked_field(False, check_bool)

    __post_init__ = check_fields

    def algorithm(self) -> GPTQ:
        """Return the algorithm with these options."""
        return GPTQ(self.block_size, self.damp_percent, self.desc_act, self.static_groups)


_OPTIONS = {OutliersSuppressionType.SMOOTH: SmoothQuantConfig,
            OutliersSuppressionType.AWQ: AWQConfig, PrecisionRecovery.GPTQ: GPTQQuantConfig}


def _choice(*choices, default):
    return checked_field(default, partial(check_enum, choices=choices))


def _algorithm(enumeration, base):
    """Return the field of a member of ``enumeration`` or of a registered subclass of ``base``."""
    def check(name, value):
        others = [each for each, cls in ALGORITHMS.items()
                  if issubclass(cls, base) and not getattr(cls, "float_only", False)
                  and cls not in (SmoothQuant, AWQ, GPTQ, RoundToNearest)]
        return check_enum(name, value, tuple(enumeration), others)
    return checked_field(enumeration.NONE, check)


@dataclass(frozen=True)
class PTQConfig:
    """Configuration of :class:`PTQ`.

    An enum may be given as its value ("awq"), a data type as ``QuantDtype.INT8``, "int8" or
    ``paddle.int8``.

    Args:
        mode: ``PTQMode.QUANTIZE`` (default) calibrates and quantizes; ``PTQMode.DEPLOY`` builds
            the quantized structure, without data, to load a checkpoint into.
        backend: a :class:`BackendTarget`; both give the same network. Default ``NONE``.
        opname_blacklist: list of str; a layer whose name contains one of them stays float.
        algo_args: options of the algorithms, as a dict or as :class:`SmoothQuantConfig`,
            :class:`AWQConfig`, :class:`GPTQQuantConfig` (or a list of these). Default ``{}``.
        weight_quant_dtype: ``INT8`` (default), ``INT4`` or None.
        kvcache_quant_dtype: ``INT8`` or None (default).
        act_quant_dtype: ``INT8`` or None (default).
        precision_recovery: ``PrecisionRecovery.NONE`` (default: round to nearest), ``GPTQ``, or
            the name of a :class:`~paddleq.algorithms.Rounder` that was registered.
        outliers_suppression: ``OutliersSuppressionType.NONE`` (default), ``SMOOTH``, ``AWQ``, or
            the name of a :class:`~paddleq.algorithms.Smoother` that was registered.
        weight_quant_granularity: ``QuantGranularity.PER_CHANNEL`` (default: a scale for each
            output) or ``PER_GROUP`` (of ``group_size`` inputs, for each output).
        kvcache_quant_granularity: ``PER_CHANNEL`` (default: fixed scales, for each head and
            channel) or ``PER_TOKEN`` (scales computed for each token, stored in the cache).
        act_quant_granularity: ``PER_TENSOR`` (default: one fixed scale) or ``PER_TOKEN`` (scales
            computed for each token).
        group_size: 64 or 128 with ``PER_GROUP``, else 0 (default).

    Raises:
        ConfigTypeError: (a TypeError) a value of another type.
        ConfigError: (a ValueError) an invalid value, or values that contradict each other:
            activations without weights; int8 weights and activations with AWQ, GPTQ or groups;
            int4 weights and int8 activations unless these are per token and the weights are
            rounded by GPTQ; per-token activations that are not quantized; a per-token KV cache
            that is not int8; a ``group_size`` without groups; algorithms for weights that are not
            quantized; options of an algorithm that is not asked for.

    Examples:
        >>> from paddleq.golden_stick import PTQConfig, QuantGranularity
        >>> config = PTQConfig(weight_quant_dtype="int4", group_size=64, outliers_suppression="awq",
        ...                    weight_quant_granularity=QuantGranularity.PER_GROUP)
        >>> config.outliers_suppression
        <OutliersSuppressionType.AWQ: 'awq'>
    """

    mode: PTQMode = _choice(*PTQMode, default=PTQMode.QUANTIZE)
    backend: BackendTarget = _choice(*BackendTarget, default=BackendTarget.NONE)
    opname_blacklist: Tuple[str, ...] = checked_field((), check_name_parts)
    algo_args: Any = field(default_factory=dict)
    weight_quant_dtype: Optional[QuantDtype] = _choice(INT8, INT4, None, default=INT8)
    kvcache_quant_dtype: Optional[QuantDtype] = _choice(INT8, None, default=None)
    act_quant_dtype: Optional[QuantDtype] = _choice(INT8, None, default=None)
    precision_recovery: Union[PrecisionRecovery, str] = _algorithm(PrecisionRecovery, Rounder)
    outliers_suppression: Union[OutliersSuppressionType, str] = _algorithm(
        OutliersSuppressionType, Smoother)
    weight_quant_granularity: QuantGranularity = _choice(
        PER_CHANNEL, PER_GROUP, default=PER_CHANNEL)
    kvcache_quant_granularity: QuantGranularity = _choice(
        PER_CHANNEL, PER_TOKEN, default=PER_CHANNEL)
    act_quant_granularity: QuantGranularity = _choice(PER_TENSOR, PER_TOKEN, default=PER_TENSOR)
    group_size: int = checked_field(0, check_int)

    def __post_init__(self) -> None:
        check_fields(self)
        for wrong, name, valid in _contradictions(self):
            if wrong:
                raise wrong_value(name, getattr(self, name), valid)
        options = self.options()
        gptq, awq = options.get(GPTQQuantConfig), options.get(AWQConfig)
        if None not in (gptq, awq) and self.weight_quant_granularity is PER_GROUP and (
                gptq.desc_act and not gptq.static_groups and awq.weight_clip_ratio != (1.0,)):
            raise ConfigError(
                "static_groups must be True with desc_act, PER_GROUP and AWQ, but is False: AWQ "
                "clips the ranges of groups that desc_act would rearrange (or set "
                "weight_clip_ratio to 1.0)")

    @classmethod
    def parse(cls, given: Any) -> "PTQConfig":
        """Return the PTQConfig of a PTQConfig, a dict with its fields, or None (the defaults)."""
        if given is None:
            return cls()
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise wrong_type("config", given, "a PTQConfig, a dict with its fields, or None")
        check_known_keys("config", given, [each.name for each in fields(cls)])
        return cls(**given)

    def options(self) -> Dict[type, Any]:
        """Return class of options -> options, for the algorithms that the fields select."""
        wanted: List[Any] = [
            ALGORITHMS[choice] if isinstance(choice, str) else _OPTIONS[choice]
            for choice in (self.outliers_suppression, self.precision_recovery)
            if choice not in (OutliersSuppressionType.NONE, PrecisionRecovery.NONE)]
        if self.act_quant_dtype is not None and self.act_quant_granularity is PER_TENSOR:
            wanted.append(ActivationObserverConfig)
        known = {option: cls for cls in wanted for option in inspect.signature(cls).parameters}
        given, options, instances = self.algo_args, {}, {}
        if isinstance(given, dict):
            options = given
        else:
            instances = {type(each): each
                         for each in (given if isinstance(given, (list, tuple)) else [given])}
        for cls, each in instances.items():
            if not issubclass(
                    cls, (*_OPTIONS.values(), ActivationObserverConfig, Smoother, Rounder)):
                raise wrong_type(
                    "algo_args", given, "a dict, or an instance of SmoothQuantConfig, AWQConfig, "
                    "GPTQQuantConfig or ActivationObserverConfig")
            if cls not in wanted:
                names = ", ".join(cls.__name__ for cls in wanted) or "no options"
                raise ConfigError(
                    f"algo_args is {each!r}, but the algorithms that are asked for take {names}; "
                    "see outliers_suppression and precision_recovery")
        check_known_keys("algo_args", options, known)
        return {cls: instances.get(cls) or cls(**{
            name: value for name, value in options.items() if known[name] is cls})
            for cls in wanted}

    def layer_config(self) -> LayerConfig:
        """Return the configuration of the Linears and KV caches."""
        kv_cache = None
        if self.kvcache_quant_dtype is not None:
            kv_cache = self.kvcache_quant_granularity.value
        if self.weight_quant_dtype is None:
            return LayerConfig(kv_cache=kv_cache)
        grouped = self.weight_quant_granularity is PER_GROUP
        weight = QuantSpec(self.weight_quant_dtype.num_bits,
                           granularity=PerGroup(self.group_size) if grouped else PerChannel(1))
        spec = None
        if self.act_quant_dtype is not None:
            per_token = self.act_quant_granularity is PER_TOKEN
            spec = QuantSpec(self.act_quant_dtype.num_bits,
                             granularity=PerToken() if per_token else PerTensor())
        options, algorithms = self.options(), {}
        observer = options.pop(ActivationObserverConfig, ActivationObserverConfig()).observer
        activation = static_activation(spec, observer)
        for each in options.values():
            algorithm = each if isinstance(each, (Smoother, Rounder)) else each.algorithm()
            algorithms["smoother" if isinstance(algorithm, Smoother) else "rounder"] = algorithm
        return LayerConfig(weight, activation, kv_cache=kv_cache, **algorithms)


def _contradictions(c):
    """Return (condition, field, valid values) of every contradiction between fields."""
    weight, act = c.weight_quant_dtype, c.act_quant_dtype
    grouped = c.weight_quant_granularity is PER_GROUP
    per_token = c.act_quant_granularity is PER_TOKEN
    rounded = c.precision_recovery is not PrecisionRecovery.NONE
    gptq = c.precision_recovery is PrecisionRecovery.GPTQ
    suppressed = c.outliers_suppression is not OutliersSuppressionType.NONE
    awq = c.outliers_suppression is OutliersSuppressionType.AWQ
    w8a8, w4a8 = (weight is INT8 and act is INT8), (weight is INT4 and act is INT8)
    return [
        (weight is None and act is not None, "act_quant_dtype",
         "None while weight_quant_dtype is None (activations are not quantized without weights)"),
        (weight is None and suppressed, "outliers_suppression",
         "OutliersSuppressionType.NONE while weight_quant_dtype is None"),
        (weight is None and rounded, "precision_recovery",
         "PrecisionRecovery.NONE while weight_quant_dtype is None"),
        (weight is None and grouped, "weight_quant_granularity",
         "QuantGranularity.PER_CHANNEL while weight_quant_dtype is None"),
        (act is None and per_token, "act_quant_granularity",
         "QuantGranularity.PER_TENSOR while act_quant_dtype is None"),
        (w8a8 and awq, "outliers_suppression",
         "OutliersSuppressionType.NONE or SMOOTH for INT8 weights and activations (AWQ is for "
         "weights alone)"),
        (w8a8 and gptq, "precision_recovery",
         "PrecisionRecovery.NONE for INT8 weights and activations"),
        (w8a8 and grouped, "weight_quant_granularity",
         "QuantGranularity.PER_CHANNEL for INT8 weights and activations"),
        (w4a8 and not per_token, "act_quant_granularity",
         "QuantGranularity.PER_TOKEN for INT4 weights and INT8 activations"),
        (w4a8 and not rounded, "precision_recovery",
         "PrecisionRecovery.GPTQ for INT4 weights and INT8 activations"),
        (c.kvcache_quant_dtype is None and c.kvcache_quant_granularity is PER_TOKEN,
         "kvcache_quant_granularity",
         "QuantGranularity.PER_CHANNEL while kvcache_quant_dtype is None"),
        (not grouped and c.group_size != 0, "group_size",
         "0 without weight_quant_granularity=QuantGranularity.PER_GROUP"),
        (grouped and c.group_size not in (64, 128), "group_size",
         "64 or 128 with weight_quant_granularity=QuantGranularity.PER_GROUP"),
    ]
