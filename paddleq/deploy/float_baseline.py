"""The float model beside a quantized one, in the same kinds of files, to measure it against."""

import os

from paddle.static import InputSpec

from ..export.formats import FORMATS
from ..export.onnx import write_program
from ..export.paddle.lower import remove_markers
from ..export.trace import trace
from .model_file import ModelFile


def float_twin(model, file, folder):
    """A :class:`~paddleq.deploy.model_file.ModelFile` of ``file``'s kind, in ``folder``; None where
    ``model`` is not quantized.

    Args:
        model: the ``paddle.nn.Layer`` that ``file`` was written of.
        file: says the kind, and the names and shapes of inputs.
    """
    spec = [InputSpec(list(port.shape), port.dtype, port.name) for port in file.ports]
    program, marks = trace(model, spec, FORMATS["onnx"]())
    if not marks:
        return None
    remove_markers(program, marks)
    path = os.path.join(folder, "float")
    if file.kind == ".onnx":
        write_program(program, [], path + ".onnx")
        return ModelFile(path + ".onnx")
    program.save(path + ".pdmodel", path + ".pdiparams")
    return ModelFile(path + ".pdmodel")
