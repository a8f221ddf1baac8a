"""Running what was exported."""

from .predictor import Predictor
from .runtimes.paddle_inference import to_paddle_int8
from .runtimes.paddle_lite import to_lite
from .verify import verify
from .verify_report import Finding, Report

__all__ = ["Finding", "Predictor", "Report", "to_lite", "to_paddle_int8", "verify"]
