"""Operators that an affine map can be moved across, and the rules for each.

``across(graph, op, affine)`` of a rule returns the map with which the operator commutes:
``op(affine(x)) == result(op(x))``, or raises :class:`~.affine.Refused`. ``back`` is the reverse:
``affine(op(x)) == op(result(x))``.
"""

from typing import Callable, Dict, List, Optional, Tuple, cast

import numpy as np

from .affine import Affine, Refused
from .layers import ProgramGraph
from .operators import Operator
from .reshaped_axes import RESHAPES, dimensions, moved_axis, reshaped

Move = Callable[[ProgramGraph, Operator, Affine], Affine]


def _across_reshape(graph, op, affine):
    return affine if affine.axis is None else moved_axis(*reshaped(graph, op), affine)


def _back_reshape(graph, op, affine):
    if affine.axis is None:
        return affine
    before, after = reshaped(graph, op)
    return moved_axis(after, before, affine)


def _across_transpose(graph, op, affine):
    if affine.axis is None:
        return affine
    return Affine.of(affine.scale, affine.shift, list(op.get("axis")).index(affine.axis))


def _back_transpose(graph, op, affine):
    if affine.axis is None:
        return affine
    return Affine.of(affine.scale, affine.shift, op.get("axis")[affine.axis])


def _part(graph, op):
    """Return axis -> (start, stop) of a slice, and the axes that it removes."""
    if len(op.all_inputs()) > 1:
        raise Refused(f"the place of {op.type} is computed")
    shape, found = dimensions(graph, op.input("Input")), {}
    for axis, start, stop in zip(op.get("axes"), op.get("starts"), op.get("ends")):
        size = shape[axis % len(shape)]
        if not isinstance(size, int):
            raise Refused(f"{op.type} is of an axis of unknown size")
        found[axis % len(shape)] = slice(start, stop).indices(size)[:2]
    return found, [axis % len(shape) for axis in op.get("decrease_axis") or []]


def _across_slice(graph, op, affine):
    found, removed = _part(graph, op)
    if affine.axis is None:
        return affine
    scale, shift = affine.scale, affine.shift
    if affine.axis in found:
        size = dimensions(graph, op.input("Input"))[affine.axis]
        scale, shift = (each[slice(*found[affine.axis])] for each in affine.per_channel(size))
    return Affine.of(scale, shift, affine.axis - sum(axis < affine.axis for axis in removed))


def _back_slice(graph, op, affine):
    """Return the map of the sliced tensor; what other slices of it read stays as it is."""
    found, removed = _part(graph, op)
    name, shape = op.input("Input"), dimensions(graph, op.input("Input"))
    axis = affine.axis
    if axis is not None:
        axis = [i for i in range(len(shape)) if i not in removed][axis]
    others = [each for each in graph.consumers[name] if each is not op]
    along = next(iter(found)) if axis is None else axis
    if others and len(found) != 1:
        raise Refused(f"{op.type} is of several axes")
    for each in others:
        theirs = _part(graph, each)[0] if each.type == "slice" else {}
        start, stop = theirs.get(along, (0, shape[along]))
        if start < found[along][1] and found[along][0] < stop:
            raise Refused(f"{name} has several readers")
    if not others and axis not in found:
        return Affine.of(affine.scale, affine.shift, axis)
    return _of_part(op, affine, axis, along, found[along], shape[along])


def _of_part(op, affine, axis, along, part, size):
    """Return the map that is ``affine`` in a part of an axis, and the identity beside it."""
    if axis not in (None, along):
        raise Refused(f"{op.type} is of another axis than that of its channels")
    scale, shift, (start, stop) = np.ones(size), np.zeros(size), part
    scale[start:stop], shift[start:stop] = affine.per_channel(stop - start)
    return Affine.of(scale, shift, along)


def _back_split(graph, op, name, affine):
    """Return the map of a tensor of which ``name`` is one of several parts."""
    if len(op.all_inputs()) > 1:
        raise Refused(f"the sizes of {op.type} are computed")
    shape, names = dimensions(graph, op.input("X")), op.all_outputs()
    along = op.get("axis", 0) % len(shape)
    if not isinstance(shape[along], int):
        raise Refused(f"{op.type} is of an axis of unknown size")
    sizes = op.get("sections") or [shape[along] // len(names)] * len(names)
    start = sum(sizes[:names.index(name)])
    axis = affine.axis
    if op.type != "split" and axis is not None and axis >= along:
        axis += 1
    return _of_part(op, affine, axis, along, (start, start + sizes[names.index(name)]),
                    shape[along])


def _identity(graph, op, affine):
    return affine


def _dropout(graph, op, affine):
    if not op.get("is_test", False) or op.get(
            "dropout_implementation", "downgrade_in_infer") != "upscale_in_train":
        raise Refused("dropout is not the identity")
    return affine


def _positive_factors(graph, op, affine):
    if affine.adds or (affine.scale <= 0).any():
        raise Refused(f"{op.type} commutes with positive factors only")
    return affine


def _check_not_along(op, affine, axes):
    if affine.axis is not None and affine.axis in axes:
        raise Refused(f"{op.type} works along the axis {affine.axis} of the channels")


def _image_axes(graph, op, layout):
    """Return the axes of an image that are neither batch nor channels."""
    rank = len(dimensions(graph, op.input("X")))
    return range(1, rank - 1) if str(op.get(layout, "NCHW")).endswith("C") else range(2, rank)


def _pool(graph, op, affine):
    _check_not_along(op, affine, _image_axes(graph, op, "data_format"))
    if op.get("pooling_type", "max") == "max":
        if (affine.scale <= 0).any():
            raise Refused("a maximum commutes with positive factors only")
    elif affine.adds and not op.get("adaptive", False) and not op.get("global_pooling", False) and (
            (_is_padded(op) or op.get("ceil_mode", False)) and not op.get("exclusive", True)):
        raise Refused("the average includes zeros of the padding")
    return affine


def _is_padded(op):
    algorithm = op.get("padding_algorithm", "EXPLICIT")
    return algorithm == "SAME" or algorithm == "EXPLICIT" and any(op.get("paddings", []))


def _interpolation(graph, op, affine):
    _check_not_along(op, affine, _image_axes(graph, op, "data_layout"))
    return affine


def _pad(graph, op, affine):
    _check_not_along(op, affine, _image_axes(graph, op, "data_format"))
    value = op.get("value", op.get("pad_value", 0.0))
    if op.get("mode", "constant") == "constant" and (affine.adds or value):
        raise Refused(f"{op.type} puts constants around the data")
    return affine


def _reduced_axes(graph, op):
    rank = len(dimensions(graph, op.input("X")))
    axes = op.get("dim", [0])
    axes = [axes] if isinstance(axes, int) else list(axes)
    return list(range(rank)) if op.get("reduce_all", False) or not axes else [
        axis % rank for axis in axes]


def _check_reduction(op, affine):
    if op.type == "reduce_sum" and affine.adds:
        raise Refused("a sum depends on the number of elements")
    if op.type == "reduce_max" and (affine.scale <= 0).any():
        raise Refused("a maximum commutes with positive factors only")


def _across_reduction(graph, op, affine):
    _check_reduction(op, affine)
    axes = _reduced_axes(graph, op)
    _check_not_along(op, affine, axes)
    if affine.axis is None or op.get("keep_dim", False):
        return affine
    return Affine.of(affine.scale, affine.shift,
                     affine.axis - sum(axis < affine.axis for axis in axes))


def _back_reduction(graph, op, affine):
    _check_reduction(op, affine)
    if affine.axis is None:
        return affine
    if op.get("keep_dim", False):
        return affine
    axes = _reduced_axes(graph, op)
    kept = [axis for axis in range(len(dimensions(graph, op.input("X")))) if axis not in axes]
    return Affine.of(affine.scale, affine.shift, kept[affine.axis])


_POSITIVE = ("relu", "leaky_relu")
_SAME = {
    **dict.fromkeys(("assign", "share_data", "memcpy"), _identity), "dropout": _dropout,
    **dict.fromkeys(_POSITIVE, _positive_factors), "pool2d": _pool,
    **dict.fromkeys(("nearest_interp_v2", "bilinear_interp_v2", "nearest_interp",
                     "bilinear_interp"), _interpolation),
    **dict.fromkeys(("pad2d", "pad3d"), _pad)}
_PATHS: Dict[str, Tuple[Move, Move]] = {
    **{kind: (rule, rule) for kind, rule in _SAME.items()},
    **dict.fromkeys(RESHAPES, (_across_reshape, _back_reshape)),
    "slice": (_across_slice, _back_slice),
    **dict.fromkeys(("transpose2", "transpose"), (_across_transpose, _back_transpose)),
    **dict.fromkeys(("reduce_mean", "reduce_max", "reduce_sum"),
                    (_across_reduction, _back_reduction))}


def across(graph: ProgramGraph, op: Operator, name: str, affine: Affine) -> Tuple[str, Affine]:
    """Return the output of ``op`` and the map of it that is equal to ``affine`` of input ``name``.

    Raises:
        Refused: there is none.
    """
    target = cast(str, op.output("Out"))
    if op.type == "concat":
        return target, _across_concat(graph, op, name, affine)
    if op.type == "elementwise_mul":
        return target, _across_product(graph, op, name, affine)
    if op.type not in _PATHS or _data(op) != name or op.all_inputs().count(name) != 1:
        raise Refused(f"{name} is read by {op.type}")
    return target, _PATHS[op.type][0](graph, op, affine)


def back(graph: ProgramGraph, op: Operator, name: str,
         affine: Affine) -> List[Tuple[str, Affine]]:
    """Return the inputs of ``op`` and the maps of them that are equal to ``affine`` of its output.

    Raises:
        Refused: there are none.
    """
    if op.type in _BACK_TO_SEVERAL:
        return _BACK_TO_SEVERAL[op.type](graph, op, affine)
    if op.type in ("split", "unbind", "unstack") and min(op.get("sections") or [1]) > 0:
        return [(_data(op), _back_split(graph, op, name, affine))]
    if op.type not in _PATHS or op.output("Out") != name:
        raise Refused(f"{name} is computed by {op.type}")
    return [(_data(op), _PATHS[op.type][1](graph, op, affine))]


def _data(op: Operator) -> str:
    return cast(str, op.input("Input" if op.type == "slice" else "X"))


def _check_full(graph, op, name, affine):
    """Raise unless an operand of an elementwise operator has all channels of the output."""
    operand, target = (dimensions(graph, each) for each in (name, op.output("Out")))
    if affine.axis is not None and (len(operand) != len(target)
                                    or operand[affine.axis] != target[affine.axis]):
        raise Refused(f"{op.type} repeats {name} along the axis of the channels")


def _across_product(graph, op, name, affine):
    other = op.input("Y" if op.input("X") == name else "X")
    if affine.adds or other == name or len(dimensions(graph, other)) > len(
            dimensions(graph, name)):
        raise Refused(f"{name} is read by {op.type}")
    _check_full(graph, op, name, affine)
    return affine


def _back_product(graph, op, affine):
    x, y = op.input("X"), op.input("Y")
    if affine.adds or x == y:
        raise Refused(f"{op.output('Out')} is computed by {op.type}")
    _check_full(graph, op, x, affine)
    return [(x, affine)]


def _back_sum(graph, op, affine):
    """Return the map of the first operand, and its factors for the second one."""
    x, y = op.input("X"), op.input("Y")
    for name in (x, y):
        _check_full(graph, op, name, affine)
    return [(x, affine), (y, Affine.of(affine.scale, 0.0, affine.axis))]


def _concat_parts(graph, op):
    """Return the axis of a concatenation and (name, size along it) of its inputs."""
    names = op.inputs["X"]
    if op.input("AxisTensor") is not None or len(set(names)) != len(names):
        raise Refused("concat has a computed axis, or reads a tensor twice")
    axis = op.get("axis", 0) % len(dimensions(graph, names[0]))
    return axis, [(name, dimensions(graph, name)[axis]) for name in names]


def _across_concat(graph, op, name, affine):
    axis, parts = _concat_parts(graph, op)
    _check_same_axis(affine.axis, axis)
    scales, shifts = [], []
    for part, size in parts:
        if not isinstance(size, int):
            raise Refused("concat has inputs of unknown size")
        scale, shift = affine.per_channel(size) if part == name else ([1.0] * size, [0.0] * size)
        scales.append(scale)
        shifts.append(shift)
    return Affine.of(np.concatenate(scales), np.concatenate(shifts), axis)


def _check_same_axis(axis: Optional[int], concatenated: int) -> None:
    if axis not in (None, concatenated):
        raise Refused(f"its channels are on axis {axis}, those of concat on {concatenated}")


def _back_concat(graph, op, affine):
    axis, parts = _concat_parts(graph, op)
    if affine.axis != axis:
        return [(name, affine) for name, _ in parts]
    found, start = [], 0
    for name, size in parts:
        if not isinstance(size, int):
            raise Refused("concat has inputs of unknown size")
        scale, shift = affine.per_channel(sum(each for _, each in parts))
        found.append((name, Affine.of(scale[start:start + size], shift[start:start + size], axis)))
        start += size
    return found


_BACK_TO_SEVERAL = {"concat": _back_concat, "elementwise_mul": _back_product,
                    **dict.fromkeys(("elementwise_add", "elementwise_sub"), _back_sum)}
