"""Rules of ``PTQ``: parsing of layer policies, and their translation to a ``QuantConfig``."""

import logging
import re
from collections import OrderedDict
from typing import Any, Optional, Sequence

from paddle import nn

from ..._checks import wrong_type
from ...algorithms import NetworkHelper, Rounder, Smoother
from ...config import LayerConfig, QuantConfig, Scope
from ...config.layer_config import static_activation
from ...errors import ConfigError
from ...nn.integer_linear import linear_skip_reason
from ...spec import PerChannel, PerGroup, PerTensor, PerToken, QuantSpec
from .ptq_config import ActivationObserverConfig, PTQConfig, QuantGranularity

_logger = logging.getLogger("paddleq")


class LayerPolicies:
    """The :class:`PTQConfig` of each layer, by its name.

    Args:
        config: the :class:`PTQConfig` of layers that no pattern matches.
        policies: an OrderedDict of regular expression -> PTQConfig, or None to leave the layers
            that it matches float; None for no patterns. An expression is matched from the start
            of a layer's name.

    Raises:
        ConfigTypeError: ``policies`` is no OrderedDict, a key no str, a value no PTQConfig.
        ConfigError: a key is no regular expression; the mode of a policy is not that of
            ``config``.
    """

    def __init__(self, config: PTQConfig, policies: Optional["OrderedDict[str, Any]"] = None):
        self.config = config
        self.policies: "OrderedDict[str, Optional[PTQConfig]]" = OrderedDict()
        if policies is not None and not isinstance(policies, OrderedDict):
            raise wrong_type("layer_policies", policies, "an OrderedDict or None")
        for pattern, policy in (policies or {}).items():
            self.policies[pattern] = _checked(pattern, policy, config)

    def rules(self, network: nn.Layer, helper: NetworkHelper) -> QuantConfig:
        """Return the rules for the Linears and KV caches of ``network``.

        Linears outside of the decoder layers are quantized only where a pattern matches them.

        Raises:
            ConfigError: two patterns match one layer.
        """
        caches = {id(layer) for _, layer in helper.kv_caches(network)}
        inside = {id(part) for _, layer in helper.decoder_layers(network)
                  for part in layer.sublayers(include_self=True)}
        candidates, general = [], []
        for name, layer in network.named_sublayers(include_self=True):
            if id(layer) in caches or linear_skip_reason(layer) is None:
                candidates.append(name)
                if id(layer) in caches or id(layer) in inside:
                    general.append(name)
        return self.rules_of(candidates, general)

    def rules_of(self, names: Sequence[str], general: Sequence[str]) -> QuantConfig:
        """Return the rules for the layers ``names``; ``config`` is for ``general`` of them.

        Raises:
            ConfigError: two patterns match one layer.
        """
        rules = QuantConfig()
        rules.add(_exactly(general, "config"), layer_config(self.config))
        for pattern, found in self._matches(names).items():
            policy, label = self.policies[pattern], f"layer_policies[{pattern!r}]"
            if not found:
                _logger.warning("%s matches no layer that can be quantized", label)
            rules.add(_exactly(found, label), None if policy is None else layer_config(policy))
            if policy is not None:
                rules.exclude_substrings(policy.opname_blacklist, found, "opname_blacklist")
        rules.exclude_substrings(self.config.opname_blacklist, names, "opname_blacklist")
        return rules

    def _matches(self, names):
        """Pattern -> names that it matches."""
        for name in names:
            patterns = [pattern for pattern in self.policies if re.match(pattern, name)]
            if len(patterns) > 1:
                listed = " and ".join(map(repr, patterns))
                raise ConfigError(f"layer_policies must have one pattern for a layer, but {listed} "
                                  f"match {name!r}")
        return {pattern: [name for name in names if re.match(pattern, name)]
                for pattern in self.policies}


def layer_config(config: PTQConfig) -> LayerConfig:
    """Return the configuration of the Linears and KV caches that ``config`` is for."""
    kv_cache = None
    if config.kvcache_quant_dtype is not None:
        kv_cache = config.kvcache_quant_granularity.value
    if config.weight_quant_dtype is None:
        return LayerConfig(kv_cache=kv_cache)
    grouped = config.weight_quant_granularity is QuantGranularity.PER_GROUP
    weight = QuantSpec(config.weight_quant_dtype.num_bits,
                       granularity=PerGroup(config.group_size) if grouped else PerChannel(1))
    spec = None
    if config.act_quant_dtype is not None:
        per_token = config.act_quant_granularity is QuantGranularity.PER_TOKEN
        spec = QuantSpec(config.act_quant_dtype.num_bits,
                         granularity=PerToken() if per_token else PerTensor())
    activation, algorithms = static_activation(spec), {}
    for options in config.options().values():
        if isinstance(options, ActivationObserverConfig):
            activation = static_activation(spec, options.observer)
            continue
        registered = isinstance(options, (Smoother, Rounder))
        algorithm = options if registered else options.algorithm()
        algorithms["smoother" if isinstance(algorithm, Smoother) else "rounder"] = algorithm
    return LayerConfig(weight, activation, kv_cache=kv_cache, **algorithms)


def _exactly(names: Sequence[str], label: str) -> Scope:
    return Scope(names=list(names), contents=False, required=False, label=label)


def _checked(pattern, policy, config):
    if not isinstance(pattern, str):
        raise wrong_type("layer_policies", pattern, "an OrderedDict whose keys are str")
    name = f"layer_policies[{pattern!r}]"
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"layer_policies must have regular expressions as keys, but {pattern!r} "
                          f"is none: {error}") from error
    if policy is not None and not isinstance(policy, PTQConfig):
        raise wrong_type(name, policy, "a PTQConfig or None")
    if policy is not None and policy.mode is not config.mode:
        raise ConfigError(f"{name}.mode must be that of config, {config.mode}, but is "
                          f"{policy.mode}")
    return policy
