"""Quantization parameters that do not depend on data: data type, symmetry, granularity.

The same :class:`QuantSpec` drives training, frozen layers and exported graphs, so that the three
compute the same values. This module does not touch tensors.
"""

from dataclasses import dataclass, field
from typing import Any, Optional, Tuple, Union, cast

from ._checks import check_bool, check_choice, check_int, wrong_type, wrong_value
from .errors import ConfigError
from .number_formats import DATA_TYPES, DataType, ElementFormat


@dataclass(frozen=True)
class PerTensor:
    """One scale for the whole tensor.

    The scale has the shape [1], whatever the shape of the tensor.

    Examples:
        >>> from paddleq import PerTensor
        >>> print(PerTensor())
        per_tensor
    """

    def __str__(self) -> str:
        return "per_tensor"


@dataclass(frozen=True)
class PerChannel:
    """One scale for each index along ``axis``.

    A Conv2D weight [out_channels, in_channels, kh, kw] with ``axis=0`` has scales of the shape
    [out_channels]; a Linear weight [in_features, out_features] with ``axis=1`` has scales of the
    shape [out_features].

    Args:
        axis: the channel axis. Default 0.

    Examples:
        >>> from paddleq import PerChannel
        >>> print(PerChannel(axis=1))
        per_channel(1)
    """

    axis: int = 0

    def __post_init__(self) -> None:
        check_int("axis", self.axis)

    def __str__(self) -> str:
        return f"per_channel({self.axis})"


@dataclass(frozen=True)
class PerGroup:
    """One scale for each group of ``size`` consecutive input features of each output feature.

    A Linear weight [in_features, out_features] has scales of the shape
    [ceil(in_features / size), out_features]: a weight [4096, 1024] with ``size=128`` has the
    scales [32, 1024]. The last group may be shorter.

    Args:
        size: number of input features in a group. Default 128.

    Examples:
        >>> from paddleq import PerGroup
        >>> print(PerGroup(size=64))
        per_group(64)
    """

    size: int = 128

    def __post_init__(self) -> None:
        check_int("size", self.size, 1)

    def __str__(self) -> str:
        return f"per_group({self.size})"


@dataclass(frozen=True)
class PerBlock:
    """One scale for each block of ``rows`` input features and ``columns`` output features.

    A Linear weight [in_features, out_features] has scales of the shape
    [ceil(in_features / rows), ceil(out_features / columns)]. For weights in a float data type. The
    last blocks may be smaller.

    Args:
        rows, columns: size of a block. Default 128.

    Examples:
        >>> from paddleq import PerBlock
        >>> print(PerBlock())
        per_block(128x128)
    """

    rows: int = 128
    columns: int = 128

    def __post_init__(self) -> None:
        check_int("rows", self.rows, 1)
        check_int("columns", self.columns, 1)

    def __str__(self) -> str:
        return f"per_block({self.rows}x{self.columns})"


@dataclass(frozen=True)
class PerToken:
    """One scale for each token, computed at run time.

    An activation [batch, tokens, features] has scales of the shape [batch, tokens, 1].

    Examples:
        >>> from paddleq import PerToken
        >>> print(PerToken())
        per_token
    """

    def __str__(self) -> str:
        return "per_token"


Granularity = Union[PerTensor, PerChannel, PerGroup, PerBlock, PerToken]

HALF_EVEN = "half_even"
HALF_UP = "half_up"


@dataclass(frozen=True)
class QuantSpec:
    """Mapping of a tensor to integers, or to numbers of a low-precision float format.

    Args:
        bits: width of an integer, 1 to 16. Default 8. One bit has the two values -1 and +1.
        signed: use signed integers. Default True.
        symmetric: use the zero point 0. Default True.
        narrow_range: leave out the lowest integer, e.g. -127..127 for int8. Default False.
        rounding: "half_even" (default), as Paddle's ``quantize_linear`` rounds, or "half_up",
            floor(v + 0.5).
        granularity: the elements that share a scale. Default :class:`PerTensor`; blocks of 32
            input features for the MX data types, groups of 64 for "nf4".
        limits: (lowest, highest) integer. It must contain 0 and fit into ``bits``. Default None:
            the full range of ``bits``.
        dtype: None (default): integers. Otherwise a float data type, which determines ``bits``, is
            symmetric and rounds to its nearest number:

            - "float8_e4m3fn", "float8_e5m2": 8 bits (OCP OFP8), scale = max|x| / 448 or / 57344.
            - "hifloat8": Huawei's HiF8 (arXiv:2409.16626), scale = max|x| / 16.
            - "float4_e2m1": 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives; scale = max|x| / 6.
            - "nf4": the 16 levels of NormalFloat4 (arXiv:2305.14314); scale = max|x|.
            - "mxfp8_e4m3fn", "mxfp8_e5m2", "mxfp4_e2m1": OCP Microscaling 1.0. Blocks of 32 input
              features share a power of two, 2**(floor(log2(max|x|)) - e), where e is 8, 15 or 2;
              larger numbers saturate.
            - "mxfp4_e2m1_nearest": MXFP4 whose scale is doubled where max|x| is above 1.75 times
              a power of two, as in AMCT.

    Attributes:
        quant_min, quant_max: lowest and highest integer. A symmetric spec maps the largest
            magnitude to ``quant_max``: scale = abs_max / quant_max. Of a float data type the number
            to which the scale maps the largest magnitude.
        binary: True for one bit. The values are -1 and +1; there is no zero.
        storage: name of the numpy dtype that stores one integer.
        channel_axis: axis of a per-channel scale, or None.
        data_type, element: the :class:`~paddleq.number_formats.DataType` and the format of its
            numbers; None for integers.

    Raises:
        ConfigError, ConfigTypeError: a value is out of range or of the wrong type.

    Examples:
        >>> from paddleq import QuantSpec, PerChannel
        >>> spec = QuantSpec(bits=8, granularity=PerChannel(axis=0))
        >>> spec.quant_min, spec.quant_max
        (-128, 127)
        >>> QuantSpec(bits=4, narrow_range=True).quant_min
        -7
        >>> print(spec)
        int8 per_channel(0)
        >>> print(QuantSpec(dtype="mxfp4_e2m1"))
        mxfp4_e2m1 per_group(32)
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    narrow_range: bool = False
    rounding: str = HALF_EVEN
    granularity: Granularity = cast(Any, None)
    limits: Optional[Tuple[int, int]] = None
    dtype: Optional[str] = None

    # Derived values are fields, not properties: the bytecode translator of paddle.jit.to_static
    # supports only the fields of a dataclass.
    binary: bool = field(init=False, repr=False, compare=False)
    quant_min: int = field(init=False, repr=False, compare=False)
    quant_max: int = field(init=False, repr=False, compare=False)
    storage: Any = field(init=False, repr=False, compare=False)  # str
    channel_axis: Optional[int] = field(init=False, repr=False, compare=False)
    data_type: Optional[DataType] = field(init=False, repr=False, compare=False)
    element: Optional[ElementFormat] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, (None, *DATA_TYPES))
        data_type = None if self.dtype is None else DATA_TYPES[self.dtype]
        if self.granularity is None:
            size = data_type and (data_type.block or data_type.group)
            object.__setattr__(self, "granularity", PerGroup(size) if size else PerTensor())
        if data_type is not None and self.bits in (8, data_type.element.bits):
            object.__setattr__(self, "bits", data_type.element.bits)
        check_int("bits", self.bits, 1, 16)
        for name in ("signed", "symmetric", "narrow_range"):
            check_bool(name, getattr(self, name))
        check_choice("rounding", self.rounding, (HALF_EVEN, HALF_UP))
        granularity = self.granularity
        if not isinstance(granularity, (PerTensor, PerChannel, PerGroup, PerBlock, PerToken)):
            raise wrong_type("granularity", granularity,
                             "PerTensor, PerChannel, PerGroup, PerBlock or PerToken")
        if data_type is not None:
            self._check_float(data_type)
        elif isinstance(granularity, PerBlock):
            raise wrong_value("granularity", granularity, "another one for integers, or with a "
                              f"float dtype: {', '.join(DATA_TYPES)}")
        low, high = _integer_range(self.bits, self.signed)
        low += self.narrow_range and self.bits > 1
        if self.limits is not None:
            low, high = _checked_limits(self.limits, low, high)
        if data_type is not None:
            low, high = -data_type.element.target, data_type.element.target
        derived = {
            "binary": self.bits == 1, "quant_min": low, "quant_max": high,
            "storage": "uint8" if data_type is not None else (
                ("int" if self.signed else "uint") + ("8" if self.bits <= 8 else "16")),
            "channel_axis": granularity.axis if isinstance(granularity, PerChannel) else None,
            "data_type": data_type, "element": data_type and data_type.element,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def require_integers(self, user: str) -> None:
        """Raise ConfigError for a float data type, which ``user`` does not support."""
        if self.dtype is not None:
            raise wrong_value("dtype", self.dtype, f"None, i.e. integers, for {user}")

    def _check_float(self, data_type: DataType) -> None:
        """Raise unless the other fields fit to a float data type."""
        for name, expected in (("bits", data_type.element.bits), ("signed", True),
                               ("symmetric", True), ("narrow_range", False),
                               ("rounding", HALF_EVEN), ("limits", None)):
            if getattr(self, name) != expected:
                raise wrong_value(name, getattr(self, name),
                                  f"{expected!r} for dtype={self.dtype!r}, or left out")
        if data_type.block and self.granularity != PerGroup(data_type.block):
            raise wrong_value("granularity", self.granularity, f"PerGroup({data_type.block}) for "
                              f"dtype={self.dtype!r}, or left out")

    def __str__(self) -> str:
        name = self.dtype or f"{'int' if self.signed else 'uint'}{self.bits}"
        return f"{name} {self.granularity}"


def _integer_range(bits, signed):
    if bits == 1:
        return -1, 1
    return (-2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2 ** bits - 1)


def _checked_limits(limits, lowest, highest):
    if not (isinstance(limits, tuple) and len(limits) == 2
            and all(type(limit) is int for limit in limits)):
        raise wrong_type("limits", limits, "a tuple of two ints")
    if not lowest <= limits[0] <= 0 < limits[1] <= highest:
        raise wrong_value("limits", limits, f"around 0 and within [{lowest}, {highest}]")
    return limits


# Name -> (bits, signed).
DTYPES = {f"{'q' if signed else 'qu'}int{bits}": (bits, signed)
          for bits in range(2, 17) for signed in (True, False)}
QSCHEMES = ("per_tensor_symmetric", "per_tensor_affine", "per_channel_symmetric",
            "per_channel_affine")
SPEC_ARGUMENTS = ("dtype", "qscheme", "quant_min", "quant_max", "ch_axis", "rounding")


def spec_from_qscheme(dtype: str = "qint8", qscheme: Optional[str] = None,
                      quant_min: Optional[int] = None, quant_max: Optional[int] = None,
                      ch_axis: Optional[int] = None, rounding: str = HALF_UP,
                      per_channel: bool = False) -> QuantSpec:
    """Convert the arguments of torch-like fake quantizers to a :class:`QuantSpec`.

    Args:
        dtype: "qint8" (default: -128..127), "qint16", or another of "q" or "qu", "int" and a
            width of 2 to 16 bits.
        qscheme: "per_tensor_symmetric", "per_tensor_affine", "per_channel_symmetric" or
            "per_channel_affine". Default None: symmetric, per channel if ``per_channel`` is True.
        quant_min, quant_max: limits within those of the dtype. Default None: those of the dtype.
        ch_axis: the channel axis. Default None: 0.
        rounding: "half_up" (default: floor(v + 0.5)) or "half_even".
        per_channel: the granularity if ``qscheme`` is None. Default False.

    Raises:
        ConfigError, ConfigTypeError: a value is out of range or of the wrong type.

    Examples:
        >>> from paddleq.spec import spec_from_qscheme
        >>> spec = spec_from_qscheme("quint8", "per_channel_affine", quant_max=127, ch_axis=1)
        >>> print(spec, spec.symmetric, spec.quant_min, spec.quant_max)
        uint8 per_channel(1) False 0 127
    """
    bits, signed = DTYPES[check_choice("dtype", dtype, DTYPES)]
    if qscheme is not None:
        check_choice("qscheme", qscheme, QSCHEMES)
        per_channel = qscheme.startswith("per_channel")
    axis = check_int("ch_axis", 0 if ch_axis is None else ch_axis)
    lowest, highest = _integer_range(bits, signed)
    limits = (lowest if quant_min is None else check_int("quant_min", quant_min, lowest, 0),
              highest if quant_max is None else check_int("quant_max", quant_max, 1, highest))
    narrow = limits == (lowest + 1, highest)
    return QuantSpec(
        bits, signed, symmetric=not (qscheme or "").endswith("affine"), narrow_range=narrow,
        rounding=check_choice("rounding", rounding, (HALF_EVEN, HALF_UP)),
        granularity=PerChannel(axis) if per_channel else PerTensor(),
        limits=None if narrow or limits == (lowest, highest) else limits)


def pop_spec(arguments, **defaults):
    """Remove the arguments of a spec from ``arguments`` and return the spec.

    Args:
        defaults: arguments of :func:`spec_from_qscheme`, unless there is a ``spec``.
    """
    spec = arguments.pop("spec", None)
    words = {name: arguments.pop(name) for name in SPEC_ARGUMENTS if name in arguments}
    if spec is None:
        return spec_from_qscheme(**{**defaults, **words})
    if words:
        raise ConfigError(f"spec says how to quantize already, so that {', '.join(words)} cannot "
                          "be given too")
    return spec
