"""Linear layers whose computation a calibrator controls until they are converted."""

from typing import TYPE_CHECKING, Any, Type

from paddle import nn

from .class_swap import swapped_class

# The other base of each swapped class is the class of the float layer.
_Base = nn.Linear if TYPE_CHECKING else object


class CalibratingLinear(_Base):
    """Mixin of a ``paddle.nn.Linear`` that records calibration statistics until it is converted.

    The layer stays the same object with the same parameters under the same names.

    Attributes:
        calibrator: an object whose ``run(x, forward)`` returns the output for the input ``x``;
            ``forward()`` computes that of the float layer. Its ``str()`` describes its progress.
    """

    prefix = "Calibrating"
    calibrator: Any = None
    _float_class: Type[nn.Layer]

    def swapped_forward(self, args, kwargs):
        x = args[0] if args else kwargs["input"]
        return self.calibrator.run(x, lambda: self._float_class.forward(self, x))

    def extra_repr(self):
        return f"{super().extra_repr()}, {self.calibrator}"


def make_calibrating(layer, calibrator):
    """Make a ``paddle.nn.Linear`` a :class:`CalibratingLinear`, in place.

    Examples:
        >>> import paddle
        >>> from paddleq.nn.calibrating import make_calibrating
        >>> class Counter:
        ...     calls = 0
        ...     def run(self, x, forward):
        ...         self.calls += 1
        ...         return forward()
        ...     def __str__(self):
        ...         return f"{self.calls} calls"
        >>> layer = paddle.nn.Linear(2, 2)
        >>> make_calibrating(layer, Counter())
        >>> _ = layer(paddle.rand([1, 2]))
        >>> layer
        CalibratingLinear(in_features=2, out_features=2, dtype=float32, 1 calls)
    """
    layer.__class__ = swapped_class(CalibratingLinear, type(layer))
    layer.__dict__["calibrator"] = calibrator
