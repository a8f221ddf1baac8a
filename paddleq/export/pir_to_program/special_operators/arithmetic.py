"""Arithmetic, convolutions and casts that become another legacy operator, or several."""

from ..attributes import plain
from ..convert_row import write_by_row
from ..operator_table import row

_CLIP = row("clip", "clip", "x>X min>min:float max>max:float")


def isclose(converter, operation):
    """Convert isclose and allclose, whose legacy tolerances are strings."""
    x, y, *tolerances = operation.operands
    (value,), texts = operation.results, {}
    for name, number in zip(("rtol", "atol"), tolerances):
        known = converter.numbers(number)
        if known is None:
            raise operation.unsupported(f"has a computed {name}")
        texts[name] = repr(float(known[0]))
    target = converter.define(value, converter.label(operation.name))
    converter.write(operation.name,
                    {"Input": converter.name_of(x), "Other": converter.name_of(y)},
                    {"Out": target}, equal_nan=plain(operation.attributes["equal_nan"]), **texts)


def clip(converter, operation):
    """Convert clip; with bounds that are no float32, to a minimum and a maximum.

    OpenVINO does not support bounds as tensors.
    """
    x, *bounds = operation.operands
    if not any(converter.numbers(each) is None or converter.is_rounded(each) for each in bounds):
        write_by_row(converter, operation, _CLIP)
        return
    (value,), name, label = operation.results, converter.name_of(x), converter.label("clip")
    low, high = (converter.as_type(each, value.dtype, label) for each in bounds)
    least = converter.temporary(label, value.dtype, value.shape)
    target = converter.define(value, label)
    converter.write("elementwise_min", {"X": name, "Y": high}, {"Out": least}, axis=-1)
    converter.write("elementwise_max", {"X": least, "Y": low}, {"Out": target}, axis=-1)


def swiglu(converter, operation):
    """Convert swiglu: silu(x) * y; without y, of the halves of x."""
    x, y = [*operation.operands, 0][:2]
    (value,), source, label = operation.results, converter.types[x], converter.label("swiglu")
    if y:
        first, second = converter.name_of(x), converter.name_of(y)
    else:
        first, second = (converter.temporary(label, source.dtype, value.shape) for _ in range(2))
        converter.write("split", {"X": converter.name_of(x)}, {"Out": [first, second]},
                        num=2, sections=[], axis=len(value.shape or []) - 1)
    gate = converter.temporary(label, source.dtype, value.shape)
    converter.write("silu", {"X": first}, {"Out": gate})
    converter.write("elementwise_mul", {"X": gate, "Y": second},
                    {"Out": converter.define(value, label)}, axis=-1)


_DEFORMABLE, _DEFORMABLE_WITHOUT_MASK = (
    row("deformable_conv", legacy, f"x>Input offset>Offset filter>Filter {mask}", "out>Output",
        "strides:ints paddings:ints dilations:ints deformable_groups:int groups:int "
        "im2col_step:int")
    for legacy, mask in (("deformable_conv", "mask>Mask"), ("deformable_conv_v1", "mask>-?")))


def deformable_conv(converter, operation):
    """Convert deformable_conv, which without a mask is another legacy operator."""
    masked = len(operation.operands) > 3 and operation.operands[3]
    write_by_row(converter, operation, _DEFORMABLE if masked else _DEFORMABLE_WITHOUT_MASK)


def cast(converter, operation):
    """Convert cast, whose legacy attributes are both data types."""
    (number,), (value,) = operation.operands, operation.results
    converter.cast(converter.name_of(number), converter.types[number].dtype,
                   converter.define(value, converter.label("cast")), value.dtype)


def shape64(converter, operation):
    """Convert shape64: the legacy operator returns int32."""
    (number,), (value,), label = operation.operands, operation.results, converter.label("shape")
    short = converter.temporary(label, "int32", value.shape)
    converter.write("shape", {"Input": converter.name_of(number)}, {"Out": short})
    converter.cast(short, "int32", converter.define(value, label), "int64")


def arange(converter, operation):
    """Convert arange to ``range``, whose bounds have the data type of its result."""
    (value,), label = operation.results, converter.label("range")
    bounds = [converter.as_type(each, value.dtype, label) for each in operation.operands]
    converter.write("range", dict(zip(("Start", "End", "Step"), bounds)),
                    {"Out": converter.define(value, label)})
