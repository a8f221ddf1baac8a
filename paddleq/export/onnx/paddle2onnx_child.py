"""Script that runs paddle2onnx on one float program, in its own process.

    python -I paddle2onnx_child.py                              print the module and its version
    python -I paddle2onnx_child.py MODULE MODEL PARAMS OPSET OUT   convert

A separate process, because paddle2onnx aborts it on an error. The compiled module is loaded by its
path, because ``import paddle2onnx`` imports Paddle, which 1.3.1 does not need.
"""

import importlib.metadata
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any


def find():
    """Return (path of the compiled module, version) of the installed paddle2onnx, or None."""
    spec = importlib.util.find_spec("paddle2onnx")
    found = [] if spec is None or spec.origin is None else sorted(
        Path(spec.origin).parent.glob("paddle2onnx_cpp2py_export*"))
    return (str(found[-1]), importlib.metadata.version("paddle2onnx")) if found else None


def _convert(module, model, params, opset, out):
    spec: Any = importlib.util.spec_from_file_location("paddle2onnx_cpp2py_export", module)
    try:
        converter: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(converter)
    except ImportError:  # 2.x needs Paddle, and translates the program to PIR in its Python code
        import zlib  # noqa: F401  (before paddle: see paddleq/__init__.py)

        import paddle2onnx

        export: Any = paddle2onnx.export  # its arguments depend on the version
        export(model, params, out, opset_version=int(opset), optimize_tool="None",
               enable_onnx_checker=False, enable_experimental_op=True)
        return
    # The parameters have no names: upgrade raises the opset where an operator needs it. The
    # operators that paddle2onnx calls experimental are those that it converts for some arguments
    # only: recurrent layers, NMS, assignment to slices.
    upgrade, verbose, check, experimental, optimize, half = True, False, False, True, False, False
    content = converter.export(model, params, int(opset), upgrade, verbose, check, experimental,
                               optimize, {}, "onnxruntime", "", "", half)
    with open(out, "wb") as file:
        file.write(content)


if __name__ == "__main__":
    if sys.argv[1:]:
        _convert(*sys.argv[1:])
    else:
        sys.stdout.write(json.dumps(find()))
