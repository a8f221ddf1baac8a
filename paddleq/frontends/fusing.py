"""Fusion as QAT and PTQ offer it: now if there are example inputs, else on the first batch."""

import paddle

from ..engine import evaluation, model_inputs, quantization_off
from ..errors import FusionError
from ..graph import check_fuse_list, fuse


def fuse_with_inputs(model, args, kwargs, fuse_list=None):
    """Fold what the given example inputs show can be folded."""
    with evaluation(model), quantization_off(model), paddle.no_grad():
        return fuse(model, lambda: model(*args, **kwargs), fuse_list)


def fuse_now_or_later(model, inputs, fuse_list=None):
    """Fuse on ``inputs``, or, where there are none, when the first batch comes.

    Args:
        model: the model, float or quantized.
        inputs: example inputs: a tensor, a list or tuple of arguments, or a dict.
        fuse_list: pairs to fuse, or None for all that can be.

    Raises:
        FusionError: a pair of ``fuse_list`` is wrong. Where it takes a batch to know, the
            error comes with the first batch.
    """
    if fuse_list is not None:
        check_fuse_list(model, fuse_list)
    if inputs is not None:
        args, kwargs = model_inputs(model, inputs)
        return fuse_with_inputs(model, args, kwargs, fuse_list)
    model.__dict__["_paddleq_pending_fusion"] = fuse_list
    model.register_forward_pre_hook(_fuse_on_first_batch)
    return None


def _fuse_on_first_batch(model, args):
    # The hook stays, so that a copy of the model made before the first batch fuses too.
    if "_paddleq_pending_fusion" not in model.__dict__:
        return
    if not args:
        raise FusionError("fuse=True looks at the first batch, but the model was called with "
                          "keyword arguments only, which hooks do not see; pass example inputs "
                          "to quantize(..., inputs=...)")
    fuse_list = model.__dict__.pop("_paddleq_pending_fusion")
    fuse_with_inputs(model, args, {}, fuse_list)
