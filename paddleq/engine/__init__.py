"""prepare -> calibrate -> simulate: the one engine behind every front door."""

from .calibration import calibrate, calibrating, forward_arguments, iter_batches, run_batches
from .freeze import convert, copy_of, freeze, freeze_weights_of
from .fuse_blocks import arrange, blocks_of, find_arrangement, same_parameters
from .hooks import (
    capture_calls,
    capture_inputs,
    collect_inputs,
    eager_evaluation,
    patched_forward,
)
from .prepare import check_model, prepare, quantize
from .provenance import method_of, named, plain, say_method
from .restore_float import check_can_leave, leave_float
from .state import (
    check_filled,
    check_quantized,
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_observer,
    evaluation,
    fake_quantizers,
    finalize,
    finalized,
    quantization_off,
    quantized_layers,
    quantizing_only,
    set_fake_quantize,
    set_state,
)
from .summary import (
    SummaryRow,
    extra_state_keys,
    layer_rows,
    plain_spec,
    qparams_in,
    summary,
    summary_rows,
)

__all__ = [
    "SummaryRow", "arrange", "blocks_of", "calibrate", "calibrating", "capture_calls",
    "capture_inputs", "check_can_leave", "check_filled", "check_model", "check_quantized",
    "collect_inputs", "convert", "copy_of", "disable_fake_quant", "disable_observer",
    "eager_evaluation", "enable_fake_quant", "enable_observer", "evaluation", "extra_state_keys",
    "fake_quantizers", "finalize", "finalized", "find_arrangement", "forward_arguments", "freeze",
    "freeze_weights_of", "iter_batches", "layer_rows", "leave_float", "method_of", "named",
    "patched_forward", "plain", "plain_spec", "prepare", "qparams_in", "quantization_off",
    "quantize", "quantized_layers", "quantizing_only", "run_batches", "same_parameters",
    "say_method", "set_fake_quantize", "set_state", "summary", "summary_rows",
]
