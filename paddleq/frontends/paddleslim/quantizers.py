"""Quantizers of PaddleSlim's ``PTQ``, each the parameters of an observer."""

from functools import partial
from typing import Any

from ..._checks import check_float, check_int
from ...config import QuantizerConfig
from ...engine import plain_factory
from ...observers import (
    OBSERVERS,
    AbsMaxObserver,
    CurrentAbsMaxObserver,
    HistogramObserver,
    KLObserver,
)
from ...observers.histogram import HIST_PERCENT
from ...spec import PerChannel, QuantSpec


class _Quantizer:
    """Base class of the quantizers."""

    def __init__(self, quant_bits: int = 8) -> None:
        self.quant_bits = check_int("quant_bits", quant_bits, 1, 16)

    def as_recipe(self) -> dict:
        """Return this quantizer as recipes describe it."""
        return plain_factory(type(self), vars(self))

    def __repr__(self):
        shown = ", ".join(f"{key}={value!r}" for key, value in vars(self).items())
        return f"{type(self).__name__}({shown})"


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
        return QuantizerConfig(AbsMaxObserver, QuantSpec(self.quant_bits))

    def weight(self) -> QuantizerConfig:
        """Return the QuantizerConfig of a weight."""
        return QuantizerConfig(CurrentAbsMaxObserver, QuantSpec(self.quant_bits))


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
        return QuantizerConfig(CurrentAbsMaxObserver,
                               QuantSpec(self.quant_bits, granularity=PerChannel()))


class HistQuantizer(_Quantizer):
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

    def __init__(self, quant_bits: int = 8, bins: int = 1024, upsample_bins: int = 64,
                 hist_percent: float = HIST_PERCENT) -> None:
        super().__init__(quant_bits)
        self.bins = check_int("bins", bins, 2)
        self.upsample_bins = check_int("upsample_bins", upsample_bins, 1)
        self.hist_percent = check_float("hist_percent", hist_percent, 0.0, 1.0,
                                        open_low=True, open_high=True)

    def activation(self) -> QuantizerConfig:
        """Return the QuantizerConfig of an activation."""
        return QuantizerConfig(
            lambda spec, channels: HistogramObserver(
                spec, channels, self.bins, self.upsample_bins, self.hist_percent),
            QuantSpec(self.quant_bits))


class KLQuantizer(_Quantizer):
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

    def __init__(self, quant_bits: int = 8, bins: int = 1024, upsample_bins: int = 64) -> None:
        super().__init__(quant_bits)
        self.bins = check_int("bins", bins, 2)
        self.upsample_bins = check_int("upsample_bins", upsample_bins, 1)

    def activation(self) -> QuantizerConfig:
        """Return the QuantizerConfig of an activation."""
        return QuantizerConfig(
            lambda spec, channels: KLObserver(spec, channels, self.bins, self.upsample_bins),
            QuantSpec(self.quant_bits))


class ObserverQuantizer(_Quantizer):
    """Range of a registered observer. For activations.

    Args:
        observer: name of the observer, see :func:`~paddleq.observers.register_observer`.
        quant_bits: 1 to 16. Default 8.
        **kwargs: further arguments of the observer.

    Examples:
        >>> import paddleq
        >>> paddleq.PTQ("mse").activation_quantizer
        ObserverQuantizer(quant_bits=8, observer='mse')
    """

    def __init__(self, observer: str, quant_bits: int = 8, **kwargs: Any) -> None:
        super().__init__(quant_bits)
        self.observer = OBSERVERS.check(observer)
        vars(self).update(kwargs)

    def activation(self) -> QuantizerConfig:
        """Return the QuantizerConfig of an activation."""
        kwargs = {key: value for key, value in vars(self).items()
                  if key not in ("quant_bits", "observer")}
        return QuantizerConfig(partial(OBSERVERS[self.observer], **kwargs),
                               QuantSpec(self.quant_bits))


ACTIVATION_QUANTIZERS = {q.__name__: q for q in (KLQuantizer, HistQuantizer, AbsmaxQuantizer)}
WEIGHT_QUANTIZERS = {q.__name__: q for q in (AbsmaxQuantizer, PerChannelAbsmaxQuantizer)}
