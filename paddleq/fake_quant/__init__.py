"""Fake quantizers: observe a tensor, quantize and dequantize it, with fixed or learned scales."""

from .fake_quantize import FakeQuantize, State
from .lsq import LSQ, LSQPlus
from .pact import PACT

__all__ = ["LSQ", "PACT", "FakeQuantize", "LSQPlus", "State"]
