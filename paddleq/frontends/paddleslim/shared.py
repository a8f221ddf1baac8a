"""Parsing of arguments that ``QAT`` and ``PTQ`` share."""

import logging
from typing import Any, List, Optional, Sequence

from paddle import nn

from ..._checks import check_choice, wrong_type
from ...config import LayerConfig, QuantConfig, Scope
from ...errors import ConfigError
from ...nn.layer_types import QuantizableFunction, known_classes

_logger = logging.getLogger("paddleq")


def layer_classes(name: str, value: Any) -> List[type]:
    """Return the registered layer classes of a list of classes or of their names."""
    if not isinstance(value, (list, tuple)):
        raise wrong_type(name, value, "a list of layer classes or their names")
    known, classes = known_classes(), []
    for entry in value:
        if isinstance(entry, str):
            classes.append(known[check_choice(name, entry, known)])
        elif isinstance(entry, type) and issubclass(entry, nn.Layer):
            if not any(issubclass(entry, cls) and entry.forward is cls.forward
                       for cls in known.values()):
                raise ConfigError(f"{name}: {entry.__name__} is not registered; register it "
                                  "with paddleq.register_layer")
            classes.append(entry)
        else:
            raise wrong_type(name, entry, "a list of layer classes or their names")
    return classes


def rules_for(classes: Optional[Sequence[type]], config: LayerConfig,
              skip: Optional[Scope] = None) -> QuantConfig:
    """Return the rules of one configuration for these classes and for QuantizableFunction.

    ``classes`` may be None for all registered ones but Embedding.
    """
    if classes is None:
        classes = [cls for cls in known_classes().values()
                   if cls not in (nn.Embedding, QuantizableFunction)]
    rules = QuantConfig()
    for cls in [*classes, QuantizableFunction]:
        rules.add_type(cls, config)
    rules.add(skip or Scope(), None)
    return rules


def warn_unused_inputs(inputs: Any, used: bool, argument: str) -> None:
    """Warn of example ``inputs`` that nothing reads, because nothing is folded or equalized."""
    if inputs is not None and not used:
        _logger.warning("inputs has no effect: it is for %s=True, which is False", argument)


def skip_rules(skip: Scope) -> Optional[List[dict]]:
    """Return the ``rules`` of a recipe that skip the layers of a scope; None if it is empty."""
    return [{key: entry, "skip": True} for key, entries in (
        ("name", skip.names), ("pattern", skip.patterns),
        ("type", [cls.__name__ for cls in skip.types])) for entry in entries] or None
