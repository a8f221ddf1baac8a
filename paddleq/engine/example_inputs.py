"""Structural changes that need a forward pass: on example inputs, or on the first batch."""

import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

import paddle
from paddle.static import InputSpec

from .._layer_state import read_state, state_of
from .._paddle_compat import dtype_name, register_call_hook, run_untranslated
from ..errors import FusionError
from ..graph import check_fuse_list, fuse
from ..graph.calls import tensors_in
from ..graph.fold_batch_norm import folded_tensors
from ..nn.class_swap import rollback_on_error
from .calibration import example_batch, map_leaves
from .hooks import eager_evaluation
from .state import quantization_off

_logger = logging.getLogger("paddleq")


def run_on_first_inputs(model, inputs, action):
    """Call ``action(model, run)``, where ``run()`` is a forward pass of the float model.

    Without ``inputs`` that happens on the first batch. The action must not refer to the model: a
    copy of the model that is made before the first batch runs it on itself.
    """
    if inputs is not None:
        batch = example_batch(model, inputs)
        with batch.errors_named():
            _call(action, model, *batch)
        return
    state_of(model).first_batch_action = action
    register_call_hook(model, _run_on_first_batch)


def awaits_first_batch(model):
    """Return True if an action is to run on the first batch of ``model``."""
    return read_state(model).first_batch_action is not None


def _call(action, model, args, kwargs):
    state = state_of(model)
    before = state.example_call
    record_call(model, args, kwargs)  # the action may trace the model
    try:
        with eager_evaluation(model), quantization_off(model):
            return action(model, lambda: model(*args, **kwargs))
    finally:
        state.example_call = before


def _run_on_first_batch(model, args, kwargs):
    # The hook stays, so that a copy of the model made before the first batch runs it too.
    if not awaits_first_batch(model):
        return
    if not paddle.in_dynamic_mode():
        raise FusionError("fusion looks at the first batch, but the model is traced before there "
                          "was one; run a batch first, or pass example inputs (inputs=...) when "
                          "the model is quantized")
    state = model._paddleq
    action, state.first_batch_action = state.first_batch_action, None
    try:
        with rollback_on_error(model, folded_tensors(model)):
            _call(action, model, args, kwargs)
    except BaseException:
        state_of(model).first_batch_action = action
        raise


def fold_batch_norms(model, inputs, fuse_list=None, before=None, after=None, warn=True):
    """Fold batch norms on example inputs, or on the first batch if ``inputs`` is None.

    ``before(model, run)`` folds other operators first and returns True if it found any;
    ``after(model, run)`` changes the folded model. With ``warn``, a warning is logged if nothing
    is folded.
    """
    if fuse_list is not None:
        check_fuse_list(model, fuse_list)
    run_on_first_inputs(model, inputs, partial(
        _fold, fuse_list=fuse_list, before=before, after=after, warn=warn))


def _fold(model, run, fuse_list, before, after, warn):
    found = before is not None and before(model, run)
    if not fuse(model, run, fuse_list) and fuse_list is None and not found and warn:
        _logger.warning("no batch norm was folded: in the data flow of %s none follows a layer "
                        "that it can be folded into", type(model).__name__)
    if after is not None:
        after(model, run)


@run_untranslated
def record_call(model, args, kwargs):
    """Record the arguments of a call for exports without ``input_spec``."""
    if paddle.in_dynamic_mode() and tensors_in([args, kwargs]):
        state_of(model).example_call = map_leaves(_spec_of, [list(args), dict(kwargs)])


@dataclass(frozen=True)
class Constant:
    """Argument of a recorded call that is no tensor.

    Attributes:
        value: the value, or the name of its type if it is not ``plain``.
        plain: True for None, numbers and strings.
    """

    value: Any
    plain: bool

    def equals(self, default: Any) -> bool:
        return self.plain and type(default) is type(self.value) and default == self.value


def _spec_of(leaf):
    if isinstance(leaf, paddle.Tensor):
        return InputSpec([None, *leaf.shape[1:]] if leaf.shape else [], dtype_name(leaf.dtype))
    plain = leaf is None or isinstance(leaf, (bool, int, float, str))
    return Constant(leaf if plain else type(leaf).__name__, plain)


def shown_arguments(parameters):
    """Return the text of the arguments of a function, such as "x, mask=None"."""
    return ", ".join(str(parameter).partition(":")[0] if parameter.default is parameter.empty
                     else f"{parameter.name}={parameter.default!r}" for parameter in parameters)
