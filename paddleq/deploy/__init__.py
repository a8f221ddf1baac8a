"""Running what was exported."""

from .predictor import Predictor
from .report import Finding, Report
from .runtimes.paddle_inference import to_paddle_int8
from .runtimes.paddle_lite import to_lite
from .verify import verify

__all__ = ["Finding", "Predictor", "Report", "to_lite", "to_paddle_int8", "verify"]
