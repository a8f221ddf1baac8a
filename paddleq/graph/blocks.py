"""Detection of blocks (producer, batch norm, ReLU) and of the connections between them."""

from dataclasses import dataclass, field
from typing import Dict, List, Optional, Tuple

import paddle
from paddle import nn

from .dataflow import PRODUCERS, find_edges, find_pairs, observed


@dataclass
class Structure:
    """Blocks of a model and their connections; layers are given by their names.

    Attributes:
        blocks: producer -> (norm or None, relu or None). Layers without either are not listed.
        refused: (layer, next layer) -> reason that they are not fused.
        sources: layer -> for each of its calls, the block whose unchanged output each positional
            argument is, or None.
    """

    blocks: Dict[str, Tuple[Optional[str], Optional[str]]] = field(default_factory=dict)
    refused: Dict[Tuple[str, str], str] = field(default_factory=dict)
    sources: Dict[str, List[List[Optional[str]]]] = field(default_factory=dict)


def find_structure(model, run, layers, blocks=True):
    """Find the blocks that begin with one of ``layers``, and the sources of their inputs.

    Only a ReLU that is a layer, ``nn.ReLU``, is found, not ``F.relu``.

    Args:
        model, run: as for :func:`~paddleq.graph.dataflow.find_pairs`.
        layers: name -> layer.
        blocks: find blocks of more than one layer. Default True.

    Returns:
        :class:`Structure`.
    """
    structure = Structure()
    with paddle.no_grad():
        if blocks:
            _find_blocks(model, run, layers, structure)
        _find_sources(model, run, layers, structure)
    return structure


def _find_blocks(model, run, layers, structure):
    everything = dict(model.named_sublayers(include_self=True))
    pairs = find_pairs(model, run)
    normed = {producer: norm for producer, norm in pairs.found if producer in layers}
    ends = {name: layer for name, layer in everything.items() if name in normed.values() or (
        name in layers and isinstance(layer, PRODUCERS) and name not in normed)}
    relus = {name: layer for name, layer in everything.items() if isinstance(layer, nn.ReLU)}
    activated = find_edges(run, ends, relus, called_again=True)
    followed = dict(activated.found)
    structure.refused = {
        pair: reason for pair, reason in {**pairs.refused, **activated.refused}.items()
        if pair[0] in layers or pair[0] in ends}
    for name in layers:
        norm = normed.get(name)
        relu = followed.get(norm or name)
        if norm or relu:
            structure.blocks[name] = (norm, relu)


def _find_sources(model, run, layers, structure):
    everything = dict(model.named_sublayers(include_self=True))
    begins, by_norm, relus = {}, {}, {}
    for name, layer in layers.items():
        norm, relu = structure.blocks.get(name, (None, None))
        begins[id(layer)] = name
        if norm is not None:
            by_norm[id(everything[norm])] = name
        if relu is not None:
            relus[id(everything[relu])] = everything[relu]
    outputs = {}  # id(tensor) -> (block, tensor, its inplace version, True if a ReLU follows)

    def block_of(x, before_relu=False):
        block, tensor, version, relu_follows = outputs.get(id(x), (None, None, 0, None))
        known = relu_follows is before_relu and tensor.inplace_version == version
        return block if known else None

    def record_inputs(layer, inputs):
        sources = structure.sources.setdefault(begins[id(layer)], [])
        sources.append([block_of(x) for x in inputs])

    def record_output(layer, inputs, output):
        relu_follows = False
        if id(layer) in relus:
            block = block_of(inputs[0], before_relu=True) if inputs else None
        else:
            block = begins.get(id(layer), by_norm.get(id(layer)))
            norm, relu = structure.blocks.get(block, (None, None))
            if norm is not None and id(layer) not in by_norm:
                return
            relu_follows = relu is not None
        if block is not None and isinstance(output, paddle.Tensor):
            # Keeps the tensor alive, so its id is not reused.
            outputs[id(output)] = (block, output, output.inplace_version, relu_follows)

    ours = [*layers.values(), *(everything[norm] for norm, _ in structure.blocks.values() if norm),
            *relus.values()]
    with observed([layer.register_forward_pre_hook(record_inputs) for layer in layers.values()]
                  + [layer.register_forward_post_hook(record_output) for layer in ours]):
        run()
