"""From a quantized model in memory to files."""

from .._checks import check_choice, check_prefix, wrong_type
from ..engine import check_filled, finalized, quantized_layers
from ..errors import ModelError
from ..nn.deployable import deployable_layers
from .format_limits import OnnxTarget
from .onnx import require_onnx, write_program
from .paddle.lower import rewrite
from .pir.lower import PirFiles, rewrite_pir
from .provenance_file import Provenance
from .trace import known_spec, trace

FORMATS = ("pdmodel", "pir", "onnx")


def save_quantized_model(model, path, input_spec=None, format="pdmodel"):
    """Write any quantized model for deployment, as ``path.pdmodel`` and ``path.pdiparams``.

    ``path.paddleq.yaml`` beside them says how they were made: versions, SHA-256 of the files, how
    the model was quantized, and what was done to each layer. Another format at the same ``path``
    is told of in the same file.

    The model may have been quantized by any front door, and hold :class:`~paddleq.nn.IntegerLinear`
    as well as layers that simulate quantization. What an IntegerLinear becomes:

    - int8 weights, symmetric, per tensor or per channel: int8 in the file, with
      ``dequantize_linear``.
    - Weights of 4 bits and fewer, in groups, or with zero points: the integers in the file as they
      are held, two of 4 bits in a byte, with the operators that make the float weight of them.
      Runtimes may do that once, when they load the model.
    - Quantized activations: ``quantize_linear`` and ``dequantize_linear``; per token with the
      operators around them that compute and apply the scale of each token.

    Paddle Inference, with its int8 mode switched on, runs int8 kernels where activations are
    static. OpenVINO holds the int8 weights as they are; it rounds activations as the file says, in
    float, and when left to itself it quantizes what goes into a product with int8 weights.

    Args:
        model: a quantized ``paddle.nn.Layer``. It is not changed.
        path: prefix of the files; folders are made.
        input_spec: list of ``paddle.static.InputSpec`` or example tensors. Dimensions of None may
            be of any size. Default: what a model with simulated layers was last called with, the
            batch dimension left open.
        format: "pdmodel" (default) for every runtime; "pir" (``path.json``), which Paddle 3 loads
            itself and which has no int8 kernels; or "onnx" (``path.onnx``), which holds zero
            points too: see :func:`paddleq.export.to_onnx`.

    Raises:
        ModelError: the model is not quantized.
        ConfigError, ConfigTypeError: a wrong format, path or input_spec.
        ExportError: activations that are quantized with a zero point, or to less than all integers
            of their bits: no runtime takes these from a .pdmodel. Names the layer.
        CalibrationError: names the layers that saw no calibration data.
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
    save(model, path, input_spec, format=format)


def save(model, path, input_spec=None, onnx_format=True, format="pdmodel", made_by=None):
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
            float model's and runs slower than it. "onnx": ``path.onnx``, as
            :func:`paddleq.export.to_onnx` writes it.
        made_by: what ``path.paddleq.yaml`` is to say of how the model was made: a dict of plain
            values. None: how its front door quantized it.

    Raises:
        ModelError: the model is not quantized.
        ConfigError: there is no such format.
        CalibrationError, ExportError, TraceError: see ``save_quantized_model``.
        DependencyError: "onnx" needs packages that are not installed.
    """
    check_choice("format", format, FORMATS)
    path = check_prefix("path", path)
    if not hasattr(model, "sublayers"):
        raise wrong_type("model", model, "a quantized paddle.nn.Layer")
    check_filled(model)
    if not (quantized_layers(model) or deployable_layers(model)):
        raise ModelError("model must be quantized before save_quantized_model, but has no "
                         "quantized layer; call quantize() first")
    with finalized(model):
        _write(model, path, input_spec, onnx_format, format, made_by)


def _write(model, path, input_spec, onnx_format, format, made_by):
    input_spec = known_spec(model, input_spec)
    asked = {} if onnx_format or format != "pdmodel" else {"onnx_format": False}
    record = Provenance.of_layer(format, model, made_by, **asked)
    if format == "onnx":
        require_onnx()
        program, marks = trace(model, input_spec, target=OnnxTarget())
        write_program(program, marks, path + ".onnx", record=record)
        return
    if format == "pir":
        program, marks = trace(model, input_spec, PirFiles.load)
        rewrite_pir(program, marks)
        program.save(path + ".json", path + ".pdiparams", record)
        return
    program, marks = trace(model, input_spec)
    rewrite(program, marks, onnx_format)
    program.save(path + ".pdmodel", path + ".pdiparams", record)
