"""What the layer-by-layer driver does where: decoder layers in their order, and then the rest."""

from dataclasses import dataclass, field
from typing import Any, Optional

from paddle import nn

from ..._checks import wrong_type, wrong_value
from ..._paddle_compat import own_sublayers
from ...config import SkipKind, SkipReason
from ...engine.select import nothing_selected, select
from ...errors import ModelError
from ...nn import Int8KVCache, KVCache
from ...nn.attention import takes_cache
from ...nn.kv_cache import PER_CHANNEL
from ...nn.linear_support import linear_skip_reason
from ..linear import check_linear_config
from .network_helper import NetworkHelper, StackHelper


@dataclass
class Stage:
    """A decoder layer, or what is outside of all of them, and what is to be done in it.

    Attributes:
        number: of the decoder layer in the order in which they run; None for the rest.
        name, layer: of the decoder layer; None for the rest.
        linears: name -> (Linear, LayerConfig).
        caches: name -> (layer with a KV cache, its kind).
        shared: names of those that several decoder layers hold.
    """

    number: Optional[int]
    name: str
    layer: Any
    linears: dict
    caches: dict
    shared: list = field(default_factory=list)

    @property
    def hungry(self):
        """Names of the Linears whose policy needs statistics."""
        return [name for name, (_, policy) in self.linears.items() if policy.needs]

    @property
    def needs_data(self):
        """Whether anything in it does."""
        return bool(self.hungry) or any(kind == PER_CHANNEL for _, kind in self.caches.values())


def checked_helper(network, helper):
    """The helper, or the one that is used where there is none."""
    if not isinstance(network, nn.Layer):
        raise wrong_type("network", network, "a paddle.nn.Layer")
    if helper is None:
        return StackHelper()
    if not isinstance(helper, NetworkHelper):
        raise wrong_type("helper", helper, "a NetworkHelper or None")
    return helper


def decoder_layers(network, helper):
    """What the helper says, checked."""
    known = {id(layer) for layer in network.sublayers(include_self=True)}
    layers = list(helper.decoder_layers(network))
    for name, layer in layers:
        if id(layer) not in known:
            raise wrong_value("decoder_layers()", name, "sublayers of the network")
    if not layers:
        raise ModelError("decoder_layers() of the network helper returned none")
    parts = {id(part): name for name, layer in layers for part in layer.sublayers()}
    for name, layer in layers:
        if id(layer) in parts:
            raise wrong_value("decoder_layers()", name, f"no part of {parts[id(layer)]}")
    return layers


def choose(network, helper, config, dtypes=("float32", "float16", "bfloat16", "float64")):
    """Choose the Linears and KV caches of a network to quantize.

    Args:
        network: a ``paddle.nn.Layer``.
        helper: a :class:`NetworkHelper`, which names the KV caches.
        config: a :class:`~paddleq.config.QuantConfig`.
        dtypes: data types that the weights may have.

    Returns:
        (name -> (Linear, LayerConfig), name -> (layer with a KV cache, its kind),
        :class:`~paddleq.engine.select.Selection`).

    Raises:
        ModelError: there is nothing to quantize.
        ConfigError: a configuration is not one of a Linear layer.
    """
    holders = list(helper.kv_caches(network))
    for name, layer in holders:
        if not (isinstance(layer, KVCache) or takes_cache(layer)):
            raise wrong_value("kv_caches()", name, "layers of paddle.nn.MultiHeadAttention, with "
                              "its own way to keys and values, or of paddleq.nn.KVCache")
    ids = {id(layer): name for name, layer in holders}
    selection = select(
        network, config, lambda layer: None if id(layer) in ids else linear_skip_reason(layer),
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
                raise ModelError(f"the KV cache of {name} is quantized already")
            caches[ids[id(each.layer)]] = each.layer, each.config.kv_cache
            continue
        del selection.selected[name]
        field = "kv_cache" if id(each.layer) in ids else "weight"
        selection.skipped[name] = SkipReason(SkipKind.NOT_CONFIGURED, field)
    if not selection.selected:
        raise nothing_selected(network, selection)
    return linears, caches, selection


def homes_of(network, layers):
    """id of a layer -> the set of numbers of the decoder layers it is part of; None: of the rest.

    Args:
        layers: list of (name, decoder layer).
    """
    homes = {}
    for number, (_, layer) in enumerate(layers):
        for part in layer.sublayers(include_self=True):
            homes.setdefault(id(part), set()).add(number)
    decoders, todo, seen = {id(layer) for _, layer in layers}, [network], set()
    while todo:
        layer = todo.pop()
        if layer is None or id(layer) in decoders or id(layer) in seen:
            continue
        seen.add(id(layer))
        homes.setdefault(id(layer), set()).add(None)
        todo += own_sublayers(layer).values()
    return homes


def stages_of(layers, homes, linears, caches):
    """The decoder layers in their order, and then the rest of the network, if it has any policy.

    What several of them hold is part of the rest: its statistics are those of all its calls.
    """
    def part_of(number, what):
        return {name: each for name, each in what.items() if homes[id(each[0])] == {number}}

    stages = [Stage(number, name, layer, part_of(number, linears), part_of(number, caches))
              for number, (name, layer) in enumerate(layers)]
    placed = {name for stage in stages for name in [*stage.linears, *stage.caches]}
    rest = [{name: each for name, each in what.items() if name not in placed}
            for what in (linears, caches)]
    if any(rest):
        shared = [name for what in rest for name, (layer, _) in what.items()
                  if homes[id(layer)] != {None}]
        stages.append(Stage(None, "the rest", None, *rest, shared))
    return stages
