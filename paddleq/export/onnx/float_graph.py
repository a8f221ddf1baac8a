"""Conversion of a float program to ONNX by paddle2onnx."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from ..._atomic_write import temporary_folder
from ...errors import DependencyError, ExportError, UnsupportedOperatorError
from .paddle2onnx_child import find

INTERPRETER = "PADDLEQ_PADDLE2ONNX_PYTHON"
"""Environment variable that names another Python interpreter, which has paddle2onnx."""

_INSTALL = "pip install 'paddleq[onnx]' (or paddle2onnx==1.3.1 and onnx)"
_CHILD = str(Path(__file__).with_name("paddle2onnx_child.py"))
_LAST_LINES = 5


def require_onnx():
    """Return the module ``onnx``, or raise DependencyError."""
    try:
        import onnx
    except ImportError as error:
        raise DependencyError(f"export to ONNX needs the package onnx: {_INSTALL}") from error
    return onnx


def float_graph(program, opset):
    """Convert a float program to ``onnx.ModelProto``; operators may need a higher opset."""
    onnx = require_onnx()
    python, module, version = find_converter()
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
    for node in model.graph.node:
        if any(each.name == "strides" and 0 in each.ints for each in node.attribute):
            raise ExportError(
                f"paddle2onnx {version} wrote a {node.op_type} of stride 0: an adaptive pool "
                "makes its input larger, which it cannot express; give the pool, or the "
                "whole model, a larger input")
    return model


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
    last = "\n".join(output.splitlines()[-_LAST_LINES:])
    return ExportError(f"paddle2onnx {version} could not convert the float model (exit code "
                       f"{done.returncode}): {last or 'without a message'}")
