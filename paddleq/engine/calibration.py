"""Running calibration data through a model."""

import inspect
import itertools
import logging
from collections.abc import Mapping

import numpy as np
import paddle

from .._checks import check_int, wrong_type
from ..errors import CalibrationError, ConfigError, NonFiniteError
from .state import check_quantized, evaluation, finalize, set_state

_logger = logging.getLogger("paddleq")


def calibrate(model, loader, batch_num=None, desc="calibrating"):
    """Observe activations on batches of ``loader``, then compute the thresholds.

    Afterwards the model simulates the quantized one. Calling it again goes on observing where
    the last call stopped.

    Args:
        model: a quantized model.
        loader: an iterable of batches. A batch is a tensor or array, a list or tuple whose
            first entries are the arguments of ``model.forward`` (labels after them are left
            out), or a dict of keyword arguments.
        batch_num: stop after this many batches. Default: all.
        desc: what to write beside the progress bar, which is shown on terminals only.

    Returns:
        Number of batches used.

    Raises:
        CalibrationError: the loader was empty, or a layer saw no data.
        NonFiniteError: NaN or infinity reached a layer; names the layer and the batch.
        ConfigError, ConfigTypeError: a batch does not fit the model's ``forward``.
        ModelError: the model is not quantized.

    Examples:
        >>> import paddle, paddleq
        >>> net = paddleq.PTQ("AbsmaxQuantizer").quantize(
        ...     paddle.nn.Sequential(paddle.nn.Linear(2, 2)))
        >>> paddleq.calibrate(net, [paddle.to_tensor([[0.5, -3.0]])])
        1
        >>> net[0].activation_quantizer.threshold.tolist()
        [3.0]
    """
    check_quantized(model)
    batches = iter_batches(model, loader, batch_num, desc)
    set_state(model, "calibration")
    used = 0
    with evaluation(model), paddle.no_grad():
        for args, kwargs in batches:
            try:
                model(*args, **kwargs)
            except NonFiniteError as error:
                raise NonFiniteError(f"{error} (batch {used} of this loader)") from None
            used += 1
    finalize(model)
    set_state(model, "validation")
    return used


def iter_batches(model, loader, batch_num=None, desc=None):
    """(args, kwargs) of a call of ``model`` for each batch of ``loader``, behind a progress bar.

    Args and errors are those of :func:`calibrate`; the arguments are checked at once.
    """
    if batch_num is not None:
        check_int("batch_num", batch_num, 1)
    try:
        batches = iter(loader)
    except TypeError:
        raise wrong_type("loader", loader, "an iterable of batches") from None
    total = batch_num
    if hasattr(loader, "__len__"):
        total = len(loader) if batch_num is None else min(batch_num, len(loader))
    return _calls(model, itertools.islice(batches, batch_num), desc, total)


def _calls(model, batches, desc, total):
    from tqdm import tqdm

    count = 0
    for inputs in inputs_of(model, tqdm(batches, desc=desc, total=total, disable=None,
                                        leave=False)):
        count += 1
        yield inputs
    if not count:
        raise CalibrationError("loader must yield at least one batch, but is empty")


def inputs_of(model, batches):
    """(args, kwargs) with which ``model`` is called, for each of ``batches``.

    What is left out of a batch, though ``forward`` could take it, is named in a warning.
    """
    for number, batch in enumerate(batches):
        args, kwargs = forward_arguments(model, batch)
        if number == 0 and isinstance(batch, (list, tuple)) and len(batch) > len(args):
            _warn_of_left_out(model, len(batch), len(args))
        yield args, kwargs


def _warn_of_left_out(model, given, taken):
    optional = _positional(model)[taken:]
    if optional:
        _logger.warning(
            "%s gets the first %d of the %d entries of a batch, those that it needs; if the next "
            "one is no label but its argument %r, make each batch a dict of arguments",
            type(model).__name__, taken, given, optional[0].name)


def _parameters(model):
    # What to_static put in a forward's place has no signature.
    forward = getattr(model.forward, "dygraph_function", model.forward)
    return list(inspect.signature(forward).parameters.values())


def _positional(model):
    return [p for p in _parameters(model)
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def forward_arguments(model, batch):
    """(args, kwargs) with which ``model`` is called for one batch."""
    parameters = _parameters(model)
    if isinstance(batch, Mapping):
        names = {p.name for p in parameters}
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        unknown = [key for key in batch if key not in names and not takes_all]
        if unknown:
            raise ConfigError(f"a batch has the keys {', '.join(map(repr, batch))}, but forward "
                              f"takes no {', '.join(map(repr, unknown))}")
        missing = [p.name for p in parameters if p.default is p.empty and p.name not in batch
                   and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if missing:
            raise ConfigError(f"a batch has the keys {', '.join(map(repr, batch))}, but forward "
                              f"also needs {', '.join(map(repr, missing))}")
        return [], {key: _tensor(value) for key, value in batch.items()}
    if not isinstance(batch, (list, tuple)):
        x = paddle.to_tensor(batch) if isinstance(batch, (float, int)) else _tensor(batch)
        if not isinstance(x, paddle.Tensor):
            raise wrong_type("a batch", batch, "a tensor, an array, a list of arguments or a dict")
        return [x], {}
    required = sum(p.default is p.empty for p in _positional(model))
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        required = max(required, 1)
    if len(batch) < required:
        raise ConfigError(f"a batch must hold the {required} arguments of forward, but has "
                          f"{len(batch)} entries")
    return [_tensor(value) for value in batch[:max(required, 1)]], {}


def _tensor(value):
    """``value`` with tensors in place of arrays, wherever they are in it."""
    if isinstance(value, (list, tuple)):
        items = [_tensor(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {key: _tensor(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return paddle.to_tensor(value)
    return value
