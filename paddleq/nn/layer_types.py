"""Which layer classes can be quantized, and what there is to know about each.

A new layer type is one line here (or one call of :func:`register_layer`).
"""

from dataclasses import dataclass, replace
from typing import Mapping, Optional, Tuple

from paddle import nn

from .._checks import check_int, wrong_type, wrong_value


@dataclass(frozen=True)
class LayerKind:
    """What quantization needs to know of a layer class.

    Args:
        weights: attribute name of each weight -> axis of its output channels.
        inputs: positions of the forward arguments that are quantized; None where each layer
            says in its attribute ``inputs`` how many of the first ones are.
    """

    weights: Mapping[str, int]
    inputs: Optional[Tuple[int, ...]] = (0,)


_KINDS = {
    nn.Conv1D: LayerKind({"weight": 0}),
    nn.Conv2D: LayerKind({"weight": 0}),
    nn.Conv3D: LayerKind({"weight": 0}),
    # Transposed weights are [in, out / groups, ...]: groups share the scale of a column.
    nn.Conv1DTranspose: LayerKind({"weight": 1}),
    nn.Conv2DTranspose: LayerKind({"weight": 1}),
    nn.Linear: LayerKind({"weight": 1}),
    nn.Embedding: LayerKind({"weight": 0}, inputs=()),
}


def register_layer(cls, weights=None, inputs=(0,)):
    """Make a layer class of your own quantizable.

    Its ``forward`` is not touched: when it runs, it finds quantized inputs and, under the
    names in ``weights``, quantized weights.

    Args:
        cls: a subclass of ``paddle.nn.Layer``.
        weights: a dict from the attribute name of a weight to the axis of its output channels.
            Default ``{"weight": 0}``; ``{}`` for a layer without weights.
        inputs: positions of the arguments of ``forward`` to quantize, default (0,); or None if
            each layer's attribute ``inputs`` says how many of the first ones are.

    Raises:
        ConfigError, ConfigTypeError: for anything else.

    Examples:
        >>> import paddle, paddleq
        >>> class Scaled(paddle.nn.Layer):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.kernel = self.create_parameter([4, 4])
        ...     def forward(self, x):
        ...         return paddle.matmul(x, self.kernel)
        >>> paddleq.register_layer(Scaled, weights={"kernel": 1})
        >>> net = paddle.nn.Sequential(Scaled())
        >>> _ = paddleq.QAT({"quantizable_layer_type": [Scaled]}).quantize(net)
        >>> type(net[0]).__name__
        'QuantizedScaled'
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Layer)):
        raise wrong_type("cls", cls, "a subclass of paddle.nn.Layer")
    weights = {"weight": 0} if weights is None else weights
    if not isinstance(weights, Mapping):
        raise wrong_type("weights", weights, "a dict from attribute name to channel axis")
    for name, axis in weights.items():
        if not isinstance(name, str):
            raise wrong_type("weights", name, "a dict whose keys are attribute names")
        check_int(f"weights[{name!r}]", axis, 0)
    if inputs is not None:
        if not (isinstance(inputs, (list, tuple))
                and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0
                        for i in inputs)):
            raise wrong_value("inputs", inputs, "a sequence of argument positions, e.g. (0,)")
        inputs = tuple(inputs)
    _KINDS[cls] = LayerKind(dict(weights), inputs)


def kind_of(layer):
    """The :class:`LayerKind` of a layer, or None.

    A subclass counts as its registered base class unless it has a ``forward`` of its own,
    for then nobody knows what it does with its weights.
    """
    for cls in type(layer).__mro__:
        if cls in _KINDS:
            if type(layer).forward is not cls.forward:
                return None
            kind = _KINDS[cls]
            if kind.inputs is None:
                kind = replace(kind, inputs=tuple(range(layer.inputs)))
            return kind
    return None


def has_own_forward(layer):
    """Whether ``layer`` is of a subclass of a known class that overrides ``forward``."""
    return kind_of(layer) is None and any(cls in _KINDS for cls in type(layer).__mro__)


def known_classes():
    """Name -> class of every registered layer."""
    return {cls.__name__: cls for cls in _KINDS}
