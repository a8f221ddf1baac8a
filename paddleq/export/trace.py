"""Trace a quantized model: Paddle traces the float model, with markers in it."""

import contextlib
import os
from typing import Callable

import paddle

from .._atomic_write import temporary_folder
from .._layer_state import read_state
from .._paddle_compat import TRACE_ATTRIBUTES
from .._registry import Registry
from ..engine.state import evaluation
from ..errors import ExportError, TraceError
from ..nn.tracing import recording
from .formats import FORMATS
from .pir_to_program import load_program
from .program.passes.neutral_operators import remove_neutral_operators
from .program.program import Program
from .trace_checks import check_lost, left_layers_recorded, warn_added
from .trace_recorder import ExportRecorder
from .traced_call import TracedCall, save_traced

# Functions (program, marks, model) that change a traced Program and the marks in it, in place.
PROGRAM_PASSES: "Registry[Callable]" = Registry("pass over traced programs")
register_program_pass = PROGRAM_PASSES.register


def trace(model, input_spec, format=None):
    """Trace a quantized model to its float program with markers. The model is not changed.

    Args:
        format: the :class:`~paddleq.export.formats.Format` to export to. Default: "pdmodel".

    Returns:
        Tuple (the program that ``format.read`` returns, list of marks).

    Raises ExportError for quantizers in the program that have no scale or that the format cannot
    represent, and for quantized layers that the trace lost.
    """
    with evaluation(model):
        format = format or FORMATS["pdmodel"]()
        recorder = ExportRecorder(model, format)
        if hasattr(model, "to_program"):  # a SavedModel has its program already
            if format.read is not None:
                raise ExportError("a SavedModel can be exported as pdmodel, onnx and openvino, "
                                  "not as pir")
            program = model.to_program(recorder)
            recorder.refusals.check()
        else:
            with recording(recorder), left_layers_recorded(model, recorder):
                program = trace_float(model, input_spec, format.read or load_program)
            if isinstance(program, Program):
                remove_neutral_operators(program, _neutral_parameters(model))
            lowering = format.lowering(program, recorder.marks)
            numbers = None if lowering is None else lowering.marker_numbers()
            recorder.refusals.check(numbers)
            if numbers is not None:
                check_lost(model, recorder, numbers, program.arrays, input_spec)
            warn_added(recorder.added)
            if isinstance(program, Program):
                for change in PROGRAM_PASSES.values():
                    change(program, recorder.marks, model)
    return program, recorder.marks


def _neutral_parameters(model):
    return [getattr(layer, name).name for layer in model.sublayers(include_self=True)
            for name in read_state(layer).neutral if getattr(layer, name, None) is not None]


def trace_float(model, input_spec, read=load_program):
    """Trace ``model`` in evaluation mode, and read the files that Paddle writes with ``read``.

    Raises:
        ConfigError, ConfigTypeError: see :class:`~paddleq.export.traced_call.TracedCall`.
        TraceError: Paddle could not trace the model.
        UnsupportedOperatorError: Paddle 3 traced an operator that the legacy format lacks.
    """
    call = TracedCall.of(model, input_spec)
    with evaluation(model), _trace_attributes_restored(model), temporary_folder() as folder:
        path = os.path.join(folder, "model")
        try:
            save_traced(model, path, call)
        except Exception as error:
            raise TraceError(f"Paddle {paddle.__version__} could not trace the model: "
                             f"{type(error).__name__}: {error}") from error
        # Paddle 3 writes .json, Paddle 2 .pdmodel.
        ending = ".json" if os.path.exists(path + ".json") else ".pdmodel"
        params = path + ".pdiparams"
        return read(path + ending, params if os.path.exists(params) else None)


@contextlib.contextmanager
def _trace_attributes_restored(model):
    """Remove the attributes that tracing adds to layers, so that the model trains as before."""
    kept = [(layer, {name: layer.__dict__[name] for name in TRACE_ATTRIBUTES
                     if name in layer.__dict__})
            for layer in model.sublayers(include_self=True)]
    try:
        yield
    finally:
        for layer, attributes in kept:
            for name in TRACE_ATTRIBUTES:
                layer.__dict__.pop(name, None)
            layer.__dict__.update(attributes)
