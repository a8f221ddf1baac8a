"""Collectors of tensor statistics. Observers compute quantization parameters from them."""

from .abs_max import (
    AbsMaxObserver,
    AverageObserver,
    CurrentAbsMaxObserver,
    CurrentMSEObserver,
    DeviationObserver,
    FixedScaleObserver,
    MeanMagnitudeObserver,
    MovingAverageAbsMaxObserver,
    RangeAbsMaxObserver,
)
from .base import OBSERVERS, Collector, Observer, register_observer
from .channel_stats import ChannelStats, HessianCollector, KVRange
from .histogram import EMDObserver, HistogramObserver, KLObserver, MSEObserver, PTFObserver
from .min_max import (
    CurrentMinMaxObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)

__all__ = [
    "OBSERVERS", "AbsMaxObserver", "AverageObserver", "ChannelStats", "Collector",
    "CurrentAbsMaxObserver", "CurrentMSEObserver", "CurrentMinMaxObserver", "DeviationObserver",
    "EMDObserver", "FixedScaleObserver", "HessianCollector", "HistogramObserver", "KLObserver",
    "KVRange", "MSEObserver", "MeanMagnitudeObserver", "MinMaxObserver",
    "MovingAverageAbsMaxObserver", "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver", "Observer", "PTFObserver",
    "PerChannelMinMaxObserver", "RangeAbsMaxObserver", "register_observer",
]
