"""From a quantized model in memory to files."""

import os
import types

from .._checks import check_choice, wrong_type
from ..engine import finalize, quantized_layers
from ..errors import ModelError
from .pir import PirFiles, rewrite_pir
from .rewrite import rewrite
from .trace import trace

FORMATS = ("pdmodel", "pir")


def save(model, path, input_spec=None, onnx_format=True, format="pdmodel"):
    """Write a quantized model as ``path.pdmodel`` or ``path.json``, and ``path.pdiparams``.

    Args:
        model: a quantized ``paddle.nn.Layer``. It is not changed.
        path: prefix of the files.
        input_spec: list of InputSpec or example tensors. None: what the model was last called
            with, the batch dimension left open.
        onnx_format: ``quantize_linear`` / ``dequantize_linear`` with integer weights, or
            ``fake_*`` operators with float weights.
        format: "pdmodel": integers, for every runtime, on every Paddle. "pir": ``path.json`` and
            ``path.pdiparams`` (so give each format a path of its own), the program that Paddle 3
            loads with ``paddle.jit.load`` and Paddle Inference. PIR has no int8 path: this
            simulates quantization in float, with float weights. The file is as large as the
            float model's and runs slower than it.

    Raises:
        ModelError: the model is not quantized.
        ConfigError: there is no such format.
        CalibrationError, ExportError, TraceError: see ``save_quantized_model``.
    """
    check_choice("format", format, FORMATS)
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise wrong_type("path", path, "a file prefix such as 'out/model'")
    path = os.fspath(path)
    if os.path.basename(path) == "" or os.path.isdir(path):
        raise ModelError(f"path must be the prefix of files such as 'out/model', but is the "
                         f"folder {path!r}")
    if not hasattr(model, "sublayers"):
        raise wrong_type("model", model, "a quantized paddle.nn.Layer")
    if not quantized_layers(model):
        raise ModelError("model must be quantized before save_quantized_model, but has no "
                         "quantized layer; call quantize() first")
    finalize(model)
    if input_spec is None and isinstance(model.forward, types.MethodType):
        # (A forward that to_static wrapped knows its own.)
        input_spec = model.__dict__.get("_paddleq_input_spec")
    if format == "pir":
        program, marks = trace(model, input_spec, PirFiles.load)
        rewrite_pir(program, marks)
        program.save(path + ".json", path + ".pdiparams")
        return
    program, marks = trace(model, input_spec)
    rewrite(program, marks, onnx_format)
    program.save(path + ".pdmodel", path + ".pdiparams")
