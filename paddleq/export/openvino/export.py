"""Pipeline from a program with markers to OpenVINO's files."""

import os
import re
import shutil
from collections import Counter
from functools import partial
from typing import Optional, Union

import paddle

from ..._atomic_write import temporary_folder
from ..._checks import check_prefix, wrong_type
from ...engine import finalized
from ..formats import Format, register_format
from ..onnx.export import saved_files
from ..paddle.markers_from_program import raise_to_markers
from ..pir_to_program import load_program
from ..program.op_builder import OpBuilder
from ..program.op_desc import attribute, inputs, set_attribute, shape_of
from ..program.passes.adaptive_pools import write_partly_global_pools
from ..program.passes.channels_first import to_channels_first
from ..program.passes.ignored_parts import write_ignored_parts
from ..program.passes.inclusive_pools import write_inclusive_pools
from ..program.passes.nearest_interpolation import gather_nearest
from ..program.passes.pads import write_pads
from ..program.passes.transposed_convolutions import resolve_output_sizes
from ..provenance_file import Provenance, write_export
from ..trace import trace
from ..trace_checks import warn_observing
from . import tensor_forms  # noqa: F401  (registers forms)
from .graph_workarounds import (
    add_smallest_biases,
    count_axes_from_end,
    gather_by_vectors,
    place_clips,
    separate_quantizers,
)
from .lower import OpenVinoLowering
from .reader import opset, read_program, require_openvino

Path = Union[str, "os.PathLike[str]"]


@register_format("openvino")
class OpenVinoFormat(Format):
    """``path.xml`` and ``path.bin``, which OpenVINO computes with int8 kernels."""

    endings = (".xml", ".bin")

    def versions(self):
        return {"openvino": require_openvino().get_version().partition("-")[0]}

    def require(self):
        require_openvino()

    def write(self, program, marks, path, provenance=None):
        model = openvino_model(program, marks)
        with temporary_folder() as folder:
            made = [os.path.join(folder, "model" + each) for each in self.endings]
            require_openvino().serialize(model, *made)
            # The model is renamed into place last, behind its parameters.
            write_export(path + ".xml", {
                path + ending: partial(shutil.copyfile, source)
                for ending, source in reversed(list(zip(self.endings, made)))}, provenance)


def to_openvino(model: Union[paddle.nn.Layer, Path], path: Path,
                input_spec: Optional[list] = None) -> str:
    """Export a model to OpenVINO's own files, ``path.xml`` and ``path.bin``.

    OpenVINO computes quantized convolutions and products of these files with int8 kernels. Of a
    ``.pdmodel``, its frontend makes a graph that it computes in float. Operators that the frontend
    refuses are written in other forms. Names of inputs and outputs are those of a ``.pdmodel``;
    dynamic dimensions remain dynamic. ``path.paddleq.yaml`` records how the files were made.

    Args:
        model: a ``paddle.nn.Layer``, quantized or float; or the prefix of a saved model
            (``.pdmodel`` or else ``.json``, and ``.pdiparams``).
        path: prefix of the files; an ending ``.xml`` is removed.
        input_spec: for a Layer: list of InputSpec or example tensors. None: the inputs of the last
            call of the model, with a dynamic batch dimension.

    Returns:
        The path of the ``.xml`` file.

    Raises:
        DependencyError: OpenVINO is not installed.
        ConfigError, ConfigTypeError: an invalid argument.
        FormatError: the saved model is missing or damaged.
        CalibrationError: the model was not calibrated.
        UnsupportedOperatorError: an operator has neither a rule in OpenVINO's frontend nor another
            form. Names it.
        ExportError: quantizers without a scale; the target cannot be written.
        TraceError: Paddle could not trace the model.

    Examples:
        >>> import os, tempfile, paddle, paddleq
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(64, 64), paddle.nn.Mish())
        >>> ptq = paddleq.PTQ()
        >>> quantized = ptq.quantize(net)
        >>> _ = ptq.calibrate(quantized, [paddle.rand([8, 64])])
        >>> folder = tempfile.mkdtemp()
        >>> path = paddleq.export.to_openvino(quantized, folder + "/int8")
        >>> sorted(os.listdir(folder))
        ['int8.bin', 'int8.paddleq.yaml', 'int8.xml']
    """
    path = check_prefix("path", path)
    require_openvino()
    path, exporter = path[:-len(".xml")] if path.endswith(".xml") else path, OpenVinoFormat()
    if isinstance(model, (str, os.PathLike)):
        files = saved_files(os.fspath(model))
        program = load_program(*files)
        provenance = Provenance.of_saved("openvino", program, files)
        marks = raise_to_markers(program)
    elif hasattr(model, "sublayers"):
        with finalized(model):
            program, marks = trace(model, input_spec, exporter)
            provenance = Provenance.of_layer("openvino", model)
    else:
        raise wrong_type("model", model, "a paddle.nn.Layer or the prefix of a saved model")
    exporter.write(program, marks, path, provenance)
    if hasattr(model, "sublayers"):
        warn_observing(model)
    return path + ".xml"


def openvino_model(program, marks):
    """Convert a program with markers, which is changed, to an ``openvino.Model``.

    Raises:
        DependencyError: OpenVINO is not installed.
        UnsupportedOperatorError: OpenVINO cannot read an operator; names it.
    """
    apply_frontend_workarounds(program)
    lowering = OpenVinoLowering(program, marks)
    lowering.run()
    model = read_program(program, lowering.converters)
    separate_quantizers(model, opset())
    place_clips(model, opset())
    add_smallest_biases(model, opset())
    gather_by_vectors(model, opset())
    count_axes_from_end(model, opset())
    model.set_friendly_name("model")
    _name_nodes(model)
    return model


def apply_frontend_workarounds(program):
    """Write operators that OpenVINO's frontend computes otherwise in others, in place."""
    resolve_output_sizes(program)
    to_channels_first(program)
    write_inclusive_pools(program)
    builder = OpBuilder(program)
    for block in program.desc.blocks:
        _write_positive_axes(program, block)
        gather_nearest(builder, block)
        write_ignored_parts(builder, block)
        write_pads(builder, block)
        write_partly_global_pools(builder, block)


def _write_positive_axes(program, block):
    """Count the axis of an argmax from the front: OpenVINO refuses negative ones."""
    for op in block.ops:
        if op.type in ("arg_max", "arg_min") and attribute(op, "axis", 0) < 0:
            rank = len(shape_of(program.variable(inputs(op, "X")[0], block)))
            set_attribute(op, "axis", attribute(op, "axis") + rank, "long")


def _name_nodes(model):
    """Number the nodes without a name, so that the same model gives the same bytes."""
    counts = Counter()
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if re.fullmatch(rf"{kind}_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{kind}_{counts[kind]}")
            counts[kind] += 1
