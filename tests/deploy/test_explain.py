"""``explain``: the operators that a runtime computes in float, against the runtime's own records.

The records are oneDNN's verbose output for Paddle Inference, the profile of a run for ONNX Runtime
and OpenVINO.
"""

import json
import os
import re
import subprocess
import sys

import numpy as np
import onnxruntime
import openvino
import paddle
import pytest
from paddle import nn
from runtimes import int8_ptq

import paddleq
from paddleq.deploy import explain
from paddleq.errors import ConfigError, FormatError

FORMATS = {"paddle": "pdmodel", "openvino": "openvino", "onnxruntime": "onnx"}
RUNS_ONCE = ("import sys, numpy, paddleq; x = numpy.load(sys.argv[2]); "
             "paddleq.deploy.Predictor(sys.argv[1], 'paddle').run([x])")


class Residual(nn.Layer):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2D(3, 8, 3, padding=1), nn.Conv2D(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = nn.functional.hardswish(self.a(x))
        return self.head((x + self.b(x)).mean([2, 3]))


class Recurrent(nn.Layer):
    def __init__(self):
        super().__init__()
        self.embed, self.lstm, self.head = nn.Linear(6, 8), nn.LSTM(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.lstm(self.embed(x))[0])


def models():
    """Return {name: (model, shape of its input)}."""
    conv = nn.Sequential(nn.Conv2D(3, 8, 3), nn.ReLU(), nn.Conv2D(8, 8, 3), nn.Sigmoid(),
                         nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(8, 4), nn.Softmax())
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation="gelu"), 1)
    upsampling = nn.Sequential(nn.Conv2D(3, 4, 3, padding=1), nn.ReLU(),
                               nn.Conv2DTranspose(4, 4, 2, stride=2), nn.Conv2D(4, 2, 1))
    return {"convolutions": (conv, [2, 3, 12, 12]), "residual": (Residual(), [2, 3, 12, 12]),
            "encoder": (encoder, [2, 5, 16]), "recurrent": (Recurrent(), [2, 5, 6]),
            "upsampling": (upsampling, [2, 3, 8, 8])}


@pytest.fixture(scope="module", params=["convolutions", "residual", "encoder", "recurrent",
                                        "upsampling"])
def exported(request, tmp_path_factory):
    """(Prefix of the model in every format, input)."""
    paddle.seed(7)
    net, shape = models()[request.param]
    net.eval()
    x = paddle.rand(shape)
    ptq = int8_ptq()
    quantized = ptq.quantize(net)
    ptq.calibrate(quantized, [x])
    path = str(tmp_path_factory.mktemp("explain") / "m")
    spec = [paddle.static.InputSpec(shape, "float32", "x")]
    for format in FORMATS.values():
        ptq.save_quantized_model(quantized, path, spec, format=format)
    return path, x.numpy()


def test_every_float_operator_has_a_reason(exported):
    path, _ = exported
    for runtime in FORMATS:
        found = explain(path, runtime)
        assert found.fallback or any(each.precision == "int8" for each in found.operators)
        for each in found.operators:
            assert (each.precision == "float") == bool(each.reason), each
            assert each.name in str(found)


def test_paddle_inference_computes_as_many_int8_layers(exported, tmp_path):
    path, x = exported
    np.save(tmp_path / "x.npy", x)
    done = subprocess.run([sys.executable, "-c", RUNS_ONCE, path, str(tmp_path / "x.npy")],
                          env={**os.environ, "ONEDNN_VERBOSE": "1", "DNNL_VERBOSE": "1"},
                          stdout=subprocess.PIPE, text=True, check=True)
    ran = re.findall(r"exec,cpu,(?:convolution|inner_product|matmul),[^,]*,[^,]*,src[_:](\w\d+)",
                     done.stdout)
    kinds = ("fused_conv2d", "conv2d", "fc", "matmul", "matmul_v2", "fused_matmul",
             "depthwise_conv2d")
    layers = [each for each in explain(path, "paddle").operators if each.type in kinds]
    assert ran
    assert (sum(each in ("s8", "u8") for each in ran)
            == sum(each.precision == "int8" for each in layers))


def test_onnx_runtime_runs_these_operators_with_these_types(exported, tmp_path):
    path, x = exported
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.log_severity_level = True, 3
    options.profile_file_prefix = str(tmp_path / "profile")
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(path + ".onnx", options, ["CPUExecutionProvider"])
    session.run(None, {session.get_inputs()[0].name: x})
    with open(session.end_profiling(), encoding="utf-8") as file:
        events = [each["args"] for each in json.load(file)
                  if each.get("cat") == "Node" and "input_type_shape" in each["args"]]
    int8 = sorted(each["op_name"] for each in events if each["op_name"] not in (
        "DequantizeLinear", "QuantizeLinear") and each["input_type_shape"] and
        set(each["input_type_shape"][0]) & {"int8", "uint8"})
    found = explain(path, "onnxruntime").operators
    assert sorted(each.type for each in found if each.precision == "int8") == int8
    ran = {each["op_name"] for each in events}
    assert {each.type for each in found} <= ran


def test_openvino_runs_these_operators_with_these_kernels(exported):
    path, x = exported
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": True,
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    request = openvino.Core().compile_model(path + ".xml", "CPU", settings).create_infer_request()
    request.infer([x])
    ran = {each.node_name: each.exec_type for each in request.profiling_info}
    layers = [each for each in explain(path, "openvino").operators
              if each.type in ("Convolution", "FullyConnected", "MatMul") and each.name in ran]
    assert layers
    for each in layers:
        assert (each.precision == "int8") == ran[each.name].lower().endswith("i8"), each


def test_reasons_name_what_is_missing(tmp_path):
    net = nn.Sequential(nn.Conv2D(3, 4, 3), nn.Softmax(), nn.Conv2D(4, 4, 3))
    net.eval()
    x, path = paddle.rand([1, 3, 8, 8]), str(tmp_path / "m")
    ptq = int8_ptq()
    quantized = ptq.quantize(net, skip=["0"])
    ptq.calibrate(quantized, [x])
    ptq.save_quantized_model(quantized, path)
    reasons = {each.type: each.reason for each in explain(path, "paddle").in_float}
    assert reasons["softmax"] == "Paddle Inference has no int8 kernel of softmax"
    assert reasons["fused_conv2d"].startswith("its input is not quantized: it comes from an input")


def test_a_float_model_has_no_int8_operator(tmp_path):
    path = str(tmp_path / "m")
    net = nn.Sequential(nn.Conv2D(3, 4, 3), nn.ReLU())
    paddle.jit.save(net, path, input_spec=[paddle.static.InputSpec([1, 3, 8, 8], "float32", "x")])
    for runtime in ("paddle", "openvino"):
        found = explain(path, runtime)
        assert found.operators == found.in_float != []


def quantized_linear():
    ptq = paddleq.PTQ()
    quantized = ptq.quantize(nn.Sequential(nn.Linear(16, 8)))
    ptq.calibrate(quantized, [paddle.rand([4, 16])])
    return ptq, quantized


def test_processors_without_vnni_compute_wide_weights_in_float(tmp_path, monkeypatch):
    path = str(tmp_path / "m")
    ptq, quantized = quantized_linear()
    ptq.save_quantized_model(quantized, path)
    for module in ("paddle_inference", "openvino"):
        monkeypatch.setattr(f"paddleq.deploy.runtimes.{module}.has_vnni", lambda: False)
    for runtime in ("paddle", "openvino"):
        found = explain(path, runtime)
        assert "VNNI" in found.fallback and found.fallback in str(found)
        assert found.operators == found.in_float


@pytest.mark.parametrize("arguments, message", [
    (("paddel",), "runtime must be one of .*paddel"),
    (("paddlelite",), "shows the graph that it compiles: openvino, onnxruntime, paddle"),
    (("onnxruntime",), "ONNX Runtime reads .onnx, but the model at .* is .pdmodel"),
    (("paddle", 0), "threads must be"),
])
def test_wrong_arguments_are_refused(arguments, message, tmp_path, monkeypatch):
    path = str(tmp_path / "m")
    ptq, quantized = quantized_linear()
    ptq.save_quantized_model(quantized, path)
    monkeypatch.setattr("paddleq.deploy.runtimes.paddle_lite.PaddleLite.installed",
                        lambda self: True)
    with pytest.raises(ConfigError, match=message):
        explain(path, *arguments)


def test_missing_models_are_format_errors(tmp_path):
    with pytest.raises(FormatError, match="there is no model"):
        explain(tmp_path / "m")
