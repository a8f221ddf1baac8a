"""PaddleSlim's interface: ``QAT`` and ``PTQ``.

The front ends parse and validate their arguments and pass a :class:`~paddleq.config.QuantConfig`
to the engine.
"""

from .act_config import AutoCompressionConfig
from .auto_compression import AutoCompression
from .distill import QuantAware
from .ptq import PTQ
from .qat import QAT
from .quantizers import (
    AbsmaxQuantizer,
    HistQuantizer,
    KLQuantizer,
    MSEQuantizer,
    ObserverQuantizer,
    PerChannelAbsmaxQuantizer,
    PerChannelMSEQuantizer,
)

__all__ = ["PTQ", "QAT", "AbsmaxQuantizer", "AutoCompression", "AutoCompressionConfig",
           "HistQuantizer", "KLQuantizer", "MSEQuantizer", "ObserverQuantizer",
           "PerChannelAbsmaxQuantizer", "PerChannelMSEQuantizer", "QuantAware"]
