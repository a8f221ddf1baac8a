"""The way out to ONNX: a float graph with QuantizeLinear and DequantizeLinear put in."""

import os

from ..._checks import check_choice, check_int, check_prefix, wrong_type
from ...engine import finalized
from ...errors import FormatError
from ..format_limits import OnnxTarget
from ..paddle.markers_from_program import to_marks
from ..pir_to_program import load_program
from ..provenance_file import Provenance
from ..trace import known_spec, trace
from .export import onnx_model, write_onnx
from .float_graph import require_onnx
from .opset import HIGHEST, LOWEST

TARGETS = ("onnxruntime", "plain")


def to_onnx(model, path, input_spec=None, opset=None, target="onnxruntime"):
    """Write a model as ONNX, its quantization as QuantizeLinear and DequantizeLinear.

    The file holds integer weights, with a scale for each channel where there are such, and zero
    points. Names of inputs, outputs and parameters are those of a ``.pdmodel``; dimensions that
    the model leaves open stay open. ``path.paddleq.yaml``, without ``.onnx``, says how it was made.

    Args:
        model: a ``paddle.nn.Layer``, quantized or float; or the prefix of a saved model, whose
            ``.pdmodel`` (or else ``.json``) and ``.pdiparams`` are read: what
            ``save_quantized_model``, ``quant_post_dynamic`` or ``paddle.jit.save`` wrote.
        path: the file to write; ``.onnx`` is added if it is missing.
        input_spec: for a Layer: list of InputSpec or example tensors. None: what the model was
            last called with, the batch dimension left open.
        opset: 13 to 21. None: 17, or what the model needs: 16-bit integers need 21. From 21 on
            weights of at most 4 bits are stored as int4, two in a byte.
        target: "onnxruntime": arranged so that ONNX Runtime computes in integers (unsigned
            activations, a relu as a limit of integers, biases in convolutions). The numbers are
            the same. "plain": signed integers and quantizers where training had them, for
            compilers that look for that form, such as TensorRT's.

    Returns:
        The path of the file.

    Raises:
        DependencyError: paddle2onnx or onnx is not installed.
        ConfigError, ConfigTypeError: a wrong argument.
        FormatError: the saved model is missing or damaged.
        CalibrationError: the model was not calibrated.
        ExportError: quantizers without a scale; a setting that the opset does not hold; the
            target cannot be written.
        UnsupportedOperatorError: paddle2onnx does not know an operator of the model.
        TraceError: Paddle could not trace the model.

    References: the operators at https://onnx.ai/onnx/operators/.

    Examples:
        >>> import os, tempfile, paddle, paddleq
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(64, 64), paddle.nn.ReLU())
        >>> ptq = paddleq.PTQ()
        >>> quantized = ptq.quantize(net)
        >>> _ = ptq.calibrate(quantized, [paddle.rand([8, 64])])
        >>> folder = tempfile.mkdtemp()
        >>> path = paddleq.export.to_onnx(quantized, folder + "/int8")
        >>> os.path.basename(path), os.path.getsize(path) < 0.5 * 4 * 64 * 64
        ('int8.onnx', True)
    """
    check_choice("target", target, TARGETS)
    if opset is not None:
        check_int("opset", opset, LOWEST, HIGHEST)
    path = check_prefix("path", path)
    require_onnx()
    path = path if path.endswith(".onnx") else path + ".onnx"
    asked = {name: value for name, value in (("opset", opset), ("target", target))
             if value not in (None, TARGETS[0])}
    if isinstance(model, (str, os.PathLike)):
        files = _files(os.fspath(model))
        program = load_program(*files)
        record = Provenance.of_saved("onnx", program, files, **asked)
        marks = to_marks(program)
    elif hasattr(model, "sublayers"):
        with finalized(model):
            program, marks = trace(model, known_spec(model, input_spec), target=OnnxTarget())
            record = Provenance.of_layer("onnx", model, **asked)
    else:
        raise wrong_type("model", model, "a paddle.nn.Layer or the prefix of a saved model")
    write_program(program, marks, path, opset, target, record)
    return path


def write_program(program, marks, path, opset=None, target="onnxruntime", record=None):
    """Write a :class:`~paddleq.export.program.program.Program` whose markers stand for ``marks``.

    Raises:
        DependencyError, ExportError, UnsupportedOperatorError: see :func:`to_onnx`.
    """
    model = onnx_model(program, marks, opset, arranged=target == "onnxruntime")
    write_onnx(model, path, record)


def _files(prefix):
    """(model, parameters or None) of a saved model."""
    for ending in (".pdmodel", ".json"):
        prefix = prefix[:-len(ending)] if prefix.endswith(ending) else prefix
    for ending in (".pdmodel", ".json"):
        if os.path.exists(prefix + ending):
            params = prefix + ".pdiparams"
            return prefix + ending, params if os.path.exists(params) else None
    raise FormatError(f"there is neither {prefix}.pdmodel nor {prefix}.json")
