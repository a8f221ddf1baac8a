"""Factories: classes with default values for some of their arguments."""


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

    def __init__(self, made, arguments):
        self.made, self.arguments = made, arguments

    def with_args(self, **arguments):
        """Return a factory with these arguments added."""
        return Factory(self.made, {**self.arguments, **arguments})

    def __call__(self, *args, **arguments):
        return self.made(*args, **{**self.arguments, **arguments})

    def __repr__(self):
        shown = "".join(f", {name}={value!r}" for name, value in self.arguments.items())
        return f"Factory({self.made.__name__}{shown})"


class WithArgs:
    """Mixin that adds :meth:`with_args` to a class."""

    @classmethod
    def with_args(cls, **arguments):
        """Return a :class:`Factory` of this class with these arguments."""
        return Factory(cls, arguments)
