"""Rules that assign a configuration to the layers of a model."""

from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from paddle import nn

from .layer_config import LayerConfig
from .scope import Scope


class Rule(NamedTuple):
    """The rule that decided about a layer.

    Attributes:
        config: the :class:`LayerConfig`, or None to leave the layer float.
        entry: the entry of the rule's scope, such as "pattern 'head$'".
    """

    config: Optional[LayerConfig]
    entry: str


class QuantConfig:
    """Ordered rules that assign a :class:`LayerConfig` to layers.

    The last rule that matches a layer decides, so general rules come before their exceptions.

    Attributes:
        rules: list of (:class:`Scope`, :class:`LayerConfig` or None), in their order.

    Examples:
        >>> import paddle
        >>> from paddleq.config import LayerConfig, QuantConfig
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(2, 2), paddle.nn.Linear(2, 2))
        >>> config = QuantConfig()
        >>> config.add_type(paddle.nn.Linear, LayerConfig())
        >>> config.add_pattern("^1$", None)
        >>> {name: rule.entry for name, rule in config.resolve(net).items()}
        {'0': 'type Linear', '1': "pattern '^1$'"}
    """

    def __init__(self) -> None:
        self.rules: List[Tuple[Scope, Optional[LayerConfig]]] = []

    def add(self, scope: Scope, config: Optional[LayerConfig]) -> None:
        """Assign ``config`` to the layers of ``scope``; None leaves them float."""
        self.rules.append((scope, config))

    def add_type(self, cls: type, config: Optional[LayerConfig]) -> None:
        """Assign ``config`` to layers of class ``cls``. It is no error if there are none."""
        self.add(Scope(types=[cls], required=False), config)

    def add_name(self, name: str, config: Optional[LayerConfig]) -> None:
        """Assign ``config`` to the layer ``name`` and all layers in it."""
        self.add(Scope(names=[name]), config)

    def add_pattern(self, pattern: str, config: Optional[LayerConfig]) -> None:
        """Assign ``config`` to layers in whose name the regular expression is found."""
        self.add(Scope(patterns=[pattern]), config)

    def exclude(self, entries: Any, model: nn.Layer, argument: str = "skip") -> None:
        """Leave layers float: a name, a regular expression, a class or a list of them.

        See :meth:`Scope.parse`.
        """
        self.add(Scope.parse(entries, model, argument), None)

    def resolve(self, model: nn.Layer) -> Dict[str, Rule]:
        """Return layer name -> :class:`Rule` for every layer that a rule matches.

        Raises:
            ConfigError: an entry of a rule matches no layer; names the nearest.
        """
        decided: Dict[str, Rule] = {}
        for scope, config in self.rules:
            for name, entry in scope.find(model).items():
                decided[name] = Rule(config, entry)
        return decided
