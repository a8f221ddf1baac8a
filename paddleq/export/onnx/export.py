"""From a program with markers to an ONNX file."""

from ..._atomic_write import write_bytes
from ...errors import ExportError
from ..program.passes.channels_first import put_channels_first
from ..provenance_file import write_export
from .biases import join_biases
from .dead_channels import enlarge_steps
from .float_graph import float_graph
from .fold_batch_norm import fold_norms
from .graph import OnnxGraph
from .integer_types import check_opset, opset_for
from .lower import put_in
from .opset import CONVERTER_HIGHEST, raise_opset
from .qdq_placement import arrange
from .simplify import tidy
from .weight_views import fold_views

_MOST_BYTES = 2 ** 31 - 1  # of a protobuf message


def onnx_model(program, marks, opset, arranged):
    """The ``onnx.ModelProto`` of a program, its markers replaced by what ``marks`` says.

    ``opset`` None: the lowest usual one that holds the marks.

    Raises:
        DependencyError, UnsupportedOperatorError, ExportError: see :func:`.float_graph`; or a
            mark that the opset does not hold.
    """
    opset = opset_for(marks) if opset is None else opset
    for mark in marks:
        check_opset(mark, opset)
    put_channels_first(program)
    parameters = set(program.arrays)
    model = float_graph(program, min(opset, CONVERTER_HIGHEST))
    if opset > CONVERTER_HIGHEST:
        raise_opset(model)
    opset = max(opset, model.opset_import[0].version)
    graph = OnnxGraph(model)
    tidy(graph)
    put_in(graph, marks, opset, parameters)
    fold_views(graph)
    join_biases(graph)
    fold_norms(graph)
    enlarge_steps(graph)
    if arranged:
        arrange(graph)
    return graph.finish(opset)


def write_onnx(model, path, record=None):
    """Check a model and write it beside ``path``, then rename it into place.

    Args:
        record: the :class:`~paddleq.export.provenance_file.Record` to lie beside it, if any.

    Raises:
        ExportError: it is too large for one file, or the target cannot be written.
    """
    import onnx

    content = _serialized(model)
    # (Its full check infers shapes, which kills the process on some graphs.)
    onnx.checker.check_model(content)
    write_export(path, {path: write_bytes(content)}, record)


def _serialized(model):
    if model.ByteSize() > _MOST_BYTES:
        raise ExportError(f"the model has {model.ByteSize()} bytes, and one ONNX file holds at "
                          f"most {_MOST_BYTES}; write format='pdmodel'")
    return model.SerializeToString()
