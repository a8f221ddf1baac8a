"""Registry of named extension points: observers, layer types, algorithms, formats and runtimes."""

from typing import Any, Callable, Dict, TypeVar

from ._checks import check_choice, wrong_type
from .errors import ConfigError

T = TypeVar("T")
D = TypeVar("D")  # the decorated class or function


class Registry(Dict[str, T]):
    """Dict from names to registered entries, in the order of registration.

    Args:
        kind: noun for messages, e.g. "observer".
        definition: called with an entry, returns the class or function that defines it. Default:
            the entry.

    Examples:
        >>> from paddleq._registry import Registry
        >>> shapes = Registry("shape")
        >>> shapes.register("square")(tuple) is shapes["square"]
        True
    """

    def __init__(self, kind: str, definition: Callable[[T], Any] = lambda entry: entry):
        super().__init__()
        self.kind, self._definition = kind, definition

    def register(self, name: str) -> Callable[[D], D]:
        """Decorator that registers a class or a function under ``name``.

        A definition that is executed again (same module and qualified name, e.g. a notebook cell
        or ``importlib.reload``) replaces the former one.

        Raises:
            ConfigError, ConfigTypeError: the name is taken, or not a non-empty string.

        Examples:
            >>> from paddleq.observers import OBSERVERS, AbsMaxObserver, register_observer
            >>> @register_observer("half")
            ... class HalfObserver(AbsMaxObserver):
            ...     def abs_max(self):
            ...         return 0.5 * super().abs_max()
            >>> OBSERVERS.unregister("half") is HalfObserver
            True
        """
        if not isinstance(name, str) or not name:
            raise wrong_type(f"name of the {self.kind}", name, "a non-empty string")

        def add(entry: Any) -> Any:
            known = self.get(name)
            if known is not None and not _same_definition(*map(self._definition, (known, entry))):
                raise ConfigError(f"{self.kind} {name!r} is already registered as {known!r}; "
                                  "choose another name")
            self[name] = entry
            return entry

        return add

    def unregister(self, name: str) -> T:
        """Remove ``name`` and return its entry."""
        return self.pop(self.check(name))

    def check(self, name: str, argument: str = "") -> str:
        """Return ``name`` if it is registered; errors call it ``argument`` (default: ``kind``)."""
        return check_choice(argument or self.kind, name, self)

    def __missing__(self, name: str) -> T:
        raise KeyError(self.check(name))  # check() raises a ConfigError

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name)


def _same_definition(first, second):
    return first is second or all(getattr(first, name, None) == getattr(second, name, ())
                                  for name in ("__module__", "__qualname__"))
