"""Collectors of tensor statistics. Observers compute quantization parameters from them."""

from .abs_max import (
    AbsMaxObserver,
    AverageObserver,
    CurrentAbsMaxObserver,
    DeviationObserver,
    FixedScaleObserver,
    MeanMagnitudeObserver,
    MovingAverageAbsMaxObserver,
    RangeAbsMaxObserver,
)
from .base import OBSERVERS, Collector, Observer, register_observer
from .channel_stats import ChannelStats, HessianCollector, KVRange
from .histogram import HistogramObserver, KLObserver, MSEObserver
from .min_max import (
    CurrentMinMaxObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)

__all__ = [
    "OBSERVERS", "AbsMaxObserver", "AverageObserver", "ChannelStats", "Collector",
    "CurrentAbsMaxObserver", "CurrentMinMaxObserver", "DeviationObserver", "FixedScaleObserver",
    "HessianCollector", "HistogramObserver", "KLObserver", "KVRange", "MSEObserver",
    "MeanMagnitudeObserver", "MinMaxObserver", "MovingAverageAbsMaxObserver",
    "MovingAverageMinMaxObserver", "MovingAveragePerChannelMinMaxObserver", "Observer",
    "PerChannelMinMaxObserver", "RangeAbsMaxObserver", "register_observer",
]
