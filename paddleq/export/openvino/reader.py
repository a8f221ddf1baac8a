"""Reading of a program by OpenVINO's Paddle frontend, with forms of operators that it refuses."""

import importlib
import os
import re

from ..._atomic_write import temporary_folder
from ...errors import DependencyError, ExportError, UnsupportedOperatorError
from ..onnx.splice import PaddleOperator
from ..program.graph_view import GraphView
from .builder import OpenVinoBuilder
from .forms import FORMS

_INSTALL = "pip install 'openvino>=2024.4'"
_OPSET = 15
# Function -> earlier opset with the same operator. OpenVINO 2023.0 reads files of opset 11.
_EARLIER = dict.fromkeys(("avg_pool", "max_pool", "pad", "squeeze", "scatter_elements_update",
                          "scatter_nd_update"), 11)


def has_node_functions():
    """Return True if the installed OpenVINO has the functions that create nodes (2024.4)."""
    try:
        return bool(opset().later)
    except ImportError:
        return False


def require_openvino():
    """Return the module ``openvino``.

    Raises:
        DependencyError: it is not installed, or older than 2024.4.
    """
    try:
        openvino = importlib.import_module("openvino")
    except ImportError as error:
        raise DependencyError("OpenVINO 2024.4 or later is needed, which is not installed: "
                              f"{_INSTALL}") from error
    if not has_node_functions():
        module = openvino if hasattr(openvino, "get_version") else importlib.import_module(
            "openvino.runtime")
        raise DependencyError("OpenVINO 2024.4 or later is needed, "
                              f"{module.get_version()} is installed: "
                              f"{_INSTALL}")
    return openvino


class _Functions:
    """Functions that create nodes, of the earliest opset; ``later`` is the module of the last."""

    def __init__(self):
        self.later = importlib.import_module(f"openvino.opset{_OPSET}")

    def __getattr__(self, name):
        number = _EARLIER.get(name, _OPSET)
        return getattr(importlib.import_module(f"openvino.opset{number}"), name)


def opset():
    """Return the functions that create nodes as attributes."""
    return _Functions()


def read_program(program, converters):
    """Read a program, which is changed, and return the ``openvino.Model``.

    Args:
        converters: type of an operator that OpenVINO does not have -> function (opset, input) that
            returns its output.

    Raises:
        UnsupportedOperatorError: there is no form of an operator; names it.
    """
    openvino = require_openvino()
    functions = opset()
    extension = importlib.import_module("openvino.frontend.paddle").ConversionExtension
    core = openvino.Core()
    for kind, convert in converters.items():
        core.add_extension(extension(kind, _converter_of_one(functions, convert)))
    types = {}  # of operators with a form, by their new types
    for kind, operator, write in _forms(program):
        core.add_extension(extension(kind, _converter_of_form(functions, operator, write)))
        types[kind] = operator.type
    with temporary_folder() as folder:
        path = os.path.join(folder, "model.pdmodel")
        program.save(path, os.path.join(folder, "model.pdiparams"), workarounds=False)
        try:
            return core.read_model(path)
        except RuntimeError as error:
            raise refusal_of(error, types) from error


def refusal_of(error, types=None):
    """Return the error for an exception of OpenVINO's frontend.

    ``types`` are those of operators of Paddle by other types in the program.
    """
    found = re.search(r"No creator found for (\w+) node|Fail to convert (\w+)", str(error))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if found is None:
        return ExportError(f"OpenVINO cannot read the model: {lines[-1]}")
    name = found[1] or found[2]
    reason = next(line for line in lines if found[0] in line)
    operator = (types or {}).get(name, name)
    return UnsupportedOperatorError(
        f"OpenVINO cannot read the operator {operator} ({reason.replace(name, operator)}), which "
        "has no other form in format='openvino'", operator)


def has_forms(program):
    """Return True if a program has operators that are written in another form."""
    return any(True for _ in _forms(program.copy()))


def _forms(program):
    """Yield (new type, operator, writer) of operators with a form, whose types are changed."""
    view = GraphView.of_program(program)
    number = 0
    for block in program.desc.blocks:
        for op in block.ops:
            form = FORMS.get(op.type)
            if form is None:
                continue
            # A copy: the type of the operator is changed.
            operator = PaddleOperator(
                program, type(op).FromString(op.SerializeToString()), view.consumers, block)
            write = form(operator)
            if write is not None:
                op.type, number = f"paddleq_form_{number}", number + 1
                yield op.type, operator, write


def _converter_of_one(opset, convert):
    def converter(node):
        made = convert(opset, node.get_input("X", 0))
        return {"Out": [made.output(0)]}

    return converter


def _converter_of_form(opset, operator, write):
    def converter(node):
        values = {name: node.get_input(entry.parameter, i) for entry in operator.op.inputs
                  for i, name in enumerate(entry.arguments)}
        write(OpenVinoBuilder(opset, values))
        # The frontend reads a value for each name of a slot that it finds.
        return {entry.parameter: [values[name] for name in entry.arguments]
                for entry in operator.op.outputs
                if entry.arguments and values.keys() >= set(entry.arguments)}

    return converter
