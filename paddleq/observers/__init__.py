"""Observers: they watch tensors and say which range is worth representing."""

from .abs_max import AbsMaxObserver, AverageObserver, CurrentAbsMaxObserver, RangeAbsMaxObserver
from .base import OBSERVERS, Observer, register_observer
from .fixed_scale import FixedScaleObserver
from .histogram import HistogramObserver, KLObserver, MSEObserver
from .lsq_init import DeviationObserver, MeanMagnitudeObserver
from .min_max import (
    CurrentMinMaxObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)
from .moving_average import MovingAverageAbsMaxObserver

__all__ = [
    "AbsMaxObserver", "AverageObserver", "CurrentAbsMaxObserver", "CurrentMinMaxObserver",
    "DeviationObserver", "FixedScaleObserver", "HistogramObserver", "KLObserver", "MSEObserver",
    "MeanMagnitudeObserver", "MinMaxObserver",
    "MovingAverageAbsMaxObserver", "MovingAverageMinMaxObserver",
    "MovingAveragePerChannelMinMaxObserver", "Observer", "PerChannelMinMaxObserver",
    "OBSERVERS", "RangeAbsMaxObserver", "register_observer",
]
