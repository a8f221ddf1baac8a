"""Quantizers of PaddleSlim's ``PTQ``, each the parameters of an observer."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Dict

from ..._checks import (
    check_arguments,
    check_choice,
    check_fields,
    check_float,
    check_int,
    checked_field,
    wrong_type,
)
from ...config import QuantizerConfig
from ...config.layer_config import activation_observers, check_activation_observer
from ...engine.provenance import plain_factory
from ...errors import ConfigError
from ...observers import (
    OBSERVERS,
    AbsMaxObserver,
    CurrentAbsMaxObserver,
    CurrentMSEObserver,
    HistogramObserver,
    KLObserver,
)
from ...observers.histogram import HIST_PERCENT
from ...spec import PerChannel, QuantSpec


@dataclass
class _Quantizer:
    """Base class of the quantizers; those with ``activation()`` are for activations."""

    quant_bits: int = checked_field(8, partial(check_int, low=1, high=16))

    __post_init__ = check_fields

    def as_recipe(self) -> dict:
        """Return this quantizer as recipes describe it."""
        return plain_factory(type(self), vars(self))

    def _config(self, observer, **spec):
        return QuantizerConfig(observer, QuantSpec(self.quant_bits, **spec))


@dataclass
class AbsmaxQuantizer(_Quantizer):
    """Range from the largest observed magnitude. For activations and weights.

    Args:
        quant_bits: 1 to 16. Default 8.

    Examples:
        >>> import paddleq
        >>> paddleq.PTQ(paddleq.paddleslim.AbsmaxQuantizer(quant_bits=8)).activation_quantizer
        AbsmaxQuantizer(quant_bits=8)
    """

    def activation(self) -> QuantizerConfig:
        """Return the QuantizerConfig of an activation."""
        return self._config(AbsMaxObserver)

    def weight(self) -> QuantizerConfig:
        """Return the QuantizerConfig of a weight."""
        return self._config(CurrentAbsMaxObserver)


@dataclass
class PerChannelAbsmaxQuantizer(_Quantizer):
    """Range from the largest magnitude of each output channel. For weights.

    Args:
        quant_bits: 1 to 16. Default 8.

    Examples:
        >>> import paddleq
        >>> paddleq.PTQ(weight_quantizer="PerChannelAbsmaxQuantizer").weight_quantizer
        PerChannelAbsmaxQuantizer(quant_bits=8)
    """

    def weight(self) -> QuantizerConfig:
        """Return the QuantizerConfig of a weight."""
        return self._config(CurrentAbsMaxObserver, granularity=PerChannel())


@dataclass
class MSEQuantizer(_Quantizer):
    """Range with the least squared error of a weight, for few bits.

    The range is searched once for a calibrated weight, and in each step in training; see
    :class:`~paddleq.observers.CurrentMSEObserver`. For activations use the observer "mse".

    Args:
        quant_bits: 2 to 16. Default 8.

    Examples:
        >>> import paddleq
        >>> paddleq.PTQ(weight_quantizer=paddleq.paddleslim.MSEQuantizer(4)).weight_quantizer
        MSEQuantizer(quant_bits=4)
    """

    quant_bits: int = checked_field(8, partial(check_int, low=2, high=16))

    def weight(self) -> QuantizerConfig:
        """Return the QuantizerConfig of a weight."""
        return self._config(CurrentMSEObserver)


@dataclass
class PerChannelMSEQuantizer(MSEQuantizer):
    """Range with the least squared error of each output channel of a weight, for few bits.

    Args:
        quant_bits: 2 to 16. Default 8.

    Examples:
        >>> import paddleq
        >>> paddleq.PTQ(weight_quantizer="PerChannelMSEQuantizer").weight_quantizer
        PerChannelMSEQuantizer(quant_bits=8)
    """

    def weight(self) -> QuantizerConfig:
        """Return the QuantizerConfig of a weight."""
        return self._config(CurrentMSEObserver, granularity=PerChannel())


@dataclass
class _HistogramQuantizer(_Quantizer):
    bins: int = checked_field(1024, partial(check_int, low=2))
    upsample_bins: int = checked_field(64, partial(check_int, low=1))

    def _histogram_config(self, observer, **arguments):
        return self._config(partial(observer, bins=self.bins, upsample_bins=self.upsample_bins,
                                    **arguments))


@dataclass
class HistQuantizer(_HistogramQuantizer):
    """Range that contains a share of the magnitudes. For activations.

    Args:
        quant_bits: 1 to 16. Default 8.
        bins: bins of the histogram. Default 1024.
        upsample_bins: parts into which a bin is split when the range grows. Default 64.
        hist_percent: the share, in (0, 1). Default 0.99999.

    Examples:
        >>> import paddleq
        >>> paddleq.PTQ("HistQuantizer", hist_percent=0.999).activation_quantizer.hist_percent
        0.999
    """

    hist_percent: float = checked_field(HIST_PERCENT, partial(
        check_float, low=0.0, high=1.0, open_low=True, open_high=True))

    def activation(self) -> QuantizerConfig:
        """Return the QuantizerConfig of an activation."""
        return self._histogram_config(HistogramObserver, hist_percent=self.hist_percent)


@dataclass
class KLQuantizer(_HistogramQuantizer):
    """Range with the smallest KL divergence. For activations.

    Args:
        quant_bits: 1 to 16. Default 8.
        bins: bins of the histogram. Default 1024.
        upsample_bins: parts into which a bin is split when the range grows. Default 64.

    Examples:
        >>> import paddleq
        >>> paddleq.PTQ().activation_quantizer
        KLQuantizer(quant_bits=8, bins=1024, upsample_bins=64)
    """

    def activation(self) -> QuantizerConfig:
        """Return the QuantizerConfig of an activation."""
        return self._histogram_config(KLObserver)


@dataclass(init=False)
class ObserverQuantizer(_Quantizer):
    """Range of a registered observer. For activations.

    Args:
        observer: name of the observer, see :func:`~paddleq.observers.register_observer`.
        quant_bits: 1 to 16. Default 8.
        **kwargs: further arguments of the observer.

    Raises:
        ConfigError: the observer is unknown, or does not take an argument.

    Examples:
        >>> import paddleq
        >>> paddleq.PTQ("mse", bins=512).activation_quantizer
        ObserverQuantizer(quant_bits=8, observer='mse', arguments={'bins': 512})
    """

    observer: str = checked_field("", check_activation_observer)
    arguments: Dict[str, Any] = field(default_factory=dict)

    def __init__(self, observer: str, /, quant_bits: int = 8, **kwargs: Any) -> None:
        self.observer, self.quant_bits, self.arguments = observer, quant_bits, kwargs
        check_fields(self)
        check_arguments(observer, OBSERVERS[observer], kwargs, ("spec", "channels"))

    def as_recipe(self) -> dict:
        """Return this quantizer as recipes describe it."""
        return {"name": self.observer, "quant_bits": self.quant_bits, **self.arguments}

    def activation(self) -> QuantizerConfig:
        """Return the QuantizerConfig of an activation."""
        return self._config(partial(OBSERVERS[self.observer], **self.arguments))


def make_quantizer(name: str, given: Any, side: str, arguments: Dict[str, Any]) -> Any:
    """Return the quantizer of a ``side``, "activation" or "weight".

    ``given`` is its name, the name of a registered observer, a class or an instance.
    """
    known = {cls.__name__: cls for cls in (KLQuantizer, HistQuantizer, AbsmaxQuantizer,
                                           PerChannelAbsmaxQuantizer, MSEQuantizer,
                                           PerChannelMSEQuantizer) if hasattr(cls, side)}
    if isinstance(given, str):
        observers = activation_observers() if side == "activation" else []
        if check_choice(name, given, [*known, *observers]) in observers:
            return ObserverQuantizer(given, **arguments)
        given = known[given]
    cls = given if isinstance(given, type) else type(given)
    if not (issubclass(cls, _Quantizer) and hasattr(cls, side)):
        raise wrong_type(name, given, f"one of {', '.join(known)}, as a name, class or instance")
    if given is cls:
        check_arguments(cls.__name__, cls, arguments)
        return cls(**arguments)
    if arguments:
        raise ConfigError(f"{name} is already built ({given!r}); its arguments "
                          f"{', '.join(arguments)} must be given when it is built")
    return given
