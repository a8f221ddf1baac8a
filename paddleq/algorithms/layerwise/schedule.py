"""Order of work of the layer-by-layer driver: decoder layers in order, then all other layers."""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

from paddle import nn

from ..._checks import wrong_type, wrong_value
from ..._paddle_compat import own_sublayers
from ...config import QuantConfig, SkipKind, SkipReason
from ...engine.select import Selection, nothing_selected, select
from ...errors import ModelError
from ...nn import Int8KVCache, KVCache
from ...nn.attention import supports_cache
from ...nn.kv_cache import PER_CHANNEL
from ...nn.linear_support import linear_skip_reason
from ..linear import check_linear_config
from .network_helper import NetworkHelper, StackHelper


@dataclass
class ScheduleEntry:
    """Work to do in a decoder layer, or in the layers outside of all decoder layers.

    Attributes:
        number: number of the decoder layer in the order of execution; None for the rest.
        name, layer: name and layer of the decoder layer; layer is None for the rest.
        linears: name -> (Linear, LayerConfig).
        caches: name -> (layer with a KV cache, granularity).
        shared: names of layers that several decoder layers contain.
    """

    number: Optional[int]
    name: str
    layer: Any
    linears: dict
    caches: dict
    shared: list = field(default_factory=list)

    @property
    def linears_with_stats(self) -> List[str]:
        """Names of the Linear layers whose configuration needs calibration data."""
        return [name for name, (_, config) in self.linears.items() if config.needs_data]

    @property
    def needs_data(self) -> bool:
        """True if any layer needs calibration data."""
        return bool(self.linears_with_stats) or any(
            granularity == PER_CHANNEL for _, granularity in self.caches.values())


def checked_helper(model: nn.Layer, helper: Optional[NetworkHelper]) -> NetworkHelper:
    """Return the helper, or the default one for None."""
    if not isinstance(model, nn.Layer):
        raise wrong_type("model", model, "a paddle.nn.Layer")
    if helper is None:
        return StackHelper()
    if not isinstance(helper, NetworkHelper):
        raise wrong_type("helper", helper, "a NetworkHelper or None")
    return helper


def decoder_layers(model: nn.Layer, helper: NetworkHelper) -> List[Tuple[str, nn.Layer]]:
    """Return the checked decoder layers of the helper.

    Raises:
        ConfigError: a layer is not part of the model, or part of another decoder layer.
        ModelError: there are none.
    """
    known = {id(layer) for layer in model.sublayers(include_self=True)}
    layers = list(helper.decoder_layers(model))
    for name, layer in layers:
        if id(layer) not in known:
            raise wrong_value("decoder_layers()", name, "sublayers of the network")
    if not layers:
        raise ModelError("decoder_layers() of the network helper returned no layers")
    parts = {id(part): name for name, layer in layers for part in layer.sublayers()}
    for name, layer in layers:
        if id(layer) in parts:
            raise wrong_value("decoder_layers()", name, f"no part of {parts[id(layer)]}")
    return layers


def select_layers(
        model: nn.Layer, helper: NetworkHelper, config: QuantConfig,
        dtypes: Sequence[str] = ("float32", "float16", "bfloat16", "float64"),
        ) -> Tuple[Dict[str, tuple], Dict[str, tuple], Selection]:
    """Select the Linear layers and KV caches of a model to quantize.

    Args:
        model: a ``paddle.nn.Layer``.
        helper: a :class:`NetworkHelper`, which returns the KV caches.
        config: a :class:`~paddleq.config.QuantConfig`.
        dtypes: data types that the weights may have.

    Returns:
        (name -> (Linear, LayerConfig), name -> (layer with a KV cache, granularity),
        :class:`~paddleq.engine.select.Selection`).

    Raises:
        ModelError: there is nothing to quantize.
        ConfigError: a configuration is not supported for a Linear layer.
    """
    holders = list(helper.kv_caches(model))
    for name, layer in holders:
        if not (isinstance(layer, KVCache) or supports_cache(layer)):
            raise wrong_value("kv_caches()", name, "layers of paddle.nn.MultiHeadAttention with "
                              "its own keys and values, or of paddleq.nn.KVCache")
    ids = {id(layer): name for name, layer in holders}
    selection = select(
        model, config, lambda layer: None if id(layer) in ids else linear_skip_reason(layer),
        dtypes)
    linears, caches = {}, {}
    for name, each in list(selection.selected.items()):
        if id(each.layer) not in ids:
            check_linear_config(each.config, f"{name}.")
            if each.config.weight_spec is not None:
                linears[name] = each.layer, each.config
                continue
        elif each.config.kv_cache is not None:
            if isinstance(getattr(each.layer, "kv_cache", each.layer), Int8KVCache):
                raise ModelError(f"the KV cache of {name} is already quantized")
            caches[ids[id(each.layer)]] = each.layer, each.config.kv_cache
            continue
        del selection.selected[name]
        field = "kv_cache" if id(each.layer) in ids else "weight"
        selection.skipped[name] = SkipReason(SkipKind.NOT_CONFIGURED, field)
    if not selection.selected:
        raise nothing_selected(model, selection)
    return linears, caches, selection


def containing_layers(model: nn.Layer,
                      layers: List[Tuple[str, nn.Layer]]) -> Dict[int, Set[Optional[int]]]:
    """Map the id of each layer to the numbers of the decoder layers that contain it.

    None denotes the part of the model outside of the decoder layers.

    Args:
        layers: list of (name, decoder layer).
    """
    containing = {}
    for number, (_, layer) in enumerate(layers):
        for part in layer.sublayers(include_self=True):
            containing.setdefault(id(part), set()).add(number)
    decoders, todo, seen = {id(layer) for _, layer in layers}, [model], set()
    while todo:
        layer = todo.pop()
        if layer is None or id(layer) in decoders or id(layer) in seen:
            continue
        seen.add(id(layer))
        containing.setdefault(id(layer), set()).add(None)
        todo += own_sublayers(layer).values()
    return containing


def build_schedule(layers: List[Tuple[str, nn.Layer]], containing: Dict[int, set],
                   linears: Dict[str, tuple], caches: Dict[str, tuple]) -> List[ScheduleEntry]:
    """Return an entry for each decoder layer, and one for the rest if it has any work.

    Layers that several decoder layers contain belong to the rest: their statistics are those of
    all their calls.
    """
    def part_of(number, selected):
        return {name: each for name, each in selected.items()
                if containing[id(each[0])] == {number}}

    entries = [ScheduleEntry(number, name, layer, part_of(number, linears),
                             part_of(number, caches))
               for number, (name, layer) in enumerate(layers)]
    placed = {name for entry in entries for name in [*entry.linears, *entry.caches]}
    rest = [{name: each for name, each in selected.items() if name not in placed}
            for selected in (linears, caches)]
    if any(rest):
        shared = [name for selected in rest for name, (layer, _) in selected.items()
                  if containing[id(layer)] != {None}]
        entries.append(ScheduleEntry(None, "the rest", None, *rest, shared))
    return entries
