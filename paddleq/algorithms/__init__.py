"""Algorithms for weights with their drivers, and distillation."""

from .awq import AWQ
from .base import ALGORITHMS, QuantizedWeight, Rounder, Smoother, register_algorithm
from .bias_correction import correct_biases
from .distillation import DistillResult, TrainConfig, register_distill_loss
from .equalization import EqualizationReport, equalize
from .float_ranges import OFMR
from .gptq import GPTQ
from .layerwise.driver import LayerwiseResult, quantize_layer_by_layer
from .layerwise.network_helper import NetworkHelper, StackHelper
from .linear import QuantizedLinears, RoundToNearest, quantize_linears
from .reconstruction import (
    BRECQ,
    ROUND_TYPES,
    AdaRound,
    QDrop,
    ReconstructionReport,
    reconstruct,
    register_round_type,
)
from .smoothquant import SmoothQuant

__all__ = ["ALGORITHMS", "AWQ", "BRECQ", "GPTQ", "OFMR", "ROUND_TYPES", "AdaRound", "DistillResult",
           "EqualizationReport", "LayerwiseResult", "NetworkHelper", "QDrop", "QuantizedLinears",
           "QuantizedWeight", "ReconstructionReport", "RoundToNearest", "Rounder", "SmoothQuant",
           "Smoother", "StackHelper", "TrainConfig", "correct_biases", "equalize",
           "quantize_layer_by_layer", "quantize_linears", "reconstruct", "register_algorithm",
           "register_distill_loss", "register_round_type"]
