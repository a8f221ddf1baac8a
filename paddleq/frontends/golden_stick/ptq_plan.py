"""What ``PTQ`` does to each layer of a network, in the words of the algorithms."""

from dataclasses import dataclass, field
from typing import Any, Dict

from paddle import nn

from ..._paddle_compat import own_sublayers
from ...algorithms import AWQ, GPTQ, SmoothQuant
from ...config import LayerConfig
from ...errors import ModelError
from ...nn.linear_support import linear_skip_reason
from ...spec import PerChannel, PerGroup, PerTensor, PerToken, QuantSpec
from .ptq_args import AWQConfig, GPTQQuantConfig, SmoothQuantConfig
from .ptq_enums import QuantGranularity


@dataclass
class Plan:
    """What is quantized in a network.

    Attributes:
        linears: name -> LayerConfig.
        kv_caches: name of what holds keys and values -> "per_channel" or "per_token".
        left: name -> why, of the layers that stay float.
    """

    linears: Dict[str, Any] = field(default_factory=dict)
    kv_caches: Dict[str, str] = field(default_factory=dict)
    left: Dict[str, str] = field(default_factory=dict)


def make_plan(network, helper, policies):
    """The :class:`Plan` of :class:`~.ptq_policies.LayerPolicies` for a network.

    Layers outside of the decoder layers are quantized only where a pattern asks for it.

    Raises:
        ConfigError: two patterns match one layer.
        ModelError: there is nothing to quantize.
    """
    plan = Plan()
    inside = {id(part) for _, layer in helper.decoder_layers(network)
              for part in layer.sublayers(include_self=True)}
    names = []
    for name, layer in network.named_sublayers(include_self=True):
        why = linear_skip_reason(layer)
        if why:
            if isinstance(layer, nn.Linear) or not own_sublayers(layer):
                plan.left[name] = str(why)
            continue
        names.append(name)
        config, why = policies.of(name)
        if config is not None and id(layer) not in inside and not policies.matching(name):
            config, why = None, "outside of the decoder layers"
        policy = None if config is None else linear_policy(config)
        if policy is not None:
            plan.linears[name] = policy
        else:
            plan.left[name] = why if config is None else "weight_quant_dtype is None"
    for name, _ in helper.kv_caches(network):
        names.append(name)
        config, why = policies.of(name)
        if config is not None and config.kvcache_quant_dtype is not None:
            plan.kv_caches[name] = config.kvcache_quant_granularity.value
            plan.left.pop(name, None)
        else:
            plan.left[name] = why if config is None else "kvcache_quant_dtype is None"
    policies.warn_of_unmatched(names)
    if not plan.linears and not plan.kv_caches:
        reasons = "; ".join(sorted(set(plan.left.values()))) or "it has no Linear and no KV cache"
        raise ModelError(f"network has no layer to quantize: {reasons}")
    return plan


def linear_policy(config):
    """The LayerConfig of a PTQConfig; None where weights stay float."""
    if config.weight_quant_dtype is None:
        return None
    grouped = config.weight_quant_granularity is QuantGranularity.PER_GROUP
    weight = QuantSpec(config.weight_quant_dtype.num_bits,
                       granularity=PerGroup(config.group_size) if grouped else PerChannel(1))
    activation = None
    if config.act_quant_dtype is not None:
        per_token = config.act_quant_granularity is QuantGranularity.PER_TOKEN
        activation = QuantSpec(config.act_quant_dtype.num_bits,
                               granularity=PerToken() if per_token else PerTensor())
    algorithms = {}
    for cls, options in config.options().items():
        algorithms.update(_MAKE[cls](options))
    return LayerConfig(weight, activation, **algorithms)


def _awq(options):
    return {"smoother": AWQ(ratios=options.smooth_alpha, clip_factors=options.weight_clip_ratio,
                            clip=options.weight_clip_ratio != (1.0,),
                            duo_scaling=options.duo_scaling)}


def _gptq(options):
    return {"rounder": GPTQ(options.block_size, options.damp_percent, options.desc_act,
                            options.static_groups)}


_MAKE = {
    SmoothQuantConfig: lambda options: {"smoother": SmoothQuant(options.alpha)},
    AWQConfig: _awq,
    GPTQQuantConfig: _gptq,
}
