"""The front doors of MindSpore Golden Stick: simulated QAT, and PTQ with policies."""

from .config import QuantDtype
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
    "AWQConfig", "BackendTarget", "GPTQQuantConfig", "OutliersSuppressionType", "PTQConfig",
    "PTQMode", "PrecisionRecovery", "QuantDtype", "QuantGranularity", "SmoothQuantConfig",
    "SimulatedQuantizationAwareTraining",
]
