"""Pipeline from a model or a program with markers to an ONNX file."""

import os
from typing import Optional, Union

import paddle

from ..._atomic_write import write_bytes
from ..._checks import check_bool, check_choice, check_int, check_prefix, wrong_type
from ...engine import finalized
from ...errors import ExportError, FormatError
from ..formats import Format, register_format
from ..paddle.lower import MarkerRemoval
from ..paddle.markers_from_program import raise_to_markers
from ..pir_to_program import load_program
from ..program.passes.channels_first import to_channels_first
from ..program.passes.ignored_parts import count_axes_from_end
from ..program.passes.inclusive_pools import write_inclusive_pools
from ..program.passes.transposed_convolutions import resolve_output_sizes
from ..provenance_file import PADDLE_MODELS, Provenance, paddle_models, write_export
from ..trace import trace
from ..trace_checks import warn_observing
from .compare import check_final, compare
from .float_graph import find_converter, float_graph, require_onnx
from .fold_into_convolution import (
    add_smallest_biases,
    enlarge_scales,
    fold_batch_norms,
    fold_biases,
)
from .graph import OnnxGraph
from .lower import FloatLowering, OnnxLowering
from .opset import CONVERTER_HIGHEST, HIGHEST, LOWEST, raise_opset, resolve_opset
from .products_of_blocks import FLOAT_PRODUCTS, has_products_to_fuse, use_matmul_nbits
from .qdq_placement import place_quantizers, separate_extremes
from .simplify import fold_weight_views, simplify

Path = Union[str, "os.PathLike[str]"]
TARGETS = ("onnxruntime", "plain")
_MOST_BYTES = 2 ** 31 - 1  # of a protobuf message


@register_format("onnx")
class OnnxFormat(Format):
    """``path.onnx``, which represents zero points, groups and ranges of any kind."""

    endings = (".onnx",)
    targets = TARGETS

    def versions(self):
        # paddle2onnx may be installed in another interpreter.
        return {"onnx": require_onnx().__version__, "paddle2onnx": find_converter()[2]}

    def require(self):
        require_onnx()

    def write(self, program, marks, path, provenance=None, opset=None, target="onnxruntime"):
        write_program(program, marks, path + ".onnx", opset, target, provenance, verify=True)


def to_onnx(model: Union[paddle.nn.Layer, Path], path: Path, input_spec: Optional[list] = None,
            opset: Optional[int] = None, target: str = "onnxruntime",
            verify: bool = True) -> str:
    """Export a model to ONNX with QuantizeLinear and DequantizeLinear operators.

    The file has integer weights, with a scale for each channel where the model has them, and zero
    points. Names of inputs, outputs and parameters are those of a ``.pdmodel``; dynamic dimensions
    remain dynamic. ``path.paddleq.yaml``, without ``.onnx``, records how the file was made.

    Args:
        model: a ``paddle.nn.Layer``, quantized or float; or the prefix of a saved model
            (``.pdmodel`` or else ``.json``, and ``.pdiparams``) that ``save_quantized_model``,
            ``quant_post_dynamic`` or ``paddle.jit.save`` wrote.
        path: the file to write; ``.onnx`` is appended if it is missing.
        input_spec: for a Layer: list of InputSpec or example tensors. None: the inputs of the last
            call of the model, with a dynamic batch dimension.
        opset: 13 to 21. None: 17, or the one that the model needs: 16-bit integers need 21. From 21
            on, weights of at most 4 bits are stored as int4, two in a byte.
        target: "onnxruntime": quantizers are placed so that ONNX Runtime computes in integers
            (unsigned activations, a relu as a clip of integers, biases in convolutions), with the
            same numbers. "plain": signed integers and quantizers where training had them, for
            compilers that expect that form, such as TensorRT's.
        verify: compare the float form of the graph, in ONNX Runtime, with the model in Paddle
            Inference on random inputs, and run the file. Without onnxruntime, or where the model
            cannot run on random inputs, a warning says so.

    Returns:
        The path of the file.

    Raises:
        DependencyError: paddle2onnx or onnx is not installed.
        ConfigError, ConfigTypeError: an invalid argument.
        FormatError: the saved model is missing or damaged.
        CalibrationError: the model was not calibrated.
        ExportError: quantizers without a scale; a setting that the opset cannot represent; the
            target cannot be written; the comparison found an operator that is wrong in ONNX.
        UnsupportedOperatorError: paddle2onnx does not support an operator of the model.
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
    check_bool("verify", verify)
    if opset is not None:
        check_int("opset", opset, LOWEST, HIGHEST)
    path = check_prefix("path", path)
    require_onnx()
    path = path if path.endswith(".onnx") else path + ".onnx"
    options = {name: value for name, value in (("opset", opset), ("target", target))
               if value not in (None, TARGETS[0])}
    if isinstance(model, (str, os.PathLike)):
        files = saved_files(os.fspath(model))
        program = load_program(*files)
        provenance = Provenance.of_saved("onnx", program, files, **options)
        marks = raise_to_markers(program)
    elif hasattr(model, "sublayers"):
        with finalized(model):
            program, marks = trace(model, input_spec, OnnxFormat())
            provenance = Provenance.of_layer("onnx", model, **options)
    else:
        raise wrong_type("model", model, "a paddle.nn.Layer or the prefix of a saved model")
    write_program(program, marks, path, opset, target, provenance, verify)
    if hasattr(model, "sublayers"):
        warn_observing(model)
    return path


def write_program(program, marks, path, opset=None, target="onnxruntime", provenance=None,
                  verify=False):
    """Write a program with markers as an ONNX file; see :func:`to_onnx`."""
    opset = resolve_opset(marks, opset)
    reference = program.copy() if verify else None
    to_channels_first(program, marks)
    resolve_output_sizes(program)
    count_axes_from_end(program)
    write_inclusive_pools(program)
    parameters = set(program.arrays)
    model = float_graph(program, min(opset, CONVERTER_HIGHEST))
    if opset > CONVERTER_HIGHEST:
        raise_opset(model)
    opset = max(opset, model.opset_import[0].version)
    arrays = _compare(reference, marks, model, opset, parameters, path) if verify else None
    graph = OnnxGraph(model)
    simplify(graph)
    OnnxLowering(graph, marks, opset, parameters).run()
    for fold in (fold_weight_views, fold_biases, fold_batch_norms, enlarge_scales,
                 add_smallest_biases):
        fold(graph)
    if target == "onnxruntime":
        place_quantizers(graph)
        use_matmul_nbits(graph)
    separate_extremes(graph)
    model = graph.finish(opset)
    if has_products_to_fuse(graph):
        model.metadata_props.add(key="onnxruntime.session_config", value=FLOAT_PRODUCTS)
    if model.ByteSize() > _MOST_BYTES:
        raise ExportError(f"the model has {model.ByteSize()} bytes, and one ONNX file holds at "
                          f"most {_MOST_BYTES}; write format='pdmodel'")
    content = model.SerializeToString()
    _check(content)
    if arrays is not None:
        check_final(content, arrays)
    write_export(path, {path: write_bytes(content)}, provenance)


def _compare(program, marks, model, opset, parameters, path):
    """Compare the float form of a model with markers; see :func:`~.compare.compare`."""
    def float_form(simplified=False):
        graph = OnnxGraph(type(model).FromString(model.SerializeToString()))
        if simplified:
            simplify(graph)
        FloatLowering(graph, marks, opset, parameters).run()
        return graph.finish(opset)

    MarkerRemoval(program, marks).run()
    return compare(program, float_form(), float_form(simplified=True), path)


def _check(content):
    """Raise ExportError if a serialized model is invalid."""
    import onnx

    try:
        # Its full check infers shapes, which kills the process on some graphs.
        onnx.checker.check_model(content)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the ONNX form of the model is invalid: {' '.join(str(error).split())}; "
                          "write format='pdmodel'") from error


def saved_files(prefix):
    """Return (model file, parameter file or None) of a saved model, given its prefix or a file."""
    found = [prefix] if os.path.isfile(prefix) and prefix.endswith(PADDLE_MODELS) else (
        paddle_models(prefix))
    if not found:
        raise FormatError(f"there is neither {prefix}.pdmodel nor {prefix}.json")
    params = os.path.splitext(found[0])[0] + ".pdiparams"
    return found[0], params if os.path.exists(params) else None
