"""Collective operations over the processes that hold copies of one model.

They use the groups of ``paddle.distributed``. A process that has not called
``paddle.distributed.init_parallel_env()`` or ``fleet.init()`` only asks for that.
"""

import threading
import zlib
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import paddle
import paddle.distributed as dist

from ._checks import check_choice
from ._paddle_compat import hybrid_topology
from .errors import DistributedError

REDUCTIONS = (None, "max", "mean")
LONGEST_TEXT = 2048
_local = threading.local()


def check_reduce(name: str, value: Any) -> Optional[str]:
    """Return ``value`` if it is one of :data:`REDUCTIONS`."""
    return check_choice(name, value, REDUCTIONS)


def groups() -> Tuple[Any, ...]:
    """Return the groups of processes among which batches are divided; () in a single process.

    With ``fleet``, those of data parallelism and of sharding; otherwise all processes.
    """
    if not dist.is_initialized() or getattr(_local, "alone", 0):
        return ()
    topology = hybrid_topology()
    found = ([dist.get_group(0)] if topology is None else
             [topology.get_data_parallel_group(), topology.get_sharding_parallel_group()])
    return tuple(group for group in found if group.nranks > 1)


def check_one_process(activity: str) -> None:
    """Raise DistributedError if batches are divided among processes."""
    if groups():
        raise DistributedError(
            f"{activity} runs in one process, because each would compute another result from its "
            "data; run it in one with paddleq.local_statistics() and load its model in the others")


def is_writer() -> bool:
    """Return True in the process that writes files and logs: that of rank 0, or the only one."""
    return not groups() or dist.get_rank() == 0


@contextmanager
def local_statistics() -> Iterator[None]:
    """While open, this process observes and calibrates by itself.

    Without it, the processes that ``paddle.distributed`` connects reduce their statistics and so
    wait for each other. The context is needed if not all of them train or calibrate, or if they
    have different models.

    Examples:
        >>> import paddle, paddleq
        >>> net = paddleq.PTQ().quantize(paddle.nn.Sequential(paddle.nn.Linear(2, 2)))
        >>> with paddleq.local_statistics():
        ...     paddleq.calibrate(net, [paddle.ones([1, 2])])
        1
    """
    _local.alone = getattr(_local, "alone", 0) + 1
    try:
        yield
    finally:
        _local.alone -= 1


def world_size() -> int:
    """Return the number of processes among which batches are divided."""
    size = 1
    for group in groups():
        size *= group.nranks
    return size


@contextmanager
def _failures_named(place: str) -> Iterator[None]:
    """Raise DistributedError with ``place`` for an error of a collective operation."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()
        raise DistributedError(
            f"{place}: a collective operation failed; another process has ended, or does not "
            f"take part ({reason[-1].strip() if reason else type(error).__name__}). "
            "paddleq.local_statistics() works in one process") from error


def all_reduce(x: paddle.Tensor, op: Any, place: str = "calibration") -> paddle.Tensor:
    """Reduce ``x`` over :func:`groups` in place and return it.

    Args:
        place: for messages.

    Raises:
        DistributedError: the operation failed, as when another process has ended.
    """
    with _failures_named(place):
        for group in groups():
            dist.all_reduce(x, op=op, group=group)
    return x


def all_gather(x: paddle.Tensor, place: str = "calibration") -> List[paddle.Tensor]:
    """Return ``x`` of each process of :func:`groups`, in the same order in all of them.

    The arguments and errors are those of :func:`all_reduce`.
    """
    found = x.unsqueeze(0)
    with _failures_named(place):
        for group in groups():
            parts: List[paddle.Tensor] = []
            dist.all_gather(parts, found, group=group)
            found = paddle.concat(parts)
    return found.unbind(0)


def gather_texts(text: str) -> List[str]:
    """Return the first :data:`LONGEST_TEXT` bytes of ``text`` of each process."""
    content = text.encode()[:LONGEST_TEXT]
    padded = np.frombuffer(content.ljust(LONGEST_TEXT, b"\0"), dtype=np.uint8)
    return [each.numpy().tobytes().rstrip(b"\0").decode(errors="ignore")
            for each in all_gather(paddle.to_tensor(padded.copy()))]


class NonFiniteBatch(Exception):
    """The batch of a process, maybe another one, holds NaN or infinity."""


class Reduction:
    """Combination of the statistics of one batch over :func:`groups`.

    Each call is one collective operation on a few numbers: the statistics, infinite if the batch is
    not finite, and an identification of the quantizer, so that processes whose quantizers run in
    different orders raise an error instead of mixing their statistics.

    Args:
        how: "max": extremes are those of the batches of all processes. "mean": they are averaged.
        finite: boolean [1], True if the batch of this process is finite.
        label: name of the quantizer.

    Attributes:
        finite: after a call, True if the batches of all processes are finite.

    Raises:
        NonFiniteBatch: on a host, a batch is not finite. Other devices are not read, which would
            synchronize.
        DistributedError: on a host, the processes do not run the same quantizer.
    """

    def __init__(self, how: str, finite: paddle.Tensor, label: str) -> None:
        self.how, self.finite, self.label = how, finite, label
        self._id = float(zlib.crc32(label.encode()) & 0xffff)

    def extremes(self, values: Sequence[paddle.Tensor], signs: Sequence[float],
                 shape: Sequence[int], how: Optional[str] = None) -> List[paddle.Tensor]:
        """Return maxima (sign 1) and minima (sign -1) over the processes.

        Args:
            values: tensors of ``shape``; none if the batch of this process is empty.
            signs: a sign for each value.
            how: instead of the one of the reduction.

        Returns:
            As many tensors; none if all batches are empty.
        """
        if (how or self.how) == "mean":
            return self.means(values, 1.0, len(signs), shape)
        size = _product(shape)
        own = [v.astype("float32").reshape([-1]) * s for v, s in zip(values, signs)] or [
            paddle.full([size * len(signs)], -float("inf"), dtype="float32")]
        found = self._reduced(own, [self._id, -self._id], dist.ReduceOp.MAX, "float32")
        self._check_order(lambda first, second: first + second == 0.0, found)
        return self._split(found[:-2], len(signs), shape, empty=not len(values), signs=signs)

    def means(self, values: Sequence[paddle.Tensor], weight: float, count: int,
              shape: Sequence[int]) -> List[paddle.Tensor]:
        """Return the means over the processes, weighted by ``weight``, float64.

        Args:
            values: ``count`` tensors of ``shape``; none if the batch of this process is empty.
        """
        size, weight = _product(shape) * count, weight if len(values) else 0.0
        own = [v.astype("float64").reshape([-1]) * weight for v in values] or [
            paddle.zeros([size], dtype="float64")]
        found = self._reduced(own, [weight, self._id, self._id ** 2], dist.ReduceOp.SUM, "float64")
        processes = world_size()
        self._check_order(lambda first, second: first * first == second * processes, found)
        total = found[size:size + 1]
        if not len(values) and not total.item():
            return []
        return self._split(found[:size] / total, count, shape)

    def _reduced(self, own, extra, op, dtype):
        packed = paddle.concat(own)
        packed = paddle.where(self.finite, packed, paddle.full_like(packed, float("inf")))
        packed = all_reduce(paddle.concat([packed, paddle.to_tensor(extra, dtype=dtype)]), op,
                            self.label or "a quantizer")
        self.finite = (packed < float("inf")).all().reshape([1])
        if packed.place.is_cpu_place() and not self.finite.item():
            raise NonFiniteBatch
        return packed

    def _check_order(self, equal, found):
        if found.place.is_cpu_place() and not equal(*found[-2:].tolist()):
            raise DistributedError(
                f"{self.label or 'a quantizer'}: another process reduces the statistics of another "
                "quantizer at this point. All processes must run the same quantized layers in the "
                "same order in training; set reduce=None for layers that only some of them run")

    @staticmethod
    def _split(packed, count, shape, empty=False, signs=None):
        if empty and (packed == -float("inf")).all().item():
            return []
        parts = [part.reshape(shape) for part in packed.split(count)]
        return parts if signs is None else [part * sign for part, sign in zip(parts, signs)]


def _product(shape):
    size = 1
    for length in shape:
        size *= length
    return size
