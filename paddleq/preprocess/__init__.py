"""What training learns of quantization: clipping ranges, steps, offsets."""

from .lsq import LSQ, LSQPlus
from .pact import PACT

__all__ = ["LSQ", "LSQPlus", "PACT"]
