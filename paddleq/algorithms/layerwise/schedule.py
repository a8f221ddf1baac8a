"""What the layer-by-layer driver does where: decoder layers in their order, and then the rest."""

from dataclasses import dataclass, field
from typing import Any, Optional

from paddle import nn

from ..._checks import check_choice, wrong_type, wrong_value
from ..._paddle_compat import own_sublayers
from ...config import LayerConfig
from ...errors import ModelError
from ...nn import Int8KVCache, KVCache
from ...nn.attention import takes_cache
from ...nn.kv_cache import PER_CHANNEL, PER_TOKEN
from ..linear import check_linear_config
from .network_helper import NetworkHelper, StackHelper, is_linear


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


def chosen(network, helper, policy_of, kv_policy_of):
    """(name -> (Linear, policy), name -> (layer with a cache, kind)) of what is to be quantized."""
    linears, caches = {}, {}
    for name, layer in network.named_sublayers(include_self=True):
        policy = policy_of(name) if policy_of is not None and is_linear(layer) else None
        if policy is None:
            continue
        if not isinstance(policy, LayerConfig):
            raise wrong_type(f"policy_of({name!r})", policy, "a LayerConfig or None")
        check_linear_config(policy, f"policy_of({name!r}).")
        if policy.weight is not None:
            linears[name] = layer, policy
    for name, layer in helper.kv_caches(network) if kv_policy_of is not None else []:
        if not (isinstance(layer, KVCache) or takes_cache(layer)):
            raise wrong_value("kv_caches()", name, "layers of paddle.nn.MultiHeadAttention, with "
                              "its own way to keys and values, or of paddleq.nn.KVCache")
        kind = kv_policy_of(name)
        if kind is None:
            continue
        check_choice(f"kv_policy_of({name!r})", kind, (PER_CHANNEL, PER_TOKEN))
        if isinstance(getattr(layer, "kv_cache", layer), Int8KVCache):
            raise ModelError(f"the KV cache of {name} is quantized already")
        caches[name] = layer, kind
    if not linears and not caches:
        raise ModelError("there is nothing to quantize: no Linear and no KV cache has a policy")
    return linears, caches


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
