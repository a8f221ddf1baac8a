"""Batches that are kept from the training, for its evaluations."""

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import Any, Iterable, Iterator, List, Optional, Tuple

import numpy as np
import paddle

from ..._paddle_compat import with_batch_sampler
from ...engine.calibration import length_of

_logger = logging.getLogger("paddleq")
_MOST = 4
_SHARE = 10
_REGROUPED = (paddle.io.BatchSampler, paddle.io.DistributedBatchSampler)


class HeldOut(List[Any]):
    """Batches that were read once, the same in each evaluation."""


class _Others:
    """Data without the samples of a :class:`HeldOut`, which are found by their content.

    Batches of the same samples are left out. If a pass begins with another batch than the one
    before, single samples may also be in other batches: they are replaced by others of the batch,
    so that its size stays.
    """

    def __init__(self, data: Any, held_out: HeldOut, first: Tuple[bytes, ...]) -> None:
        self.data, self.first, self.count = data, first, len(held_out)
        samples = [_samples(batch) for batch in held_out]
        self.batches = Counter(samples)
        counts = Counter(each for batch in samples for each in batch)
        # Equal ones, such as padding, are no samples that can be told apart.
        self.samples = {each for each, count in counts.items() if count == 1}
        self.warned = False

    def __iter__(self) -> Iterator[Any]:
        left = Counter(self.batches)  # not more often: other batches may be equal
        seen, regrouped = set(), False
        for number, batch in enumerate(self.data):
            samples = _samples(batch)
            regrouped = regrouped or not number and samples != self.first
            if left[samples]:
                left[samples] -= 1
                seen.update(samples)
                continue
            kept = [i for i, each in enumerate(samples) if each not in self.samples]
            if regrouped and len(kept) < len(samples):
                seen.update(samples)
                if kept:
                    yield _taken(batch, np.resize(kept, len(samples)))
            else:
                yield batch
        if not self.warned and sum(left.values()) and not self.samples <= seen:
            self.warned = True
            _logger.warning(
                "the samples of the %d held-out batches are not all in a later pass over the data, "
                "which changes or chooses its samples anew, so that these may be trained on as "
                "well; give eval_data, or a paddle.io.DataLoader", self.count)


class _SizedOthers(_Others):
    def __len__(self) -> int:
        return len(self.data) - self.count


class _SamplerWithout:
    """Batch sampler without some samples."""

    def __init__(self, sampler: Any, indices: Iterable[int], batches: List[List[int]]) -> None:
        self.sampler, self.indices = sampler, frozenset(indices)
        # Batches of one size, as for a model with a fixed one; other samplers group on purpose.
        self.size = sampler.batch_size if type(sampler) in _REGROUPED else None
        self.length = sum(1 for _ in self._without(batches))

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[List[int]]:
        return self._without(self.sampler)

    def _without(self, batches):
        rest: List[int] = []
        for batch in batches:
            kept = [each for each in batch if each not in self.indices]
            if self.size is None:
                if kept:
                    yield kept
                continue
            rest += kept
            while len(rest) >= self.size:
                yield rest[:self.size]
                rest = rest[self.size:]
        if rest and not self.sampler.drop_last:
            yield rest


def hold_out(data: Iterable, calibration: Optional[Iterable] = None
             ) -> Tuple[Iterable, HeldOut]:
    """Return (batches to train on, at most 4 batches to evaluate on), which are read here.

    The latter are, evenly spaced,

    - those of ``calibration`` if it is given;
    - else a tenth of ``data``, which is then not trained on, if it has at least 10 batches. Of a
      ``paddle.io.DataLoader`` of a dataset with indices, the samples are told apart by their
      indices; of other data, by their content, with a warning if that differs between passes;
    - else the first ones of ``data``, which are trained on too.
    """
    if calibration is not None:
        return data, HeldOut(_read(calibration, _MOST, 1)[1])
    if isinstance(data, paddle.io.DataLoader) and data.batch_sampler is not None and not isinstance(
            data.dataset, paddle.io.IterableDataset):
        sampler: Any = data.batch_sampler
        batches = [list(batch) for batch in sampler]
        chosen = [batches[position] for position in _positions(len(batches), _SHARE)]
        if chosen:
            indices = {index for batch in chosen for index in batch}
            return (with_batch_sampler(data, _SamplerWithout(sampler, indices, batches)),
                    HeldOut(with_batch_sampler(data, chosen)))
    first, read, begin = _read(data, _MOST, _SHARE)
    held_out = HeldOut(read)
    if not held_out:
        return data, HeldOut(begin or islice(data, _MOST))
    others = _Others if length_of(data) is None else _SizedOthers
    return others(data, held_out, first or ()), held_out


def _positions(length, share):
    """Return the positions of every ``share``-th batch, or of at most ``_MOST`` in equal gaps."""
    count = min(_MOST, length // share)
    gap = length // max(count, 1)
    return range(gap - 1, gap * count, gap)


def _read(data, most, share):
    """Return (the digests of the first batch, batches at evenly spaced positions, first batches).

    The first batches are the first ``most`` of those that are read.
    """
    length = length_of(data)
    # Data without a length are read as far as that many batches are found.
    positions = set(_positions(most * share if length is None else length, share))
    first, found, begin = None, [], []
    for number, batch in enumerate(islice(data, max(positions, default=-1) + 1)):
        first = _samples(batch) if first is None else first
        if number in positions:
            found.append(batch)
        if number < most:
            begin.append(batch)
    return first, found, begin


def _leaves(batch):
    if isinstance(batch, Mapping):
        return [leaf for item in batch.items() for part in item for leaf in _leaves(part)]
    if isinstance(batch, (list, tuple)):
        return [leaf for part in batch for leaf in _leaves(part)]
    return [batch]


def _taken(batch, rows):
    """Return ``batch`` with the given rows of each array or tensor in it."""
    if isinstance(batch, Mapping):
        return {key: _taken(value, rows) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return [_taken(value, rows) for value in batch]
    return batch[rows] if isinstance(batch, (paddle.Tensor, np.ndarray)) else batch


def _samples(batch):
    """Return a digest of each sample of a batch, one if its arrays have no common first axis."""
    leaves = [leaf.numpy() if isinstance(leaf, paddle.Tensor) else leaf for leaf in _leaves(batch)]
    arrays = [leaf for leaf in leaves if isinstance(leaf, np.ndarray)]
    lengths = {each.shape[:1] for each in arrays}
    rows = lengths.pop()[0] if len(lengths) == 1 and lengths != {()} else 0
    parts: List[List[Any]] = [[repr(leaf) for leaf in leaves if not isinstance(leaf, np.ndarray)]]
    if rows:
        parts = [[*parts[0], *(each[row] for each in arrays)] for row in range(rows)]
    else:
        parts[0] += arrays
    return tuple(_digest(part) for part in parts)


def _digest(values):
    found = hashlib.blake2b(digest_size=16)
    for value in values:
        array = np.asarray(value)
        found.update(f"{array.dtype} {array.shape} ".encode())
        found.update(repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes())
    return found.digest()
