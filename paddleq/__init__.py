"""paddleq: quantization for PaddlePaddle models."""

import logging as _logging

# Paddle 2.6 brings its own zlib symbols; a later import of Python's zlib then crashes.
import zlib as _zlib  # noqa: F401

try:
    import paddle as _paddle  # noqa: F401
except ImportError as _error:
    raise ImportError(
        "paddleq needs PaddlePaddle, whose CPU and GPU wheels exclude each other, so that it "
        "installs neither by itself: pip install 'paddleq[cpu]' or pip install 'paddleq[gpu]'"
    ) from _error

from . import algorithms as algorithms
from . import amct as amct
from . import analysis as analysis
from . import config as config
from . import deploy as deploy
from . import errors as errors
from . import export as export
from . import golden_stick as golden_stick
from . import observers as observers
from . import paddleslim as paddleslim
from ._distributed import local_statistics
from .algorithms.distillation import DistillLoss
from .checkpoint import load_checkpoint, save_checkpoint
from .config import LayerConfig, QuantConfig
from .engine import (
    calibrate,
    convert,
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_observer,
    extra_state_keys,
    freeze,
    quantize,
    set_fake_quantize,
    summary,
)
from .export import save_quantized_model
from .fake_quant import LSQ, PACT, LSQPlus
from .fake_quant.fake_quantize import FakeQuantize, State
from .frontends.paddleslim import PTQ, QAT
from .frontends.paddleslim.distill import distill
from .frontends.paddleslim.quant_post import quant_post_dynamic, quant_post_static
from .nn import QuantizableFunction, register_layer
from .saved_model import SavedModel
from .spec import PerChannel, PerGroup, PerTensor, PerToken, QuantSpec

__version__ = "0.1.0"

_logging.getLogger("paddleq").addHandler(_logging.NullHandler())

__all__ = [
    "LSQ", "PACT", "PTQ", "QAT", "DistillLoss", "FakeQuantize", "LSQPlus", "LayerConfig",
    "PerChannel", "PerGroup", "PerTensor", "PerToken", "QuantConfig", "QuantSpec",
    "QuantizableFunction", "SavedModel", "State", "calibrate", "convert", "disable_fake_quant",
    "disable_observer", "distill", "enable_fake_quant", "enable_observer", "errors",
    "extra_state_keys", "freeze", "load_checkpoint", "local_statistics", "quant_post_dynamic",
    "quant_post_static", "quantize", "register_layer", "save_checkpoint", "save_quantized_model",
    "set_fake_quantize", "summary",
]
