"""The front door of PaddleSlim: ``QAT`` and ``PTQ``.

Nothing is quantized here. The configuration is checked, said in the engine's language, and the
engine does the rest.
"""

from .ptq import PTQ
from .qat import QAT

__all__ = ["PTQ", "QAT"]
