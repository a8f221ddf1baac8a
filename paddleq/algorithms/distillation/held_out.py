"""Batches that are kept from the training, for its evaluations."""

from itertools import islice
from typing import Any, Iterable, Iterator, List, Optional, Sequence, Sized, Tuple

_MOST = 4
_SHARE = 10


class HeldOut:
    """Batches at given positions of data, read once."""

    def __init__(self, data: Iterable, positions: Sequence[int]) -> None:
        self.data, self.positions = data, frozenset(positions)
        self._batches: Optional[List[Any]] = None

    def __iter__(self) -> Iterator[Any]:
        if self._batches is None:
            self._batches = [batch for number, batch in enumerate(
                islice(self.data, max(self.positions) + 1)) if number in self.positions]
        return iter(self._batches)


class _Others:
    """Data without the batches at given positions."""

    def __init__(self, data: Any, positions: Sequence[int]) -> None:
        self.data, self.positions = data, frozenset(positions)

    def __len__(self) -> int:
        return len(self.data) - len(self.positions)

    def __iter__(self) -> Iterator[Any]:
        return (batch for number, batch in enumerate(self.data) if number not in self.positions)


def hold_out(data: Iterable, calibration: Optional[Iterable] = None
             ) -> Tuple[Iterable, HeldOut]:
    """Return (batches to train on, at most 4 batches to evaluate on).

    The latter are, evenly spaced,

    - those of ``calibration`` if it is given;
    - else a tenth of ``data``, which is then not trained on, if its length is known and at least
      10. They are told apart by position: samples of data that is shuffled in each pass are trained
      on in other batches;
    - else the first ones of ``data``, which are trained on too.
    """
    source = data if calibration is None else calibration
    length = len(source) if isinstance(source, Sized) else 0
    count = min(_MOST, length if calibration is not None else length // _SHARE)
    if not count:
        return data, HeldOut(source, range(_MOST))
    gap = length // count
    positions = range(gap - 1, gap * count, gap)
    return data if calibration is not None else _Others(data, positions), HeldOut(source, positions)
