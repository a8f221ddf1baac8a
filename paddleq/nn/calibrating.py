"""A Linear that somebody watches, until another layer takes its place."""

from .class_swap import swapped_class


class CalibratingLinear:
    """Mixin: the layer's ``watcher`` sees what goes in and says what comes out.

    The layer stays the same object with the same parameters under the same names.

    Attributes:
        watcher: its ``run(x, forward)`` gives the output for the input x, where ``forward()`` is
            what the float layer gives; its ``str()`` says how far it is.
    """

    prefix = "Calibrating"
    watcher = None

    def swapped_forward(self, args, kwargs):
        x = args[0] if args else kwargs["input"]
        return self.watcher.run(x, lambda: self._float_class.forward(self, x))

    def extra_repr(self):
        return f"{super().extra_repr()}, {self.watcher}"


def watch(layer, watcher):
    """Make a ``paddle.nn.Linear`` a :class:`CalibratingLinear`, in place.

    Examples:
        >>> import paddle
        >>> from paddleq.nn.calibrating import watch
        >>> class Counter:
        ...     calls = 0
        ...     def run(self, x, forward):
        ...         self.calls += 1
        ...         return forward()
        ...     def __str__(self):
        ...         return f"{self.calls} calls"
        >>> layer = paddle.nn.Linear(2, 2)
        >>> watch(layer, Counter())
        >>> _ = layer(paddle.rand([1, 2]))
        >>> layer
        CalibratingLinear(in_features=2, out_features=2, dtype=float32, 1 calls)
    """
    layer.__class__ = swapped_class(CalibratingLinear, type(layer))
    layer.__dict__["watcher"] = watcher
