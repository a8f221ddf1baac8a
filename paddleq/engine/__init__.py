"""prepare -> calibrate -> simulate: the one engine behind every front door."""

from .calibrate import calibrate, model_inputs
from .prepare import check_model, prepare
from .states import (
    check_quantized,
    evaluation,
    fake_quantizers,
    finalize,
    quantization_off,
    quantized_layers,
    set_state,
)
from .summary import extra_state_keys, summary

__all__ = [
    "calibrate", "check_model", "check_quantized", "evaluation", "extra_state_keys",
    "fake_quantizers", "finalize", "model_inputs", "prepare", "quantization_off",
    "quantized_layers", "set_state", "summary",
]
