"""Groups of Linear layers that read the same tensor, and their shared statistics."""

from itertools import takewhile
from typing import (
    Any,
    Callable,
    Container,
    Dict,
    FrozenSet,
    Hashable,
    Iterable,
    List,
    Sequence,
    Tuple,
)

import paddle
from paddle import nn

from ..._distributed import all_gather
from ..._distributed import groups as process_groups
from ...engine import collect_inputs, run_batches
from ...engine.hooks import TensorKeys
from ...errors import CalibrationError
from ...graph.calls import capture_inputs
from ...observers import ChannelStats


def split(groups: Sequence[List[str]], key: Callable[[str], Hashable]) -> List[List[str]]:
    """Split groups of names into groups of equal keys, in the order of their first names."""
    parts: List[List[str]] = []
    for group in groups:
        equal: Dict[Hashable, List[str]] = {}
        for name in group:
            equal.setdefault(key(name), []).append(name)
        parts += equal.values()
    return parts


def find_groups(layers: Dict[str, nn.Layer],
                runs: Iterable[Callable[[], Any]]) -> List[List[str]]:
    """Group the names of layers that read the same tensors in each run.

    A layer that no run calls is a group by itself. The runs end when each layer was called.
    """
    history: Dict[str, tuple] = dict.fromkeys(layers, ())
    for run in runs:
        keys, read = TensorKeys(), dict.fromkeys(layers, ())

        def record(name, x, keys=keys, read=read):
            read[name] += (keys.key(x),)

        with capture_inputs(layers, record):
            run()
        history = {name: (*known, read[name]) for name, known in history.items()}
        if all(any(calls) for calls in history.values()):
            break
    groups = split([list(layers)], lambda name: history[name] if any(history[name]) else name)
    return common_groups(groups, list(layers), {name for name in layers if any(history[name])})


def common_groups(groups: List[List[str]], order: Sequence[str],
                  called: Container[str]) -> List[List[str]]:
    """Return groups of names that are in one group in each process that has called them.

    They are in ``order``, which is the same in all processes.
    """
    if not process_groups():
        return groups
    number = {name: position for position, group in enumerate(groups) for name in group}
    own = paddle.to_tensor([number[name] if name in called else -1 for name in order],
                           dtype="int64")
    every = paddle.stack(all_gather(own)).numpy()
    keys = {name: tuple(column) for name, column in zip(order, every.T)}
    return split([list(order)], lambda name: keys[name] if max(keys[name]) >= 0 else name)


def collect_stats(layers: Dict[str, nn.Layer], groups: Sequence[List[str]],
                  needs: Callable[[str], FrozenSet[str]], run: Callable[[int], Any],
                  masks: Sequence[Any]) -> List[Tuple[List[str], ChannelStats]]:
    """Collect statistics of the input of each group of layers.

    If a batch shows that the layers of a group do not read the same tensors, the groups are split
    and the collection restarts. ``masks`` has the padding mask of each batch, or None. Statistics
    of layers that no data reached are empty.
    """
    parts, stats = groups, []
    while not stats or parts != groups:
        groups = parts
        stats = [ChannelStats(frozenset().union(*map(needs, group))) for group in groups]
        parts = _collect(layers, groups, stats, run, masks)
    for group, each in zip(groups, stats):
        each.merge_processes(layers[group[0]].weight.shape[0])
    return list(zip(groups, stats))


def _collect(layers, groups, stats, run, masks):
    """Collect on all batches, or until a batch splits the groups; return the groups."""
    collectors = {name: each for group, each in zip(groups, stats) for name in group}
    parts = groups

    def collect(batch):
        nonlocal parts
        with collect_inputs(layers, collectors, masks[batch]) as read:
            run(batch)
        parts = split(groups, lambda name: tuple(read.get(name, ())))

    run_batches(collect, takewhile(lambda _: len(parts) == len(groups), range(len(masks))))
    return common_groups(parts, list(layers), layers)


def check_reached(unseen: List[str], num_batches: int) -> None:
    """Raise CalibrationError if there are layers without calibration data."""
    if unseen:
        raise CalibrationError(
            f"no calibration data reached {', '.join(unseen)} in {num_batches} batches; "
            "calibrate on data that uses them, skip them, or round them to nearest with "
            "uncalibrated='round'")
