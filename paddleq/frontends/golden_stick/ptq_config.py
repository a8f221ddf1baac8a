"""Configuration of ``PTQ`` and options of its algorithms."""

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple, Union

from ..._checks import (
    check_bool,
    check_float,
    check_int,
    check_known_keys,
    wrong_type,
    wrong_value,
)
from ...config.layer_config import MIN_MAX, check_activation_observer
from ...errors import ConfigError
from .enums import (
    BackendTarget,
    OutliersSuppressionType,
    PrecisionRecovery,
    PTQMode,
    QuantDtype,
    QuantGranularity,
    check_dtype,
    check_enum,
)

INT4, INT8 = QuantDtype.INT4, QuantDtype.INT8
PER_TENSOR, PER_CHANNEL = QuantGranularity.PER_TENSOR, QuantGranularity.PER_CHANNEL
PER_TOKEN, PER_GROUP = QuantGranularity.PER_TOKEN, QuantGranularity.PER_GROUP

# field -> (check, choices)
_CHOICES = {
    "mode": (check_enum, tuple(PTQMode)),
    "backend": (check_enum, tuple(BackendTarget)),
    "weight_quant_dtype": (check_dtype, (INT8, INT4, None)),
    "kvcache_quant_dtype": (check_dtype, (INT8, None)),
    "act_quant_dtype": (check_dtype, (INT8, None)),
    "outliers_suppression": (check_enum, tuple(OutliersSuppressionType)),
    "precision_recovery": (check_enum, tuple(PrecisionRecovery)),
    "weight_quant_granularity": (check_enum, (PER_CHANNEL, PER_GROUP)),
    "kvcache_quant_granularity": (check_enum, (PER_CHANNEL, PER_TOKEN)),
    "act_quant_granularity": (check_enum, (PER_TENSOR, PER_TOKEN)),
}

GROUP_SIZES = (64, 128)


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

    alpha: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", check_float("alpha", self.alpha, 0, 1))


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

    observer: str = MIN_MAX

    def __post_init__(self) -> None:
        check_activation_observer("observer", self.observer)


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

    duo_scaling: bool = True
    smooth_alpha: Union[float, Tuple[float, ...]] = tuple(i / 20 for i in range(20))
    weight_clip_ratio: Union[float, Tuple[float, ...]] = tuple(1 - i / 20 for i in range(10))

    def __post_init__(self) -> None:
        check_bool("duo_scaling", self.duo_scaling)
        for name, open_low in (("smooth_alpha", False), ("weight_clip_ratio", True)):
            object.__setattr__(self, name, _floats(name, getattr(self, name), open_low))


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

    block_size: int = 128
    desc_act: bool = False
    damp_percent: float = 0.01
    static_groups: bool = False

    def __post_init__(self) -> None:
        check_int("block_size", self.block_size, 1)
        check_bool("desc_act", self.desc_act)
        object.__setattr__(self, "damp_percent",
                           check_float("damp_percent", self.damp_percent, 0, 1, open_low=True))
        check_bool("static_groups", self.static_groups)


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
        precision_recovery: ``PrecisionRecovery.NONE`` (default: round to nearest) or ``GPTQ``.
        outliers_suppression: ``OutliersSuppressionType.NONE`` (default), ``SMOOTH`` or ``AWQ``.
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

    mode: PTQMode = PTQMode.QUANTIZE
    backend: BackendTarget = BackendTarget.NONE
    opname_blacklist: Tuple[str, ...] = ()
    algo_args: Any = field(default_factory=dict)
    weight_quant_dtype: Optional[QuantDtype] = INT8
    kvcache_quant_dtype: Optional[QuantDtype] = None
    act_quant_dtype: Optional[QuantDtype] = None
    precision_recovery: PrecisionRecovery = PrecisionRecovery.NONE
    outliers_suppression: OutliersSuppressionType = OutliersSuppressionType.NONE
    weight_quant_granularity: QuantGranularity = PER_CHANNEL
    kvcache_quant_granularity: QuantGranularity = PER_CHANNEL
    act_quant_granularity: QuantGranularity = PER_TENSOR
    group_size: int = 0

    def __post_init__(self) -> None:
        for name, (check, choices) in _CHOICES.items():
            object.__setattr__(self, name, check(name, getattr(self, name), choices))
        object.__setattr__(self, "opname_blacklist", _names(self.opname_blacklist))
        check_int("group_size", self.group_size)
        for wrong, message in _contradictions(self):
            if wrong:
                raise ConfigError(message)
        _check_clipped_groups(self.weight_quant_granularity, self.options())

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
        wanted = [cls for asked, cls in (
            (self.outliers_suppression is OutliersSuppressionType.SMOOTH, SmoothQuantConfig),
            (self.outliers_suppression is OutliersSuppressionType.AWQ, AWQConfig),
            (self.precision_recovery is PrecisionRecovery.GPTQ, GPTQQuantConfig),
            (self.act_quant_dtype is not None and self.act_quant_granularity is PER_TENSOR,
             ActivationObserverConfig)) if asked]
        return parse_algo_args(self.algo_args, wanted)


def _names(given):
    if isinstance(given, str) or not isinstance(given, (list, tuple)):
        raise wrong_type("opname_blacklist", given, "a list of str")
    for each in given:
        if not isinstance(each, str):
            raise wrong_type("opname_blacklist", given, "a list of str")
        if not each:
            raise wrong_value("opname_blacklist", given,
                              "a list of parts of names; every name contains the empty one")
    return tuple(given)


def _check_clipped_groups(granularity, options):
    gptq, awq = options.get(GPTQQuantConfig), options.get(AWQConfig)
    if None not in (gptq, awq) and granularity is PER_GROUP and (
            gptq.desc_act and not gptq.static_groups and awq.weight_clip_ratio != (1.0,)):
        raise ConfigError("static_groups must be True with desc_act, PER_GROUP and AWQ, but is "
                          "False: AWQ clips the ranges of groups that desc_act would rearrange "
                          "(or set weight_clip_ratio to 1.0)")


def _contradictions(c):
    """(condition, message) of every contradiction between fields."""
    weight, act = c.weight_quant_dtype, c.act_quant_dtype
    grouped = c.weight_quant_granularity is PER_GROUP
    gptq = c.precision_recovery is PrecisionRecovery.GPTQ
    suppressed = c.outliers_suppression is not OutliersSuppressionType.NONE
    w8a8, w4a8 = (weight is INT8 and act is INT8), (weight is INT4 and act is INT8)
    return [
        (weight is None and act is not None,
         "act_quant_dtype must be None while weight_quant_dtype is None, but is INT8: activations "
         "are not quantized without weights"),
        (weight is None and suppressed,
         "outliers_suppression must be OutliersSuppressionType.NONE while weight_quant_dtype is "
         f"None, but is {c.outliers_suppression}"),
        (weight is None and gptq,
         "precision_recovery must be PrecisionRecovery.NONE while weight_quant_dtype is None, but "
         "is PrecisionRecovery.GPTQ"),
        (weight is None and grouped,
         "weight_quant_granularity must be QuantGranularity.PER_CHANNEL while weight_quant_dtype "
         "is None, but is QuantGranularity.PER_GROUP"),
        (act is None and c.act_quant_granularity is PER_TOKEN,
         "act_quant_granularity must be QuantGranularity.PER_TENSOR while act_quant_dtype is "
         "None, but is QuantGranularity.PER_TOKEN"),
        (w8a8 and c.outliers_suppression is OutliersSuppressionType.AWQ,
         "outliers_suppression must be OutliersSuppressionType.NONE or SMOOTH for INT8 weights "
         "and activations, but is OutliersSuppressionType.AWQ, which is for weights alone"),
        (w8a8 and gptq,
         "precision_recovery must be PrecisionRecovery.NONE for INT8 weights and activations, "
         "but is PrecisionRecovery.GPTQ"),
        (w8a8 and grouped,
         "weight_quant_granularity must be QuantGranularity.PER_CHANNEL for INT8 weights and "
         "activations, but is QuantGranularity.PER_GROUP"),
        (w4a8 and c.act_quant_granularity is not PER_TOKEN,
         "act_quant_granularity must be QuantGranularity.PER_TOKEN for INT4 weights and INT8 "
         "activations, but is QuantGranularity.PER_TENSOR"),
        (w4a8 and not gptq,
         "precision_recovery must be PrecisionRecovery.GPTQ for INT4 weights and INT8 "
         "activations, but is PrecisionRecovery.NONE"),
        (c.kvcache_quant_dtype is None and c.kvcache_quant_granularity is PER_TOKEN,
         "kvcache_quant_granularity must be QuantGranularity.PER_CHANNEL while "
         "kvcache_quant_dtype is None, but is QuantGranularity.PER_TOKEN"),
        (not grouped and c.group_size != 0,
         "group_size must be 0 without weight_quant_granularity=QuantGranularity.PER_GROUP, but "
         f"is {c.group_size}"),
        (grouped and c.group_size not in GROUP_SIZES,
         "group_size must be 64 or 128 with weight_quant_granularity=QuantGranularity.PER_GROUP, "
         f"but is {c.group_size}"),
    ]


def parse_algo_args(given: Any, wanted: Sequence[type]) -> Dict[type, Any]:
    """Return class -> instance for the option classes ``wanted``.

    Args:
        given: a dict of options of any of ``wanted``, an instance of one of them, or a list or
            tuple of instances.

    Raises:
        ConfigTypeError: ``given`` is of another type.
        ConfigError: an option that none of ``wanted`` has.
    """
    known = {field.name: cls for cls in wanted for field in fields(cls)}
    if isinstance(given, dict):
        options = given
    else:
        options = {}
        for each in given if isinstance(given, (list, tuple)) else [given]:
            if not is_dataclass(each) or isinstance(each, type):
                raise wrong_type("algo_args", given, "a dict, or an instance of "
                                 "SmoothQuantConfig, AWQConfig, GPTQQuantConfig or "
                                 "ActivationObserverConfig")
            if type(each) not in wanted:
                names = ", ".join(cls.__name__ for cls in wanted) or "no options"
                raise ConfigError(
                    f"algo_args is {each!r}, but the algorithms that are asked for take {names}; "
                    "see outliers_suppression and precision_recovery")
            options.update(asdict(each))
    check_known_keys("algo_args", options, known)
    return {cls: cls(**{name: value for name, value in options.items() if known[name] is cls})
            for cls in wanted}


def _floats(name, value, open_low):
    values = value if isinstance(value, (list, tuple)) else [value]
    if not values:
        raise ConfigError(f"{name} must hold at least one float, but is {value!r}")
    return tuple(check_float(name, each, 0, 1, open_low=open_low) for each in values)
