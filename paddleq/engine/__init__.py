"""Quantization engine of all front ends: select, prepare, calibrate, freeze."""

from .calibration import calibrate, calibrating, forward_arguments, iter_batches, run_batches
from .freeze import convert, copy_of, freeze, restore_float
from .fuse_blocks import blocks_of, find_block_structure, fuse_blocks
from .hooks import collect_inputs, eager_evaluation
from .prepare import check_model, prepare, quantize
from .provenance import set_provenance
from .select import warn_unmatched_types
from .state import (
    check_initialized,
    check_quantized,
    disable_fake_quant,
    disable_observer,
    enable_fake_quant,
    enable_observer,
    fake_quantizers,
    finalize,
    finalized,
    is_left_float,
    leave_uncalled_float,
    quantization_off,
    quantized_layers,
    quantizing_only,
    set_fake_quantize,
    set_state,
)
from .summary import extra_state_keys, summary, summary_rows

__all__ = [
    "blocks_of", "calibrate", "calibrating", "check_initialized", "check_model",
    "check_quantized", "collect_inputs", "convert", "copy_of", "disable_fake_quant",
    "disable_observer", "eager_evaluation", "enable_fake_quant", "enable_observer",
    "extra_state_keys", "fake_quantizers", "finalize", "finalized", "find_block_structure",
    "forward_arguments", "freeze", "fuse_blocks", "is_left_float", "iter_batches",
    "leave_uncalled_float", "prepare", "quantization_off", "quantize", "quantized_layers",
    "quantizing_only", "restore_float", "run_batches", "set_fake_quantize", "set_provenance",
    "set_state", "summary", "summary_rows", "warn_unmatched_types",
]
