"""The structure of a quantized network without its numbers, for a checkpoint to be loaded."""

import paddle
from paddle import nn

from ...nn import Int8KVCache, IntegerLinear
from ...nn.attention import hold_cache
from ...nn.class_swap import replace_layers
from ...nn.kv_cache import PER_TOKEN
from ..linear import rounder_of


def build_structure(network, linears, kv_caches):
    """Put empty integer layers in place of Linears, and int8 caches in place of float ones.

    What data decides (whether a layer divides its input by a smoothing factor) is as if there had
    been none; loading a checkpoint puts it right. Until then the network gives NaN, or an error.

    Args:
        network: a ``paddle.nn.Layer``, changed in place.
        linears: name -> LayerConfig.
        kv_caches: name of a ``MultiHeadAttention`` or ``KVCache`` -> "per_channel" or "per_token".

    Examples:
        >>> import paddle
        >>> from paddleq import PerGroup, QuantSpec
        >>> from paddleq.config import LayerConfig
        >>> from paddleq.algorithms.layerwise.build_structure import build_structure
        >>> network = paddle.nn.Sequential(paddle.nn.Linear(64, 8))
        >>> policy = LayerConfig(QuantSpec(4, granularity=PerGroup(32)))
        >>> build_structure(network, {"0": policy}, {})
        >>> network[0].quant_type, network(paddle.rand([1, 64])).isnan().all().item()
        ('W4-per_group', True)
    """
    layers = dict(network.named_sublayers(include_self=True))
    replacements = [(layers[name], _empty_linear(layers[name], policy))
                    for name, policy in linears.items()]
    for name, granularity in kv_caches.items():
        layer, sizes = layers[name], {}
        if isinstance(layer, nn.MultiHeadAttention):
            hold_cache(layer)
            sizes = {"kv_heads": layer.num_heads, "head_dim": layer.head_dim}
            layer = layer.kv_cache
        if granularity == PER_TOKEN:
            sizes = {}
        replacements.append((layer, Int8KVCache(granularity, token_axis=layer.token_axis, **sizes)))
    replace_layers(network, replacements)


def _empty_linear(linear, policy):
    rows, columns = linear.weight.shape
    dtype = "float32" if linear.bias is None else str(linear.bias.dtype).replace("paddle.", "")
    layer = IntegerLinear(rows, columns, policy.weight_spec, linear.bias is not None,
                          policy.activation_spec, dtype=dtype,
                          permuted=not rounder_of(policy).takes_clips(policy.weight_spec),
                          algorithm=policy.algorithm)
    layer.weight_scale.set_value(paddle.full_like(layer.weight_scale, float("nan")))
    layer.training = linear.training
    return layer
