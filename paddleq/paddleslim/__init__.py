"""PaddleSlim's interface under PaddleSlim's names.

Code for PaddleSlim's quantization runs with ``paddleslim`` replaced by ``paddleq.paddleslim``:
``from paddleq.paddleslim import PTQ, QAT``, ``from paddleq.paddleslim.dygraph.quant import QAT``,
``import paddleq.paddleslim as paddleslim`` with ``paddleslim.quant.quant_post_static``.
"""

from ..frontends import paddleslim as _front_end
from ..frontends.paddleslim import *  # noqa: F403
from . import auto_compression as auto_compression
from . import dygraph as dygraph
from . import quant as quant

__all__ = _front_end.__all__
