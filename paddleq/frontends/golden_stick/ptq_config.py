"""``PTQConfig``: what ``PTQ`` is to do, checked when it is made."""

from dataclasses import dataclass, field, fields
from typing import Any, Mapping, Optional, Tuple

from ..._checks import check_int, check_known_keys, wrong_type, wrong_value
from ...errors import ConfigError
from .config import QuantDtype
from .ptq_args import AWQConfig, GPTQQuantConfig, SmoothQuantConfig, parse_algo_args
from .ptq_enums import (
    BackendTarget,
    OutliersSuppressionType,
    PrecisionRecovery,
    PTQMode,
    QuantGranularity,
    check_dtype,
    check_enum,
)

INT4, INT8 = QuantDtype.INT4, QuantDtype.INT8
PER_TENSOR, PER_CHANNEL = QuantGranularity.PER_TENSOR, QuantGranularity.PER_CHANNEL
PER_TOKEN, PER_GROUP = QuantGranularity.PER_TOKEN, QuantGranularity.PER_GROUP

# field -> (check, what it may be)
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
class PTQConfig:
    """What :class:`PTQ` does with the layers that it is for.

    An enum may be given as its value ("awq"), a data type as ``QuantDtype.INT8``, "int8" or
    ``paddle.int8``.

    Args:
        mode: ``PTQMode.QUANTIZE`` (default) calibrates and quantizes; ``PTQMode.DEPLOY`` builds
            the quantized structure, without data, to load a checkpoint into.
        backend: a :class:`BackendTarget`; both give the same network. Default ``NONE``.
        opname_blacklist: list of str; a layer whose name contains one of them is left alone.
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
        ConfigError: (a ValueError) a value that there is not, or values that exclude each other:
            activations without weights; int8 weights and activations with AWQ, GPTQ or groups;
            int4 weights and int8 activations unless these are per token and the weights are
            rounded by GPTQ; per-token activations that are not quantized; a per-token KV cache
            that is not int8; a ``group_size`` without groups; algorithms for weights that are not
            quantized; options of an algorithm that is not asked for.

    Examples:
        >>> from paddleq.frontends.golden_stick import PTQConfig, QuantGranularity
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

    def __post_init__(self):
        for name, (check, choices) in _CHOICES.items():
            object.__setattr__(self, name, check(name, getattr(self, name), choices))
        object.__setattr__(self, "opname_blacklist", _names(self.opname_blacklist))
        check_int("group_size", self.group_size)
        for wrong, message in _contradictions(self):
            if wrong:
                raise ConfigError(message)
        _check_groups_stay(self.weight_quant_granularity, self.options())

    @classmethod
    def parse(cls, given):
        """A PTQConfig of a PTQConfig, a dict with its fields, or None (the defaults)."""
        if given is None:
            return cls()
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise wrong_type("config", given, "a PTQConfig, a dict with its fields, or None")
        check_known_keys("config", given, [each.name for each in fields(cls)])
        return cls(**given)

    def options(self):
        """Class of options -> the options, for the algorithms that are asked for."""
        wanted = [cls for asked, cls in (
            (self.outliers_suppression is OutliersSuppressionType.SMOOTH, SmoothQuantConfig),
            (self.outliers_suppression is OutliersSuppressionType.AWQ, AWQConfig),
            (self.precision_recovery is PrecisionRecovery.GPTQ, GPTQQuantConfig)) if asked]
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


def _check_groups_stay(granularity, options):
    gptq, awq = options.get(GPTQQuantConfig), options.get(AWQConfig)
    if None not in (gptq, awq) and granularity is PER_GROUP and (
            gptq.desc_act and not gptq.static_groups and awq.weight_clip_ratio != (1.0,)):
        raise ConfigError("static_groups must be True with desc_act, PER_GROUP and AWQ, but is "
                          "False: AWQ clips the ranges of groups which desc_act would form anew "
                          "(or set weight_clip_ratio to 1.0)")


def _contradictions(c):
    """(whether it is so, what is wrong about it) for all that takes two fields to be wrong."""
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
