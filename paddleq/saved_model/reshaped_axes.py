"""Shapes of variables, and axes followed across operators that keep the order of elements."""

from typing import List, Optional, Tuple, Union, cast

import numpy as np

from .affine import Affine, Refused
from .layers import ProgramGraph
from .operators import Operator

Dimension = Union[int, str]  # a size, or the name of an unknown one
_MOST_ELEMENTS = 1 << 20  # of a part of a shape that is looked at


def moved_axis(before: List[Dimension], after: List[Dimension], affine: Affine) -> Affine:
    """Return an affine map of the elements of a shape for the same elements in another shape.

    Raises:
        Refused: the channels cannot be followed, or are not along one axis afterwards.
    """
    if affine.axis is None:
        return affine
    old, new = next(each for each in _equal_parts(before, after) if affine.axis in each[0])
    if [before[i] for i in old] == [after[i] for i in new]:
        return Affine.of(affine.scale, affine.shift, new[old.index(affine.axis)])
    sizes, moved = [before[i] for i in old], [after[i] for i in new]
    if all(isinstance(size, int) for size in sizes) and moved == ["?"]:
        moved = [int(np.prod(sizes))]
    if all(isinstance(size, int) for size in [*sizes, *moved]) and (
            np.prod(sizes) == np.prod(moved) <= _MOST_ELEMENTS):
        ones = [1] * len(old)
        ones[old.index(affine.axis)] = -1
        arrays = [np.broadcast_to(each.reshape(ones), sizes).reshape(moved)
                  for each in affine.per_channel(cast(int, before[affine.axis]))]
        for place, axis in enumerate(new):
            others = tuple(i for i in range(len(new)) if i != place)
            if all((each == each.max(others, keepdims=True)).all() for each in arrays):
                scale, shift = (each.max(others) for each in arrays)
                return Affine.of(scale, shift, axis)
    raise Refused(f"its channels cannot be followed from the shape {before} to {after}")


def _equal_parts(before, after):
    """Return pairs of ranges of axes that hold the same elements, first from both ends."""
    left = _parts_from_left(before, after)
    first = sum(len(old) for old, _ in left), sum(len(new) for _, new in left)
    rest = before[first[0]:], after[first[1]:]
    right = [([len(before) - 1 - i for i in reversed(old)], [len(after) - 1 - i
                                                             for i in reversed(new)])
             for old, new in _parts_from_left(*(part[::-1] for part in rest))]
    taken = sum(len(old) for old, _ in right), sum(len(new) for _, new in right)
    middle = (list(range(first[0], len(before) - taken[0])),
              list(range(first[1], len(after) - taken[1])))
    return [*left, *right, middle]


def _parts_from_left(before, after):
    parts, i, j = [], 0, 0
    while i < len(before) and j < len(after):
        old, new, sizes = [i], [j], [before[i], after[j]]
        while sizes[0] != sizes[1]:
            # The part with fewer elements gets one more axis.
            shape, axes = (before, old) if isinstance(sizes[0], int) and isinstance(
                sizes[1], int) and sizes[0] < sizes[1] else (after, new)
            if any(isinstance(size, str) for size in sizes) or axes[-1] + 1 >= len(shape) or (
                    isinstance(shape[axes[-1] + 1], str)):
                return parts
            axes.append(axes[-1] + 1)
            sizes[axes is new] *= shape[axes[-1]]
        parts.append((old, new))
        i, j = old[-1] + 1, new[-1] + 1
    return parts


def reshaped(graph: ProgramGraph, op: Operator) -> Tuple[List[Dimension], List[Dimension]]:
    """Return the shapes before and after an operator that keeps the order of the elements."""
    before = dimensions(graph, op.input("X"))
    return before, RESHAPES[op.type](graph, op, before)


def dimensions(graph: ProgramGraph, name: Optional[str]) -> List[Dimension]:
    """Return the shape of a variable; unknown sizes have names that are unique in it."""
    if name not in graph.shapes:
        raise Refused(f"{name} has no known shape")
    return [size if size >= 0 else f"axis {i}" for i, size in enumerate(graph.shapes[name])]


def merged(dims: List[Dimension]) -> Dimension:
    """Return the size of axes that are merged into one, "?" if it is unknown."""
    if any(isinstance(size, str) for size in dims):
        return dims[0] if len(dims) == 1 else "?"
    return int(np.prod(cast(List[int], dims)))


def _reshape(graph, op, before):
    computed = op.inputs.get("Shape") or op.inputs.get("ShapeTensor")
    given = list(op.get("shape", []) or [])
    if computed or not given:
        # Known sizes are those that the program declares.
        known = graph.shapes.get(op.output("Out"), [])
        return [size if size >= 0 else f"computed {i}" for i, size in enumerate(known)]
    after = [before[i] if size == 0 else size for i, size in enumerate(given)]
    if -1 in after:
        place = after.index(-1)
        after[place] = _inferred(before, [*after[:place], *after[place + 1:]])
    return after


def _inferred(before, others):
    """Return the size that is left when the sizes ``others`` are taken out of a shape."""
    left = list(before)
    for size in [size for size in others if isinstance(size, str)]:
        if size not in left:
            return "?"
        left.remove(size)
    unknown = [size for size in left if isinstance(size, str)]
    known = int(np.prod([size for size in left if isinstance(size, int)]))
    taken = int(np.prod([size for size in others if isinstance(size, int)]))
    if not unknown and taken and known % taken == 0:
        return known // taken
    return unknown[0] if len(unknown) == 1 and known == taken else "?"


def _flatten(graph, op, before):
    start, stop = (each % max(len(before), 1)
                   for each in (op.get("start_axis", 1), op.get("stop_axis", 1)))
    return [*before[:start], merged(before[start:stop + 1]), *before[stop + 1:]]


def _flatten_matrix(graph, op, before):
    axis = op.get("axis", 1)
    return [merged(before[:axis]) if axis else 1, merged(before[axis:])]


def _squeeze(graph, op, before):
    axes = [axis % len(before) for axis in op.get("axes") or []]
    if any(isinstance(size, str) for i, size in enumerate(before) if i in axes or not axes):
        raise Refused(f"{op.type} removes an axis if its size, which is unknown, is 1")
    return [size for i, size in enumerate(before)
            if not (size == 1 and (i in axes or not axes))]


def _unsqueeze(graph, op, before):
    if op.inputs.get("AxesTensor") or op.inputs.get("AxesTensorList"):
        raise Refused(f"the axes of {op.type} are computed")
    after = list(before)
    for axis in op.get("axes") or []:
        after.insert(axis if axis >= 0 else axis + len(after) + 1, 1)
    return after


RESHAPES = {
    **dict.fromkeys(("reshape2", "reshape"), _reshape),
    "flatten_contiguous_range": _flatten, **dict.fromkeys(("flatten2", "flatten"), _flatten_matrix),
    **dict.fromkeys(("squeeze2", "squeeze"), _squeeze),
    **dict.fromkeys(("unsqueeze2", "unsqueeze"), _unsqueeze)}
