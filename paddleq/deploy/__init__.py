"""Deployment: run exported models in the installed runtimes and verify them."""

from .explain import ExplainedOperator, Explanation, explain
from .generator import Generation, Generator
from .predictor import Predictor
from .runtimes.paddle_inference import to_paddle_int8
from .runtimes.paddle_lite import to_lite
from .saturation import has_vnni
from .verify import Report, RuntimeResult, verify

__all__ = ["ExplainedOperator", "Explanation", "Generation", "Generator", "Predictor", "Report",
           "RuntimeResult", "explain", "has_vnni", "to_lite", "to_paddle_int8", "verify"]
