"""What QAT and PTQ do alike before the engine starts: which layers, and of which model."""

from paddle import nn

from ..._checks import hint, wrong_type
from ...config import QuantConfig
from ...errors import ConfigError
from ...nn.layer_types import known_classes
from ...nn.quantizable_function import QuantizableFunction


def layer_classes(name, value):
    """The layer classes that a list of classes or of their names stands for."""
    if not isinstance(value, (list, tuple)):
        raise wrong_type(name, value, "a list of layer classes or their names")
    known, classes = known_classes(), []
    for entry in value:
        if isinstance(entry, str):
            if entry not in known:
                raise ConfigError(f"{name} does not know {entry!r}{hint(entry, known)}; valid: "
                                  f"{', '.join(known)}, or what paddleq.register_layer added")
            classes.append(known[entry])
        elif isinstance(entry, type) and issubclass(entry, nn.Layer):
            if entry not in known.values():
                raise ConfigError(f"{name}: {entry.__name__} is not registered; tell how it is "
                                  "quantized with paddleq.register_layer")
            classes.append(entry)
        else:
            raise wrong_type(name, entry, "a list of layer classes or their names")
    return classes


def rules_for(classes, policy, skip):
    """One policy for the layers of these classes, and for QuantizableFunction always."""
    rules = QuantConfig()
    for cls in [*classes, QuantizableFunction]:
        rules.add_type(cls, policy)
    rules.exclude(skip)
    return rules


def said_of_skip(skip):
    """``skip`` as the ``rules`` of a recipe; None where nothing is skipped."""
    entries = skip if isinstance(skip, (list, tuple, set)) else [] if skip is None else [skip]
    return [{"pattern": each, "skip": True} if isinstance(each, str) else
            {"type": each.__name__, "skip": True} for each in entries] or None
