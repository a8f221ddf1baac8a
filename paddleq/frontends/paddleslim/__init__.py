"""PaddleSlim's interface: ``QAT`` and ``PTQ``.

The front ends parse and validate their arguments and pass a :class:`~paddleq.config.QuantConfig`
to the engine.
"""

from .ptq import PTQ
from .qat import QAT
from .quantizers import (
    AbsmaxQuantizer,
    HistQuantizer,
    KLQuantizer,
    ObserverQuantizer,
    PerChannelAbsmaxQuantizer,
)

__all__ = ["PTQ", "QAT", "AbsmaxQuantizer", "HistQuantizer", "KLQuantizer", "ObserverQuantizer",
           "PerChannelAbsmaxQuantizer"]
