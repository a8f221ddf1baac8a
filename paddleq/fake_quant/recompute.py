"""Values of a forward pass for the passes in which ``recompute`` repeats it.

``paddle.distributed.fleet.utils.recompute`` runs layers again during backward. The second pass must
not observe or count, and must quantize with the scales of the first pass, which may have changed
since then.
"""

from typing import Any, Callable, Dict, Hashable, List

import paddle

from .._paddle_compat import recompute_calls

_ATTRIBUTE = "_paddleq_values"  # of the object that Paddle keeps for a call of recompute


class _Values:
    """Values of a first pass by their key, in the order of its calls."""

    def __init__(self) -> None:
        self._values: Dict[Hashable, List[Any]] = {}
        self._read: Dict[Hashable, int] = {}

    def append(self, key: Hashable, value: Any) -> None:
        self._values.setdefault(key, []).append(value)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def next(self, key: Hashable) -> Any:
        """Return the values of ``key`` in turn, from the first again after the last."""
        values, number = self._values[key], self._read.get(key, 0)
        self._read[key] = (number + 1) % len(values)
        return values[number]


def in_first_pass(key: Hashable, compute: Callable, *args: Any) -> Any:
    """Return ``compute(*args)``, or its value in the first pass if ``recompute`` repeats that pass.

    Args:
        key: identifies the value, with the order of the calls.
        compute: returns a value, or a tuple, that may contain tensors without gradients.
    """
    if not paddle.in_dynamic_mode():
        return compute(*args)
    outer = []
    for call, repeated in recompute_calls():
        values = call.__dict__.setdefault(_ATTRIBUTE, _Values())
        if repeated and key in values:
            value = values.next(key)
            break
        if not repeated:
            outer.append(values)
    else:
        value = compute(*args)
    for values in outer:  # calls inside of a repeated pass are repeated themselves
        values.append(key, _copied(value))
    return value


def is_repeated_pass() -> bool:
    """Return True in a pass that ``recompute`` repeats."""
    return paddle.in_dynamic_mode() and any(repeated for _, repeated in recompute_calls())


def _copied(value):
    if isinstance(value, tuple):
        return tuple(map(_copied, value))
    # Buffers are changed in place.
    return value.detach().clone() if isinstance(value, paddle.Tensor) else value
