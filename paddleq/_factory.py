"""Classes with some of their arguments filled in."""


class Factory:
    """Makes instances of a class with arguments that were given beforehand.

    Factories nest: a later argument overrules an earlier one of the same name. Each call makes an
    instance of its own.

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
        """A factory with these arguments too."""
        return Factory(self.made, {**self.arguments, **arguments})

    def __call__(self, *args, **arguments):
        return self.made(*args, **{**self.arguments, **arguments})

    def __repr__(self):
        shown = "".join(f", {name}={value!r}" for name, value in self.arguments.items())
        return f"Factory({self.made.__name__}{shown})"


class WithArgs:
    """Mixin of classes that make factories of themselves."""

    @classmethod
    def with_args(cls, **arguments):
        """A :class:`Factory` of this class with these arguments."""
        return Factory(cls, arguments)
