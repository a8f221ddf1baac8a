"""The float model of a quantized one, and its comparison in a runtime.

The comparison tells if quantization causes a difference.
"""

import contextlib
import functools
import inspect
import os
from collections.abc import Mapping

from paddle.static import InputSpec

from .._layer_state import read_state
from .._paddle_compat import unwrapped
from ..engine import forward_arguments
from ..errors import PaddleqError
from ..export.formats import FORMATS
from ..export.onnx import write_program
from ..export.openvino import OpenVinoFormat
from ..export.paddle.lower import MarkerRemoval
from ..export.paddle.markers_from_program import raise_to_markers
from ..export.trace import trace
from .metrics import output_shapes, relative_error
from .model_file import ModelFile, model_files
from .runtimes.base import load_reference

_NOISE = 1e-3  # relative error of a float model that rounding may explain


def cause(result, runtime, file, float_model, run, threads, operator):
    """Return a sentence that says whether the float model has the same problem in a runtime.

    Sets ``result.float_error``.

    Args:
        run: function (session) that returns the outputs for each batch.
        operator: function (file) that returns the operator at which the error increases most, as
            the first item of a tuple, or None.
    """
    if float_model is None:
        return ("the float model is not known: give float_model to learn if quantization is the "
                "cause")
    onnx = file.kind != ".onnx" and ".onnx" in runtime.kinds
    way_out = "take format='onnx' or another runtime" if onnx else "take another runtime"
    try:
        outputs = []
        for load in (lambda: runtime.load(float_model, threads),
                     lambda: load_reference(float_model)):
            with contextlib.closing(load()) as session:
                outputs.append(run(session))
    except PaddleqError as refusal:
        return f"the float model does not run there either ({refusal}): {way_out}"
    if output_shapes(outputs[0]) != output_shapes(outputs[1]):
        return f"the float model returns other shapes in {runtime.title} too: {way_out}"
    result.float_error = relative_error(*outputs)
    if result.error is None or result.float_error < max(_NOISE, 0.3 * result.error):
        return (f"the float model is right in {runtime.title} (error {result.float_error:.1e}), "
                "so the difference comes from quantization there")
    found = operator(float_model)
    place = f", most at {found[0]}" if found else ""
    return (f"the float model differs by {result.float_error:.1e} in {runtime.title} too{place}, "
            f"which is not due to quantization: {way_out}")


def without_quantizers(file, folder):
    """Return the model of a quantized Paddle file without its quantizers, None for others."""
    if file.kind not in (".pdmodel", ".json") or not file.quantized:
        return None
    program = file.program.copy()
    with contextlib.suppress(PaddleqError):  # fake_* operators
        MarkerRemoval(program, raise_to_markers(program)).run()
        path = os.path.join(folder, "float")
        program.save(path + ".pdmodel", path + ".pdiparams")
        return ModelFile(path + ".pdmodel")
    return None


def float_models(reference, float_model, folder):
    """Return a function file -> file of the float model in the same format, or None."""
    if float_model is not None:
        known = {each.kind: each for each in model_files(float_model, "float_model")}
        return lambda file: known.get(file.kind)
    if not hasattr(reference, "sublayers"):
        return lambda file: None
    return functools.lru_cache(maxsize=None)(
        functools.partial(_export_float_model, reference, folder))


def _export_float_model(model, folder, file):
    """Return the float model of a Layer as a file of the same format; None if it is float."""
    args, kwargs = arguments_of(model, file, (
        InputSpec(list(info.shape), info.dtype, info.name) for info in file.inputs))
    program, marks = trace(model, kwargs or args, FORMATS["onnx"]())
    if not marks:
        return None
    MarkerRemoval(program, marks).run()
    path = os.path.join(folder, "float")
    if file.kind == ".onnx":
        write_program(program, [], path + ".onnx")
        return ModelFile(path + ".onnx")
    if file.kind == ".xml":
        OpenVinoFormat().write(program, [], path)
        return ModelFile(path + ".xml")
    program.save(path + ".pdmodel", path + ".pdiparams")
    return ModelFile(path + ".pdmodel")


def arguments_of(model, file, values):
    """Return the (args, kwargs) of a Layer for values of the inputs of ``file``, in order.

    They are a dict by name for a Layer that is called with keyword arguments or with a dict.
    """
    values = list(values)
    args, kwargs = read_state(model).example_call or [[], {}]
    if not kwargs and not any(isinstance(each, Mapping) for each in args):
        try:
            inspect.signature(unwrapped(model).forward).bind(*values)
            return values, {}
        except TypeError:
            pass
    return forward_arguments(model, {info.name: value for info, value in zip(file.inputs, values)},
                             "the reference")
