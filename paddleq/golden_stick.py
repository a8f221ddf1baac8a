"""MindSpore Golden Stick's interface: ``from paddleq.golden_stick import PTQ, PTQConfig``."""

from .frontends import golden_stick as _front_end
from .frontends.golden_stick import *  # noqa: F403

__all__ = _front_end.__all__
