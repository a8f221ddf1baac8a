"""prepare -> calibrate -> simulate: the one engine behind every front door."""

from .calibrate import calibrate, model_inputs
from .prepare import check_model, prepare
from .states import (
    check_quantized,
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_observer,
    evaluation,
    fake_quantizers,
    finalize,
    quantization_off,
    quantized_layers,
    set_fake_quantize,
    set_state,
)
from .summary import extra_state_keys, summary

__all__ = [
    "calibrate", "check_model", "check_quantized", "disable_fake_quant", "disable_observer",
    "enable_fake_quant", "enable_observer", "evaluation", "extra_state_keys", "fake_quantizers",
    "finalize", "model_inputs", "prepare", "quantization_off", "quantized_layers",
    "set_fake_quantize", "set_state", "summary",
]
