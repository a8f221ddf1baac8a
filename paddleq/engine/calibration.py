"""Calibration: the loop over batches, and the state of a model while statistics are collected."""

import inspect
import itertools
import logging
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple

import numpy as np
import paddle
from paddle import nn

from .._checks import check_int, wrong_type
from .._distributed import groups, is_writer
from .._layer_state import read_state
from .._paddle_compat import unwrapped
from ..errors import CalibrationError, ConfigError, NonFiniteError
from ..fake_quant.fake_quantize import State
from ..graph.fold_batch_norm import folded_tensors
from ..nn.class_swap import rollback_on_error
from .batch import Batch
from .distributed import merged_statistics
from .hooks import to_static_enabled
from .state import (
    check_quantized,
    evaluation,
    fake_quantizers,
    finalize,
    follow_first_calls,
    in_one_thread,
    leave_uncalled_float,
    restored_states,
    set_state,
)

_logger = logging.getLogger("paddleq")
Arguments = Tuple[List[Any], Dict[str, Any]]


def calibrate(model: nn.Layer, data: Iterable, num_batches: Optional[int] = None,
              desc: str = "calibrating") -> int:
    """Observe activations on batches of ``data``, then compute the scales.

    Quantizers in state ``CALIBRATION`` are in state ``VALIDATION`` afterwards: the model simulates
    the quantized one. All other quantizers (of a model in training) return to the state that they
    had, and so does everything if an error occurs. Quantizers whose observer is disabled keep
    their scale. A second call continues with the statistics of the first one, also if an error
    ended it; an interrupt (``KeyboardInterrupt``, ``MemoryError``) restores the statistics too.
    Other threads must not call the model meanwhile.

    Processes that ``paddle.distributed`` connects (``init_parallel_env``, ``fleet.init``) calibrate
    together: each calls this function on its share of the data, as of a
    ``paddle.io.DistributedBatchSampler``, which may be empty. The statistics are merged, and all of
    them have the same scales afterwards. Running maxima and minima are those of one process with
    all batches; histograms as well, but for the widths of their bins; moving averages depend on the
    order of batches and are averaged. If one process raises an error, all raise one with its
    message, and the statistics are as before. Use :func:`paddleq.local_statistics` to calibrate in
    one process only.

    Layers that no batch reached, such as auxiliary heads that only training runs, are left float,
    with a warning; :func:`summary` shows them as "not called during calibration". An export whose
    graph contains one of them raises an error.

    Args:
        model: a quantized model.
        data: an iterable of batches. A batch is a tensor or array; a list or tuple that starts
            with the arguments of ``model.forward`` (further entries, e.g. labels, are ignored);
            a dict of keyword arguments, or of the values of the only argument; or a list or tuple
            that starts with such a dict.
        num_batches: stop after this many batches. Default: all.
        desc: label of the progress bar, which is shown on terminals only.

    Returns:
        Number of batches that this process used.

    Raises:
        CalibrationError: ``data`` is empty, or no layer received data.
        DistributedError: another process has another model or raised an error.
        NonFiniteError: NaN or infinity reached a layer; names the layer and the batch.
        ConfigError, ConfigTypeError: a batch is empty or does not fit the model's ``forward``;
            names the batch, its inputs, and what the model takes.
        ModelError: the model is not quantized, or another thread calibrates or analyses it.

    Examples:
        >>> import paddle, paddleq
        >>> net = paddleq.PTQ("AbsmaxQuantizer").quantize(
        ...     paddle.nn.Sequential(paddle.nn.Linear(2, 2)))
        >>> paddleq.calibrate(net, [paddle.to_tensor([[0.5, -3.0]])])
        1
        >>> net[0].activation_quantizer.abs_max.tolist()
        [3.0]
    """
    check_quantized(model)
    batches = iter_batches(model, data, num_batches, desc, allow_empty=bool(groups()))
    with calibrating(model):
        return run_batches(lambda inputs: model(*inputs[0], **inputs[1]), batches)


@contextmanager
def calibrating(model: nn.Layer) -> Iterator[None]:
    """Observe the activations of a quantized model in its forward passes, then compute the scales.

    While open, the model is in evaluation mode and quantizers pass their input through. On exit
    the states are as :func:`calibrate` describes. The statistics of processes that
    ``paddle.distributed`` connects are merged.
    """
    quantizers = [quantizer for _, quantizer in fake_quantizers(model)]
    finished = [q for q in quantizers if q.state is State.CALIBRATION]
    disabled = [q for q in quantizers if q.state is not State.VALIDATION and not q.observer_enabled]
    tensors = [tensor for q in quantizers for tensor in [*q.parameters(), *q.buffers()]]
    if read_state(model).first_batch_action is not None:
        tensors += folded_tensors(model)
    with in_one_thread(model), rollback_on_error(
            model, tensors, only_interrupts=not groups()):
        with to_static_enabled(False), restored_states(model), evaluation(model), paddle.no_grad():
            set_state(model, State.CALIBRATION)
            for quantizer in disabled:
                quantizer.observer_enabled = False
            with merged_statistics(model):
                yield
            finalize(model)
        for quantizer in finished:
            quantizer.set_state(State.VALIDATION)
        follow_first_calls(model, {id(quantizer) for quantizer in quantizers})
        leave_uncalled_float(model)


def run_batches(run: Callable[[Any], Any], batches: Iterable,
                data: str = "the calibration data") -> int:
    """Call ``run(batch)`` for each batch of ``data`` and return the number of batches."""
    count = 0
    for batch in batches:
        try:
            with batch.errors_named() if isinstance(batch, Batch) else nullcontext():
                run(batch)
        except NonFiniteError as error:
            raise NonFiniteError(f"{error} (batch {count} of {data})") from None
        count += 1
    return count


def length_of(data: Any) -> Optional[int]:
    """Return the number of batches of ``data``, None if it is unknown."""
    try:
        return len(data)
    except (TypeError, ValueError):  # the latter by a DataLoader of an IterableDataset
        return None


def iter_batches(model: nn.Layer, data: Iterable, num_batches: Optional[int] = None,
                 desc: Optional[str] = None, allow_empty: bool = False,
                 argument: str = "data") -> Iterator[Batch]:
    """Iterate over the (args, kwargs) of a call of ``model`` for each batch of ``data``.

    The arguments are checked immediately, not when the first batch is taken.
    """
    if num_batches is not None:
        check_int("num_batches", num_batches, 1)
    try:
        batches = iter(data)
    except TypeError:
        raise wrong_type(argument, data, "an iterable of batches") from None
    total = num_batches
    length = length_of(data)
    if length is not None:
        total = length if num_batches is None else min(num_batches, length)
    batches = itertools.islice(batches, num_batches)
    if desc is not None:
        batches = with_progress(batches, desc, total)
    return _forward_arguments(model, batches, allow_empty, argument)


def with_progress(batches: Iterable, desc: str, total: Optional[int] = None) -> Iterable:
    """Return ``batches`` with a progress bar, which is shown on terminals only."""
    from tqdm import tqdm

    return tqdm(batches, desc=desc, total=total, disable=None if is_writer() else True,
                leave=False)


def example_batch(model: nn.Layer, inputs: Any) -> Batch:
    """Return the example inputs ``inputs`` of ``model`` as a batch, a batch as it is."""
    if isinstance(inputs, Batch):
        return inputs
    args, kwargs = forward_arguments(model, inputs, "inputs")
    batch = Batch.of(args, kwargs, _input_names(model), "inputs", {})
    batch.check()
    return batch


def _input_names(model):
    return [p.name for p in _positional(model)] or list(getattr(model, "input_names", ()))


def _forward_arguments(model, batches, allow_empty, argument):
    count, reference, names = 0, {}, _input_names(model)
    for batch in batches:
        name = f"batch {count} of {argument}"
        args, kwargs = forward_arguments(model, batch, name)
        arguments = Batch.of(args, kwargs, names, name, reference)
        arguments.check()
        if count == 0 and isinstance(batch, (list, tuple)):
            optional = _positional(model)[len(args):]
            if optional and len(batch) > len(args):
                _logger.warning(
                    "%s receives the first %d of the %d entries of a batch, its required "
                    "arguments; to pass its argument %r as well, make each batch a dict of "
                    "arguments", type(model).__name__, len(args), len(batch), optional[0].name)
        count += 1
        yield arguments
    if not count and not allow_empty:
        raise CalibrationError(f"{argument} must yield at least one batch, but is empty")


def _parameters(model):
    # The function that to_static substitutes for forward has no signature.
    forward = unwrapped(model).forward
    forward = getattr(forward, "dygraph_function", forward)
    return list(inspect.signature(forward).parameters.values())


def _positional(model):
    return [p for p in _parameters(model)
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def forward_arguments(model: nn.Layer, batch: Any, name: str = "a batch") -> Arguments:
    """Convert one batch to the (args, kwargs) of a call of ``model``.

    Args:
        name: of the batch, for messages.
    """
    if isinstance(batch, Mapping):
        unknown, missing = _mismatched_keys(model, batch)
        if (unknown or missing) and _takes_a_dict(model, batch):
            return [_tensor(dict(batch))], {}
        for wrong, verb in ((unknown, "takes no"), (missing, "also needs")):
            if wrong:
                raise ConfigError(f"{name} has the keys {', '.join(map(repr, batch))}, but "
                                  f"forward {verb} {', '.join(map(repr, wrong))}")
        return [], {key: _tensor(value) for key, value in batch.items()}
    if not isinstance(batch, (list, tuple)):
        x = paddle.to_tensor(batch) if isinstance(batch, (float, int)) else _tensor(batch)
        if not isinstance(x, paddle.Tensor):
            raise wrong_type(name, batch, "a tensor, an array, a list of arguments or a dict")
        return [x], {}
    if batch and isinstance(batch[0], Mapping) and not any(_mismatched_keys(model, batch[0])):
        return forward_arguments(model, batch[0], name)  # labels after a dict of arguments
    parameters = _parameters(model)
    required = sum(p.default is p.empty for p in _positional(model))
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        # A SavedModel names its inputs.
        required = max(required, len(getattr(model, "input_names", ())), 1)
    if len(batch) < required:
        raise ConfigError(f"{name} must hold the {required} arguments of forward, but has "
                          f"{len(batch)} entries")
    return [_tensor(value) for value in batch[:max(required, 1)]], {}


def _mismatched_keys(model, batch):
    """Return the keys of a dict that ``forward`` does not take, and arguments that it lacks."""
    parameters = _parameters(model)
    names = {p.name for p in parameters}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    unknown = [key for key in batch if key not in names and not takes_all]
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in batch
               and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if takes_all:  # as a SavedModel does, which names its inputs
        missing += [name for name in getattr(model, "input_names", ()) if name not in batch]
    return unknown, missing


def _takes_a_dict(model, batch):
    """Return True if a dict can be the only argument that ``forward`` requires."""
    parameters = [p for p in _parameters(model) if p.kind is not p.VAR_KEYWORD]
    return (bool(parameters) and parameters[0] in _positional(model)
            and all(p.default is not p.empty or p.kind is p.VAR_POSITIONAL
                    for p in parameters[1:])
            and not any(p.name in batch for p in parameters))


def _tensor(structure):
    """Convert the arrays in a nested value to tensors."""
    arrays: Any = (np.ndarray, np.generic)
    return map_leaves(
        lambda value: paddle.to_tensor(value) if isinstance(value, arrays) else value, structure)


def map_leaves(function: Callable[[Any], Any], structure: Any) -> Any:
    """Apply ``function`` to each value in nested lists, tuples and dicts, whose types are kept."""
    if isinstance(structure, dict):
        mapped = {key: map_leaves(function, value) for key, value in structure.items()}
        return mapped if type(structure) is dict else type(structure)(mapped)
    if isinstance(structure, (list, tuple)):
        items = [map_leaves(function, item) for item in structure]
        return type(structure)(*items) if hasattr(structure, "_fields") else type(structure)(items)
    return function(structure)
