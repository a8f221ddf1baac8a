"""Strided slices: read and assign."""

from ..attributes import plain
from ..convert_row import write_by_row
from ..operator_table import ROWS

_FAR = 2 ** 31 - 1  # beyond any size: no bound


def strided_slice(converter, operation):
    """Convert strided_slice; negative steps down to the first element become a flip.

    Paddle 2.6 and 3 encode such an end differently.
    """
    number, *bounds = operation.operands
    bounds = [converter.numbers(each) for each in bounds]
    axes, shape = plain(operation.attributes["axes"]), converter.types[number].shape
    if shape is None or any(each is None for each in bounds):
        write_by_row(converter, operation, ROWS["strided_slice"])
        return
    flipped_axes, sliced = [], []
    for axis, start, end, step in zip(axes, *bounds):
        size = shape[axis]
        if step < 0 and (size < 0 or end < -size):
            if size < 0 and (0 <= start < _FAR or end >= 0):
                raise operation.unsupported("steps backwards from a place that depends on an "
                                             "unknown size")
            flipped_axes.append(axis)
            start, end = (_from_end(each, size) for each in (start, end))
            step = -step
        sliced.append((start, end, step))
    if not flipped_axes:
        write_by_row(converter, operation, ROWS["strided_slice"])
        return
    (value,), label = operation.results, converter.label("strided_slice")
    flipped = converter.temporary(label, value.dtype, shape)
    converter.write("flip", {"X": converter.name_of(number)}, {"Out": flipped}, axis=flipped_axes)
    starts, ends, steps = (list(each) for each in zip(*sliced))
    converter.write("strided_slice", {"Input": flipped}, {"Out": converter.define(value, label)},
                    axes=axes, starts=starts, ends=ends, strides=steps,
                    infer_flags=[1] * len(axes), decrease_axis=[])


def _from_end(place, size):
    """Return the index counted from the other end."""
    if place < 0:
        return min(-place - 1, _FAR)
    return 0 if size < 0 else max(size - 1 - place, 0)


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
