"""The front door of MindSpore Golden Stick: ``SimulatedQuantizationAwareTraining``."""

from .config import QuantDtype
from .simulated_qat import SimulatedQuantizationAwareTraining

__all__ = ["QuantDtype", "SimulatedQuantizationAwareTraining"]
