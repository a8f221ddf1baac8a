"""Learned rounding of weights: AdaRound layer by layer, BRECQ and QDrop block by block."""

from .driver import reconstruct
from .settings import ROUND_TYPES, AdaRound, ReconstructionReport, register_round_type

__all__ = ["ROUND_TYPES", "AdaRound", "ReconstructionReport", "reconstruct",
           "register_round_type"]
