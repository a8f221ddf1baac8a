"""Private interfaces of Paddle that paddleq uses.

Nothing outside this package uses a private name of Paddle. Each entry has a test in
``tests/test_paddle_compat.py`` that uses it on the installed Paddle; an entry that a later Paddle
removes raises :class:`~paddleq.errors.DependencyError`, which names that version.
"""

from .execution import (
    TRACE_ATTRIBUTES,
    drop_programs,
    drop_programs_with,
    hybrid_topology,
    is_jit_loaded,
    is_pir_program,
    is_to_static_enabled,
    is_traced,
    is_traced_by_save,
    may_be_in_programs,
    names_unused_input,
    own_input_spec,
    recompute_calls,
    record_programs,
    run_untranslated,
    skip_bytecode_translation,
    with_batch_sampler,
)
from .layer_options import (
    RUNNING_STATISTICS,
    BatchNormState,
    ConvolutionGeometry,
    KeyValueAttention,
    batch_norm_state,
    convolution_geometry,
    convolution_groups,
    data_format,
    uses_paddle_keys_and_values,
)
from .layer_parts import (
    FORWARD_HOOKS,
    LAYER_CONTAINERS,
    BuffersKeepDtype,
    LoadNotice,
    StateDictNotice,
    copy_flops_counter,
    flops_counters,
    own_buffers,
    own_parameters,
    own_sublayers,
    register_call_hook,
    remove_call_hook,
    remove_hooks,
    unwrapped,
)
from .paddle_operators import (
    framework_proto,
    group_norm,
    legacy_operator,
    operator_descriptions,
    operator_slots,
    patched_operators,
    raised_by_paddle,
    trace_respects_order,
)
from .tensors import (
    _make_tensor,  # noqa: F401  (pickles of tensors name it in this package)
    dtype_name,
    make_tensors_picklable,
    scalar,
)

__all__ = [
    "FORWARD_HOOKS", "LAYER_CONTAINERS", "RUNNING_STATISTICS", "TRACE_ATTRIBUTES",
    "BatchNormState", "BuffersKeepDtype", "ConvolutionGeometry", "KeyValueAttention",
    "LoadNotice", "StateDictNotice", "batch_norm_state", "convolution_geometry",
    "convolution_groups", "copy_flops_counter", "data_format", "drop_programs",
    "drop_programs_with", "dtype_name", "flops_counters", "framework_proto", "group_norm",
    "hybrid_topology", "is_jit_loaded", "is_pir_program",
    "is_to_static_enabled", "is_traced", "is_traced_by_save", "legacy_operator",
    "make_tensors_picklable", "may_be_in_programs", "names_unused_input", "operator_descriptions",
    "operator_slots",
    "own_buffers", "own_input_spec", "own_parameters", "own_sublayers", "patched_operators",
    "raised_by_paddle", "recompute_calls", "record_programs", "register_call_hook",
    "remove_call_hook", "remove_hooks", "run_untranslated", "scalar", "skip_bytecode_translation",
    "trace_respects_order", "unwrapped", "uses_paddle_keys_and_values", "with_batch_sampler",
]
