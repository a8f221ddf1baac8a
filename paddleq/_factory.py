"""Factories: classes with default values for some of their arguments."""

from typing import Any, Callable, Dict


class Factory:
    """Create instances of a class with preset arguments.

    Factories nest; a later argument overrides an earlier one. Each call creates a new instance.

    Examples:
        >>> from paddleq import FakeQuantize
        >>> factory = FakeQuantize.with_args(saturate=False).with_args(dtype="qint16")
        >>> first, second = factory(), factory(saturate=True)
        >>> first is second, first.saturate, second.saturate, first.quant_max
        (False, False, True, 32767)
    """

    def __init__(self, made: Callable[..., Any], arguments: Dict[str, Any]):
        self.made, self.arguments = made, arguments

    def with_args(self, **arguments: Any) -> "Factory":
        """Return a factory with these arguments added."""
        return Factory(self.made, {**self.arguments, **arguments})

    def __call__(self, *args: Any, **arguments: Any) -> Any:
        return self.made(*args, **{**self.arguments, **arguments})

    def __repr__(self) -> str:
        shown = "".join(f", {name}={value!r}" for name, value in self.arguments.items())
        return f"Factory({self.made.__name__}{shown})"


class WithArgs:
    """Mixin that adds :meth:`with_args` to a class."""

    @classmethod
    def with_args(cls, **arguments: Any) -> Factory:
        """Return a :class:`Factory` of this class with these arguments."""
        return Factory(cls, arguments)
