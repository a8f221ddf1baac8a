"""Running what was exported."""

from .predictor import Predictor
from .runtimes.paddle_inference import to_paddle_int8
from .runtimes.paddle_lite import to_lite
from .saturation import has_vnni
from .verify import verify
from .verify_report import Finding, Report

__all__ = ["Finding", "Predictor", "Report", "has_vnni", "to_lite", "to_paddle_int8", "verify"]
