"""``paddleslim.dygraph.quant``: ``QAT`` and ``PTQ``."""

from ...frontends.paddleslim import PTQ, QAT

__all__ = ["PTQ", "QAT"]
