"""Runs paddle2onnx on one model, in a process of its own: MODULE MODEL PARAMS OPSET OUT.

paddle2onnx aborts the process where it cannot go on, and only the export must end then. This is
a script: its compiled module is loaded by path, for importing the package imports Paddle, which
takes seconds and is not needed.
"""

import importlib.util
import sys


def main():
    module, model, params, opset, out = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("paddle2onnx_cpp2py_export", module)
    converter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(converter)
    # By position, the names are not there. What is on: raising the opset where an operator needs
    # it, its log, and operators that are not of ONNX's own domain never.
    upgrade, verbose, check, experimental, optimize, half = True, False, False, False, False, False
    content = converter.export(model, params, int(opset), upgrade, verbose, check, experimental,
                               optimize, {}, "onnxruntime", "", "", half)
    with open(out, "wb") as file:
        file.write(content)


if __name__ == "__main__":
    main()
