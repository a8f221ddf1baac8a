"""Conversion of a float program to ONNX by paddle2onnx."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from ..._atomic_write import temporary_folder
from ...errors import DependencyError, ExportError, UnsupportedOperatorError
from ..program.inference import feed_names, fetch_names
from ..program.op_builder import OpBuilder
from ..program.op_desc import attribute, dtype_of, inputs, outputs, tensor_of
from ..program.pdiparams import CODES, DTYPES
from . import (  # noqa: F401  (they register forms)
    exact_counts,
    exact_detection,
    exact_functions,
    exact_indices,
    exact_layouts,
    exact_losses,
    exact_matrices,
    exact_operators,
    exact_regions,
    exact_special_functions,
    exact_tensors,
)
from .concatenations import correct_concatenations
from .paddle2onnx_child import find
from .splice import FORMS, cut, splice  # noqa: F401  (with the forms of the modules above)

INTERPRETER = "PADDLEQ_PADDLE2ONNX_PYTHON"
"""Environment variable that names another Python interpreter, which has paddle2onnx."""

_INSTALL = "pip install 'paddleq[onnx]' (or paddle2onnx==1.3.1 and onnx)"
_CHILD = str(Path(__file__).with_name("paddle2onnx_child.py"))
_LAST_LINES = 5
_SAME_TYPE = ("assign", "scale", "share_data", "reshape2", "squeeze2", "unsqueeze2", "transpose2",
              "flatten_contiguous_range", "slice")  # of input and output


def require_onnx():
    """Return the module ``onnx``, or raise DependencyError."""
    try:
        import onnx
    except ImportError as error:
        raise DependencyError(f"export to ONNX needs the package onnx: {_INSTALL}") from error
    return onnx


def float_graph(program, opset):
    """Convert a float program to ``onnx.ModelProto``; operators may need a higher opset.

    The program is changed: it loses the operators of :mod:`.exact_operators`.
    """
    onnx = require_onnx()
    python, module, version = find_converter()
    _assign_tensors(program)
    _correct_types(program)
    operators = cut(program)
    with temporary_folder() as folder:
        model, params, out = (os.path.join(folder, name)
                              for name in ("m.pdmodel", "m.pdiparams", "m.onnx"))
        program.save(model, params, workarounds=False)
        done = subprocess.run(
            [python, "-I", _CHILD, module, model, params, str(opset), out],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        if done.returncode != 0 or not os.path.exists(out) or not os.path.getsize(out):
            raise _failure(done, version)
        model = onnx.load(out)
    _name_ends(model.graph, feed_names(program), fetch_names(program))
    splice(model, operators)
    correct_concatenations(model.graph)
    return model


def _name_ends(graph, feeds, fetches):
    """Give inputs and outputs the names that they have in the program, which 2.x changes."""
    renamed = {value.name: name for values, names in ((graph.input, feeds), (graph.output, fetches))
               for value, name in zip(values, names) if value.name != name}
    for value in [*graph.input, *graph.output]:
        value.name = renamed.get(value.name, value.name)
    for node in graph.node if renamed else ():
        for field in (node.input, node.output):
            field[:] = [renamed.get(name, name) for name in field]


def _assign_tensors(program):
    """Make the numbers that ``set_value`` assigns constants: an attribute of another type that
    paddle2onnx expects holds them.
    """
    builder = OpBuilder(program)
    for block in program.desc.blocks:
        for op in block.ops:
            values = attribute(op, "values") if op.type == "set_value" else None
            if not values or inputs(op, "ValueTensor"):
                continue
            dtype = dtype_of(program.variable(inputs(op, "Input")[0], block))
            array = np.array(values).astype(dtype).reshape(attribute(op, "shape"))
            name = builder.parameter(f"{outputs(op, 'Out')[0]}.value", array)
            entry = next((each for each in op.inputs if each.parameter == "ValueTensor"), None)
            entry = op.inputs.add(parameter="ValueTensor") if entry is None else entry
            entry.arguments.append(name)


def _correct_types(program):
    """Declare the data types that operators return where Paddle declares others."""
    corrected = {}
    for block in program.desc.blocks:
        for op in block.ops:
            found = _returned_types(program, block, op)
            if op.type in _SAME_TYPE:
                source = next((inputs(op, slot)[0] for slot in ("X", "Input")
                               if inputs(op, slot)), None)
                found = {"Out": corrected[source]} if source in corrected else {}
            for slot, dtype in found.items():
                for name in outputs(op, slot):
                    tensor = tensor_of(program.variable(name, block))
                    if tensor.data_type != CODES[dtype]:
                        corrected[name], tensor.data_type = dtype, CODES[dtype]


def _returned_types(program, block, op):
    """Return {slot: data type} of the outputs of an operator that Paddle declares wrongly."""
    if op.type == "equal_all":
        return {"Out": "bool"}
    if op.type in ("mode", "kthvalue"):
        return {"Indices": "int64"}
    if op.type == "bincount":
        weights = inputs(op, "Weights")
        return {"Out": dtype_of(program.variable(weights[0], block)) if weights else "int64"}
    if op.type == "unique":
        counted = DTYPES[attribute(op, "dtype", 3)]
        return {"Out": dtype_of(program.variable(inputs(op, "X")[0], block)),
                **dict.fromkeys(("Index", "Indices", "Counts"), counted)}
    return {}


def find_converter():
    """Return (Python interpreter, path of the compiled module, version) of paddle2onnx."""
    python = os.environ.get(INTERPRETER)
    if python:
        try:
            found = json.loads(subprocess.run([python, "-I", _CHILD], check=True, text=True,
                                              stdout=subprocess.PIPE).stdout)
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            raise DependencyError(
                f"{INTERPRETER}={python} is not a Python interpreter that runs: {error}") from error
    else:
        found = find()
    if found is None:
        raise DependencyError(
            f"export to ONNX needs paddle2onnx, which {python or sys.executable} does not have: "
            f"{_INSTALL}; it has wheels for Python 3.8 to 3.12, on another version set "
            f"{INTERPRETER} to such an interpreter that has paddle2onnx==1.3.1")
    module, version = found
    if version != "1.3.1" and version.split(".")[:2] != ["2", "1"]:
        raise DependencyError(
            f"export to ONNX needs paddle2onnx 1.3.1 or 2.1, but {version} is installed: "
            "pip install paddle2onnx==1.3.1")
    return python or sys.executable, module, version


def _failure(done, version):
    output = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).strip()
    unknown = re.search(r"operators not supported yet, including (.+)", output)
    if unknown:
        names = unknown.group(1).strip(" ,.")
        return UnsupportedOperatorError(
            f"paddle2onnx {version} cannot convert the operators {names}; without them, or as "
            "format='pdmodel', the model can be exported", names)
    lines = output.splitlines()
    last = "\n".join([line for line in lines if "[ERROR]" in line] or lines[-_LAST_LINES:])
    return ExportError(f"paddle2onnx {version} could not convert the float model (exit code "
                       f"{done.returncode}): {last or 'without a message'}")
