"""Arithmetic for which the legacy format has another operator, or several."""

from ..attributes import op, plain
from ..convert_row import write_by_row
from ..row_syntax import row
from ..unsupported import unsupported

_CLIP = row("clip", "clip", "x>X min>min:float max>max:float")


def isclose(converter, operation):
    """The tolerances are texts there."""
    x, y, *tolerances = operation.operands
    (value,), values = operation.results, [("equal_nan", "bool",
                                            plain(operation.attributes["equal_nan"]))]
    for name, number in zip(("rtol", "atol"), tolerances):
        known = converter.numbers(number)
        if known is None:
            raise unsupported(operation, f"has a computed {name}")
        values.append((name, "str", repr(float(known[0]))))
    kind = operation.name
    target = converter.define(value, f"{kind}_{converter.next()}.tmp")
    converter.write(op(kind, {"Input": [converter.name_of(x)], "Other": [converter.name_of(y)]},
                       {"Out": [target]}, values))


def clip(converter, operation):
    """Where bounds are no float32: the maximum of a minimum. OpenVINO does not read tensors."""
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
    """silu(x) * y; without y, the halves of x."""
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
