"""Export of a quantized model in memory to files."""

import os
from typing import Any, Dict, Optional, Sequence, Union

import paddle

from .._checks import check_choice, check_prefix, wrong_type
from ..engine import check_initialized, finalized, quantized_layers
from ..errors import ConfigError, ModelError
from ..nn.deployable import deployable_layers
from .formats import FORMATS
from .provenance_file import Provenance
from .trace import trace
from .trace_checks import warn_observing

Path = Union[str, "os.PathLike[str]"]


def save_quantized_model(model: paddle.nn.Layer, path: Path, input_spec: Optional[Sequence] = None,
                         format: str = "pdmodel", target: Optional[str] = None) -> None:
    """Export any quantized model for deployment, as ``path.pdmodel`` and ``path.pdiparams``.

    ``path.paddleq.yaml`` beside them records how they were made: versions, SHA-256 of the files,
    the quantization of the model and a summary of its layers. Exports in several formats at the
    same ``path`` share this file.

    The model may have been quantized by any front end, and contain
    :class:`~paddleq.nn.IntegerLinear` as well as layers with simulated quantization. An
    IntegerLinear is exported as follows:

    - int8 weights, symmetric, per tensor or per channel: int8 in the file, with
      ``dequantize_linear``.
    - Weights of 4 bits and fewer, in groups, or with zero points: the stored integers, two of 4
      bits in a byte, with the operators that compute the float weight. Runtimes may do that once,
      when they load the model.
    - Weights in a float data type: the codes, with the operators that look up their values.
    - Quantized activations: ``quantize_linear`` and ``dequantize_linear``; per token with the
      operators around them that compute and apply the scale of each token. Activations in a float
      data type are an ExportError: no runtime has operators for them.

    Paddle Inference in int8 mode runs int8 kernels for convolutions with static activations, and
    for Linears with ``target="paddle_int8"``. OpenVINO runs them with
    ``format="openvino"``; of a ``.pdmodel`` it keeps the int8 weights and rounds activations as the
    file specifies, in float.

    The state of the model does not change. A model of :class:`paddleq.PTQ` that was calibrated by
    calling it still computes in float and observes after the export, which logs a warning. Call
    :meth:`paddleq.PTQ.convert` to evaluate the quantized model, or run the file with
    :class:`paddleq.deploy.Predictor`.

    Args:
        model: a quantized ``paddle.nn.Layer``. It is not changed.
        path: prefix of the files; folders are created.
        input_spec: list of ``paddle.static.InputSpec`` or example tensors, one of them, or a dict
            by the names of arguments. Dimensions of None are dynamic. Inputs that no output
            depends on are inputs of the file too. Default: the inputs of the last call of a model
            with simulated layers, with a dynamic batch dimension; a tensor that was a keyword
            argument or the value of a dict has that name in the file.
        format: a registered format: "pdmodel" (default): integers, for every runtime, on every
            Paddle. "pir": ``path.json`` and ``path.pdiparams`` (so each format needs another path),
            which ``paddle.jit.load`` and Paddle Inference of Paddle 3 load. PIR has no int8 path:
            quantization is simulated in float, with float weights. "onnx": ``path.onnx``, which
            represents zero points too: see :func:`paddleq.export.to_onnx`. "openvino":
            ``path.xml`` and ``path.bin``, whose quantized convolutions and products OpenVINO
            computes with int8 kernels: see :func:`paddleq.export.to_openvino`.
        target: the runtime that the file is for. For "pdmodel": "any" (default), right in every
            runtime; "paddle_int8", faster and only for Paddle Inference with
            ``enable_mkldnn_int8()``: its Linears have int8 kernels (see
            :func:`paddleq.deploy.to_paddle_int8`). For "onnx": "onnxruntime" (default) or "plain",
            as for :func:`paddleq.export.to_onnx`.

    Raises:
        ModelError: the model is not quantized.
        ConfigError, ConfigTypeError: an invalid format, target, path or input_spec.
        ExportError: activations with a zero point, or with fewer integers than their bits allow,
            which no runtime supports in a .pdmodel; layers of the exported graph without
            calibration data; quantized layers that the trace lost. Names the layers.
        CalibrationError: no layer has calibration data.
        TraceError: Paddle could not trace the model into a program.

    Examples:
        >>> import os, tempfile
        >>> import paddle, paddleq
        >>> from paddleq.nn import IntegerLinear
        >>> model = paddle.nn.Sequential(IntegerLinear(8, 4, paddleq.QuantSpec(4)))
        >>> spec = [paddle.static.InputSpec([None, 8], "float32")]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paddleq.save_quantized_model(model, os.path.join(folder, "model"), spec)
        ...     sorted(os.listdir(folder))
        ['model.paddleq.yaml', 'model.pdiparams', 'model.pdmodel']
    """
    save(model, path, input_spec, format=format, target=target)


def check_target(format: str, target: Any, onnx_format: bool = True) -> Dict[str, str]:
    """Return ``target`` as an option of the format, {} for its default.

    Raises:
        ConfigError, ConfigTypeError: not a target of the format.
    """
    known = FORMATS[format].targets
    if not known:
        raise ConfigError(f"target is for the formats {', '.join(_with_targets())}, not for "
                          f"{format!r}; remove target={target!r}")
    check_choice("target", target, known)
    if target == "paddle_int8" and not onnx_format:
        raise ConfigError("target='paddle_int8' needs weights of integers; remove "
                          "onnx_format=False")
    return {} if target == known[0] else {"target": target}


def _with_targets():
    return [name for name in FORMATS if FORMATS[name].targets]


def save(model: paddle.nn.Layer, path: Path, input_spec: Optional[Sequence] = None,
         onnx_format: bool = True, format: str = "pdmodel",
         made_by: Optional[dict] = None, target: Optional[str] = None) -> None:
    """Export a quantized model like :func:`save_quantized_model`, with two more options.

    Args:
        onnx_format: for "pdmodel": ``quantize_linear`` / ``dequantize_linear`` with integer
            weights, or ``fake_*`` operators with float weights.
        made_by: dict of plain values for ``path.paddleq.yaml`` that describes how the model was
            made. None: the quantization that the front end recorded.

    Raises:
        DependencyError: the format needs packages that are not installed.
        ModelError, ConfigError, CalibrationError, ExportError, TraceError: see
            ``save_quantized_model``.
    """
    exporter = FORMATS[format]()
    path = check_prefix("path", path)
    if not hasattr(model, "sublayers"):
        raise wrong_type("model", model, "a quantized paddle.nn.Layer")
    check_initialized(model)
    if not (quantized_layers(model) or deployable_layers(model)):
        raise ModelError("model must be quantized before save_quantized_model, but has no "
                         "quantized layer; call quantize() first")
    if not onnx_format and format != "pdmodel":
        raise ConfigError(f"onnx_format=False is for the format 'pdmodel', not for {format!r}")
    options: Dict[str, Any] = {} if onnx_format else {"onnx_format": False}
    if target is not None:
        options.update(check_target(format, target, onnx_format))
    exporter.require()
    with finalized(model):
        provenance = Provenance.of_layer(format, model, made_by, **options)
        program, marks = trace(model, input_spec, exporter)
    exporter.write(program, marks, path, provenance, **options)
    warn_observing(model)
