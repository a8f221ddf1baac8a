"""Reference outputs for ``verify``."""

import contextlib
import os

import numpy as np
import paddle
from paddle import nn

from .._checks import wrong_type
from ..engine.state import evaluation
from ..errors import ConfigError
from ..saved_model.inputs import as_numpy, check_inputs
from .model_file import model_files, most_readable
from .runtimes import RUNTIMES


def load_reference(file):
    """Load a file in a runtime that computes its operators one by one, in float."""
    runtime = next((each for each in RUNTIMES.values() if file.kind in each.references), None)
    if runtime is None:
        raise ConfigError(f"no runtime computes {file.kind} files operator by operator")
    runtime.require()
    return runtime.load(file, threads=1, as_is=True)


def reference_outputs(reference, file, batches):
    """Return the outputs of the ``reference`` of ``verify`` for each batch, as lists of arrays.

    Args:
        file: :class:`~paddleq.deploy.model_file.ModelFile` of the verified model.
    """
    if reference is None or isinstance(reference, (str, os.PathLike)):
        if reference is not None:
            file = most_readable(model_files(reference))
        with contextlib.closing(load_reference(file)) as session:
            return [session.run(batch) for batch in batches]
    if isinstance(reference, nn.Layer):
        with evaluation(reference), paddle.no_grad():
            return [_flatten(reference(*map(paddle.to_tensor, batch))) for batch in batches]
    if callable(reference):
        return [_flatten(reference(*batch)) for batch in batches]
    raise wrong_type("reference", reference, "a paddle.nn.Layer, a function of arrays, the path "
                                             "of a saved model, or None for the file itself")


def _flatten(value):
    """Return the arrays of a nested output."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [array for each in value for array in _flatten(each)]
    return [] if value is None else [as_numpy(value)]


def check_batches(data, expected):
    """Return ``data`` as a list of batches, each a list of arrays that fit the model."""
    if hasattr(data, "shape") or isinstance(data, dict):
        data = [data]
    try:
        data = iter(data)
    except TypeError:
        raise wrong_type("data", data, "a batch or an iterable of batches") from None
    batches = [check_inputs(batch, expected) for batch in data]
    if not batches:
        raise ConfigError("data must hold at least one batch, but is empty")
    if not all(np.size(array) for batch in batches for array in batch):
        raise ConfigError("data must hold at least one sample in each batch")
    return batches
