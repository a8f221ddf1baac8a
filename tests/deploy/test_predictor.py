"""``paddleq.deploy.Predictor``: every runtime, threads, invalid use."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import paddle
import pytest
from nets import SmallNet, calibrated, warmed
from paddle import nn
from paddle.static import InputSpec
from runtimes import INT8_WEIGHT_BITS, relative_error

import paddleq
from paddleq.deploy import Predictor, to_lite
from paddleq.errors import (
    ConfigError,
    ConfigTypeError,
    DependencyError,
    FormatError,
    InferenceError,
)
from paddleq.paddleslim import PerChannelAbsmaxQuantizer

RUNTIMES = ["openvino", "onnxruntime", "paddle"]


class TwoInputs(nn.Layer):
    """Integer and float inputs, two outputs."""

    def __init__(self):
        super().__init__()
        self.table, self.fc = nn.Embedding(20, 8), nn.Linear(8, 4)

    def forward(self, words, x):
        y = self.fc(self.table(words).mean(1) + x)
        return y, y.exp()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return (prefix of a .pdmodel and an .onnx file, inputs, simulated output)."""
    paddle.seed(0)
    x = paddle.rand([6, 1, 8, 8])
    ptq, net = calibrated(warmed(SmallNet(), x), x, fuse=True)
    path = str(tmp_path_factory.mktemp("model") / "net")
    spec = [InputSpec([None, 1, 8, 8], "float32", "picture")]
    ptq.save_quantized_model(net, path, spec)
    ptq.save_quantized_model(net, path, spec, format="onnx")
    return path, x.numpy(), net(x).numpy()


@pytest.fixture(scope="module")
def two_inputs(tmp_path_factory):
    """Return (prefix of a .pdmodel and an .onnx file, [words, x], [y, exp(y)])."""
    paddle.seed(0)
    net = TwoInputs()
    words, x = paddle.randint(0, 20, [3, 5]), paddle.rand([3, 8])
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    net = ptq.quantize(net)
    ptq.calibrate(net, [(words, x)])
    path = str(tmp_path_factory.mktemp("two") / "net")
    spec = [InputSpec([None, 5], "int64", "words"), InputSpec([None, 8], "float32", "x")]
    for format in ("pdmodel", "onnx"):
        ptq.save_quantized_model(net, path, spec, format=format)
    return path, [words.numpy(), x.numpy()], [y.numpy() for y in net(words, x)]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_predictor_equals_the_simulation(runtime, model):
    path, x, expected = model
    with Predictor(path, runtime, threads=1) as predictor:
        (found,) = predictor.run(x)
        assert relative_error(found, expected) < 0.05  # int8 between operators as well
        assert (found.argmax(1) == expected.argmax(1)).all()
        assert predictor.runtime == runtime and (
            predictor.reason.split("; ")[0] == "requested")
        (port,) = predictor.inputs
        assert (port.name, port.dtype, port.shape) == ("picture", "float32", (None, 1, 8, 8))
        assert len(predictor.outputs) == 1
        for batch in (1, 4):
            (part,) = predictor.run({"picture": paddle.to_tensor(x[:batch])})
            assert part.shape == (batch, 10) and relative_error(part, found[:batch]) < 0.05
        assert repr(predictor) == (f"Predictor({predictor.file!r}, runtime={runtime!r}: takes "
                                   "picture: float32 [any, 1, 8, 8])")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_several_inputs_and_outputs(runtime, two_inputs):
    path, inputs, expected = two_inputs
    with Predictor(path, runtime, threads=1) as predictor:
        for given in (inputs, tuple(inputs), dict(zip(["x", "words"], inputs[::-1]))):
            found = predictor.run(given)
            assert [relative_error(a, b) < 0.02 for a, b in zip(found, expected)] == [True] * 2


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_eight_threads_equal_one_thread(runtime, model):
    path, x, _ = model
    batches = [np.roll(x, shift, axis) for shift in (1, 2) for axis in (0, 2, 3)] + [x, x[::-1]]
    with Predictor(path, runtime, threads=1) as predictor:
        alone = [predictor.run(batch)[0] for batch in batches]
        together, start = [[] for _ in batches], threading.Barrier(len(batches))

        def call(place):
            start.wait()
            for _ in range(20):
                together[place].append(predictor.run(batches[place])[0])

        threads = [threading.Thread(target=call, args=(i,)) for i in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for expected, found in zip(alone, together):
        assert len(found) == 20
        assert all(np.array_equal(each, expected) for each in found)


def test_auto_selects_and_reports_the_fastest_runtime(model, caplog):
    path, x, expected = model
    caplog.set_level("INFO", "paddleq")
    with Predictor(path, threads=1) as predictor:
        assert predictor.runtime in RUNTIMES
        assert relative_error(predictor.run(x)[0], expected) < 0.05
        assert predictor.reason in caplog.text
        measured = predictor.reason.split("; ")[0].partition(": ")[2]
        times = dict(part.split(" ")[:2] for part in measured.split(", "))
        assert sorted(times) == sorted(RUNTIMES)
        assert predictor.runtime == min(times, key=lambda name: float(times[name]))


def test_auto_selects_a_runtime_that_reads_the_file(model, tmp_path):
    path, x, _ = model
    shutil.copy(path + ".onnx", tmp_path / "only.onnx")
    with Predictor(tmp_path / "only") as predictor:
        assert predictor.runtime in ("openvino", "onnxruntime")
        assert predictor.file == str(tmp_path / "only.onnx")
    with Predictor(path + ".pdmodel") as predictor:
        assert predictor.runtime in ("openvino", "paddle")
        assert predictor.file == path + ".pdmodel"


def test_auto_does_not_measure_dynamic_shapes(tmp_path):
    net = nn.Sequential(nn.Conv2D(3, 4, 3), nn.ReLU())
    spec = [InputSpec([None, 3, None, None], "float32", "x")]
    paddleq.export.to_onnx(net, tmp_path / "net", spec)
    with Predictor(tmp_path / "net") as predictor:
        assert predictor.runtime == "openvino"
        assert "the first of openvino, onnxruntime" in predictor.reason
        x = np.random.rand(2, 3, 7, 9).astype("float32")
        assert relative_error(predictor.run(x)[0], net(paddle.to_tensor(x)).numpy()) < 1e-5


@pytest.mark.needs_pir
def test_paddle_3_json_program(model, tmp_path):
    net, x = SmallNet(), model[1]
    net.eval()
    paddle.jit.save(net, str(tmp_path / "net"), [InputSpec([None, 1, 8, 8], "float32")])
    assert os.path.exists(tmp_path / "net.json")
    with Predictor(tmp_path / "net") as predictor:
        assert re.search(r"fastest on a batch of one: openvino .* ms, paddle .* ms",
                         predictor.reason)
    for runtime in ("openvino", "paddle"):
        with Predictor(tmp_path / "net", runtime) as predictor:
            assert predictor.file.endswith(".json")
            assert relative_error(predictor.run(x)[0], net(paddle.to_tensor(x)).numpy()) < 1e-5


def test_paddle_inference_uses_int8_by_default(tmp_path):
    """The log written while loading counts the quantized operators."""
    path, x = str(tmp_path / "net"), paddle.rand([2, 3, 12, 12])
    net = nn.Sequential(nn.Conv2D(3, 4, 3), nn.Hardswish(), nn.Conv2D(4, 4, 3), nn.Hardswish(),
                        nn.Conv2D(4, 4, 3))
    ptq = paddleq.PTQ("AbsmaxQuantizer", PerChannelAbsmaxQuantizer(INT8_WEIGHT_BITS))
    net = ptq.quantize(net)
    ptq.calibrate(net, [x])
    ptq.save_quantized_model(net, path)
    script = f"""
import zlib, paddleq
paddleq.deploy.Predictor({path!r}, "paddle", threads=1)
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, universal_newlines=True)
    assert "quantized 3 conv2d ops" in done.stdout or "quantized 3 fused_conv2d" in done.stdout


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("change, error, words", [
    (lambda words, x: [words.astype("int32"), x], ConfigTypeError,
     ["'words'", "must be int64", "is int32", "array.astype('int64')"]),
    (lambda words, x: [words, x.astype("float64")], ConfigTypeError, ["'x'", "float64"]),
    (lambda words, x: [words, x[:, :7]], ConfigError, ["'x'", "[3, 7]", "x: float32 [any, 8]"]),
    (lambda words, x: [words, x[0]], ConfigError, ["'x'", "[8]"]),
    (lambda words, x: [words], ConfigError, ["1 arrays", "words: int64 [any, 5]; x: float32"]),
    (lambda words, x: [words, x, x], ConfigError, ["3 arrays"]),
    (lambda words, x: words, ConfigError, ["1 arrays"]),
    (lambda words, x: {"word": words, "x": x}, ConfigError, ["'word'", "did you mean 'words'"]),
    (lambda words, x: {"words": words}, ConfigError, ["lacks x"]),
    (lambda words, x: [words, None], ConfigTypeError, ["'x'", "a numeric array"]),
    (lambda words, x: [words, [[0.5] * 8] * 3], ConfigTypeError, ["'x'", "float64"]),
])
def test_invalid_inputs(runtime, change, error, words, two_inputs):
    path, inputs, expected = two_inputs
    with Predictor(path, runtime, threads=1) as predictor:
        with pytest.raises(error) as caught:
            predictor.run(change(*inputs))
        assert all(word in str(caught.value) for word in words), caught.value
        assert relative_error(predictor.run(inputs)[0], expected[0]) < 0.02  # still works


@pytest.mark.parametrize("arguments, error, words", [
    ({"path": "no/such/model"}, FormatError, ["no model at no/such/model", "model.onnx",
                                              "model.pdmodel", "model.json"]),
    ({"path": "no/such/model.onnx"}, FormatError, ["no file no/such/model.onnx"]),
    ({"path": None}, ConfigTypeError, ["path", "'out/model'"]),
    ({"path": ""}, ConfigTypeError, ["path"]),
    ({"runtime": "onnx"}, ConfigError, ["runtime", "did you mean 'onnxruntime'", "'openvino'"]),
    ({"runtime": None}, ConfigError, ["runtime", "'auto'"]),
    ({"threads": 0}, ConfigError, ["threads", "at least 1"]),
    ({"threads": 1.5}, ConfigTypeError, ["threads", "an int"]),
])
def test_invalid_arguments(arguments, error, words, model):
    with pytest.raises(error) as caught:
        Predictor(**{"path": model[0], "runtime": "paddle", **arguments})
    assert all(word in str(caught.value) for word in words), caught.value


def test_runtime_of_another_format(model):
    path = model[0]
    with pytest.raises(ConfigError, match="reads .onnx, but there is only .*to_onnx"):
        Predictor(path + ".pdmodel", "onnxruntime")
    with pytest.raises(ConfigError, match="reads .pdmodel or .json.*save_quantized_model"):
        Predictor(path + ".onnx", "paddle")


@pytest.mark.parametrize("runtime, ending", [
    ("paddle", ".pdmodel"), ("paddle", ".pdiparams"), ("openvino", ".pdmodel"),
    ("openvino", ".pdiparams"), ("openvino", ".onnx"), ("onnxruntime", ".onnx")])
@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_damaged_files(runtime, ending, damage, model, tmp_path):
    kind = ".onnx" if ending == ".onnx" else ".pdmodel"
    for each in {kind, ending}:
        shutil.copy(model[0] + each, tmp_path / f"net{each}")
    victim = tmp_path / f"net{ending}"
    data = victim.read_bytes()
    victim.write_bytes({"cut": data[:len(data) * 2 // 3], "empty": b"",
                        "noise": np.random.RandomState(0).bytes(len(data))}[damage])
    with pytest.raises(FormatError, match="net"):
        Predictor(tmp_path / "net", runtime)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_runtime_that_is_not_installed(runtime, model):
    """Run in a new process in which the runtime cannot be imported."""
    script = f"""
import importlib.util, json, zlib
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == {runtime!r} else find(name, *rest)
import paddleq
try:
    paddleq.deploy.Predictor({model[0]!r}, {runtime!r})
except paddleq.errors.DependencyError as error:
    print(json.dumps([str(error), paddleq.deploy.Predictor({model[0]!r}).runtime]))
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE,
                          universal_newlines=True)
    message, other = json.loads(done.stdout.strip().splitlines()[-1])
    assert runtime in message and "not installed" in message and "pip install" in message
    assert other in set(RUNTIMES) - {runtime}


def test_missing_paddle_lite(model, monkeypatch, tmp_path):
    for interpreter in (None, str(tmp_path / "no_python"), sys.executable):
        monkeypatch.delenv("PADDLEQ_LITE_PYTHON", raising=False)
        if interpreter is not None:
            monkeypatch.setenv("PADDLEQ_LITE_PYTHON", interpreter)
        for call in (lambda: Predictor(model[0], "paddlelite"), lambda: to_lite(model[0])):
            with pytest.raises(DependencyError, match="PADDLEQ_LITE_PYTHON.*paddlelite==2.12"):
                call()


def test_closed_predictor(model):
    path, x, _ = model
    predictor = Predictor(path, "paddle", threads=1)
    predictor.close()
    predictor.close()
    with pytest.raises(InferenceError, match="is closed"):
        predictor.run(x)


@pytest.fixture
def lite(monkeypatch):
    """Use the interpreter of the other Paddle-Lite tests."""
    from paddle_lite import Lite

    monkeypatch.setenv("PADDLEQ_LITE_PYTHON", str(Lite().python))


def seven_bits(tmp_path):
    """Return (prefix, inputs, simulated output) of a model for Paddle-Lite on x86."""
    x = paddle.randn([4, 3, 16, 16])
    net = warmed(nn.Sequential(nn.Conv2D(3, 8, 3), nn.BatchNorm2D(8), nn.ReLU(),
                               nn.Conv2D(8, 8, 3), nn.ReLU()), x)
    ptq = paddleq.PTQ("AbsmaxQuantizer", paddleq.paddleslim.PerChannelAbsmaxQuantizer(7))
    net = ptq.quantize(net, fuse=True)
    ptq.calibrate(net, [x])
    path = str(tmp_path / "net")
    ptq.save_quantized_model(net, path, [InputSpec([None, 3, 16, 16], "float32", "x")])
    return path, x.numpy(), net(x).numpy()


@pytest.mark.slow
@pytest.mark.lite
def test_paddle_lite(lite, tmp_path):
    path, x, expected = seven_bits(tmp_path)
    with Predictor(path, "paddlelite", threads=1) as predictor:
        found = [predictor.run(x)[0]]
        assert relative_error(found[0], expected) < 2e-3
        threads = [threading.Thread(target=lambda: found.append(predictor.run(x)[0]))
                   for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 9 and all(np.array_equal(each, found[0]) for each in found)
        process = predictor._sessions[0]._process
    assert process.poll() is not None


@pytest.mark.slow
@pytest.mark.lite
def test_paddle_lite_crash_is_an_error(lite, tmp_path):
    """An unknown operator terminates the Paddle-Lite process."""
    class Unknown(nn.Layer):
        def forward(self, x):
            return paddle.digamma(x)

    paddle.jit.save(Unknown(), str(tmp_path / "net"), [InputSpec([None, 5], "float32", "x")])
    if not os.path.exists(tmp_path / "net.pdmodel"):
        paddleq.export.to_program_desc(str(tmp_path / "net"), str(tmp_path / "net"))
    with pytest.raises(InferenceError, match="Paddle-Lite ended with"):
        Predictor(tmp_path / "net.pdmodel", "paddlelite")


@pytest.mark.slow
@pytest.mark.lite
def test_conversion_for_arm(lite, tmp_path):
    path, _, _ = seven_bits(tmp_path)
    assert to_lite(path) == path + ".nb"
    assert to_lite(path + ".pdmodel", tmp_path / "sub" / "other") == str(
        tmp_path / "sub" / "other.nb")
    assert os.path.getsize(path + ".nb") > 1000
    with pytest.raises(InferenceError, match="opt ended with"):
        to_lite(path, tmp_path / "wrong", places="moon")
    assert not os.path.exists(tmp_path / "wrong.nb")
    with pytest.raises(FormatError, match="no file .*nothing.pdmodel"):
        to_lite(tmp_path / "nothing")
