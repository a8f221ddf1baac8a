"""Operations that do not become one legacy operator each."""

import numpy as np

from ...errors import FormatError
from . import control_flow
from .attributes import get, op, plain, text
from .by_row import write_by_row
from .constants import assign_value, fill_constant
from .rows import row
from .unsupported import unsupported

_FLAT = ("float32", "int32", "int64", "bool")  # what assign_value holds in every version

_STACK = row("stack", "stack", "x>X*", "out>Y", "axis:int")
_FAR = 2 ** 31 - 1  # beyond any size: no bound at all
_CLIP = row("clip", "clip", "x>X min>min:float max>max:float")
_FULL_LIKE = row("full_like", "fill_any_like", "x>X value>value:float", attributes="dtype:dtype")
_DEFORMABLE, _DEFORMABLE_WITHOUT_MASK = (
    row("deformable_conv", legacy, f"x>Input offset>Offset filter>Filter {mask}", "out>Output",
        "strides:ints paddings:ints dilations:ints deformable_groups:int groups:int "
        "im2col_step:int")
    for legacy, mask in (("deformable_conv", "mask>Mask"), ("deformable_conv_v1", "mask>-?")))


def _parameter(converter, operation):
    (value,) = operation.results
    name = text(operation, "name")
    if name in converter.program.arrays:
        converter.bind(value, name)
    # A reader of one that is not stored (rnn's dropout state is declared so) finds it empty.


def _data(converter, operation):
    (value,) = operation.results
    name = text(operation, "name")
    if converter.emit.taken(name):
        raise FormatError(f"the name {name!r} of an input is taken")
    converter.emit.variable(converter.scope.desc, name, value.shape or [], value.dtype)
    converter.bind(value, name)
    converter.add_input(name)


def _fetch(converter, operation):
    (number,), wanted = operation.operands, text(operation, "name")
    name = converter.name_of(number)
    if name != wanted:
        # The value has another name already: an input, a parameter, or fetched twice.
        source = converter.types[number]
        copy = converter.wanted.pop(number, None) or converter.emit.fresh(wanted)
        converter.program.add_variable(converter.scope.desc, copy, source.dtype,
                                       source.shape or [])
        converter.write(op("assign", {"X": [name]}, {"Out": [copy]}, []))
        name = copy
    converter.write(op("fetch", {"X": [name]}, {"Out": ["fetch"]},
                       [("col", "int", get(operation, "col", int))]))


def _combine(converter, operation):
    converter.lists[operation.results[0].number] = list(operation.operands)


def _split_list(converter, operation):
    (number,) = operation.operands
    for value, key in zip(operation.results, converter.lists[number]):
        converter.alias(value.number, key)


def _stack(converter, operation):
    """A shape that is computed is a stack of numbers: where they can be, they stay apart."""
    (number,), (value,) = operation.operands, operation.results
    parts = converter.lists[number]
    if get(operation, "axis", int) == 0 and all(
            converter.types[each].shape == [] and converter.types[each].dtype.startswith("int")
            for each in parts):
        converter.stacks[value.number] = parts, converter.scope.placeholder()
        converter.types[value.number] = value
    else:
        write_by_row(converter, operation, _STACK)


def _full(converter, operation):
    (value,) = operation.results
    shape = plain(operation.attributes["shape"])
    converter.constant(value, value.dtype, shape, [plain(operation.attributes["value"])])


def _full_int_array(converter, operation):
    (value,) = operation.results
    numbers = plain(operation.attributes["value"])
    converter.constant(value, value.dtype, [len(numbers)], numbers, each=True)


def _full_with_tensor(converter, operation):
    number, shape = operation.operands
    (value,) = operation.results
    ins, filled = {}, converter.numbers(number)
    if filled is None:
        ins["ValueTensor"] = [converter.name_of(number)]
        filled = [0.0]
    known, parts = converter.numbers(shape), converter.parts(shape)
    if known is None and parts:
        ins["ShapeTensorList"] = [converter.part(each, "ints") for each in parts]
    elif known is None:
        ins["ShapeTensor"] = [converter.name_of(shape)]
    if known is None:
        known = converter.known(shape) if parts else []  # else it would overrule the tensor
    name = converter.define(value, f"fill_constant_{converter.next()}.tmp")
    converter.write(fill_constant(name, value.dtype, known, filled[0], ins))


def _full_like(converter, operation):
    """``fill_any_like`` keeps its number as a float32: any other is spread over the shape."""
    x, number = operation.operands
    (value,), known = operation.results, converter.numbers(number)
    if known is not None and not converter.is_rounded(number):
        write_by_row(converter, operation, _FULL_LIKE)
        return
    label = f"full_like_{converter.next()}.tmp"
    name = _bound(converter, number, value.dtype, label, [])
    _spread(converter, name, converter.name_of(x), value.shape,
            converter.define(value, label))


def _spread(converter, name, like, shape, target):
    converter.write(op("expand_as_v2", {"X": [name], "Y": [like]}, {"Out": [target]},
                       [("target_shape", "ints", shape or [])]))


def _deformable_conv(converter, operation):
    """Without a mask it is another operator."""
    masked = len(operation.operands) > 3 and operation.operands[3]
    write_by_row(converter, operation, _DEFORMABLE if masked else _DEFORMABLE_WITHOUT_MASK)


def _assign_value(converter, operation):
    (value,) = operation.results
    shape = plain(operation.attributes["shape"])
    numbers = plain(operation.attributes["values"])
    count = 1
    for size in shape:
        count *= size
    if count != len(numbers):
        raise FormatError(f"has {len(numbers)} values for the shape {shape}")
    label = f"assign_value_{converter.next()}.tmp"
    if operation.operands and converter.read_later(operation.operands[0]):
        converter.overwrite(operation, value, operation.operands[0])
        name = converter.names[value.number]
    else:
        name = converter.define(value, label)
    if value.dtype in _FLAT:
        converter.write(assign_value(name, value.dtype, shape, numbers))
        return
    if value.dtype == "float64":
        stored = converter.program.add_parameter(converter.emit.fresh(label),
                                                 np.array(numbers, "float64").reshape(shape))
        converter.write(op("assign", {"X": [stored]}, {"Out": [name]}, []))
        return
    flat = converter.temporary(label, "float32", shape)
    converter.write(assign_value(flat, "float32", shape, numbers))
    _cast(converter, flat, "float32", name, value.dtype)


def _cast(converter, source, source_type, target, target_type):
    converter.write(op("cast", {"X": [source]}, {"Out": [target]},
                       [("in_dtype", "dtype", source_type), ("out_dtype", "dtype", target_type)]))


def _cast_op(converter, operation):
    (number,), (value,) = operation.operands, operation.results
    _cast(converter, converter.name_of(number), converter.types[number].dtype,
          converter.define(value, f"cast_{converter.next()}.tmp"), value.dtype)


def _shape64(converter, operation):
    """The legacy operator counts in int32."""
    (number,), (value,) = operation.operands, operation.results
    label = f"shape_{converter.next()}.tmp"
    short = converter.temporary(label, "int32", value.shape)
    converter.write(op("shape", {"Input": [converter.name_of(number)]}, {"Out": [short]}, []))
    _cast(converter, short, "int32", converter.define(value, label), "int64")


def _arange(converter, operation):
    """``range`` wants its bounds in the type of its result."""
    (value,), label = operation.results, f"range_{converter.next()}.tmp"
    ins = {}
    for slot, number in zip(("Start", "End", "Step"), operation.operands):
        ins[slot] = [_bound(converter, number, value.dtype, label)]
    converter.write(op("range", ins, {"Out": [converter.define(value, label)]}, []))


def _bound(converter, number, dtype, label, shape=(1,)):
    known = converter.numbers(number)
    if known is not None:
        name = converter.temporary(label, dtype, list(shape))
        converter.write(fill_constant(name, dtype, list(shape), known[0]))
        return name
    source = converter.types[number]
    if source.dtype == dtype:
        return converter.name_of(number)
    name = converter.temporary(label, dtype, source.shape or [])
    _cast(converter, converter.name_of(number), source.dtype, name, dtype)
    return name


def _isclose(converter, operation):
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


def _masked_fill(converter, operation):
    """where(mask, value, x): the value and the mask take the shape of x first."""
    x, mask, number = operation.operands
    (result,), source = operation.results, converter.types[x]
    label = f"masked_fill_{converter.next()}.tmp"
    if result.shape != source.shape:
        raise unsupported(operation, "enlarges its input")
    target = converter.name_of(x)
    spread = {}
    for slot, each in (("Condition", mask), ("X", number)):
        name = converter.temporary(label, converter.types[each].dtype, source.shape or [])
        _spread(converter, converter.name_of(each), target, source.shape, name)
        spread[slot] = [name]
    converter.write(op("where", {**spread, "Y": [target]},
                       {"Out": [converter.define(result, label)]}, []))


def _swiglu(converter, operation):
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


def _clip(converter, operation):
    """Where bounds are no float32: the maximum of a minimum. OpenVINO does not read tensors."""
    x, *bounds = operation.operands
    if not any(converter.numbers(each) is None or converter.is_rounded(each) for each in bounds):
        write_by_row(converter, operation, _CLIP)
        return
    (value,), name = operation.results, converter.name_of(x)
    label, shape = f"clip_{converter.next()}.tmp", list(value.shape or [])
    low, high = (_bound(converter, each, value.dtype, label) for each in bounds)
    least = converter.temporary(label, value.dtype, shape)
    for kind, first, bound, target in (
            ("elementwise_min", name, high, least),
            ("elementwise_max", least, low, converter.define(value, label))):
        converter.write(op(kind, {"X": [first], "Y": [bound]}, {"Out": [target]},
                           [("axis", "int", -1)]))


def _strided_slice(converter, operation):
    """Down to the first element: Paddle 2.6 and 3 disagree on how to say that, but not on flip."""
    number, *bounds = operation.operands
    bounds = [converter.numbers(each) for each in bounds]
    axes, shape = plain(operation.attributes["axes"]), converter.types[number].shape
    if shape is None or any(each is None for each in bounds):
        write_by_row(converter, operation, converter.rows["strided_slice"])
        return
    turned, sliced = [], []
    for axis, start, end, step in zip(axes, *bounds):
        size = shape[axis]
        if step < 0 and (size < 0 or end < -size):
            if size < 0 and (0 <= start < _FAR or end >= 0):
                raise unsupported(operation, "steps backwards from a place that depends on an "
                                             "unknown size")
            turned.append(axis)
            start, end = (_from_behind(each, size) for each in (start, end))
            step = -step
        sliced.append((start, end, step))
    if not turned:
        write_by_row(converter, operation, converter.rows["strided_slice"])
        return
    (value,), label = operation.results, f"strided_slice_{converter.next()}.tmp"
    flipped = converter.temporary(label, value.dtype, shape)
    converter.write(op("flip", {"X": [converter.name_of(number)]}, {"Out": [flipped]},
                       [("axis", "ints", turned)]))
    starts, ends, steps = (list(each) for each in zip(*sliced))
    converter.write(op("strided_slice", {"Input": [flipped]},
                       {"Out": [converter.define(value, label)]},
                       [(name, "ints", each) for name, each in (
                           ("axes", axes), ("starts", starts), ("ends", ends),
                           ("strides", steps), ("infer_flags", [1] * len(axes)),
                           ("decrease_axis", []))]))


def _from_behind(place, size):
    """The same place counted from the other end."""
    if place < 0:
        return min(-place - 1, _FAR)
    return 0 if size < 0 else max(size - 1 - place, 0)


def _set_value(converter, operation):
    """The legacy operator takes computed bounds as lists of scalars."""
    converter.versions["set_value"] = 4  # without, Paddle looks for values under older names
    with_tensor = operation.name.startswith("set_value_with_tensor")
    x, *rest = operation.operands
    ins, values = {"Input": [converter.name_of(x)]}, []
    (result,) = operation.results
    if with_tensor:
        ins["ValueTensor"] = [converter.name_of(rest.pop(0))]
    for name, number in zip(("starts", "ends", "steps"), rest):
        known = converter.numbers(number)
        if known is None:
            ins[f"{name.capitalize()}TensorList"] = (
                converter.names_of(number) if number in converter.lists
                else converter.apart(number, converter.name_of(number)))
            known = []
        values.append((name, "longs", known))
    for name in ("axes", "decrease_axes", "none_axes"):
        values.append((name, "longs", plain(operation.attributes[name])))
    values.append(("dtype", "dtype", result.dtype))
    numbers = [] if with_tensor else plain(operation.attributes["values"])
    shape = [] if with_tensor else plain(operation.attributes["shape"])
    values += [("shape", "longs", shape),
               ("values", "scalars", (result.dtype, numbers))]
    if operation.name.endswith("_") and converter.read_later(x):
        converter.overwrite(operation, result, x)
    else:
        converter.define(result, f"set_value_{converter.next()}.tmp")
    converter.write(op("set_value", ins, {"Out": [converter.names[result.number]]}, values))


def _create_array(converter, operation):
    (value,) = operation.results
    converter.define(value, f"array_{converter.next()}")


def _array_write(converter, operation):
    array, x, i = operation.operands
    (value,) = operation.results
    converter.bind(value, converter.name_of(array))
    converter.write(op("write_to_array",
                       {"X": [converter.name_of(x)], "I": [converter.name_of(i)]},
                       {"Out": [converter.name_of(array)]}, []))


def _array_read(converter, operation):
    array, i = operation.operands
    (value,) = operation.results
    target = converter.define(value, f"array_read_{converter.next()}.tmp")
    converter.write(op("read_from_array",
                       {"X": [converter.name_of(array)], "I": [converter.name_of(i)]},
                       {"Out": [target]}, []))


def _array_length(converter, operation):
    (array,), (value,) = operation.operands, operation.results
    target = converter.define(value, f"array_length_{converter.next()}.tmp")
    converter.write(op("lod_array_length", {"X": [converter.name_of(array)]},
                       {"Out": [target]}, []))


def _array_to_tensor(converter, operation):
    (array,), label = operation.operands, f"array_to_tensor_{converter.next()}.tmp"
    out, index = operation.results
    converter.write(op("tensor_array_to_tensor", {"X": [converter.name_of(array)]},
                       {"Out": [converter.define(out, label)],
                        "OutIndex": [converter.define(index, label)]},
                       [(name, kind, plain(operation.attributes[name]))
                        for name, kind in (("axis", "int"), ("use_stack", "bool"))]))


SPECIALS = {
    "builtin.parameter": _parameter,
    "builtin.combine": _combine,
    "builtin.split": _split_list,
    "data": _data,
    "fetch": _fetch,
    "stack": _stack,
    "full": _full,
    "full_int_array": _full_int_array,
    "full_with_tensor": _full_with_tensor,
    "full_like": _full_like,
    "deformable_conv": _deformable_conv,
    "assign_value": _assign_value,
    "assign_value_": _assign_value,
    "cast": _cast_op,
    "shape64": _shape64,
    "arange": _arange,
    "isclose": _isclose,
    "allclose": _isclose,
    "masked_fill": _masked_fill,
    "swiglu": _swiglu,
    "clip": _clip,
    "strided_slice": _strided_slice,
    "set_value": _set_value,
    "set_value_": _set_value,
    "set_value_with_tensor": _set_value,
    "set_value_with_tensor_": _set_value,
    "create_array": _create_array,
    "array_write_": _array_write,
    "array_read": _array_read,
    "array_length": _array_length,
    "array_to_tensor": _array_to_tensor,
    "if": control_flow.write_if,
    "while": control_flow.write_while,
}
