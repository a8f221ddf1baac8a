"""What quantization does to a model: errors, sensitivities, pictures, a search within a drop."""

from .accuracy import AccuracyReport, keep_accuracy
from .history import Scale, ScaleHistory
from .layer_errors import LayerError, LayerErrors, layer_errors
from .report import report
from .sensitivity import Sensitivities, Sensitivity, sensitivity
from .visualdl_logger import VisualDLLogger

__all__ = ["AccuracyReport", "LayerError", "LayerErrors", "Scale", "ScaleHistory", "Sensitivities",
           "Sensitivity", "VisualDLLogger", "keep_accuracy", "layer_errors", "report",
           "sensitivity"]
