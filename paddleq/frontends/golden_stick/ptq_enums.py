"""The names under which MindSpore Golden Stick's ``PTQ`` says what is wanted."""

import enum

import paddle

from ..._checks import hint, wrong_type
from ...errors import ConfigError
from .config import QuantDtype


class PTQMode(enum.Enum):
    """Whether a network is being quantized, or built to load a quantized checkpoint.

    Examples:
        >>> from paddleq.frontends.golden_stick import PTQMode
        >>> PTQMode("deploy")
        <PTQMode.DEPLOY: 'deploy'>
    """

    QUANTIZE = "quantize"
    DEPLOY = "deploy"


class BackendTarget(enum.Enum):
    """What the quantized network is for. Both give the same network here.

    Examples:
        >>> from paddleq.frontends.golden_stick import BackendTarget
        >>> [target.value for target in BackendTarget]
        ['none', 'ascend']
    """

    NONE = "none"
    ASCEND = "ascend"


class OutliersSuppressionType(enum.Enum):
    """What is done about outliers in activations before anything is rounded.

    Examples:
        >>> from paddleq.frontends.golden_stick import OutliersSuppressionType
        >>> [kind.value for kind in OutliersSuppressionType]
        ['none', 'smooth', 'awq']
    """

    NONE = "none"
    SMOOTH = "smooth"
    AWQ = "awq"


class PrecisionRecovery(enum.Enum):
    """How weights are rounded: each to the nearest, or by GPTQ.

    Examples:
        >>> from paddleq.frontends.golden_stick import PrecisionRecovery
        >>> [kind.value for kind in PrecisionRecovery]
        ['none', 'gptq']
    """

    NONE = "none"
    GPTQ = "gptq"


class QuantGranularity(enum.Enum):
    """Which elements share a scale.

    Examples:
        >>> from paddleq.frontends.golden_stick import QuantGranularity
        >>> print(QuantGranularity.PER_GROUP)
        per_group
    """

    PER_TENSOR = "per_tensor"
    PER_CHANNEL = "per_channel"
    PER_TOKEN = "per_token"
    PER_GROUP = "per_group"

    def __str__(self):
        return self.value


def check_enum(name, value, choices):
    """``value`` as one of ``choices``, members of one enum class; given as it or as its value.

    Raises:
        ConfigTypeError: it is neither a member of that class nor a str.
        ConfigError: it is another one.
    """
    kind = type(choices[0])
    if isinstance(value, str):
        # A configuration that was read from YAML holds words.
        value = {str(each.value): each for each in kind}.get(value.lower(), value)
    elif not isinstance(value, kind):
        raise wrong_type(name, value, f"a {kind.__name__}, or its value as a str")
    if value not in choices:
        listed = ", ".join(f"{kind.__name__}.{each.name}" for each in choices)
        shown = value if isinstance(value, str) else value.value
        raise ConfigError(f"{name} must be one of {listed}, but is {value!r}"
                          + hint(shown, [str(each.value) for each in choices]))
    return value


def check_dtype(name, value, choices):
    """``value`` as one of ``choices``, each a QuantDtype or None.

    It may be given as the QuantDtype, as its name ("int8") or as Paddle's dtype.

    Raises:
        ConfigTypeError: it is none of these.
        ConfigError: it is another one.
    """
    names = {each.name.lower(): each for each in QuantDtype}
    if isinstance(value, type(paddle.int8)):
        value = str(value).rpartition(".")[2]
    if isinstance(value, str):
        value = names.get(value.lower(), value)
    elif value is not None and not isinstance(value, QuantDtype):
        raise wrong_type(name, value, "a QuantDtype, its name as a str, or None")
    if value not in choices:
        listed = ", ".join("None" if each is None else f"QuantDtype.{each.name}"
                           for each in choices)
        raise ConfigError(f"{name} must be one of {listed}, but is {value!r}"
                          + (hint(value, names) if isinstance(value, str) else ""))
    return value
