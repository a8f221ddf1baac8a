"""Observers: they watch tensors and say which range is worth representing."""

from .abs_max import AbsMaxObserver, AverageObserver, CurrentAbsMaxObserver, RangeAbsMaxObserver
from .base import Observer
from .histogram import HistogramObserver, KLObserver, MSEObserver
from .min_max import MinMaxObserver
from .moving_average import MovingAverageAbsMaxObserver

__all__ = [
    "AbsMaxObserver", "AverageObserver", "CurrentAbsMaxObserver", "HistogramObserver",
    "KLObserver", "MSEObserver", "MinMaxObserver", "MovingAverageAbsMaxObserver", "Observer",
    "RangeAbsMaxObserver",
]
