"""Analysis of quantized models: layer errors, sensitivity, reports, perplexity, accuracy-aware
fallback.
"""

from .accuracy import AccuracyReport, keep_accuracy
from .layer_errors import LayerError, LayerErrors, layer_errors
from .mixed_bits import BitsReport
from .perplexity import Perplexity, perplexity
from .report.report import report
from .scale_history import Scale, ScaleHistory
from .sensitivity import Sensitivities, Sensitivity, sensitivity
from .visualdl import VisualDLLogger

__all__ = ["AccuracyReport", "BitsReport", "LayerError", "LayerErrors", "Perplexity", "Scale",
           "ScaleHistory", "Sensitivities", "Sensitivity", "VisualDLLogger", "keep_accuracy",
           "layer_errors", "perplexity", "report", "sensitivity"]
