"""PaddleSlim's interface: ``from paddleq.paddleslim import PTQ, QAT, KLQuantizer``."""

from .frontends import paddleslim as _front_end
from .frontends.paddleslim import *  # noqa: F403

__all__ = _front_end.__all__
