"""Arithmetic, convolutions and casts that become another legacy operator, or several."""

from ..attributes import op, plain
from ..convert_row import write_by_row
from ..row_syntax import row

_CLIP = row("clip", "clip", "x>X min>min:float max>max:float")


def isclose(converter, operation):
    """Convert isclose and allclose, whose legacy tolerances are strings."""
    x, y, *tolerances = operation.operands
    (value,), values = operation.results, [("equal_nan", "bool",
                                            plain(operation.attributes["equal_nan"]))]
    for name, number in zip(("rtol", "atol"), tolerances):
        known = converter.numbers(number)
        if known is None:
            raise operation.unsupported(f"has a computed {name}")
        values.append((name, "str", repr(float(known[0]))))
    kind = operation.name
    target = converter.define(value, f"{kind}_{converter.next()}.tmp")
    converter.write(op(kind, {"Input": [converter.name_of(x)], "Other": [converter.name_of(y)]},
                       {"Out": [target]}, values))


def clip(converter, operation):
    """Convert clip; with bounds that are no float32, to a minimum and a maximum.

    OpenVINO does not support bounds as tensors.
    """
    x, *bounds = operation.operands
    if not any(converter.numbers(each) is None or converter.is_rounded(each) for each in bounds):
        write_by_row(converter, operation, _CLIP)
        return
    (value,), name = operation.results, converter.name_of(x)
    label, shape = f"clip_{converter.next()}.tmp", list(value.shape or [])
    low, high = (converter.as_type(each, value.dtype, label) for each in bounds)
    least = converter.temporary(label, value.dtype, shape)
    for kind, first, bound, target in (
            ("elementwise_min", name, high, least),
            ("elementwise_max", least, low, converter.define(value, label))):
        converter.write(op(kind, {"X": [first], "Y": [bound]}, {"Out": [target]},
                           [("axis", "int", -1)]))


def swiglu(converter, operation):
    """Convert swiglu: silu(x) * y; without y, of the halves of x."""
    x, y = [*operation.operands, 0][:2]
    (value,), source = operation.results, converter.types[x]
    label = f"swiglu_{converter.next()}.tmp"
    if y:
        first, second = converter.name_of(x), converter.name_of(y)
    else:
        shape = list(value.shape or [])
        first, second = (converter.temporary(label, source.dtype, shape) for _ in range(2))
        converter.write(op("split", {"X": [converter.name_of(x)]}, {"Out": [first, second]},
                           [("num", "int", 2), ("sections", "ints", []),
                            ("axis", "int", len(shape) - 1)]))
    gate = converter.temporary(label, source.dtype, list(value.shape or []))
    converter.write(op("silu", {"X": [first]}, {"Out": [gate]}, []))
    converter.write(op("elementwise_mul", {"X": [gate], "Y": [second]},
                       {"Out": [converter.define(value, label)]}, [("axis", "int", -1)]))


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
                   converter.define(value, f"cast_{converter.next()}.tmp"), value.dtype)


def shape64(converter, operation):
    """Convert shape64: the legacy operator returns int32."""
    (number,), (value,) = operation.operands, operation.results
    label = f"shape_{converter.next()}.tmp"
    short = converter.temporary(label, "int32", value.shape)
    converter.write(op("shape", {"Input": [converter.name_of(number)]}, {"Out": [short]}, []))
    converter.cast(short, "int32", converter.define(value, label), "int64")


def arange(converter, operation):
    """Convert arange to ``range``, whose bounds have the data type of its result."""
    (value,), label = operation.results, f"range_{converter.next()}.tmp"
    ins = {}
    for slot, number in zip(("Start", "End", "Step"), operation.operands):
        ins[slot] = [converter.as_type(number, value.dtype, label)]
    converter.write(op("range", ins, {"Out": [converter.define(value, label)]}, []))
