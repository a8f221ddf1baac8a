"""Groups of Linear layers that read the same tensor, and their shared statistics."""

from typing import Any, Callable, Dict, FrozenSet, Iterable, List, Sequence, Tuple

from paddle import nn

from ...engine import capture_inputs, collect_inputs, run_batches
from ...engine.hooks import TensorKeys
from ...errors import CalibrationError
from ...observers import ChannelStats


def input_keys(layers: Dict[str, nn.Layer], run: Callable[[], Any]) -> Dict[str, tuple]:
    """Return name -> keys of the tensors of the layer's calls in one run.

    Layers that are not called are omitted.
    """
    keys, read = TensorKeys(), {}
    with capture_inputs(layers, lambda name, x: read.setdefault(name, []).append(keys.key(x))):
        run()
    return {name: tuple(found) for name, found in read.items()}


def find_groups(layers: Dict[str, nn.Layer],
                runs: Iterable[Callable[[], Any]]) -> List[List[str]]:
    """Group the names of layers that read the same tensors in each run.

    A layer that no run calls is a group by itself.

    Args:
        layers: name -> layer.
        runs: functions without arguments. They are called until each layer was called.
    """
    history: Dict[str, tuple] = dict.fromkeys(layers, ())
    for run in runs:
        read = input_keys(layers, run)
        for name in layers:
            history[name] += (read.get(name),)
        if all(any(keys) for keys in history.values()):
            break
    groups = {}
    for name, keys in history.items():
        groups.setdefault(keys if any(keys) else name, []).append(name)
    return list(groups.values())


def split_groups(groups: Sequence[List[str]], read: Dict[str, tuple]) -> List[List[str]]:
    """Split groups whose layers read different tensors in a run."""
    parts = []
    for group in groups:
        equal = {}
        for name in group:
            equal.setdefault(read.get(name), []).append(name)
        parts += equal.values()
    return parts


def collect_stats(layers: Dict[str, nn.Layer], groups: Sequence[List[str]],
                  needs: Callable[[str], FrozenSet[str]], run: Callable[[int], Any],
                  num_batches: int) -> List[Tuple[List[str], ChannelStats]]:
    """Collect statistics of the input of each group of layers.

    Args:
        layers: name -> layer.
        groups: names of layers that are expected to read the same tensors, from
            :func:`find_groups`. If a batch shows that they do not, the groups are split and the
            collection restarts.
        needs: function from a name to the kinds of :class:`~paddleq.observers.ChannelStats`.
        run: called with the number of a batch.
        num_batches: number of batches.

    Raises:
        NonFiniteError: NaN or infinity reached a layer; names the layer and the batch.
        CalibrationError: no data reached some layers; names them.
    """
    parts = None
    while parts != groups:
        groups = groups if parts is None else parts
        stats = [ChannelStats(frozenset().union(*map(needs, group))) for group in groups]
        parts = _collect(layers, groups, stats, run, num_batches)
    unseen = [name for group, each in zip(groups, stats) if not each.tokens for name in group]
    check_reached(unseen, num_batches)
    return list(zip(groups, stats))


def _collect(layers, groups, stats, run, num_batches):
    """Collect on all batches, or until a batch splits the groups; return the groups."""
    collectors = {name: each for group, each in zip(groups, stats) for name in group}
    parts = groups

    def collect(batch):
        nonlocal parts
        if len(parts) > len(groups):
            return  # the collection will restart
        with collect_inputs(layers, collectors) as read:
            run(batch)
        found = split_groups(groups, {name: tuple(keys) for name, keys in read.items()})
        if len(found) > len(groups):
            parts = found

    run_batches(collect, range(num_batches))
    return parts


def check_reached(unseen: List[str], num_batches: int) -> None:
    """Raise CalibrationError if there are layers without calibration data."""
    if unseen:
        raise CalibrationError(
            f"no calibration data reached {', '.join(unseen)} in {num_batches} batches; "
            "calibrate on data that uses them, or skip them")
