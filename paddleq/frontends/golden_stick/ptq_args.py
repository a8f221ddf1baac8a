"""The options of ``PTQ``'s algorithms, under Golden Stick's names."""

from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Tuple, Union

from ..._checks import check_bool, check_float, check_int, check_known_keys, wrong_type
from ...errors import ConfigError


@dataclass(frozen=True)
class SmoothQuantConfig:
    """Options of ``OutliersSuppressionType.SMOOTH``.

    Args:
        alpha: how much of the difficulty moves from activations to weights, in [0, 1]. Default
            0.5. Larger outliers ask for a larger value.

    Raises:
        ConfigTypeError, ConfigError: for a value of another type, or out of range.

    Examples:
        >>> from paddleq.frontends.golden_stick import SmoothQuantConfig
        >>> SmoothQuantConfig(alpha=0.7)
        SmoothQuantConfig(alpha=0.7)
    """

    alpha: float = 0.5

    def __post_init__(self):
        object.__setattr__(self, "alpha", check_float("alpha", self.alpha, 0, 1))


@dataclass(frozen=True)
class AWQConfig:
    """Options of ``OutliersSuppressionType.AWQ``.

    Args:
        duo_scaling: take the weights into account, not the activations alone, where the factors
            of the input channels are computed. Default True.
        smooth_alpha: exponents to try, each in [0, 1]; a float or a list of them. Default
            ``[i / 20 for i in range(20)]``.
        weight_clip_ratio: factors to try on the range of a group of weights, each in (0, 1]; a
            float or a list of them. Default ``[1 - i / 20 for i in range(10)]``.

    Raises:
        ConfigTypeError, ConfigError: for a value of another type, out of range, or an empty list.

    Examples:
        >>> from paddleq.frontends.golden_stick import AWQConfig
        >>> AWQConfig(smooth_alpha=[0.0, 0.5], weight_clip_ratio=1.0)
        AWQConfig(duo_scaling=True, smooth_alpha=(0.0, 0.5), weight_clip_ratio=(1.0,))
    """

    duo_scaling: bool = True
    smooth_alpha: Union[float, Tuple[float, ...]] = tuple(i / 20 for i in range(20))
    weight_clip_ratio: Union[float, Tuple[float, ...]] = tuple(1 - i / 20 for i in range(10))

    def __post_init__(self):
        check_bool("duo_scaling", self.duo_scaling)
        for name, open_low in (("smooth_alpha", False), ("weight_clip_ratio", True)):
            object.__setattr__(self, name, _floats(name, getattr(self, name), open_low))


@dataclass(frozen=True)
class GPTQQuantConfig:
    """Options of ``PrecisionRecovery.GPTQ``.

    Args:
        block_size: rows that are rounded before what they leave is passed on to the rest; a
            matter of speed, not of the result. Default 128.
        desc_act: round the rows with the largest activations first. Default False.
        damp_percent: what is added to the diagonal of the Hessian, as a share of its mean: above
            0 and at most 1. Default 0.01.
        static_groups: fix the scales of all groups before any row is rounded. Default False.

    Raises:
        ConfigTypeError, ConfigError: for a value of another type, or out of range.

    Examples:
        >>> from paddleq.frontends.golden_stick import GPTQQuantConfig
        >>> GPTQQuantConfig(desc_act=True).block_size
        128
    """

    block_size: int = 128
    desc_act: bool = False
    damp_percent: float = 0.01
    static_groups: bool = False

    def __post_init__(self):
        check_int("block_size", self.block_size, 1)
        check_bool("desc_act", self.desc_act)
        object.__setattr__(self, "damp_percent",
                           check_float("damp_percent", self.damp_percent, 0, 1, open_low=True))
        check_bool("static_groups", self.static_groups)


def parse_algo_args(given, wanted):
    """The options of each of ``wanted`` (classes of this module), as class -> instance.

    Args:
        given: a dict of options, whichever of ``wanted`` they belong to, or an instance of one of
            ``wanted``, or a list or tuple of instances.

    Raises:
        ConfigTypeError: ``given`` is nothing of these.
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
                                 "SmoothQuantConfig, AWQConfig or GPTQQuantConfig")
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
