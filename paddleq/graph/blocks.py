"""Detection of blocks (producer, batch norm, ReLU) and of the connections between them."""

from dataclasses import dataclass, field
from typing import Dict, List, Optional, Tuple

import paddle
from paddle import nn

from .calls import trace_calls
from .dataflow import PRODUCERS, find_edges, find_pairs


@dataclass
class Structure:
    """Blocks of a model and their connections; layers are given by their names."""

    # producer -> (norm or None, relu or None). Layers without either are not listed.
    blocks: Dict[str, Tuple[Optional[str], Optional[str]]] = field(default_factory=dict)
    # (layer, next layer) -> reason that they are not fused
    refused: Dict[Tuple[str, str], str] = field(default_factory=dict)
    # layer -> for each call, the block whose unchanged output each argument is, or None
    sources: Dict[str, List[List[Optional[str]]]] = field(default_factory=dict)


def find_structure(model, run, layers, blocks=True):
    """Find blocks that begin with ``layers``, with a ReLU only as a layer, and their sources."""
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
    by_norm = {norm: name for name, (norm, _) in structure.blocks.items() if norm in everything}
    relus = {relu: everything[relu] for _, relu in structure.blocks.values() if relu in everything}
    ends = {}  # call -> (block whose output it returns, True if the block's ReLU follows)

    def block_of(read, before_relu=False):
        source, changed = read
        block, relu_follows = ends.get(source, (None, None))
        return block if relu_follows is before_relu and not changed else None

    norms = {norm: everything[norm] for norm in by_norm}
    calls, _ = trace_calls(run, {**layers, **norms, **relus}, {**layers, **relus})
    for call in calls:
        relu_follows = False
        if call.name in layers:
            structure.sources.setdefault(call.name, []).append(list(map(block_of, call.reads)))
        if call.name in relus:
            block = block_of(call.reads[0], before_relu=True) if call.reads else None
        else:
            block = call.name if call.name in layers else by_norm.get(call.name)
            norm, relu = structure.blocks.get(block, (None, None))
            if norm is not None and call.name not in by_norm:
                continue
            relu_follows = relu is not None
        ends[call] = (block, relu_follows)
