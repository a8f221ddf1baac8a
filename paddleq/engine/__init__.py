"""Quantization engine of all front ends: select, prepare, calibrate, freeze."""

from .calibration import calibrate, calibrating, forward_arguments, iter_batches, run_batches
from .freeze import (
    check_restorable,
    convert,
    copy_of,
    freeze,
    restore_float,
)
from .fuse_blocks import blocks_of, find_block_structure, fuse_blocks, same_parameters
from .hooks import collect_inputs, eager_evaluation
from .prepare import check_model, prepare, quantize
from .provenance import plain_factory, plain_value, provenance_of, set_provenance
from .state import (
    check_initialized,
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
    "SummaryRow", "blocks_of", "calibrate", "calibrating", "check_initialized", "check_model",
    "check_quantized", "check_restorable", "collect_inputs", "convert", "copy_of",
    "disable_fake_quant", "disable_observer", "eager_evaluation", "enable_fake_quant",
    "enable_observer", "evaluation", "extra_state_keys", "fake_quantizers", "finalize",
    "finalized", "find_block_structure", "forward_arguments", "freeze", "fuse_blocks",
    "iter_batches", "layer_rows", "plain_factory", "plain_spec", "plain_value", "prepare",
    "provenance_of", "qparams_in", "quantization_off", "quantize", "quantized_layers",
    "quantizing_only", "restore_float", "run_batches", "same_parameters", "set_fake_quantize",
    "set_provenance", "set_state", "summary", "summary_rows",
]
