"""The front doors of MindSpore Golden Stick: simulated QAT, and PTQ with policies."""

from ...algorithms import NetworkHelper
from .config import QuantDtype
from .ptq import PTQ
from .ptq_args import AWQConfig, GPTQQuantConfig, SmoothQuantConfig
from .ptq_config import PTQConfig
from .ptq_enums import (
    BackendTarget,
    OutliersSuppressionType,
    PrecisionRecovery,
    PTQMode,
    QuantGranularity,
)
from .simulated_qat import SimulatedQuantizationAwareTraining

__all__ = [
    "PTQ", "AWQConfig", "BackendTarget", "GPTQQuantConfig", "NetworkHelper",
    "OutliersSuppressionType", "PTQConfig", "PTQMode", "PrecisionRecovery", "QuantDtype",
    "QuantGranularity", "SimulatedQuantizationAwareTraining", "SmoothQuantConfig",
]
