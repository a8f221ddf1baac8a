"""Learned rounding of weights: AdaRound layer by layer, BRECQ and QDrop block by block."""

from .driver import reconstruct
from .settings import (
    BRECQ,
    ROUND_TYPES,
    AdaRound,
    QDrop,
    ReconstructionReport,
    register_round_type,
)

__all__ = ["BRECQ", "ROUND_TYPES", "AdaRound", "QDrop", "ReconstructionReport", "reconstruct",
           "register_round_type"]
