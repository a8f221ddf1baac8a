"""Comparison of the float model in a runtime, which tells if quantization causes a difference."""

import contextlib
import os

from ..errors import PaddleqError
from ..export.paddle.lower import MarkerRemoval
from ..export.paddle.markers_from_program import raise_to_markers
from .metrics import output_shapes, relative_error
from .model_file import ModelFile
from .runtimes.base import load_reference

_NOISE = 1e-3  # relative error of a float model that rounding may explain


def cause(result, runtime, file, float_model, batches, threads, operator):
    """Return a sentence that says whether the float model has the same problem in a runtime.

    Sets ``result.float_error``.

    Args:
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
                outputs.append([session.run(batch) for batch in batches])
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
