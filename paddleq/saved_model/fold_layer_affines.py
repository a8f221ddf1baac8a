"""Fold affine operators with parameters of a Layer, such as ``self.scale * x + self.bias``.

The data flow is that of the traced program. The operators are Python code, so they stay in the
model: their parameters get the values with which they change nothing, and are not trained any more.
Exports leave such operators out.
"""

import logging
from collections import Counter
from typing import Any, Callable, Optional, Sequence

import paddle
from paddle import nn

from .._layer_state import Note, NoteKind, state_of
from .._paddle_compat import own_buffers, own_parameters
from ..engine.example_inputs import fold_batch_norms
from ..engine.hooks import to_static_enabled
from ..errors import PaddleqError
from ..export.trace import trace_float
from ..graph.dataflow import PRODUCERS
from ..nn.class_swap import float_class
from .fold_affines import fold_affines
from .saved_model import SavedModel

_logger = logging.getLogger("paddleq")


def fold_in_programs(model: nn.Layer) -> None:
    """Fold affine operators of saved models in ``model``, in place, before it is prepared."""
    for layer in model.sublayers(include_self=True):
        if isinstance(layer, SavedModel):
            layer.fold_affines()


def fold_layers(model: nn.Layer, inputs: Any, fuse_list: Optional[Sequence] = None,
                after: Optional[Callable] = None, warn: bool = True) -> None:
    """Fold affine operators and batch norms into weights, or only the norms of ``fuse_list``.

    That happens on example inputs, or on the first batch if ``inputs`` is None. ``after`` and
    ``warn`` are those of :func:`paddleq.engine.example_inputs.fold_batch_norms`.
    """
    fold_batch_norms(model, inputs, fuse_list,
                     fold_layer_affines if fuse_list is None else None, after, warn)


def fold_layer_affines(model: nn.Layer, run=None) -> bool:
    """Fold affine operators of ``model`` in place and return True if there were any.

    The model is traced with the arguments of the call on which ``run`` runs it. A model that Paddle
    cannot trace stays as it is, with a warning.
    """
    owners = _owners(model)
    if not owners:
        return False
    tensors = [*model.parameters(), *model.buffers()]
    names = Counter(tensor.name for tensor in tensors)
    repeated = [name for name, count in names.items() if count > 1]
    if repeated:
        _logger.warning("multiplications and additions of parameters are not folded: several "
                        "tensors of the model have the name %s", repeated[0])
        return False
    weights = {layer.weight.name: layer for layer in model.sublayers(include_self=True)
               if isinstance(layer, PRODUCERS)}
    try:
        with to_static_enabled(True):
            program = trace_float(model, None)
    except PaddleqError as error:
        _logger.warning("multiplications and additions of parameters are not folded: %s", error)
        return False
    result = fold_affines(program, neutral=owners, without_bias={
        name for name in program.arrays if name not in weights})
    by_name = {tensor.name: tensor for tensor in tensors}
    with paddle.no_grad():
        for name, value in result.values.items():
            by_name[name].set_value(value)
        for name, bias in result.biases.items():
            layer = weights[name]
            layer.bias = layer.create_parameter(shape=list(bias.shape), is_bias=True)
            layer.bias.set_value(bias)
    layers = {tensor.name: name for name, layer in model.named_sublayers(include_self=True)
              for tensor in own_parameters(layer).values() if tensor is not None}
    for name, targets in result.neutral.items():
        by_name[name].stop_gradient = True
        _note(owners[name], by_name[name], [layers.get(weight, weight) for weight in targets])
    return bool(result.folded)


def _note(owner, tensor, targets):
    state = state_of(owner)
    (attribute,) = [name for name, value in [*own_parameters(owner).items(),
                                             *own_buffers(owner).items()] if value is tensor]
    note = Note(NoteKind.AFFINE_FOLDED, tuple(targets), attribute)
    state.notes = (*state.notes, note) if state.neutral else (note,)
    state.neutral += attribute,
    _logger.info("%s of %s", note, type(owner).__name__)


def _owners(model):
    """Return name of each tensor that may be a constant of an affine operator -> its layer."""
    found = {}
    inside = {id(part) for layer in model.sublayers(include_self=True)
              if isinstance(layer, SavedModel) for part in layer.sublayers(include_self=True)}
    for layer in model.sublayers(include_self=True):
        module = float_class(layer).__module__.partition(".")[0]
        if module in ("paddle", "paddleq") or id(layer) in inside:
            continue
        for tensor in [*own_parameters(layer).values(), *own_buffers(layer).values()]:
            if tensor is not None and paddle.is_floating_point(tensor) and sum(
                    size != 1 for size in tensor.shape) <= 1:
                found[tensor.name] = layer
    return found
