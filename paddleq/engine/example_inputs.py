"""Looking at what the data does, as front doors offer it: now if there are example inputs, else on
the first batch."""

from functools import partial

import paddle

from .._layer_state import read_state, state_of
from ..errors import FusionError
from ..graph import check_fuse_list, fuse
from . import evaluation, forward_arguments, quantization_off


def look(model, args, kwargs, act):
    """Call ``act(model, run)``, where ``run()`` is a forward pass on these example inputs."""
    with evaluation(model), quantization_off(model), paddle.no_grad():
        return act(model, lambda: model(*args, **kwargs))


def look_now_or_later(model, inputs, act):
    """Call ``act(model, run)`` on ``inputs``, or, where there are none, on the first batch.

    Args:
        model: the model, float or quantized.
        inputs: example inputs: a tensor, a list or tuple of arguments, or a dict.
        act: a function that holds on to no part of the model: a copy of the model made before the
            first batch has its own.
    """
    if inputs is not None:
        args, kwargs = forward_arguments(model, inputs)
        look(model, args, kwargs, act)
        return
    state_of(model).pending = act
    model.register_forward_pre_hook(_look_at_first_batch)


def pending(model):
    """Whether ``model`` still waits for its first batch."""
    return read_state(model).pending is not None


def _look_at_first_batch(model, args):
    # The hook stays, so that a copy of the model made before the first batch looks too.
    if not pending(model):
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
    act, state.pending = state.pending, None
    try:
        look(model, args, {}, act)
    except BaseException:
        state.pending = act
        raise


def fuse_now_or_later(model, inputs, fuse_list=None):
    """Fold batch norms: on ``inputs``, or, where there are none, on the first batch.

    Args:
        model, inputs: as for :func:`look_now_or_later`.
        fuse_list: pairs to fuse, or None for all that can be.

    Raises:
        FusionError: a pair of ``fuse_list`` is wrong. Where it takes a batch to know, the
            error comes with the first batch.
    """
    if fuse_list is not None:
        check_fuse_list(model, fuse_list)
    look_now_or_later(model, inputs, partial(fuse, fuse_list=fuse_list))
