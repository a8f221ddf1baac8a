"""Layer classes that can be quantized, and the layer that makes functions quantizable.

A new layer type is one call of :func:`register_layer`.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from paddle import nn

from .._checks import check_int, wrong_type, wrong_value
from .._registry import Registry
from ..errors import ConfigError


@dataclass(frozen=True)
class LayerKind:
    """Weights and inputs of a layer class, as for :func:`register_layer`."""

    cls: type
    weights: Mapping[str, int]
    inputs: Optional[Tuple[int, ...]] = (0,)
    # Integer forms besides IntegerLayer, which is the form of all types.
    frozen: List[type] = field(default_factory=list, compare=False)

    @property
    def simulated(self) -> bool:
        """True if fake quantizers can simulate the integers."""
        return bool(self.weights) or self.inputs != ()


LAYER_TYPES: "Registry[LayerKind]" = Registry("layer type", definition=lambda kind: kind.cls)


def _registered(cls: type) -> Optional[LayerKind]:
    """Return the LayerKind of exactly this class, or None."""
    return next((kind for kind in LAYER_TYPES.values() if kind.cls is cls and kind.simulated),
                None)


def register_layer(cls: type, weights: Optional[Mapping[str, int]] = None,
                   inputs: Optional[Sequence[int]] = (0,)) -> None:
    """Make a layer class quantizable, under the name of the class.

    Its ``forward`` is not changed: it reads quantized inputs and, from the attributes in
    ``weights``, quantized weights.

    Args:
        cls: a subclass of ``paddle.nn.Layer``.
        weights: a dict from the attribute name of a weight to the axis of its output channels.
            Default ``{"weight": 0}``; ``{}`` for a layer without weights.
        inputs: positions of the arguments of ``forward`` to quantize, default (0,); or None if
            the attribute ``inputs`` of each layer is the number of its first arguments to
            quantize.

    Raises:
        ConfigError, ConfigTypeError: an invalid argument; a class that is registered with other
            weights or inputs; a name that another class has.

    Examples:
        >>> import paddle, paddleq
        >>> class SquareLinear(paddle.nn.Layer):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.kernel = self.create_parameter([4, 4])
        ...     def forward(self, x):
        ...         return paddle.matmul(x, self.kernel)
        >>> paddleq.register_layer(SquareLinear, weights={"kernel": 1})
        >>> net = paddle.nn.Sequential(SquareLinear())
        >>> _ = paddleq.QAT({"quantizable_layer_type": [SquareLinear]}).quantize(net)
        >>> type(net[0]).__name__
        'QuantizedSquareLinear'
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
                and all(type(i) is int and i >= 0 for i in inputs)):
            raise wrong_value("inputs", inputs, "a sequence of argument positions, e.g. (0,)")
        inputs = tuple(inputs)
    kind = LayerKind(cls, dict(weights), inputs)
    earlier = LAYER_TYPES.get(cls.__name__)
    if earlier is not None and earlier.cls is cls:
        kind.frozen.extend(earlier.frozen)
    known = _registered(cls)
    if known is None:
        LAYER_TYPES.register(cls.__name__)(kind)
    elif known != kind:
        raise ConfigError(f"layer type {cls.__name__!r} is already registered with weights="
                          f"{known.weights!r} and inputs={known.inputs!r}")


# Transposed weights are [in, out / groups, ...]: groups share the scale of a column.
for _cls, _axis, _inputs in ((nn.Conv1D, 0, (0,)), (nn.Conv2D, 0, (0,)), (nn.Conv3D, 0, (0,)),
                             (nn.Conv1DTranspose, 1, (0,)), (nn.Conv2DTranspose, 1, (0,)),
                             (nn.Linear, 1, (0,)), (nn.Embedding, 0, ())):
    register_layer(_cls, {"weight": _axis}, _inputs)


def frozen_form(layer_type: type) -> Callable[[type], type]:
    """Class decorator that registers an integer form of a layer type.

    A layer type that is not registered has no tensors that fake quantizers simulate.
    """
    def add(cls: Any) -> Any:
        if layer_type.__name__ not in LAYER_TYPES:
            register_layer(layer_type, {}, ())
        LAYER_TYPES[layer_type.__name__].frozen.append(cls)
        return cls

    return add


def frozen_classes() -> Dict[str, type]:
    """Return the integer forms that layer types register, by the names of their classes."""
    return {cls.__name__: cls for kind in LAYER_TYPES.values() for cls in kind.frozen}


def kind_of(layer: nn.Layer) -> Optional[LayerKind]:
    """Return the :class:`LayerKind` of a layer, or None if its class overrides ``forward``."""
    for cls in type(layer).__mro__:
        kind = _registered(cls)
        if kind is not None:
            if type(layer).forward is not cls.forward:
                return None  # the use of its weights is unknown
            if kind.inputs is None:
                kind = replace(kind, inputs=tuple(range(layer.inputs)))
            return kind
    return None


def has_own_forward(layer: nn.Layer) -> bool:
    """Return True if the class of ``layer`` overrides ``forward`` of a registered class."""
    return kind_of(layer) is None and any(map(_registered, type(layer).__mro__))


def known_classes() -> Dict[str, type]:
    """Return name -> class of every layer type that fake quantizers simulate."""
    return {name: kind.cls for name, kind in LAYER_TYPES.items() if kind.simulated}


class QuantizableFunction(nn.Layer):
    """Wrap a function so that its tensor arguments can be quantized.

    Create it in a model's ``__init__`` and call it in ``forward`` in place of the function. In a
    float model it only calls the function. ``QAT`` and ``PTQ`` quantize each of the first
    ``inputs`` positional arguments. A list of tensors (``paddle.concat``) is one argument whose
    members share one scale.

    Args:
        function: a callable on tensors.
        inputs: number of quantized positional arguments. Default 2.
        calls: number of calls in a forward pass. Each has quantizers, which calibration and
            training also create when the calls occur; give the number to load a state_dict with
            them, or for quantizers with parameters (LSQ, PACT). Default 1.

    Raises:
        ConfigTypeError, ConfigError: ``function`` is not callable, ``inputs`` or ``calls`` is
            below 1.

    Examples:
        >>> import paddle, paddleq
        >>> class Scores(paddle.nn.Layer):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.matmul = paddleq.QuantizableFunction(paddle.matmul)
        ...     def forward(self, q, k):
        ...         return self.matmul(q, k, transpose_y=True)
        >>> net = paddleq.QAT().quantize(Scores())
        >>> list(net(paddle.ones([2, 4]), paddle.ones([3, 4])).shape)
        [2, 3]
    """

    def __init__(self, function, inputs=2, calls=1):
        super().__init__()
        if not callable(function):
            raise wrong_type("function", function, "a callable")
        self.inputs = check_int("inputs", inputs, 1)
        self.calls = check_int("calls", calls, 1)
        self.function = function

    def forward(self, *args, **kwargs):
        """Call the function."""
        return self.function(*args, **kwargs)

    def extra_repr(self):
        return getattr(self.function, "__name__", repr(self.function))


register_layer(QuantizableFunction, weights={}, inputs=None)
