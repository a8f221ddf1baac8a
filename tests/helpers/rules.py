"""Rules of a QuantConfig from functions of layer names."""

from paddle import nn

from paddleq.config import LayerConfig, QuantConfig, Scope
from paddleq.nn import KVCache


def rules(network, linear=None, kv_cache=None):
    """Return the rules for a network.

    Args:
        linear: a LayerConfig, or function from a Linear's name to one or None.
        kv_cache: a kind of KV cache, or function from the name of what has one to a kind or None.
    """
    config = QuantConfig()
    for name, layer in network.named_sublayers(include_self=True):
        if isinstance(layer, nn.Linear):
            found = linear(name) if callable(linear) else linear
        elif isinstance(layer, (nn.MultiHeadAttention, KVCache)):
            kind = kv_cache(name) if callable(kv_cache) else kv_cache
            found = None if kind is None else LayerConfig(kv_cache=kind)
        else:
            continue
        config.add(Scope(names=[name], contents=False), found)
    return config


def model_of(names):
    """Return a model whose layers are Linears of these names, and of the names that they are in."""
    model = nn.Layer()
    for name in filter(None, names):
        layer = model
        for part in name.split("."):
            if part not in layer._sub_layers:
                layer.add_sublayer(part, nn.Linear(1, 1))
            layer = layer._sub_layers[part]
    return model
