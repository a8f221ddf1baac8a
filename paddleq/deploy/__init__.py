"""Running what was exported."""

from .predictor import Predictor
from .runtimes.paddle_lite import to_lite

__all__ = ["Predictor", "to_lite"]
