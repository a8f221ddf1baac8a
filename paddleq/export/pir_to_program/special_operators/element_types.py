"""Operations whose element types the legacy operator does not take as they are."""

from ..attributes import op


def cast(converter, operation):
    """Its attributes name both types."""
    (number,), (value,) = operation.operands, operation.results
    converter.cast(converter.name_of(number), converter.types[number].dtype,
                   converter.define(value, f"cast_{converter.next()}.tmp"), value.dtype)


def shape64(converter, operation):
    """The legacy operator counts in int32."""
    (number,), (value,) = operation.operands, operation.results
    label = f"shape_{converter.next()}.tmp"
    short = converter.temporary(label, "int32", value.shape)
    converter.write(op("shape", {"Input": [converter.name_of(number)]}, {"Out": [short]}, []))
    converter.cast(short, "int32", converter.define(value, label), "int64")


def arange(converter, operation):
    """``range`` wants its bounds in the type of its result."""
    (value,), label = operation.results, f"range_{converter.next()}.tmp"
    ins = {}
    for slot, number in zip(("Start", "End", "Step"), operation.operands):
        ins[slot] = [converter.as_type(number, value.dtype, label)]
    converter.write(op("range", ins, {"Out": [converter.define(value, label)]}, []))
