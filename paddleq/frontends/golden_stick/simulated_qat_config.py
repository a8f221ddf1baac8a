"""Parsing of the configuration of ``SimulatedQuantizationAwareTraining``."""

from dataclasses import dataclass, replace
from typing import Any, Dict, Optional

from ..._checks import check_bool, check_int, check_known_keys, wrong_type, wrong_value
from ...errors import ConfigError
from .enums import QuantDtype


def check_delay(name: str, value: Any) -> int:
    """Return ``value`` if it is an int of at least 0."""
    return check_int(name, value, 0)


def check_dtype(name: str, value: Any) -> QuantDtype:
    """Return ``value`` if it is QuantDtype.INT8."""
    if not isinstance(value, QuantDtype):
        raise wrong_type(name, value, "a QuantDtype, such as QuantDtype.INT8")
    if value is not QuantDtype.INT8:
        raise wrong_value(name, value, "QuantDtype.INT8, the only supported one")
    return value


def check_per_tensor(name: str, value: Any) -> bool:
    """Return ``value`` if it is False: activations have one scale per tensor."""
    if check_bool(name, value):
        raise wrong_value(name, value, "False for activations; (False, True) or "
                          "set_weight_per_channel(True) is per channel for weights")
    return value


# key -> (check of its part for activations, check of its part for weights)
_PAIRS = {
    "quant_delay": (check_delay, check_delay),
    "quant_dtype": (check_dtype, check_dtype),
    "per_channel": (check_per_tensor, check_bool),
    "symmetric": (check_bool, check_bool),
    "narrow_range": (check_bool, check_bool),
}

CHECKS = {
    **{f"act_{key}": checks[0] for key, checks in _PAIRS.items()},
    **{f"weight_{key}": checks[1] for key, checks in _PAIRS.items()},
    "enable_fusion": check_bool,
    "bn_fold": check_bool,
    "one_conv_fold": check_bool,
    "freeze_bn": check_delay,
}


@dataclass(frozen=True)
class SimulatedQATConfig:
    """The nine keys; pairs have one field for activations and one for weights."""

    act_quant_delay: int = 0
    weight_quant_delay: int = 0
    act_quant_dtype: QuantDtype = QuantDtype.INT8
    weight_quant_dtype: QuantDtype = QuantDtype.INT8
    act_per_channel: bool = False
    weight_per_channel: bool = False
    act_symmetric: bool = False
    weight_symmetric: bool = False
    act_narrow_range: bool = False
    weight_narrow_range: bool = False
    enable_fusion: bool = False
    freeze_bn: int = 10_000_000
    bn_fold: bool = False
    one_conv_fold: bool = True

    @classmethod
    def parse(cls, config: Optional[Dict[str, Any]]) -> "SimulatedQATConfig":
        """Parse a user's dict, or None.

        Raises:
            ConfigTypeError, ConfigError: see ``SimulatedQuantizationAwareTraining``.
        """
        if config is None:
            config = {}
        if not isinstance(config, dict):
            raise wrong_type("config", config, "a dict or None")
        keys = [*_PAIRS, "enable_fusion", "freeze_bn", "bn_fold", "one_conv_fold"]
        check_known_keys("config", config, keys)
        parsed = cls()
        for key, value in config.items():
            name = f"config[{key!r}]"
            if key in _PAIRS:
                for side, part in zip(("act", "weight"), _pair(name, value)):
                    parsed = parsed.changed(f"{side}_{key}", part, name)
            else:
                parsed = parsed.changed(key, value, name)
        parsed.check_together()
        return parsed

    def changed(self, field: str, value: Any,
                name: Optional[str] = None) -> "SimulatedQATConfig":
        """Return a copy with another value of ``field``, which messages call ``name``."""
        return replace(self, **{field: CHECKS[field](name or field, value)})

    def check_together(self) -> None:
        """Raise for values that contradict each other."""
        if self.bn_fold and not self.enable_fusion:
            raise ConfigError(
                "bn_fold must be False while enable_fusion is False, but is True: only a fused "
                "convolution and batch norm can be folded; set enable_fusion to True as well")

    def as_dict(self) -> Dict[str, Any]:
        """Return the nine keys, pairs as (activation, weight)."""
        return {
            **{key: (getattr(self, f"act_{key}"), getattr(self, f"weight_{key}"))
               for key in _PAIRS},
            "enable_fusion": self.enable_fusion, "freeze_bn": self.freeze_bn,
            "bn_fold": self.bn_fold, "one_conv_fold": self.one_conv_fold,
        }


def _pair(name, value):
    """Return (value for activations, value for weights)."""
    if not isinstance(value, (list, tuple)):
        return value, value
    if not 1 <= len(value) <= 2:
        raise wrong_value(name, value, "one value, or one for activations and one for weights")
    return value[0], value[-1]
