"""Which Linears read the very same tensor, and gathering statistics of it once for all of them."""

import weakref

from ...engine import capture_inputs
from ...errors import CalibrationError, NonFiniteError
from ..statistics import Statistics


class Marks:
    """Tells tensors apart while they live, without keeping them alive."""

    def __init__(self):
        self._known = {}  # id -> (weak reference, number)
        self._count = 0

    def of(self, x):
        """A key that only this tensor has, and only until it is changed in place."""
        reference, number = self._known.get(id(x), (None, None))
        if reference is None or reference() is not x:  # another one had this id
            self._count += 1
            number = self._count
            self._known[id(x)] = (weakref.ref(x), number)
        return number, x.inplace_version


def readings(layers, run):
    """What each of the layers reads in one run.

    Args:
        layers: name -> layer.
        run: called without arguments.

    Returns:
        dict name -> tuple of the keys of the tensors of its calls, for the layers that are called.
    """
    marks, read = Marks(), {}
    with capture_inputs(layers, lambda name, x: read.setdefault(name, []).append(marks.of(x))):
        run()
    return {name: tuple(keys) for name, keys in read.items()}


def find_groups(layers, runs):
    """Lists of names of those layers that read the same tensors in each run.

    A layer that is called in no run is in a list of its own.

    Args:
        layers: name -> layer.
        runs: functions; no more of them are called than it takes until each layer was called.
    """
    history = dict.fromkeys(layers, ())
    for run in runs:
        read = readings(layers, run)
        for name in layers:
            history[name] += (read.get(name),)
        if all(any(keys) for keys in history.values()):
            break
    groups = {}
    for name, keys in history.items():
        groups.setdefault(keys if any(keys) else name, []).append(name)
    return list(groups.values())


def split_groups(groups, read):
    """The groups, parted where a run shows that their layers do not read the same."""
    parts = []
    for group in groups:
        alike = {}
        for name in group:
            alike.setdefault(read.get(name), []).append(name)
        parts += alike.values()
    return parts


def gather(layers, groups, needs, run, batches):
    """Statistics of what each group of layers reads.

    Args:
        layers: name -> layer.
        groups: lists of names that are expected to read the same, as :func:`find_groups` gives
            them. Where a batch shows that they do not, it starts anew with smaller ones.
        needs: function from a name to what :class:`Statistics` of it should gather.
        run: called with the number of a batch.
        batches: how many there are.

    Returns:
        List of (names, :class:`Statistics`).

    Raises:
        NonFiniteError: names the layer that NaN or infinity reached, and the batch.
        CalibrationError: names the layers that no data reached.
    """
    while True:
        statistics = [Statistics(frozenset().union(*map(needs, group))) for group in groups]
        of = {name: number for number, group in enumerate(groups) for name in group}
        for batch in range(batches):
            read = _observe({name: layers[name] for name in of}, of, statistics, run, batch)
            parts = split_groups(groups, read)
            if len(parts) > len(groups):
                groups = parts
                break
        else:
            unseen = [name for group, found in zip(groups, statistics) if not found.tokens
                      for name in group]
            if unseen:
                raise CalibrationError(
                    f"no calibration data reached {', '.join(unseen)} in {batches} batches; "
                    "calibrate on data that uses them, or leave them float")
            return list(zip(groups, statistics))


def _observe(layers, of, statistics, run, batch):
    marks, read, done = Marks(), {}, set()

    def saw(name, x):
        key = marks.of(x)
        read.setdefault(name, []).append(key)
        if (of[name], key) in done:
            return
        done.add((of[name], key))
        try:
            statistics[of[name]].update(x)
        except NonFiniteError:
            raise NonFiniteError(f"NaN or infinity reaches {name} in batch {batch} of the "
                                 "calibration data") from None

    with capture_inputs(layers, saw):
        run(batch)
    return {name: tuple(keys) for name, keys in read.items()}
