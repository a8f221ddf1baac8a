"""Assignments to slices."""

from ..attributes import plain


def set_value(converter, operation):
    """Convert set_value, whose computed bounds are lists of scalars in the legacy format."""
    converter.versions["set_value"] = 4  # otherwise Paddle reads values under older names
    with_tensor = operation.name.startswith("set_value_with_tensor")
    x, *rest = operation.operands
    (result,), ins, values = operation.results, {"Input": converter.name_of(x)}, {}
    if with_tensor:
        ins["ValueTensor"] = converter.name_of(rest.pop(0))
    for name, number in zip(("starts", "ends", "steps"), rest):
        known = converter.numbers(number)
        if known is None:
            ins[f"{name.capitalize()}TensorList"] = (
                converter.names_of(number) if number in converter.lists
                else converter.apart(number, converter.name_of(number)))
        values[name] = "longs", known or []
    for name in ("axes", "decrease_axes", "none_axes"):
        values[name] = "longs", plain(operation.attributes[name])
    values["dtype"] = "dtype", result.dtype
    shape, numbers = ([] if with_tensor else plain(operation.attributes[name])
                      for name in ("shape", "values"))
    values.update(shape=("longs", shape), values=("scalars", (result.dtype, numbers)))
    if operation.name.endswith("_") and converter.read_later(x):
        name = converter.overwrite(operation, result, x)
    else:
        name = converter.define(result, converter.label("set_value"))
    converter.write("set_value", ins, {"Out": name}, values)
