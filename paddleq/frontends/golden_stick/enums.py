"""Enumerations of MindSpore Golden Stick's interface."""

import enum
from typing import Any, Optional, Sequence

import paddle

from ..._checks import hint, wrong_type
from ...errors import ConfigError


class QuantDtype(enum.Enum):
    """Data types of quantized tensors, under Golden Stick's names.

    ``SimulatedQuantizationAwareTraining`` takes INT8.

    Examples:
        >>> from paddleq.golden_stick import QuantDtype
        >>> QuantDtype.INT8.num_bits, QuantDtype.UINT4.signed
        (8, False)
    """

    INT4 = "INT4"
    INT8 = "INT8"
    INT16 = "INT16"
    UINT4 = "UINT4"
    UINT8 = "UINT8"
    UINT16 = "UINT16"

    @property
    def num_bits(self) -> int:
        """Width of one number."""
        return int(self.value.rpartition("INT")[2])

    @property
    def signed(self) -> bool:
        """True if there are negative numbers."""
        return not self.value.startswith("U")


class PTQMode(enum.Enum):
    """Mode of ``PTQ``: quantize a network, or build the structure to load a checkpoint into.

    Examples:
        >>> from paddleq.golden_stick import PTQMode
        >>> PTQMode("deploy")
        <PTQMode.DEPLOY: 'deploy'>
    """

    QUANTIZE = "quantize"
    DEPLOY = "deploy"


class BackendTarget(enum.Enum):
    """Target of the quantized network. Both give the same network here.

    Examples:
        >>> from paddleq.golden_stick import BackendTarget
        >>> [target.value for target in BackendTarget]
        ['none', 'ascend']
    """

    NONE = "none"
    ASCEND = "ascend"


class OutliersSuppressionType(enum.Enum):
    """Suppression of outliers in activations before weights are rounded.

    Examples:
        >>> from paddleq.golden_stick import OutliersSuppressionType
        >>> [kind.value for kind in OutliersSuppressionType]
        ['none', 'smooth', 'awq']
    """

    NONE = "none"
    SMOOTH = "smooth"
    AWQ = "awq"


class PrecisionRecovery(enum.Enum):
    """Rounding of weights: to nearest, or by GPTQ.

    Examples:
        >>> from paddleq.golden_stick import PrecisionRecovery
        >>> [kind.value for kind in PrecisionRecovery]
        ['none', 'gptq']
    """

    NONE = "none"
    GPTQ = "gptq"


class QuantGranularity(enum.Enum):
    """Granularity of scales.

    Examples:
        >>> from paddleq.golden_stick import QuantGranularity
        >>> print(QuantGranularity.PER_GROUP)
        per_group
    """

    PER_TENSOR = "per_tensor"
    PER_CHANNEL = "per_channel"
    PER_TOKEN = "per_token"
    PER_GROUP = "per_group"

    def __str__(self) -> str:
        return self.value


def check_enum(name: str, value: Any, choices: Sequence[Optional[enum.Enum]],
               others: Sequence[str] = ()) -> Any:
    """Return the element of ``choices`` that ``value`` is, or whose value or Paddle dtype it is.

    ``choices`` are members of one enumeration, or None; ``others`` are further valid str.
    """
    kind: Any = next(type(each) for each in choices if each is not None)
    members = {str(each.value).lower(): each for each in kind}
    given = str(value).rpartition(".")[2] if isinstance(value, type(paddle.int8)) else value
    if isinstance(given, str):
        value = members.get(given.lower(), given)
    elif not isinstance(value, kind) and value not in choices:
        or_none = ", or None" if None in choices else ""
        raise wrong_type(name, value, f"a {kind.__name__}, its value as a str{or_none}")
    if value not in choices and value not in others:
        listed = [str(each and f"{kind.__name__}.{each.name}") for each in choices]
        near = hint(getattr(value, "value", value), [
            word for word, each in members.items() if each in choices] + list(others))
        raise ConfigError(f"{name} must be one of {', '.join([*listed, *others])}, but is "
                          f"{value!r}{near}")
    return value
