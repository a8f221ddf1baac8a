"""Folding a batch norm into the layer before it."""

import logging

import paddle
from paddle import nn

from .._layer_state import state_of
from .._paddle_compat import own_buffers, own_parameters
from ..errors import FusionError
from .dataflow import NORMS, PRODUCERS, find_pairs, why_not

_logger = logging.getLogger("paddleq")


class FoldedNorm(nn.Layer):
    """What is left of a batch norm that was folded into the layer before it: the identity."""

    def forward(self, x):
        """``x`` itself."""
        return x

    def extra_repr(self):
        return f"folded into {self._folded_into}"


def check_fuse_list(model, fuse_list):
    """Check what can be checked of a ``fuse_list`` without running the model.

    Returns:
        list of (producer name, norm name).

    Raises:
        FusionError: an entry is no pair, names no layer or layers of the wrong kind.
    """
    if not isinstance(fuse_list, (list, tuple)):
        raise FusionError(f"fuse_list must be a list of [layer, norm] pairs, but is {fuse_list!r}")
    layers = dict(model.named_sublayers(include_self=True))
    pairs = []
    for entry in fuse_list:
        if not (isinstance(entry, (list, tuple)) and len(entry) == 2
                and all(isinstance(name, str) for name in entry)):
            raise FusionError("an entry of fuse_list must be a pair of names such as "
                              f"['conv1', 'bn1'], but is {entry!r}")
        for name, kinds, what in ((entry[0], PRODUCERS, "a Conv, a transposed Conv or a Linear"),
                                  (entry[1], NORMS, "a BatchNorm")):
            if name not in layers:
                raise FusionError(f"fuse_list {list(entry)!r}: the model has no layer {name!r}")
            if not isinstance(layers[name], kinds):
                raise FusionError(f"fuse_list {list(entry)!r}: {name!r} must be {what}, but is a "
                                  f"{type(layers[name]).__name__}")
        pairs.append(tuple(entry))
    return pairs


def fuse(model, run, fuse_list=None):
    """Fold batch norms, in place.

    Args:
        model: the model, in evaluation mode.
        run: does a forward pass of the model on example inputs and returns its output.
        fuse_list: pairs that must be fused; None for all that can be.

    Returns:
        list of the pairs that were folded.

    Raises:
        FusionError: a pair of ``fuse_list`` must not be fused; says why. Nothing was changed.
    """
    wanted = None if fuse_list is None else check_fuse_list(model, fuse_list)
    with paddle.no_grad():
        pairs = find_pairs(model, run)
    for pair in wanted or ():
        if pair not in pairs.found:
            raise FusionError(f"fuse_list {list(pair)!r} must not be fused: "
                              f"{why_not(pairs, *pair)}")
    layers = dict(model.named_sublayers(include_self=True))
    chosen = pairs.found if wanted is None else wanted
    for producer, norm in chosen:
        fold(layers[producer], layers[norm], producer)
    if wanted is None:
        for norm in {norm for _, norm in pairs.refused}:
            refused = {p: reason for (p, n), reason in pairs.refused.items() if n == norm}
            note = f"not fused with {', '.join(refused)}: {'; '.join(set(refused.values()))}"
            state_of(layers[norm]).note = note
            _logger.info("%s %s", norm, note)
    return chosen


def fold(producer, norm, name):
    """Fold ``norm`` into the weight and bias of ``producer``; the norm becomes the identity."""
    with paddle.no_grad():
        deviation = paddle.sqrt(norm._variance + norm._epsilon)
        gamma, beta = getattr(norm, "weight", None), getattr(norm, "bias", None)
        factor = 1.0 / deviation if gamma is None else gamma / deviation
        shift = -norm._mean * factor
        if beta is not None:
            shift = shift + beta
        if producer.bias is not None:
            shift = shift + producer.bias * factor
        producer.weight.set_value(scaled_weight(producer, factor))
        if producer.bias is None:
            # The norm's own bias takes the place: an optimizer that was made before the fusion
            # already trains it.
            producer.bias = beta if beta is not None else producer.create_parameter(
                shape=shift.shape, is_bias=True)
        producer.bias.set_value(shift)
    own_parameters(norm).clear()
    own_buffers(norm).clear()
    norm.__class__ = FoldedNorm
    norm._folded_into = name
    state_of(norm).note = f"folded into {name}"


def scaled_weight(producer, factor):
    """The weight of ``producer`` with each output channel times its entry of ``factor``."""
    weight = producer.weight
    if isinstance(producer, nn.Linear):
        return weight * factor
    rest = [1] * (len(weight.shape) - 2)
    if isinstance(producer, (nn.Conv1DTranspose, nn.Conv2DTranspose)):
        groups = producer._groups
        grouped = weight.reshape([groups, weight.shape[0] // groups, *weight.shape[1:]])
        return (grouped * factor.reshape([groups, 1, -1, *rest])).reshape(weight.shape)
    return weight * factor.reshape([-1, 1, *rest])
