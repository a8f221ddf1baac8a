"""Fusion of quantized layers to blocks, and removal of redundant quantizers, by data flow."""

import logging
from contextlib import contextmanager

from .._layer_state import Note, NoteKind, state_of
from ..fake_quant.fake_quantize import FakeQuantize
from ..graph import Structure, find_structure
from ..nn.block import Block
from ..nn.layer_types import kind_of
from ..nn.quantized_layer import is_quantized
from .state import quantized_layers

_logger = logging.getLogger("paddleq")


def find_block_structure(model, run, blocks=True):
    """Return the :class:`~paddleq.graph.Structure` that :func:`fuse_blocks` takes."""
    layers = {name: layer for name, layer in model.named_sublayers(include_self=True)
              if is_quantized(layer) or kind_of(layer) is not None}
    return find_structure(model, run, layers, blocks)


def fuse_blocks(model, structure: Structure):
    """Fuse the quantized layers of ``model`` to the blocks of ``structure``, in place.

    An input quantizer is removed if each of its inputs was quantized by a block's output quantizer
    with the same parameters.
    """
    layers = dict(model.named_sublayers(include_self=True))
    for producer, (norm, relu) in structure.blocks.items():
        if is_quantized(layers[producer]):
            _fuse(layers, producer, norm, relu)
    for (before, after), reason in structure.refused.items():
        _add_note(layers[after], Note(NoteKind.NOT_FUSED, (before,), reason))
    for layer in layers.values():
        folding = getattr(layer, "norm_folding", None) if is_quantized(layer) else None
        if folding is not None and folding.norm is None:
            layer.drop_part("norm_folding")
    for name, calls in structure.sources.items():
        if is_quantized(layers[name]):
            remove_redundant(layers, layers[name], calls)


def blocks_of(model):
    """Return all :class:`~paddleq.nn.block.Block` objects of ``model``."""
    found = (layer._paddleq.block for layer in model.sublayers(include_self=True)
             if is_quantized(layer))
    return [block for block in found if block is not None]


def same_parameters(first, second):
    """Return True if two fake quantizers have the same classes, specs and arguments."""
    return (isinstance(first, FakeQuantize) and isinstance(second, FakeQuantize)
            and _parameters(first) == _parameters(second))


def _parameters(quantizer):
    plain = [{key: value for key, value in vars(part).items()
              if isinstance(value, (bool, int, float, str)) and not key.startswith("_")
              and key not in ("training", "label")}
             for part in (quantizer, quantizer.observer)]
    return type(quantizer), type(quantizer.observer), quantizer.spec, plain


def _fuse(layers, producer, norm, relu):
    first = layers[producer]
    block = Block(first, layers.get(norm), layers.get(relu))
    folding, detail = getattr(first, "norm_folding", None), ""
    if norm is not None and folding is not None:
        reason = folding.refusal_reason(layers[norm])
        if reason is None:
            folding.fold(layers[norm])
            block.folded = True
            detail = f", folded while training ({folding.extra_repr()})"
        else:
            detail = f", but not folded while training: {reason}"
    block.attach()
    _add_note(first, Note(NoteKind.FUSED, tuple(filter(None, (norm, relu)))))
    for name, text in ((norm, detail), (relu, "")):
        if name is not None:
            state = state_of(layers[name])
            before = [other for note in state.notes if note.kind is NoteKind.FUSED_INTO
                      for other in note.names] if len(state.member_of) > 1 else []
            # A ReLU may end several blocks.
            state.notes = Note(NoteKind.FUSED_INTO, (*before, producer), text),


def remove_redundant(layers, layer, calls):
    """Remove input quantizers of ``layer`` whose inputs output quantizers have quantized alike.

    Args:
        layers: layers of the model by name.
        calls: for each call of the layer, name of the layer whose output quantizer each argument
            has passed, or None.
    """
    for slot, position in enumerate(layer._paddleq.kind.inputs):
        preprocess, quantizer = layer.input_parts(slot)
        blocks = {call[position] if position < len(call) else None for call in calls}
        if quantizer is None or preprocess is not None or not blocks or not all(
                block is not None and is_quantized(layers[block]) and same_parameters(
                    getattr(layers[block], "output_quantizer", None), quantizer)
                for block in blocks):
            continue
        attribute = next(name for name, part in layer.quantizers() if part is quantizer)
        layer.drop_part(attribute)
        layer._paddleq.replaced[attribute] = tuple(sorted(map(str, blocks)))
        _add_note(layer, _replaced_by(layer._paddleq.replaced[attribute]))


@contextmanager
def separate_inputs(model):
    """While open, layers have the input quantizers that output quantizers replaced.

    These are the output quantizers themselves. Those of layers that are float at the end stay.
    """
    layers, added = dict(quantized_layers(model)), []
    for layer in layers.values():
        for attribute, names in layer._paddleq.replaced.items():
            if attribute not in layer._paddleq.parts:
                setattr(layer, attribute, layers[names[0]].output_quantizer)
                layer._paddleq.parts += (attribute,)
                added.append((layer, attribute, names))
    try:
        yield
    finally:
        for layer, attribute, names in added:
            if not is_quantized(layer):
                continue
            if all(is_quantized(layers[name]) for name in names):
                layer.drop_part(attribute)
                continue
            del layer._paddleq.replaced[attribute]
            state = state_of(layer)
            state.notes = tuple(note for note in state.notes if note != _replaced_by(names))


def _replaced_by(names):
    return Note(NoteKind.INPUT_QUANTIZED, names)


def _add_note(layer, note):
    state_of(layer).add_note(note)
    _logger.info("%s", note)
