"""Which policy a layer gets: ordered rules, the last that matches wins."""

import logging
import re
from dataclasses import dataclass
from typing import Optional

from .._checks import hint, wrong_type
from ..errors import ConfigError
from .layer_config import LayerPolicy

_logger = logging.getLogger("paddleq")


@dataclass
class _Rule:
    kind: str  # "type", "name" or "pattern"
    key: object
    policy: Optional[LayerPolicy]
    required: bool
    matched: bool = False

    def matches(self, name, layer):
        if self.kind == "type":
            return self.key is type(layer) or (
                isinstance(layer, self.key) and type(layer).forward is self.key.forward)
        if self.kind == "name":
            return name == self.key
        return re.search(self.key, name) is not None

    def __str__(self):
        key = self.key.__name__ if self.kind == "type" else repr(self.key)
        return f"{self.kind} {key}"


class QuantConfig:
    """Ordered rules from layers to policies.

    Rules are looked at in the order in which they were added; the last that matches decides.
    So a general rule comes first and its exceptions after it.

    Examples:
        >>> import paddle
        >>> from paddleq.config import LayerPolicy, QuantConfig
        >>> config = QuantConfig()
        >>> config.add_type(paddle.nn.Linear, LayerPolicy())
        >>> config.add_pattern(r"head$", None)
        >>> config.resolve("block.fc", paddle.nn.Linear(2, 2))[1]
        'type Linear'
        >>> config.resolve("head", paddle.nn.Linear(2, 2))
        (None, "excluded by pattern 'head$'")
    """

    def __init__(self):
        self.rules = []

    def add_type(self, cls, policy):
        """Give layers of class ``cls`` (or None: leave them alone) a policy."""
        self.rules.append(_Rule("type", cls, policy, required=False))

    def add_name(self, name, policy):
        """Give the layer with exactly this name a policy."""
        self.rules.append(_Rule("name", name, policy, required=True))

    def add_pattern(self, pattern, policy):
        """Give layers in whose name the regular expression is found a policy."""
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"pattern must be a regular expression, but is {pattern!r}: "
                              f"{error}") from error
        self.rules.append(_Rule("pattern", pattern, policy, required=True))

    def exclude(self, what):
        """Leave alone: a layer's name, a regular expression, a layer class, or a list of them."""
        if what is None:
            return
        if not isinstance(what, (list, tuple, set)):
            what = [what]
        for entry in what:
            if isinstance(entry, str):
                self.add_pattern(entry, None)
            elif isinstance(entry, type):
                self.rules.append(_Rule("type", entry, None, required=True))
            else:
                raise wrong_type("skip", entry, "a name, a pattern or a layer class")

    def resolve(self, name, layer):
        """(policy or None, which rule decided) for one layer."""
        policy, reason = None, "no rule matches"
        for rule in self.rules:
            if rule.matches(name, layer):
                rule.matched = True
                policy = rule.policy
                reason = str(rule) if policy is not None else f"excluded by {rule}"
        return policy, reason

    def check_matched(self, names):
        """Raise for rules by name or pattern that met no layer: most likely a misspelling."""
        for rule in self.rules:
            if rule.required and not rule.matched:
                near = hint(rule.key, list(names)) if isinstance(rule.key, str) else ""
                raise ConfigError(f"the rule for {rule} matches no layer{near}")
