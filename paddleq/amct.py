"""AMCT's interface: ``from paddleq.amct import convert, quantize``."""

from .frontends import amct as _front_end
from .frontends.amct import *  # noqa: F403

__all__ = _front_end.__all__
