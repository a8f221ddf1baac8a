"""Conversion for deployment: folded batch norms, fixed scales, integer weights, float layers."""

import copy

from paddle import nn

from .._layer_state import Note, NoteKind, read_state, state_of
from .._paddle_compat import (
    LAYER_CONTAINERS,
    is_jit_loaded,
    own_buffers,
    own_parameters,
    remove_call_hook,
    unwrapped,
)
from ..errors import ModelError
from ..graph.fold_batch_norm import fold, folded_tensors
from ..nn.block import Block
from ..nn.call_numbers import stop_counting
from ..nn.class_swap import rollback_on_error
from ..nn.integer_layer import freeze_quantized
from ..nn.quantized_layer import make_float
from .example_inputs import record_call
from .fuse_blocks import blocks_of, separate_inputs
from .state import (
    check_quantized,
    check_quantized_name,
    fake_quantizers,
    finalize,
    is_left_float,
    leave_uncalled_float,
    quantized_layers,
    set_state,
)


def convert(model):
    """Fold the batch norms of fused blocks and fix all scales, in place.

    Weight scales are computed from the folded weights, activation scales from the observers. The
    model is in evaluation mode afterwards. Layers that no data reached compute in float, with a
    warning.

    Returns:
        The model.

    Raises:
        ModelError: there is no quantized layer.
        CalibrationError: no quantizer observed data.

    Examples:
        >>> import paddle, paddleq
        >>> net = paddleq.QAT().quantize(paddle.nn.Sequential(paddle.nn.Linear(2, 2)))
        >>> _ = net(paddle.to_tensor([[0.5, -3.0]]))
        >>> paddleq.convert(net)[0].activation_quantizer.state
        <State.VALIDATION: 'validation'>
    """
    check_quantized(model)
    blocks = [block for block in blocks_of(model) if block.norm is not None]
    changed = [each for _, each in fake_quantizers(model)] + [each.producer for each in blocks]
    with rollback_on_error(model, [each for layer in changed for each in folded_tensors(layer)]):
        set_state(model, "validation")
        finalize(model)
        leave_uncalled_float(model)
        model.eval()
        names = {id(layer): name for name, layer in model.named_sublayers(include_self=True)}
        for block in blocks:
            producer, norm, relu = block.producer, block.norm, block.relu
            block.detach()
            if getattr(producer, "norm_folding", None) is not None:
                producer.drop_part("norm_folding")
            fold(producer, norm, names[id(producer)])
            if relu is not None:
                Block(producer, None, relu).attach()
    return model


def freeze(model: nn.Layer) -> nn.Layer:
    """Convert simulated quantization to integer weights and fixed scales, in place.

    Batch norms of fused blocks are folded as :func:`convert` does. Each quantized layer becomes an
    :class:`~paddleq.nn.integer_layer.IntegerLayer`, which computes the same as before; layers that
    no data reached become float layers, with a warning.
    The model is in evaluation mode and cannot be trained afterwards.

    Raises:
        ModelError: there is no quantized layer, or the scales of one are not fixed. The model may
            be converted (:func:`convert`), but no layer holds integers.
        CalibrationError: no quantizer observed data.

    Examples:
        >>> import paddle, paddleq
        >>> from paddleq import freeze
        >>> net = paddleq.PTQ("AbsmaxQuantizer").quantize(
        ...     paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 3)))
        >>> _ = paddleq.calibrate(net, [paddle.rand([1, 3, 8, 8])])
        >>> freeze(net)[0].weight.dtype == paddle.int8
        True
    """
    convert(model)
    shared = {}
    counting = any(not layer._paddleq.kind.weights for _, layer in quantized_layers(model))
    with rollback_on_error(model):
        for _, layer in quantized_layers(model):
            if is_left_float(layer):
                if layer._paddleq.block is not None:
                    layer._paddleq.block.detach()
                layer._paddleq.notes = Note(NoteKind.FLOAT, detail=str(layer._paddleq.reason)),
                make_float(layer)
            else:
                freeze_quantized(layer, shared)
    for layer in model.sublayers(include_self=True):
        if read_state(layer).example_call is not None:  # otherwise the next call records it
            remove_call_hook(layer, record_call)
    if not counting:
        stop_counting(model)
    return model


def copy_of(model, remedy="pass inplace=True to change the model itself"):
    """Return a deep copy whose parameters keep their names, which an export contains.

    Raises:
        ModelError: the model cannot be copied; names the part that cannot, and the ``remedy``.
    """
    try:
        copied = copy.deepcopy(model)
    except MemoryError:
        raise
    except Exception as error:
        if unwrapped(model) is not model:
            remedy = f"quantize the model inside it, model._layers, or {remedy}"
        if any(map(is_jit_loaded, model.sublayers())):
            remedy = ("replace the model of paddle.jit.load in it by a paddleq.SavedModel, or "
                      f"{remedy}")
        reason = " ".join(str(error).split())
        raise ModelError(f"the {type(model).__name__} cannot be copied{_uncopyable(model)}: "
                         f"{type(error).__name__}: {reason}; {remedy}") from error
    for mine, theirs in zip([*copied.parameters(), *copied.buffers()],
                            [*model.parameters(), *model.buffers()]):
        mine.name = theirs.name
    return copied


def _uncopyable(model):
    """Return text that names the innermost part of ``model`` that cannot be copied."""
    layers = list(model.named_sublayers(include_self=True))
    for name, layer in reversed(layers):
        parts = {**own_parameters(layer), **own_buffers(layer), **{
            key: value for key, value in vars(layer).items() if key not in LAYER_CONTAINERS}}
        for attribute, value in parts.items():
            try:
                copy.deepcopy(value)
            except Exception:
                place = f"{name}.{attribute}" if name else attribute
                return f" because of its attribute {place!r} ({type(value).__name__})"
    return ""


def restore_float(model, reasons):
    """Convert quantized layers back to float ones, in place; ``reasons`` are texts by name."""
    check_restorable(model, reasons)
    layers = dict(quantized_layers(model))
    with separate_inputs(model):
        for name, reason in reasons.items():
            make_float(layers[name])
            state_of(layers[name]).notes = Note(NoteKind.FLOAT, detail=reason),


def check_restorable(model, names):
    """Raise unless the layers ``names`` of ``model`` can be made float."""
    check_quantized(model)
    layers = dict(quantized_layers(model))
    for name in names:
        check_quantized_name(name, layers)
        layer = layers[name]
        if layer._paddleq.block is not None or "norm_folding" in layer._paddleq.parts:
            raise ModelError(f"{name!r} is quantized as one with the layers after it, which "
                             "cannot be taken back; quantize a fresh model without it")
