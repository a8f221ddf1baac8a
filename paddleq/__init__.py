"""paddleq: quantization for PaddlePaddle models.

Names are imported when they are first used, so that ``paddleq --help`` does not wait for Paddle.
"""

import importlib as _importlib
import importlib.util as _importlib_util
import logging as _logging
import pkgutil as _pkgutil

# Paddle 2.6 brings its own zlib symbols; a later import of Python's zlib then crashes.
import zlib as _zlib  # noqa: F401
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _importlib_util.find_spec("paddle") is None:
    raise ImportError(
        "paddleq needs PaddlePaddle, whose CPU and GPU wheels exclude each other, so that it "
        "installs neither by itself: pip install 'paddleq[cpu]' or pip install 'paddleq[gpu]'")

if _TYPE_CHECKING:
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
    from .spec import PerBlock, PerChannel, PerGroup, PerTensor, PerToken, QuantSpec

__version__ = "0.1.0"

_logging.getLogger("paddleq").addHandler(_logging.NullHandler())

__all__ = [
    "LSQ", "PACT", "PTQ", "QAT", "DistillLoss", "FakeQuantize", "LSQPlus", "LayerConfig",
    "PerBlock", "PerChannel", "PerGroup", "PerTensor", "PerToken", "QuantConfig", "QuantSpec",
    "QuantizableFunction", "SavedModel", "State", "calibrate", "convert", "disable_fake_quant",
    "disable_observer", "distill", "enable_fake_quant", "enable_observer", "errors",
    "extra_state_keys", "freeze", "load_checkpoint", "local_statistics", "quant_post_dynamic",
    "quant_post_static", "quantize", "register_layer", "save_checkpoint", "save_quantized_model",
    "set_fake_quantize", "summary",
]

# Module -> names that it defines; the imports above tell type checkers the same.
_HOMES = {
    "._distributed": "local_statistics",
    ".algorithms.distillation": "DistillLoss",
    ".checkpoint": "load_checkpoint save_checkpoint",
    ".config": "LayerConfig QuantConfig",
    ".engine": "calibrate convert disable_fake_quant disable_observer enable_fake_quant "
               "enable_observer extra_state_keys freeze quantize set_fake_quantize summary",
    ".export": "save_quantized_model",
    ".fake_quant": "LSQ PACT LSQPlus",
    ".fake_quant.fake_quantize": "FakeQuantize State",
    ".frontends.paddleslim": "PTQ QAT",
    ".frontends.paddleslim.distill": "distill",
    ".frontends.paddleslim.quant_post": "quant_post_dynamic quant_post_static",
    ".nn": "QuantizableFunction register_layer",
    ".saved_model": "SavedModel",
    ".spec": "PerBlock PerChannel PerGroup PerTensor PerToken QuantSpec",
}
_MODULE_OF = {_name: _module for _module, _names in _HOMES.items() for _name in _names.split()}


def __getattr__(name):
    if name in _MODULE_OF:
        value = getattr(_importlib.import_module(_MODULE_OF[name], __name__), name)
    elif not name.startswith("__") and _importlib_util.find_spec(f"{__name__}.{name}"):
        value = _importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    modules = [each.name for each in _pkgutil.iter_modules(__path__)]
    return sorted({*globals(), *_MODULE_OF, *modules})
