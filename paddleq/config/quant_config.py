"""Rules that assign a configuration to the layers of a model, and reasons to skip layers."""

import enum
import logging
from dataclasses import dataclass
from typing import Dict, Iterable, List, NamedTuple, Optional, Tuple

from paddle import nn

from .._checks import wrong_type
from .layer_config import LayerConfig
from .scope import Scope

_logger = logging.getLogger("paddleq")


class SkipKind(enum.Enum):
    """Kinds of reasons for which a layer stays float. The value is the sentence for display.

    Examples:
        >>> from paddleq.config import SkipKind
        >>> SkipKind.NO_RULE.value
        'no rule matches'
    """

    SKIP_ATTRIBUTE = "skip_quant is set"
    NO_RULE = "no rule matches"
    EXCLUDED = "excluded by {detail}"
    NOT_CONFIGURED = "{detail} is None"
    OUTSIDE_DECODER_LAYERS = "outside of the decoder layers"
    NOT_REGISTERED = "its class is not registered; see paddleq.register_layer"
    OVERRIDES_FORWARD = ("its class overrides forward, so its weights are not known to be used as "
                         "usual; see paddleq.register_layer")
    NOT_LINEAR = "only Linear is quantized"
    NOT_CALLED = "not called during calibration"
    ADDED_LATER = "added or replaced after the model was quantized"
    WEIGHT_FROM_HOOK = ("its weight is computed by a hook (weight_norm, spectral_norm); remove "
                        "that first")
    ROUTER = "it chooses experts: {detail}"
    WEIGHT_READ_OUTSIDE = ("its weight is read outside of its forward, where it would be integers; "
                           "call the layer instead")


@dataclass(frozen=True)
class SkipReason:
    """Reason for which a layer stays float.

    Args:
        kind: a :class:`SkipKind`.
        detail: the entry of a rule or the argument that decided; "" where there is none.

    Examples:
        >>> from paddleq.config import SkipKind, SkipReason
        >>> print(SkipReason(SkipKind.EXCLUDED, "name 'head'"))
        excluded by name 'head'
    """

    kind: SkipKind
    detail: str = ""

    def __str__(self) -> str:
        return self.kind.value.format(detail=self.detail)


class Rule(NamedTuple):
    """The rule that decided about a layer."""

    config: Optional[LayerConfig]
    entry: str  # of the rule's scope, such as "pattern 'head$'"


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
        """Assign ``config`` to the layers of ``scope``; None leaves them float.

        Raises:
            ConfigTypeError: an argument is of another type.
        """
        if not isinstance(scope, Scope):
            raise wrong_type("scope", scope, "a Scope")
        if not (config is None or isinstance(config, LayerConfig)):
            raise wrong_type("config", config, "a LayerConfig or None")
        self.rules.append((scope, config))

    def add_type(self, cls: type, config: Optional[LayerConfig]) -> None:
        """Assign ``config`` to layers of class ``cls``. If there are none, it is a warning."""
        self.add(Scope(types=[cls], contents=False, required=False), config)

    def add_name(self, name: str, config: Optional[LayerConfig]) -> None:
        """Assign ``config`` to the layer ``name`` and all layers in it."""
        self.add(Scope(names=[name]), config)

    def add_pattern(self, pattern: str, config: Optional[LayerConfig]) -> None:
        """Assign ``config`` to layers in whose name the regular expression is found."""
        self.add(Scope(patterns=[pattern]), config)

    def exclude_substrings(self, parts: Iterable[str], names: Iterable[str],
                           argument: str) -> None:
        """Leave layers float whose name contains one of ``parts``; the first one is the reason.

        Args:
            parts: parts of names. One that no name contains is logged as a warning.
            names: names of the layers in question.
            argument: name of the argument for messages.
        """
        names = list(names)
        for part in reversed(list(parts)):  # the last rule that matches decides
            found = [name for name in names if part in name]
            if not found:
                _logger.warning("%s has %r, which no layer's name contains", argument, part)
            self.add(Scope(names=found, contents=False, label=f"{argument} {part!r}"), None)

    def types(self) -> List[type]:
        """Return the classes of the rules that are not required to match a layer."""
        return [cls for scope, _ in self.rules if not scope.required for cls in scope.types]

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
