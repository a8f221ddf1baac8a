"""Random inputs that a program can compute."""

from typing import Any, Callable, Dict, Tuple

import numpy as np

from ...errors import ExportError
from ..program.inference import feed_names
from ..program.op_desc import dtype_of, inputs, shape_of

# Sizes of dynamic dimensions: of inputs of rank below 4, and of others.
_SIZES = ((8, 64), (8, 8), (16, 16), (32, 32), (4, 32), (16, 128), (28, 224), (1, 1))


def random_inputs(program: Any, run: Callable) -> Tuple[Dict[str, np.ndarray], Any]:
    """Return (inputs by name, result of ``run``) for the first sizes with which ``run`` succeeds.

    The random generators of the user are not used.

    Raises:
        Exception: the first one of ``run``, if it fails with all sizes.
    """
    variables, uses, failure = program.variables(), _uses(program), None
    feeds = [(name, shape_of(variables[name]), dtype_of(variables[name]))
             for name in feed_names(program)]
    dynamic = any(-1 in shape for _, shape, _ in feeds)
    for batch in (2, 1) if dynamic else (2,):
        for few, many in _SIZES if dynamic else _SIZES[:1]:
            random, arrays = np.random.default_rng(0), {}
            for name, shape, dtype in feeds:
                shape = _sized(shape, batch, many if len(shape) >= 4 else few)
                arrays[name] = _draw(random, shape, dtype, *uses.get(name, ("", 0)))
            for name, (use, source) in uses.items():
                if use == "counts" and name in arrays and source in arrays:
                    arrays[name] = _split(len(arrays[source]), arrays[name])
            try:
                return arrays, run(arrays)
            except Exception as error:  # of Paddle, of several classes
                failure = failure or error
    raise failure or ExportError("the program has no input")


def _uses(program):
    """Return the uses of variables that do not take any number: name -> (use, detail)."""
    found = {}
    for block in program.desc.blocks:
        for op in block.ops:
            if op.type in ("lookup_table", "lookup_table_v2"):
                (name,), (table,) = inputs(op, "Ids"), inputs(op, "W")
                rows = shape_of(program.variable(table, block))[0]
                found[name] = "index", min(rows, found.get(name, ("", rows))[1])
            found.update((name, ("counts", source)) for name in inputs(op, "RoisNum")
                         for source in inputs(op, "ROIs")[:1])
            # Boxes of NMS in pixels.
            found.update((name, ("boxes", scale)) for slot, scale in (("ROIs", 1), ("BBoxes", 50))
                         for name in inputs(op, slot))
    return found


def _sized(shape, batch, size):
    return [batch if not i and each < 0 else size if each < 0 else each
            for i, each in enumerate(shape)]


def _draw(random, shape, dtype, use, detail):
    if dtype == "bool":
        return random.random(shape) < 0.5
    small = len(shape) <= 2 and np.prod(shape[1:], dtype=int) <= 4
    if np.dtype(dtype).kind in "iu":
        # Indices, lengths, sizes of images, masks.
        low, high = ((0, max(detail, 1)) if use == "index" else (1, 4) if len(shape) < 2 else
                     (20, 90) if small else (0, 2))
        return random.integers(low, high, shape).astype(dtype)
    values = 2 * random.standard_normal(shape)
    if use == "boxes" and shape[-1] == 4:
        values[..., :2] = np.abs(values[..., :2])
        values[..., 2:] = values[..., :2] + np.abs(values[..., 2:]) + 0.5
        values *= detail
    elif small:  # sizes or factors of images
        values = random.uniform(0.5, 1.5, shape)
    return values.astype(dtype)


def _split(total, counts):
    found = np.full(counts.shape, total // counts.size, counts.dtype)
    found[:total % counts.size] += 1
    return found
