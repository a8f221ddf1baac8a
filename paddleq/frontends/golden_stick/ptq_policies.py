"""Which ``PTQConfig`` a layer gets: the one for all, or that of the pattern for its name."""

import logging
import re
from collections import OrderedDict

from ..._checks import wrong_type
from ...errors import ConfigError
from .ptq_config import PTQConfig

_logger = logging.getLogger("paddleq")


class LayerPolicies:
    """The configuration of each layer by its name.

    Args:
        config: the :class:`PTQConfig` of layers that no pattern matches.
        policies: an OrderedDict of regular expression -> PTQConfig, or None to leave what it
            matches alone; None for no patterns. An expression is matched from the start of a
            layer's name.

    Raises:
        ConfigTypeError: ``policies`` is no OrderedDict, a key no str, a value no PTQConfig.
        ConfigError: a key is no regular expression; a policy is for another mode than ``config``.
    """

    def __init__(self, config, policies=None):
        self.config = config
        self.policies = OrderedDict()
        if policies is not None and not isinstance(policies, OrderedDict):
            raise wrong_type("layer_policies", policies, "an OrderedDict or None")
        for pattern, policy in (policies or {}).items():
            self.policies[pattern] = _checked(pattern, policy, config)

    def of(self, name):
        """(PTQConfig or None, why) of the layer ``name``.

        Raises:
            ConfigError: two patterns match.
        """
        patterns = self.matching(name)
        if len(patterns) > 1:
            listed = " and ".join(map(repr, patterns))
            raise ConfigError(f"layer_policies must have one pattern for a layer, but {listed} "
                              f"match {name!r}")
        policy = self.policies[patterns[0]] if patterns else self.config
        reason = f"layer_policies[{patterns[0]!r}]" if patterns else "config"
        if policy is None:
            return None, f"{reason} is None"
        for each in (policy, self.config):
            for part in each.opname_blacklist:
                if part in name:
                    return None, f"opname_blacklist has {part!r}"
        return policy, reason

    def matching(self, name):
        """The patterns that match ``name`` from its start."""
        return [pattern for pattern in self.policies if re.match(pattern, name)]

    def warn_of_unmatched(self, names):
        """Log a warning for each pattern, and each entry of a blacklist, that matches none of
        ``names``, those of layers that can be quantized."""
        for pattern in self.policies:
            if not any(re.match(pattern, name) for name in names):
                _logger.warning("layer_policies[%r] matches no layer that can be quantized",
                                pattern)
        configs = [each for each in (self.config, *self.policies.values()) if each is not None]
        for part in dict.fromkeys(part for each in configs for part in each.opname_blacklist):
            if not any(part in name for name in names):
                _logger.warning("opname_blacklist has %r, which no name of a layer that can be "
                                "quantized contains", part)


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
