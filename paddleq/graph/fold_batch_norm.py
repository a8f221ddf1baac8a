"""Fold batch norms into the layers before them."""

import logging

import paddle
from paddle import nn

from .._layer_state import Note, NoteKind, state_of
from .._paddle_compat import batch_norm_state, convolution_groups, own_buffers, own_parameters
from ..errors import FusionError
from .dataflow import NORMS, PRODUCERS, find_pairs, refusal_reason

_logger = logging.getLogger("paddleq")


class FoldedNorm(nn.Layer):
    """Identity in place of a batch norm that was folded into the layer before it."""

    def forward(self, input=None, x=None):
        """Return the argument, which ``paddle.nn.SyncBatchNorm`` names ``x``."""
        return x if input is None else input

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Re-parameterization of a block reads the statistics of its batch norms.
            raise AttributeError(
                f"this batch norm was folded into {self.__dict__.get('_folded_into')} and has no "
                f"{name!r}; re-parameterize the float model before it is quantized, or quantize "
                "it without folding") from None

    def extra_repr(self):
        return f"folded into {self._folded_into}"


def check_fuse_list(model, fuse_list):
    """Check a ``fuse_list`` without running the model and return its pairs of names."""
    if not isinstance(fuse_list, (list, tuple)):
        raise FusionError(f"fuse_list must be a list of [layer, norm] pairs, but is {fuse_list!r}")
    layers = dict(model.named_sublayers(include_self=True))
    pairs = []
    for entry in fuse_list:
        if not (isinstance(entry, (list, tuple)) and len(entry) == 2
                and all(isinstance(name, str) for name in entry)):
            raise FusionError("an entry of fuse_list must be a pair of names such as "
                              f"['conv1', 'bn1'], but is {entry!r}")
        for name, kinds, expected in (
                (entry[0], PRODUCERS, "a Conv, a transposed Conv or a Linear"),
                (entry[1], NORMS, "a BatchNorm")):
            if name not in layers:
                raise FusionError(f"fuse_list {list(entry)!r}: the model has no layer {name!r}")
            if not isinstance(layers[name], kinds):
                raise FusionError(f"fuse_list {list(entry)!r}: {name!r} must be {expected}, but is "
                                  f"a {type(layers[name]).__name__}")
        pairs.append(tuple(entry))
    return pairs


def fuse(model, run, fuse_list=None):
    """Fold batch norms in place, those of ``fuse_list`` or all that can be, and return the pairs.

    Raises:
        FusionError: a pair of ``fuse_list`` cannot be fused; gives the reason. Nothing is changed.
    """
    wanted = None if fuse_list is None else check_fuse_list(model, fuse_list)
    with paddle.no_grad():
        pairs = find_pairs(model, run)
    for pair in wanted or ():
        if pair not in pairs.found:
            raise FusionError(f"fuse_list {list(pair)!r} must not be fused: "
                              f"{refusal_reason(pairs, *pair)}")
    layers = dict(model.named_sublayers(include_self=True))
    chosen = pairs.found if wanted is None else wanted
    for producer, norm in chosen:
        fold(layers[producer], layers[norm], producer)
    if wanted is None:
        for norm in {norm for _, norm in pairs.refused}:
            refused = {p: reason for (p, n), reason in pairs.refused.items() if n == norm}
            note = Note(NoteKind.NOT_FUSED, tuple(refused),
                        "; ".join(dict.fromkeys(refused.values())))
            state_of(layers[norm]).notes = note,
            _logger.info("%s %s", norm, note)
    return chosen


def fold(producer, norm, name):
    """Fold ``norm`` into the weight and bias of ``producer``; the norm becomes the identity."""
    with paddle.no_grad():
        statistics = batch_norm_state(norm)
        deviation = paddle.sqrt(statistics.variance + statistics.epsilon)
        gamma, beta = getattr(norm, "weight", None), getattr(norm, "bias", None)
        factor = 1.0 / deviation if gamma is None else gamma / deviation
        shift = -statistics.mean * factor
        if beta is not None:
            shift = shift + beta
        if producer.bias is not None:
            shift = shift + producer.bias * factor
        producer.weight.set_value(scaled_weight(producer, factor))
        if producer.bias is None:
            # The norm's bias is reused, because an existing optimizer has it already.
            producer.bias = beta if beta is not None else producer.create_parameter(
                shape=shift.shape, is_bias=True)
        producer.bias.set_value(shift)
    own_parameters(norm).clear()
    own_buffers(norm).clear()
    norm.__class__ = FoldedNorm
    norm._folded_into = name
    state_of(norm).notes = Note(NoteKind.NORM_FOLDED, (name,)),


def folded_tensors(model):
    """Return the tensors of ``model`` that folding of norms and affine operators may change."""
    # Paddle allocates the state of the dropout of recurrent layers in their first training step.
    return [*model.parameters(), *(each for each in model.buffers() if each._is_initialized())]


def scaled_weight(producer, factor):
    """Return the weight of ``producer`` with output channels multiplied by ``factor``."""
    weight = producer.weight
    if isinstance(producer, nn.Linear):
        return weight * factor
    rest = [1] * (len(weight.shape) - 2)
    if isinstance(producer, (nn.Conv1DTranspose, nn.Conv2DTranspose)):
        groups = convolution_groups(producer)
        grouped = weight.reshape([groups, weight.shape[0] // groups, *weight.shape[1:]])
        return (grouped * factor.reshape([groups, 1, -1, *rest])).reshape(weight.shape)
    return weight * factor.reshape([-1, 1, *rest])
