"""The float graph in ONNX, by paddle2onnx."""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from ...errors import DependencyError, ExportError, UnsupportedOperatorError

VERSION = "1.3.1"  # the one release that reads a .pdmodel on its own, beside any Paddle
_INSTALL = f"pip install 'paddleq[onnx]' (or paddle2onnx=={VERSION} and onnx)"
_CHILD = Path(__file__).with_name("paddle2onnx_child.py")
_LAST_LINES = 5


def require_onnx():
    """The module ``onnx``.

    Raises:
        DependencyError: it is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise DependencyError(f"export to ONNX needs the package onnx: {_INSTALL}") from error
    return onnx


def float_graph(program, opset):
    """The ``onnx.ModelProto`` of a float :class:`~paddleq.export.program.program.Program`.

    Args:
        opset: of the operators. Where one of them needs a higher one, the model gets that.

    Raises:
        DependencyError: paddle2onnx is missing or of another version.
        UnsupportedOperatorError: it does not know an operator.
        ExportError: it failed otherwise; with what it said.
    """
    onnx = require_onnx()
    module = _module()
    with tempfile.TemporaryDirectory(prefix="paddleq-") as folder:
        model, params, out = (os.path.join(folder, name)
                              for name in ("m.pdmodel", "m.pdiparams", "m.onnx"))
        program.save(model, params, workarounds=False)
        done = subprocess.run(
            [sys.executable, "-I", str(_CHILD), module, model, params, str(opset), out],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
            errors="replace")
        if done.returncode != 0 or not os.path.exists(out):
            raise _failure(done)
        model = onnx.load(out)
    _refuse_nonsense(model)
    return model


def _refuse_nonsense(model):
    """Raise for what paddle2onnx writes where it should give up, and runtimes crash on."""
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "strides" and 0 in attribute.ints:
                raise ExportError(
                    f"paddle2onnx {VERSION} wrote a {node.op_type} of stride 0: an adaptive pool "
                    "makes its input larger, which it cannot express; give the pool, or the "
                    "whole model, a larger input")


def _module():
    """Path of paddle2onnx' compiled module."""
    spec = importlib.util.find_spec("paddle2onnx")
    found = [] if spec is None or spec.origin is None else sorted(
        Path(spec.origin).parent.glob("paddle2onnx_cpp2py_export*"))
    if not found:
        raise DependencyError(f"export to ONNX needs paddle2onnx {VERSION}, which has packages for "
                              f"Python 3.8 to 3.12: {_INSTALL}")
    version = _version()
    if version != VERSION:
        raise DependencyError(
            f"export to ONNX needs paddle2onnx {VERSION}, which works beside any Paddle, but "
            f"{version} is installed: pip install paddle2onnx=={VERSION}")
    return str(found[-1])


def _version():
    try:
        from importlib.metadata import version
    except ImportError:  # Python 3.7 and older; nothing else in paddleq runs there
        return None
    return version("paddle2onnx")


def _failure(done):
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).strip()
    unknown = re.search(r"operators not supported yet, including (.+)", said)
    if unknown:
        names = unknown.group(1).strip(" ,.")
        return UnsupportedOperatorError(
            f"paddle2onnx {VERSION} cannot convert the operators {names}; without them, or as "
            "format='pdmodel', the model can be exported", names)
    last = "\n".join(said.splitlines()[-_LAST_LINES:])
    return ExportError(f"paddle2onnx {VERSION} could not convert the float model (exit code "
                       f"{done.returncode}): {last or 'it said nothing'}")
