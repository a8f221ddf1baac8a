"""What a quantized tensor is: bits, sign, symmetry, rounding and granularity.

Nothing here touches a tensor. The same :class:`QuantSpec` drives what training simulates,
what ``convert`` stores and what an exported graph computes, so that the three agree.
"""

from dataclasses import dataclass, field
from typing import Optional, Tuple, Union

from ._checks import check_bool, check_choice, check_int, wrong_type, wrong_value


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor.

    Examples:
        >>> from paddleq import PerTensor
        >>> print(PerTensor())
        per_tensor
    """

    def __str__(self):
        return "per_tensor"


@dataclass(frozen=True)
class PerChannel:
    """One scale for each index along ``axis`` (0 for Conv weights, 1 for Linear's).

    Examples:
        >>> from paddleq import PerChannel
        >>> print(PerChannel(axis=1))
        per_channel(1)
    """

    axis: int = 0

    def __post_init__(self):
        check_int("axis", self.axis)

    def __str__(self):
        return f"per_channel({self.axis})"


@dataclass(frozen=True)
class PerGroup:
    """One scale for each group of ``size`` consecutive input features.

    Examples:
        >>> from paddleq import PerGroup
        >>> print(PerGroup(size=64))
        per_group(64)
    """

    size: int = 128

    def __post_init__(self):
        check_int("size", self.size, 1)

    def __str__(self):
        return f"per_group({self.size})"


@dataclass(frozen=True)
class PerToken:
    """One scale for each token, computed while the model runs.

    Examples:
        >>> from paddleq import PerToken
        >>> print(PerToken())
        per_token
    """

    def __str__(self):
        return "per_token"


Granularity = Union[PerTensor, PerChannel, PerGroup, PerToken]

def _checked_limits(limits, lowest, highest):
    if not (isinstance(limits, tuple) and len(limits) == 2
            and all(type(limit) is int for limit in limits)):
        raise wrong_type("limits", limits, "a tuple of two ints")
    if not lowest <= limits[0] <= 0 < limits[1] <= highest:
        raise wrong_value("limits", limits, f"around 0 and within [{lowest}, {highest}]")
    return limits


HALF_EVEN = "half_even"
HALF_UP = "half_up"


@dataclass(frozen=True)
class QuantSpec:
    """How a tensor is mapped to integers.

    Args:
        bits: width of an integer, 1 to 16. Default 8. One bit means the two levels -1 and +1.
        signed: signed integers (default) or unsigned.
        symmetric: zero is stored as 0 (default) or wherever a zero point says.
        narrow_range: leave out the lowest level, e.g. -127..127 for int8. Default False.
        rounding: "half_even" (default, what Paddle's ``quantize_linear`` does) or
            "half_up", i.e. floor(v + 0.5).
        granularity: which elements share a scale. Default :class:`PerTensor`.
        limits: (lowest, highest) integer, within what ``bits`` can hold and around 0, or None
            (default) for all of it.

    Attributes:
        qmin, qmax: lowest and highest integer.
        levels: the integer that the threshold maps to: step = threshold / levels.
        binary: one bit, whose levels are -1 and +1 (there is no zero).
        storage: name of the numpy dtype that holds one integer.
        channel_axis: axis of a per-channel scale, or None.

    Raises:
        ConfigError, ConfigTypeError: for a value out of range or of the wrong type.

    Examples:
        >>> from paddleq import QuantSpec, PerChannel
        >>> spec = QuantSpec(bits=8, granularity=PerChannel(axis=0))
        >>> spec.qmin, spec.qmax, spec.levels
        (-128, 127, 127)
        >>> QuantSpec(bits=4, narrow_range=True).qmin
        -7
        >>> print(spec)
        int8 per_channel(0)
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    narrow_range: bool = False
    rounding: str = HALF_EVEN
    granularity: Granularity = field(default_factory=PerTensor)
    limits: Optional[Tuple[int, int]] = None

    # Derived, and fields rather than properties: paddle.jit.to_static's bytecode translator
    # understands the fields of a dataclass only.
    binary: bool = field(init=False, repr=False, compare=False)
    qmin: int = field(init=False, repr=False, compare=False)
    qmax: int = field(init=False, repr=False, compare=False)
    levels: int = field(init=False, repr=False, compare=False)
    storage: str = field(init=False, repr=False, compare=False)
    channel_axis: Optional[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        check_int("bits", self.bits, 1, 16)
        for name in ("signed", "symmetric", "narrow_range"):
            check_bool(name, getattr(self, name))
        check_choice("rounding", self.rounding, (HALF_EVEN, HALF_UP))
        if not isinstance(self.granularity, (PerTensor, PerChannel, PerGroup, PerToken)):
            raise wrong_type("granularity", self.granularity,
                             "PerTensor, PerChannel, PerGroup or PerToken")
        binary = self.bits == 1
        if binary:
            qmin, qmax = -1, 1
        else:
            qmax = 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1
            qmin = (-qmax - 1 if self.signed else 0) + int(self.narrow_range)
        if self.limits is not None:
            qmin, qmax = _checked_limits(self.limits, qmin, qmax)
        granularity = self.granularity
        derived = {
            "binary": binary, "qmin": qmin, "qmax": qmax, "levels": qmax,
            "storage": ("int" if self.signed else "uint") + ("8" if self.bits <= 8 else "16"),
            "channel_axis": granularity.axis if isinstance(granularity, PerChannel) else None,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def __str__(self):
        return f"{'int' if self.signed else 'uint'}{self.bits} {self.granularity}"
