"""Selection of layers by name, regular expression or class."""

import re
from dataclasses import dataclass
from typing import Any, Dict, Iterator, Sequence

from paddle import nn

from .._checks import hint, wrong_type
from .._paddle_compat import own_sublayers
from ..errors import ConfigError


@dataclass(frozen=True)
class Scope:
    """Layers of a model, by name, regular expression or class.

    Args:
        names: names in ``model.named_sublayers()``.
        patterns: regular expressions, searched in the name of each layer.
        types: layer classes. A subclass counts unless it overrides ``forward``.
        contents: include the layers inside those of ``names`` and ``types``. Default True.
        required: raise for an entry that matches no layer. Default True.
        label: text for messages in place of the entry, such as "skip_layers 'head'".

    Raises:
        ConfigTypeError: an entry is of another type.
        ConfigError: a pattern is not a regular expression.

    Examples:
        >>> import paddle
        >>> from paddleq.config import Scope
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(2, 2), paddle.nn.ReLU())
        >>> Scope(patterns=["^1"]).find(net)
        {'1': "pattern '^1'"}
        >>> Scope(names=["10"]).find(net)
        Traceback (most recent call last):
            ...
        paddleq.errors.ConfigError: the rule for name '10' matches no layer (did you mean '1'?)
    """

    names: Sequence[str] = ()
    patterns: Sequence[str] = ()
    types: Sequence[type] = ()
    contents: bool = True
    required: bool = True
    label: str = ""

    def __post_init__(self) -> None:
        for field, kind, expected in (("names", str, "names of layers"),
                                      ("patterns", str, "regular expressions"),
                                      ("types", type, "layer classes")):
            entries = getattr(self, field)
            if not isinstance(entries, (list, tuple)) or not all(
                    isinstance(entry, kind) for entry in entries):
                raise wrong_type(field, entries, f"a list of {expected}")
            object.__setattr__(self, field, tuple(entries))
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"pattern must be a regular expression, but is {pattern!r}: "
                                  f"{error}") from error

    @classmethod
    def parse(cls, entries: Any, model: nn.Layer, argument: str = "skip") -> "Scope":
        """Return the scope of a front end's ``skip`` argument.

        A string that is the name of a layer of ``model`` means that layer and all layers in it;
        other strings are regular expressions.

        Args:
            entries: a name, a regular expression, a layer class, a list of them, or None.
            model: the model that the names refer to.
            argument: name of the argument for messages.

        Raises:
            ConfigTypeError, ConfigError: an entry is none of these.
        """
        if entries is None:
            return cls()
        if not isinstance(entries, (list, tuple, set, frozenset)):
            entries = [entries]
        known = set(_names(model))
        for entry in entries:
            if not isinstance(entry, (str, type)):
                raise wrong_type(argument, entry, "a name, a pattern or a layer class")
        texts = [entry for entry in entries if isinstance(entry, str)]
        return cls(names=[text for text in texts if text in known],
                   patterns=[text for text in texts if text not in known],
                   types=[entry for entry in entries if isinstance(entry, type)])

    def __bool__(self) -> bool:
        return bool(self.names or self.patterns or self.types)

    def find(self, model: nn.Layer) -> Dict[str, str]:
        """Return layer name -> the entry that matches it, such as "pattern '^1'".

        Raises:
            ConfigError: ``required`` is set and an entry matches no layer; names the nearest.
        """
        layers, found = _names(model), {}
        for text, key, names, contents in self._entries(layers):
            if self.required and not names:
                near = hint(key, list(layers)) if isinstance(key, str) else ""
                raise ConfigError(f"the rule for {text} matches no layer{near}")
            if contents:
                inside = tuple(f"{name}." if name else "" for name in names)
                names = [name for name in layers if f"{name}.".startswith(inside)]
            matched = {id(layers[name]) for name in names}
            for name, layer in model.named_sublayers(include_self=True):
                if id(layer) in matched:
                    found.setdefault(name, self.label or text)
        return found

    def _entries(self, layers) -> Iterator[tuple]:
        """Yield (text for messages, key, names of the layers, include contents)."""
        for key in self.names:
            yield f"name {key!r}", key, [key] if key in layers else [], self.contents
        for key in self.patterns:
            yield (f"pattern {key!r}", key, [name for name in layers if re.search(key, name)],
                   False)
        for key in self.types:
            yield (f"type {key.__name__}", key, [
                name for name, layer in layers.items() if isinstance(layer, key)
                and type(layer).forward is key.forward], self.contents)


def _names(model: nn.Layer, prefix: str = "", parents: tuple = ()) -> Dict[str, nn.Layer]:
    """Return the layers of a model by name, a layer with several parents by each of its names."""
    names = {prefix: model}
    for attribute, layer in own_sublayers(model).items():
        if layer is not None and all(layer is not parent for parent in parents):
            names.update(_names(layer, f"{prefix}.{attribute}" if prefix else attribute,
                                (*parents, model)))
    return names
