"""Smoke test of an installed wheel: PTQ, export, three runtimes and the command line.

    python -I smoke.py FOLDER

Runs in an environment that holds only the wheel and its extras cpu, onnx and openvino.
"""

import importlib
import os
import pkgutil
import platform
import subprocess
import sys
import sysconfig

import numpy as np
import paddle
import paddle.inference
from paddle import nn

import paddleq

OTHER_EXTRAS = ("jinja2", "matplotlib", "tokenizers", "visualdl")


def import_all_modules():
    for module in pkgutil.walk_packages(paddleq.__path__, "paddleq."):
        if module.name.endswith(("__main__", "_child")):  # programs
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name not in OTHER_EXTRAS:
                raise


def quantized_model():
    """Return a calibrated PTQ model, its quanter and an input."""
    paddle.seed(0)
    net = nn.Sequential(nn.Conv2D(3, 8, 3, padding=1), nn.BatchNorm2D(8), nn.ReLU(),
                        nn.AdaptiveAvgPool2D(4), nn.Flatten(), nn.Linear(128, 10))
    net.eval()
    x = paddle.rand([4, 3, 16, 16])
    # 7 bits: int8 kernels of processors without VNNI saturate with 8-bit weights.
    ptq = paddleq.PTQ("AbsmaxQuantizer", paddleq.paddleslim.PerChannelAbsmaxQuantizer(quant_bits=7))
    net = ptq.quantize(net, fuse=True)
    ptq.calibrate(net, [x])
    return ptq, net, x


def paddle_inference(path, x):
    config = paddle.inference.Config(f"{path}.pdmodel", f"{path}.pdiparams")
    config.disable_gpu()
    config.disable_glog_info()
    config.switch_ir_optim(False)
    predictor = paddle.inference.create_predictor(config)
    predictor.get_input_handle(predictor.get_input_names()[0]).copy_from_cpu(x)
    predictor.run()
    return predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()


def openvino(path, x):
    try:
        import openvino as ov
        core = ov.Core()
    except AttributeError:  # 2023.0
        import openvino.runtime as ov
        core = ov.Core()
    settings = {"EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_PRECISION_HINT": "f32"}
    return core.compile_model(f"{path}.pdmodel", "CPU", settings)([x])[0]


def onnx_runtime(path, x):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(f"{path}.onnx", options, ["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def main(folder):
    assert "site-packages" in paddleq.__file__, paddleq.__file__
    import_all_modules()
    ptq, net, x = quantized_model()
    path = os.path.join(folder, "model")
    spec = [paddle.static.InputSpec([None, *x.shape[1:]], "float32", "x")]
    for format in ("pdmodel", "onnx"):
        ptq.save_quantized_model(net, path, spec, format=format)
    expected = net(x).numpy()
    for run in (paddle_inference, openvino, onnx_runtime):
        found = run(path, x.numpy())
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        print(f"{run.__name__:18} relative error {error:.1e}")
        assert error < 1e-2, (run.__name__, error)
    report = paddleq.deploy.verify(path, net, [x.numpy()], seconds=0.0)
    print(report)
    assert len(report.rows) == 6 and report.ok
    command = os.path.join(sysconfig.get_path("scripts"), "paddleq")
    for arguments in (["--version"], ["inspect", f"{path}.pdmodel"]):
        subprocess.run([command, *arguments], check=True)
    print(f"smoke test passed: Python {platform.python_version()}, Paddle {paddle.__version__}, "
          f"paddleq {paddleq.__version__}")


if __name__ == "__main__":
    main(sys.argv[1])
