"""Calibration of copies of a model in several processes, each on its share of the data."""

import copy
import hashlib
import zlib
from contextlib import contextmanager
from typing import Iterator, List, Sequence

import numpy as np
import paddle
from paddle import nn
from paddle.distributed import ReduceOp

from .._distributed import all_gather, all_reduce, gather_texts, groups
from .._layer_state import read_state
from ..errors import CalibrationError, DistributedError
from ..fake_quant.fake_quantize import FakeQuantize, State
from ..nn.input_slots import add_call
from ..nn.quantized_layer import QuantizedLayer
from ..observers import Observer

_SAMPLES = 1024  # values of each parameter that are compared between processes


@contextmanager
def merged_statistics(model: nn.Layer) -> Iterator[None]:
    """Merge the statistics that observers of all processes collect while open.

    On exit, all processes have the statistics of all batches, equal to the last bit: each merges
    the gathered statistics in the order of the processes. Statistics from before are those of the
    first process. A process may have no batches. In a single process, nothing is done. The caller
    restores the statistics after an error.

    Raises:
        DistributedError: the processes have different models, or another one raised an error; its
            message contains that of the other one.
        CalibrationError: no process has observed a batch.
    """
    if not groups():
        yield
        return
    check_same_model(model)
    first = all(group.rank == 0 for group in groups())
    before = {}
    for quantizer in _collecting(model):
        if first:
            before[id(quantizer)] = quantizer.observer.num_batches
        else:
            quantizer.observer.reset()
    try:
        yield
    except Exception as error:
        gather_texts(f"{type(error).__name__}: {error}")
        raise
    failures = gather_texts("")
    if any(failures):
        raise _failure_of_another(failures)
    _equalize_calls(model)
    quantizers = _collecting(model)
    _check_equal(_structure(model), "after the batches", "Data that reach other layers, or "
                 "fusion on a first batch that one of them did not have, change the model; pass "
                 "example inputs to quantize(), or give each process a batch")
    if not _merge(quantizers, before):
        raise CalibrationError("data must yield at least one batch in one of the processes, but "
                               "is empty in all of them")


def check_same_model(model: nn.Layer) -> None:
    """Raise DistributedError unless all processes have equal parameters and quantizers."""
    _check_equal(_structure(model), "before the first batch", "Create and load the model in the "
                 "same way in all of them")
    sums = paddle.to_tensor([_checksum(parameter) for parameter in model.parameters()] or [0],
                            dtype="int64")
    differing = paddle.stack(all_gather(sums)).numpy()
    differing = (differing != differing[0]).any(axis=0)
    if differing.any():
        names = [name for name, _ in model.named_parameters()]
        first = names[int(np.argmax(differing))]
        raise DistributedError(
            f"{int(differing.sum())} parameters differ between the processes, first {first!r}; "
            "all must have the same weights: load the same file, or wrap the model by "
            "paddle.DataParallel, before calibration (paddleq.local_statistics() calibrates each "
            "process by itself)")


def _check_equal(text, when, remedy):
    texts = gather_texts(text)
    for rank, other in enumerate(texts):
        if other != texts[0]:
            raise DistributedError(
                f"the processes have different models {when}: process {rank} has other layers or "
                f"quantizers than process 0. {remedy} (paddleq.local_statistics() calibrates each "
                "process by itself)")


def _structure(model):
    """Return a digest of the names and shapes of parameters and the settings of quantizers."""
    lines = [f"{name} {list(value.shape)} {value.dtype}"
             for name, value in model.named_parameters()]
    lines += [f"{name} {layer.extra_repr()}" for name, layer in model.named_sublayers()
              if isinstance(layer, FakeQuantize)]
    lines.append(f"awaits a first batch: {read_state(model).first_batch_action is not None}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _checksum(parameter):
    flat = parameter.detach().reshape([-1])
    chosen = flat[::max(1, flat.shape[0] // _SAMPLES)]
    return zlib.crc32(chosen.numpy().tobytes())


def _collecting(model) -> List[FakeQuantize]:
    """Return the quantizers whose statistics calibration changes."""
    return [layer for _, layer in model.named_sublayers(include_self=True)
            if isinstance(layer, FakeQuantize) and layer.state is State.CALIBRATION
            and layer.observer_enabled and not (layer.observer.dynamic or layer.observer.fixed)]


def _failure_of_another(failures):
    found = [f"process {rank}: {text}" for rank, text in enumerate(failures) if text]
    return DistributedError(f"calibration ended because {len(found)} of {len(failures)} processes "
                            f"raised errors: {'; '.join(found)}")


def _equalize_calls(model):
    """Add quantizers for calls that only other processes have seen."""
    layers = [layer for layer in model.sublayers(include_self=True)
              if isinstance(layer, QuantizedLayer) and not layer._paddleq.kind.weights]
    if layers:
        calls = paddle.to_tensor([layer._paddleq.calls for layer in layers], dtype="int64")
        for layer, count in zip(layers, all_reduce(calls, ReduceOp.MAX).numpy()):
            while layer._paddleq.calls < count:
                add_call(layer)


def _merge(quantizers, before):
    """Merge the statistics of all processes; return True if one of them has observed a batch.

    ``before`` has the number of earlier batches in the statistics of a quantizer, by its id.
    """
    counts = [each.observer.num_batches - before.get(id(each), 0) for each in quantizers]
    observed = all_reduce(paddle.to_tensor(counts or [0], dtype="int64"), ReduceOp.SUM).numpy()
    if not observed.any():
        return False
    merge_observers([quantizer.observer for quantizer in quantizers])
    for quantizer, count in zip(quantizers, observed):
        if count:
            quantizer.mark_observed()
    return True


def merge_observers(observers: Sequence[Observer]) -> None:
    """Merge the statistics of all processes, in the order of the processes, in each of them."""
    buffers = [observer.buffers_copy() for observer in observers]
    parts = all_gather(paddle.concat([
        value.astype("float64").reshape([-1]) for each in buffers for value in each.values()]))
    position = 0
    for observer, each in zip(observers, buffers):
        other = copy.deepcopy(observer)
        for number, part in enumerate(parts):
            state, start = {}, position
            for name, value in each.items():
                state[name] = part[start:start + value.size].reshape(value.shape).astype(
                    value.dtype)
                start += value.size
            (other if number else observer).load_state_dict(state)
            if number:
                observer.merge(other)
        position = start
