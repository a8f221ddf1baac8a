"""Order of work of the layer-by-layer driver: decoder layers in order, then all other layers."""

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Dict, List, Optional, Set, Tuple

from paddle import nn

from ..._checks import wrong_type, wrong_value
from ..._paddle_compat import is_jit_loaded, own_sublayers
from ...config import QuantConfig, SkipKind, SkipReason
from ...engine.select import (
    FLOAT_DTYPES,
    JIT_LOADED,
    SelectedLayer,
    Selection,
    nothing_selected,
    select,
    warn_idle_rules,
    warn_unmatched_types,
)
from ...errors import ModelError
from ...nn import Int8KVCache, KVCache
from ...nn.integer_linear import linear_skip_reason
from ...nn.kv_cache import PER_CHANNEL, supports_cache
from ..linear import check_linear_config
from .network_helper import NetworkHelper

Selected = Dict[str, SelectedLayer]
_logger = logging.getLogger("paddleq")


def split_kinds(selected: Selected) -> Tuple[Selected, Selected]:
    """Return (Linear layers, layers with a KV cache) of a selection."""
    linears = {name: each for name, each in selected.items() if isinstance(each.layer, nn.Linear)}
    return linears, {name: each for name, each in selected.items() if name not in linears}


@dataclass
class ScheduleEntry:
    """Work to do in a decoder layer, or in the layers outside of all decoder layers."""

    number: Optional[int]  # of the decoder layer in the order of execution; None for the rest
    name: str
    layer: Any  # None for the rest
    selected: Selected
    shared: list = field(default_factory=list)  # names of layers that several decoder layers hold

    def __post_init__(self) -> None:
        self.linears, self.caches = split_kinds(self.selected)
        self.reading = [  # layers that need calibration data
            *(name for name, each in self.linears.items() if each.config.needs_data),
            *(name for name, each in self.caches.items() if each.config.kv_cache == PER_CHANNEL)]


def decoder_layers(model: nn.Layer, helper: NetworkHelper) -> List[Tuple[str, nn.Layer]]:
    """Return the checked decoder layers of the helper."""
    if not isinstance(helper, NetworkHelper):
        raise wrong_type("helper", helper, "a NetworkHelper or None")
    if is_jit_loaded(model):
        raise ModelError(JIT_LOADED)
    known = {id(layer) for layer in model.sublayers(include_self=True)}
    layers = list(helper.decoder_layers(model))
    parts = {id(part): name for name, layer in layers for part in layer.sublayers()}
    for name, layer in layers:
        if id(layer) not in known:
            raise wrong_value("decoder_layers()", name, "sublayers of the network")
        if id(layer) in parts:
            raise wrong_value("decoder_layers()", name, f"no part of {parts[id(layer)]}")
    if not layers:
        raise ModelError("decoder_layers() of the network helper returned no layers")
    return layers


def select_layers(model: nn.Layer, helper: NetworkHelper,
                  config: Optional[QuantConfig]) -> Selection:
    """Select the Linear layers and the KV caches, which the helper returns, to quantize."""
    holders = set()
    for name, layer in helper.kv_caches(model):
        if not (isinstance(layer, KVCache) or supports_cache(layer)):
            raise wrong_value("kv_caches()", name, "layers of paddle.nn.MultiHeadAttention with "
                              "its own keys and values, or of paddleq.nn.KVCache")
        holders.add(id(layer))

    selection = select(model, config, partial(_skip_reason, holders), FLOAT_DTYPES)
    if not selection.selected:
        warn_idle(model, helper, config, selection)
        raise nothing_selected(model, selection)
    linears, caches = split_kinds(selection.selected)
    for name, each in linears.items():
        check_linear_config(each.config, f"{name}.")
    for name, each in caches.items():
        if isinstance(getattr(each.layer, "kv_cache", each.layer), Int8KVCache):
            raise ModelError(f"the KV cache of {name} is already quantized")
    return selection


def _skip_reason(holders, layer, config=None):
    if id(layer) not in holders:
        return linear_skip_reason(layer, config)
    if config is None or config.kv_cache is not None:
        return None
    return SkipReason(SkipKind.NOT_CONFIGURED, "kv_cache")


def warn_idle(model: nn.Layer, helper: NetworkHelper, config: Any,
              selection: Selection) -> None:
    """Warn of entries of rules without effect, and of KV caches that were not found."""
    caches = {id(layer): name for name, layer in helper.kv_caches(model)}
    warn_unmatched_types(model, config.types(), "the configuration")
    warn_idle_rules(model, config, selection, partial(_skip_reason, set(caches)))
    for scope, each in config.rules:
        if each is None or each.kv_cache is None:
            continue
        if not set(scope.find(model)) & set(caches.values()):
            _logger.warning(
                "an int8 KV cache is configured (%s), but no KV cache is found among the layers: "
                "none is quantized. Caches are those of paddle.nn.MultiHeadAttention and of "
                "paddleq.nn.KVCache; an attention that joins the past itself needs a KVCache, and "
                "paddleq.nn.adapt_tuple_cache() gives one to an attention that keeps the past as "
                "a tuple (docs/layer_by_layer.md)",
                scope.label or ", ".join(map(str, [*scope.names, *scope.patterns, *(
                    cls.__name__ for cls in scope.types)])) or each.kv_cache)


def containing_layers(model: nn.Layer,
                      layers: List[Tuple[str, nn.Layer]]) -> Dict[int, Set[Optional[int]]]:
    """Map ids of layers to the decoder layers that contain them, None for the rest of the model."""
    numbers = {id(layer): number for number, (_, layer) in enumerate(layers)}
    containing: Dict[int, Set[Optional[int]]] = {}
    todo: List[tuple] = [(model, None)]
    while todo:
        layer, number = todo.pop()
        number = numbers.get(id(layer), number)
        if layer is not None and number not in containing.setdefault(id(layer), set()):
            containing[id(layer)].add(number)
            todo += [(child, number) for child in own_sublayers(layer).values()]
    return containing


def build_schedule(layers: List[Tuple[str, nn.Layer]], containing: Dict[int, set],
                   selected: Selected) -> List[ScheduleEntry]:
    """Return an entry for each decoder layer, and one for the rest if it has any work.

    Layers that several decoder layers contain belong to the rest: their statistics are those of
    all their calls.
    """
    places = {name: containing[id(each.layer)] for name, each in selected.items()}
    entries = [ScheduleEntry(number, name, layer, {
        each: selected[each] for each, place in places.items() if place == {number}})
        for number, (name, layer) in enumerate(layers)]
    rest = {name: each for name, each in selected.items()
            if None in places[name] or len(places[name]) > 1}
    if rest:
        entries.append(ScheduleEntry(None, "the rest", None, rest, [
            name for kind in split_kinds(rest) for name in kind if places[name] != {None}]))
    return entries
