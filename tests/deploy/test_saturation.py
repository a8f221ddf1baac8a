"""int8 kernels on x86 processors with and without VNNI; see ``paddleq.deploy.saturation``."""

import pathlib
import platform

import numpy as np
import onnx
import paddle
import pytest
from paddle import nn
from paddle.static import InputSpec
from runtimes import compiled, predictor, relative_error

import paddleq
from paddleq.deploy import Predictor, has_vnni, to_paddle_int8, verify
from paddleq.deploy.runtimes import openvino
from paddleq.deploy.saturation import can_saturate, fallback_reason, saturating_layers
from paddleq.export.pir_to_program import load_program

RUNTIMES = ["openvino", "onnxruntime", "paddle"]
KINDS = ["conv", "conv after relu", "linear", "linear after relu"]
CHANNELS = 16


class Net(nn.Layer):
    """Two layers with weights and inputs near their maximum, so that pair sums saturate."""

    def __init__(self, kind):
        super().__init__()
        self.relu = nn.ReLU() if "relu" in kind else nn.Identity()
        self.first, self.second = ((nn.Linear(CHANNELS, CHANNELS) for _ in range(2))
                                   if "linear" in kind else
                                   (nn.Conv2D(CHANNELS, CHANNELS, 1) for _ in range(2)))
        for layer in (self.first, self.second):
            layer.weight.set_value(paddle.rand(layer.weight.shape) * 0.2 + 0.8)
        eye = paddle.eye(CHANNELS).reshape(self.first.weight.shape)
        self.first.weight.set_value(self.first.weight * eye)
        if "single" in kind:
            self.first = nn.Identity()

    def forward(self, x):
        return self.second(self.relu(self.first(x)))


def exported(kind, bits, path):
    """Save a net as ``path.pdmodel`` and ``path.onnx``; return (input, quantized output)."""
    shape = [4, CHANNELS] if "linear" in kind else [4, CHANNELS, 6, 6]
    x = paddle.rand(shape) * 0.3 + 0.7
    ptq = paddleq.PTQ("AbsmaxQuantizer", paddleq.paddleslim.PerChannelAbsmaxQuantizer(bits))
    net = ptq.quantize(Net(kind))
    ptq.calibrate(net, [x])
    for format in ("pdmodel", "onnx"):
        ptq.save_quantized_model(net, path, [InputSpec([None, *shape[1:]], "float32", "x")],
                                 format=format)
    return x.numpy(), net(x).numpy()


def test_has_vnni_agrees_with_cpuinfo():
    """Without /proc/cpuinfo an x86 processor counts as one without VNNI."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    words = set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.exists() else set()
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686", "x86")
    assert has_vnni() == (not x86 or bool(words & {"avx512_vnni", "avx_vnni"}))


def test_has_vnni_agrees_with_a_stock_kernel(tmp_path):
    """255 * 127 + 255 * 127 is 64770, and 32767 where pairs are added in 16 bits."""
    import onnxruntime as ort

    node = onnx.helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    weight = onnx.numpy_helper.from_array(np.full([2, 8], 127, np.int8), "w")
    graph = onnx.helper.make_graph(
        [node], "g", [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [8, 2])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [8, 8])], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)],
                                   ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.full([8, 2], 255, np.uint8)})
    assert (found == (64770 if has_vnni() else 32767)).all()


@pytest.mark.parametrize("largest", [1, 63, 64, 65, 127])
@pytest.mark.parametrize("sign", [1, -1])
def test_weight_bound_without_saturation(largest, sign):
    weight = np.int8([[sign * largest, sign * largest], [0, 0]])
    pairs = np.int32([0, 1, 254, 255])[:, None] * weight.astype(np.int32).sum(1)
    fits = (pairs == np.clip(pairs, -2 ** 15, 2 ** 15 - 1)).all()
    assert can_saturate(weight) == (not fits)


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_every_runtime_equals_the_simulation(kind, bits, tmp_path, caplog):
    path = str(tmp_path / "net")
    x, expected = exported(kind, bits, path)
    for runtime in RUNTIMES:
        caplog.clear()
        with Predictor(path, runtime, threads=1) as runs:
            (found,) = runs.run(x)
        assert relative_error(found, expected) < (1e-5 if runtime != "paddle" else 5e-3)
        float_kernels = not has_vnni() and runtime != "onnxruntime" and (
            bits == 8 or (runtime, kind) == ("paddle", "conv after relu"))
        assert ("computed in float" in runs.reason) == float_kernels
        assert ("which has no VNNI" in caplog.text) == float_kernels


@pytest.mark.parametrize("kind", [*KINDS, "single conv", "single linear"])
@pytest.mark.parametrize("ending", ["onnx", "pdmodel"])
def test_openvino_computes_the_simulation_from_either_file(ending, kind, tmp_path):
    """Versions differ in which files have int8 kernels; those that saturate must not be used."""
    path = str(tmp_path / "net")
    x, expected = exported(kind, 8, path)
    stock = compiled(path, as_is=False, ending=ending)([x])[0]
    saturates = relative_error(stock, expected) > 0.05
    with Predictor(f"{path}.{ending}", "openvino", threads=1) as runs:
        (found,) = runs.run(x)
    assert relative_error(found, expected) < 1e-5
    assert "computed in float" in runs.reason or not saturates


@pytest.mark.parametrize("kind", KINDS)
def test_saturating_layers_are_found_in_both_formats(kind, tmp_path):
    import openvino as ov

    counts = {}
    for bits in (7, 8):
        path = str(tmp_path / f"net{bits}")
        exported(kind, bits, path)
        program = load_program(path + ".pdmodel", path + ".pdiparams")
        counts[bits] = (len(openvino.saturating_layers(ov.Core().read_model(path + ".onnx"))),
                        len(saturating_layers(program)))
    # Paddle Inference quantizes weights of convolutions again, to 8 bits.
    assert counts == {8: (2, 2), 7: (0, int(kind == "conv after relu"))}


@pytest.mark.parametrize("kind", KINDS)
def test_portable_copy(kind, tmp_path, caplog):
    path, copy = str(tmp_path / "net"), str(tmp_path / "copy")
    x, expected = exported(kind, 8, path)
    assert to_paddle_int8(path, copy, vnni=False) == 2
    assert "may saturate in 2 layers" in caplog.text
    found = predictor(copy, ir_optim=True, int8=True)([x])[0]
    assert relative_error(found, expected) < 5e-3
    arrays = load_program(copy + ".pdmodel", copy + ".pdiparams").arrays
    assert all(array.dtype == np.float32 for array in arrays.values())


def test_stock_int8_kernels_saturate_without_vnni(tmp_path):
    """The reason for this module; with VNNI the kernels are accurate."""
    path = str(tmp_path / "net")
    x, expected = exported("linear", 8, path)
    to_paddle_int8(path, path + "_int8", vnni=True)
    for run in (compiled(path, as_is=False, ending="onnx"),
                predictor(path + "_int8", ir_optim=True, int8=True)):
        assert (relative_error(run([x])[0], expected) < 0.05) == has_vnni()
    found = predictor(path, ir_optim=True, int8=True)([x])[0]
    assert relative_error(found, expected) < 1e-5


def test_verify_reports_float_kernels(tmp_path):
    path = str(tmp_path / "net")
    x, expected = exported("linear", 8, path)
    report = verify(path, lambda _: expected, x, seconds=0, top1=0.0, error=5e-3)
    assert report.ok
    notes = {(row.runtime, row.file[-4:]) for row in report.rows if row.fallback}
    assert notes == (set() if has_vnni() else {("paddle", "odel"), ("openvino", "odel"),
                                               ("openvino", "onnx")})
    assert str(report).count("computed in float") == len(notes)


def test_explanation_names_layers_and_remedies():
    assert fallback_reason("OpenVINO", []) == ""
    text = fallback_reason("OpenVINO", ["a", "b", "c", "d"])
    assert "OpenVINO may saturate in 4 layers (a, b, c, ...)" in text and "7 bits" in text
