"""MindSpore Golden Stick's interface: simulated QAT, and PTQ of transformers."""

from ...algorithms import NetworkHelper
from .enums import (
    BackendTarget,
    OutliersSuppressionType,
    PrecisionRecovery,
    PTQMode,
    QuantDtype,
    QuantGranularity,
)
from .ptq import PTQ
from .ptq_config import (
    ActivationObserverConfig,
    AWQConfig,
    GPTQQuantConfig,
    PTQConfig,
    SmoothQuantConfig,
)
from .simulated_qat import SimulatedQuantizationAwareTraining

__all__ = [
    "PTQ", "AWQConfig", "ActivationObserverConfig", "BackendTarget", "GPTQQuantConfig",
    "NetworkHelper", "OutliersSuppressionType", "PTQConfig", "PTQMode", "PrecisionRecovery",
    "QuantDtype", "QuantGranularity", "SimulatedQuantizationAwareTraining", "SmoothQuantConfig",
]
