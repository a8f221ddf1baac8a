"""What quantization does to a model: errors, sensitivities, and a search within a stated drop."""

from .accuracy import AccuracyReport, keep_accuracy
from .layer_errors import LayerError, LayerErrors, layer_errors
from .sensitivity import Sensitivities, Sensitivity, sensitivity

__all__ = ["AccuracyReport", "LayerError", "LayerErrors", "Sensitivities", "Sensitivity",
           "keep_accuracy", "layer_errors", "sensitivity"]
