"""Structural changes that need a forward pass: on example inputs, or on the first batch."""

import logging
from functools import partial

import paddle
from paddle.static import InputSpec

from .._layer_state import read_state, state_of
from .._paddle_compat import dtype_name
from ..errors import FusionError
from ..graph import check_fuse_list, fuse
from .calibration import forward_arguments
from .hooks import eager_evaluation
from .state import quantization_off

_logger = logging.getLogger("paddleq")


def run_on_first_inputs(model, inputs, action):
    """Call ``action(model, run)``, where ``run()`` is a forward pass of the float model.

    Without ``inputs`` that happens on the first batch. The action must not refer to the model: a
    copy of the model that is made before the first batch runs it on itself.
    """
    if inputs is not None:
        args, kwargs = forward_arguments(model, inputs)
        _call(action, model, args, kwargs)
        return
    state_of(model).first_batch_action = action
    model.register_forward_pre_hook(_run_on_first_batch)


def awaits_first_batch(model):
    """Return True if an action is to run on the first batch of ``model``."""
    return read_state(model).first_batch_action is not None


def _call(action, model, args, kwargs):
    with eager_evaluation(model), quantization_off(model):
        return action(model, lambda: model(*args, **kwargs))


def _run_on_first_batch(model, args):
    # The hook stays, so that a copy of the model made before the first batch runs it too.
    if not awaits_first_batch(model):
        return
    if not args:
        raise FusionError("fusion looks at the first batch, but the model was called with "
                          "keyword arguments only, which hooks do not see; pass example inputs "
                          "(inputs=...) when the model is quantized")
    if not paddle.in_dynamic_mode():
        raise FusionError("fusion looks at the first batch, but the model is traced before there "
                          "was one; run a batch first, or pass example inputs (inputs=...) when "
                          "the model is quantized")
    state = model._paddleq
    action, state.first_batch_action = state.first_batch_action, None
    try:
        _call(action, model, args, {})
    except BaseException:
        state.first_batch_action = action
        raise


def fold_batch_norms(model, inputs, fuse_list=None):
    """Fold batch norms on example inputs, or on the first batch if ``inputs`` is None."""
    if fuse_list is not None:
        check_fuse_list(model, fuse_list)
    run_on_first_inputs(model, inputs, partial(_fold, fuse_list=fuse_list))


def _fold(model, run, fuse_list):
    if not fuse(model, run, fuse_list) and fuse_list is None:
        _logger.warning("no batch norm was folded: in the data flow of %s none follows a layer "
                        "that it can be folded into", type(model).__name__)


def record_input_spec(model, inputs):
    """Forward pre-hook that records the inputs for exports without ``input_spec``."""
    if paddle.in_dynamic_mode() and inputs and all(isinstance(x, paddle.Tensor) for x in inputs):
        state_of(model).input_spec = [
            InputSpec([None, *x.shape[1:]], dtype_name(x.dtype)) for x in inputs]
