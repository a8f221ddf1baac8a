"""``paddleq.deploy.verify`` on correct and on faulty models."""

import numpy as np
import onnx
import onnxruntime
import paddle
import pytest
from deployed import deploy
from nets import SmallNet, calibrated, warmed
from paddle import nn
from paddle.static import InputSpec

import paddleq
from paddleq import PerGroup, QuantSpec
from paddleq.deploy import Report, verify
from paddleq.deploy.metrics import relative_error, top1_agreement
from paddleq.deploy.model_file import ModelFile
from paddleq.deploy.runtimes import RUNTIMES
from paddleq.deploy.runtimes.onnx_runtime import OnnxRuntime
from paddleq.deploy.worst_layer import worst_layer
from paddleq.errors import (
    ConfigError,
    ConfigTypeError,
    DependencyError,
    FormatError,
    InferenceError,
    UnsupportedOperatorError,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return (prefix of the .pdmodel and .onnx files, quantized Layer, batches)."""
    paddle.seed(0)
    x = paddle.rand([16, 1, 8, 8])
    ptq, net = calibrated(warmed(SmallNet(), x), x, fuse=True)
    path = str(tmp_path_factory.mktemp("model") / "net")
    for format in ("pdmodel", "onnx"):
        ptq.save_quantized_model(net, path, [InputSpec([None, 1, 8, 8], "float32", "x")],
                                 format=format)
    return path, net, [x[:8].numpy(), x[8:].numpy()]


def test_accuracy_latency_and_size_of_every_runtime(model):
    path, net, batches = model
    net.train()
    report = verify(path, net, batches, top1=0.9, seconds=0.05)
    assert net.training and all(layer.training for layer in net.sublayers())
    assert isinstance(report, Report) and report.ok and report.samples == 16
    found = {(row.runtime, row.file.rpartition(".")[2]): row for row in report.rows}
    assert set(found) == {
        ("reference", "pdmodel"), ("reference", "onnx"), ("openvino", "pdmodel"),
        ("openvino", "onnx"), ("onnxruntime", "onnx"), ("paddle", "pdmodel")}
    assert found["reference", "pdmodel"].error <= 1e-6
    assert found["reference", "onnx"].error <= 5e-3
    for (runtime, _), row in found.items():
        assert row.top1 >= 0.9 and row.size > 0 and row.problem is None
        if runtime != "reference":
            assert row.version[0].isdigit() and row.float_size > 0
            assert row.speedup == row.float_ms / row.ms > 0
    text = str(report)
    assert text.splitlines()[0] == f"{path}, 16 samples"
    notes = sum(bool(row.fallback) for row in report.rows)
    assert text.count("ok") == len(report.rows) == len(text.splitlines()) - 2 - notes


def as_arrays(net):
    def call(x):
        with paddle.no_grad():
            return net(paddle.to_tensor(x)).numpy()

    net.eval()
    return call


@pytest.mark.parametrize("kind", ["function", "path", "itself"])
def test_references_of_other_types(kind, model):
    path, net, batches = model
    reference = {"function": as_arrays(net), "path": path + ".pdmodel", "itself": None}[kind]
    report = verify(path + ".onnx", reference, {"x": batches[0]}, runtimes=["onnxruntime"],
                    top1=0.9, seconds=0.01)
    assert report.ok and [row.runtime for row in report.rows] == ["reference", "onnxruntime"]
    assert report.rows[0].error == 0.0 or kind != "itself"
    assert report.rows[1].float_ms is None and report.rows[1].ms > 0
    assert "FP32 ms" in str(report)


class ByName(nn.Layer):
    """Layers of two inputs; the keys of the outputs are not in their order."""

    def __init__(self):
        super().__init__()
        self.fc, self.gate = nn.Linear(8, 4), nn.Linear(8, 3)

    def outputs(self, x, mask):
        return {"z": self.fc(x) * mask, "a": self.gate(x)}


class TakesDict(ByName):
    def forward(self, inputs):
        return self.outputs(inputs["x"], inputs["mask"])


class TakesKeyword(ByName):
    def forward(self, x, *, mask):
        return self.outputs(x, mask)


class TakesSecond(ByName):
    def forward(self, x, bias=None, mask=None):
        return self.outputs(x, mask)


@pytest.mark.parametrize("cls", [TakesDict, TakesKeyword, TakesSecond])
def test_references_that_take_inputs_by_name(cls, tmp_path):
    batch = {"x": np.random.rand(6, 8).astype("float32"),
             "mask": np.random.rand(6, 1).astype("float32")}
    net = cls()
    quantized = paddleq.PTQ("AbsmaxQuantizer").quantize(net)
    paddleq.calibrate(quantized, [batch])
    paddleq.save_quantized_model(quantized, tmp_path / "m")
    report = verify(tmp_path / "m", quantized, batch, top1=0.0, seconds=0.01)
    assert report.ok and report.rows[0].error == 0.0
    assert all(row.float_ms > 0 for row in report.rows[1:])
    if cls is not TakesSecond:  # a float model has seen no call
        found = verify(tmp_path / "m", net, batch, runtimes=[], top1=0.0, seconds=0)
        assert 0 < found.rows[0].error < 0.05


def test_float_model_baseline(model, tmp_path):
    path, _, batches = model
    paddleq.export.to_onnx(SmallNet(), tmp_path / "float",
                           [InputSpec([None, 1, 8, 8], "float32", "x")])
    report = verify(path, None, batches, float_model=tmp_path / "float", top1=0.9, seconds=0.01)
    measured = {row.runtime + row.file[-4:]: row.float_ms for row in report.rows}
    assert measured["openvinoonnx"] > 0 and measured["onnxruntimeonnx"] > 0
    assert measured["paddleodel"] is None  # the float model has no such file
    assert "-" in str(report)


def test_file_of_another_model_fails(model):
    path, net, batches = model
    other = warmed(SmallNet(), paddle.rand([16, 1, 8, 8]))
    report = verify(path, other, batches, seconds=0)
    assert not report.ok and not any(row.ok for row in report.rows)
    assert all("the error is" in row.problem for row in report.rows)
    assert all(row.ms is None for row in report.rows)
    assert "NO" in str(report) and "top-1 agrees on" in str(report)
    wide = verify(path, warmed(SmallNet(classes=4), paddle.rand([8, 1, 8, 8])), batches,
                  runtimes=["paddle"], seconds=0)
    assert all("returns [8, 10], the reference [8, 4]" in row.problem for row in wide.rows)


class Layers(nn.Layer):
    """Three Linears; the second has per-group scales."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = (nn.Linear(64, 64) for _ in range(3))

    def forward(self, x):
        return self.last(nn.functional.relu(self.middle(nn.functional.relu(self.first(x)))))


class DefaultOnnxRuntime(OnnxRuntime):
    """ONNX Runtime as a user calls it, without options."""

    def load(self, file, threads, as_is=False):
        session = super().load(file, threads, as_is)
        session._session = onnxruntime.InferenceSession(file.path,
                                                        providers=["CPUExecutionProvider"])
        return session


def test_first_deviating_layer_is_named(tmp_path):
    """By default ONNX Runtime rounds inputs of products with groups of 32 to 8 bits."""
    grouped, odd = Layers(), QuantSpec(4, granularity=PerGroup(24))
    for name, spec in (("first", odd), ("last", odd),
                       ("middle", QuantSpec(4, granularity=PerGroup(32)))):
        holder = nn.Sequential(getattr(grouped, name))
        deploy(holder, spec)
        setattr(grouped, name, holder[0])
    path = str(tmp_path / "net")
    paddleq.export.to_onnx(grouped, path, [InputSpec([None, 64], "float32", "x")], target="plain")
    x = np.random.rand(32, 64).astype("float32")
    layer, before, behind = worst_layer(ModelFile(path + ".onnx"), DefaultOnnxRuntime(), 1, [x])
    assert layer == "middle.weight" and before < 1e-5 < 1e-4 < behind
    report = verify(path, grouped, x, runtimes=["onnxruntime"], error=1e-6, seconds=0)
    assert report.ok


def test_layer_of_packed_weights_is_named(tmp_path):
    """Weights of MatMulNBits have the names of the layers too."""
    net, path = Layers(), str(tmp_path / "net")
    deploy(net, QuantSpec(4, granularity=PerGroup(32)))
    paddleq.export.to_onnx(net, path, [InputSpec([None, 64], "float32", "x")])
    x = np.random.rand(32, 64).astype("float32")
    layer, _, _ = worst_layer(ModelFile(path + ".onnx"), OnnxRuntime(), 1, [x])
    assert layer in {"first.weight", "middle.weight", "last.weight"}


def test_worst_layer_of_a_pdmodel(model):
    """Paddle Inference rounds between operators, the file does not."""
    path, net, batches = model
    report = verify(path + ".pdmodel", net, batches, runtimes=["paddle"], error=1e-6, seconds=0,
                    top1=0.0)
    assert report.rows[0].ok and not report.rows[1].ok
    layer, before, behind = report.rows[1].worst_layer
    names = [parameter.name for parameter in net.parameters() if len(parameter.shape) > 1]
    assert layer in names and before < behind


class Embeddings(nn.Layer):
    """Sum of the embeddings of tokens and of their positions, and a head."""

    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(32, 16), nn.Embedding(8, 16)
        self.head = nn.Linear(16, 32)

    def forward(self, x):
        return self.head(self.tokens(x) + self.positions(paddle.arange(x.shape[1])))


@pytest.mark.parametrize("runtime, format", [
    ("paddle", "pdmodel"), ("openvino", "pdmodel"), ("openvino", "onnx"), ("onnxruntime", "onnx")])
def test_worst_layer_behind_an_embedding_of_positions(runtime, format, tmp_path):
    """The embedding of positions depends on no input of the model."""
    paddle.seed(0)
    tokens = np.random.RandomState(0).randint(0, 32, [4, 8])
    ptq = paddleq.PTQ()
    net = ptq.quantize(Embeddings(), quantizable_layer_type=["Linear", "Embedding"])
    ptq.calibrate(net, [tokens])
    path = str(tmp_path / "net")
    ptq.save_quantized_model(net, path, [InputSpec([None, 8], "int64", "x")], format=format)
    file = ModelFile(f"{path}.{format}")
    layer, before, behind = worst_layer(file, RUNTIMES[runtime], 1, [tokens])
    assert layer and before <= behind < 0.1


class LateInputs(nn.Layer):
    """Inputs that the first layers do not need, as the image sizes of a detector."""

    def __init__(self, order):
        super().__init__()
        self.order, self.first, self.last = order, nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, a, b, c):
        given = [a, b, c]
        x, late, last = (given[place] for place in self.order)
        return self.last(nn.functional.relu(self.first(x)) + late.mean()) * last


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 2, 1)])
def test_worst_layer_of_a_model_whose_first_layers_need_some_inputs_only(order, tmp_path):
    paddle.seed(0)
    arrays = [np.random.RandomState(seed).rand(3, 4).astype("float32") for seed in range(3)]
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    net = ptq.quantize(LateInputs(order))
    net(*map(paddle.to_tensor, arrays))
    path = str(tmp_path / "net")
    ptq.save_quantized_model(net, path, [InputSpec([None, 4], "float32", name) for name in "abc"])
    layer, before, behind = worst_layer(ModelFile(path + ".pdmodel"), RUNTIMES["paddle"], 1, arrays)
    assert layer and 0.0 <= before <= behind < 0.1


class OnnxRuntimeWithWrongTanh(OnnxRuntime):
    """ONNX Runtime with another function in the place of tanh."""

    def load(self, file, threads, as_is=False):
        if as_is:
            return super().load(file, threads, as_is)
        changed = onnx.load(file.path)
        for node in changed.graph.node:
            node.op_type = "Softsign" if node.op_type == "Tanh" else node.op_type
        path = file.path.replace(".onnx", ".changed.onnx")
        onnx.save(changed, path)
        return super().load(ModelFile(path, trusted=True), threads)


class Curves(nn.Layer):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return self.last(paddle.tanh(nn.functional.relu(self.first(x)) * 2.0)) + x


@pytest.fixture
def curves(tmp_path):
    x = np.random.RandomState(0).rand(32, 8).astype("float32")
    ptq, net = calibrated(Curves(), paddle.to_tensor(x))
    for format in ("pdmodel", "onnx"):
        ptq.save_quantized_model(net, str(tmp_path / "net"),
                                 [InputSpec([None, 8], "float32", "x")], format=format)
    return str(tmp_path / "net"), net, x


def test_operator_that_a_runtime_computes_wrongly_is_not_due_to_quantization(curves, monkeypatch):
    path, net, x = curves
    monkeypatch.setitem(RUNTIMES, "onnxruntime", OnnxRuntimeWithWrongTanh())
    row = verify(path + ".onnx", net, x, runtimes=["onnxruntime"], error=1e-2, seconds=0).rows[1]
    assert not row.ok and row.float_error > 1e-2
    assert "most at Tanh" in row.problem and "not due to quantization" in row.problem
    assert "another runtime" in row.problem


@pytest.mark.parametrize("reference", ["layer", "itself"])
def test_difference_of_int8_kernels_is_due_to_quantization(model, reference):
    path, net, batches = model
    row = verify(path + ".pdmodel", net if reference == "layer" else None, batches,
                 runtimes=["paddle"], error=1e-6, top1=0.0, seconds=0).rows[1]
    assert not row.ok and row.float_error < 1e-5
    assert "the float model is right in Paddle Inference" in row.problem


class Decoded(nn.Layer):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 5)
        self.register_buffer("transitions", paddle.rand([5, 5]))

    def forward(self, x):
        lengths = paddle.full([2], 6, "int64")
        scores, path = paddle.text.viterbi_decode(self.linear(x), self.transitions, lengths)
        return scores, path.astype("float32")


def test_operator_that_a_runtime_cannot_read_is_named_with_the_way_out(tmp_path):
    x = paddle.rand([2, 6, 8])
    ptq, net = calibrated(Decoded(), x)
    spec = [InputSpec([2, 6, 8], "float32", "x")]
    ptq.save_quantized_model(net, str(tmp_path / "net"), spec)
    with pytest.raises(UnsupportedOperatorError, match="operator viterbi_decode") as refusal:
        ptq.save_quantized_model(net, str(tmp_path / "net"), spec, format="openvino")
    assert refusal.value.operator == "viterbi_decode"
    with pytest.raises(InferenceError,
                       match="OpenVINO.*operator viterbi_decode.*format='onnx'.*'paddle'"):
        paddleq.deploy.Predictor(tmp_path / "net.pdmodel", runtime="openvino")
    row = verify(tmp_path / "net", net, x.numpy(), runtimes=["openvino"], seconds=0).rows[1]
    assert not row.ok and "the float model does not run there either" in row.problem


@pytest.mark.parametrize("axis, dtype", [(-1, "int32"), (-3, "int64"), (1, "int64")])
@pytest.mark.parametrize("function", [paddle.argmax, paddle.argmin])
def test_places_of_extrema_run_in_openvino(function, axis, dtype, tmp_path):
    """OpenVINO refuses the negative axes that Paddle writes."""
    class Places(nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv, self.function = nn.Conv2D(3, 4, 3), function
            self.axis, self.dtype = axis, dtype

        def forward(self, x):
            return self.function(self.conv(x), axis=self.axis, dtype=self.dtype)

    x = paddle.rand([2, 3, 6, 7])
    ptq, net = calibrated(Places(), x)
    ptq.save_quantized_model(net, str(tmp_path / "net"), [InputSpec([None, 3, 6, 7], name="x")])
    report = verify(tmp_path / "net", net, x.numpy(), runtimes=["openvino"], seconds=0)
    assert report.ok, report


@pytest.mark.parametrize("arguments, error, words", [
    ({"path": "no/model"}, FormatError, ["no model at no/model"]),
    ({"path": 1}, ConfigTypeError, ["path"]),
    ({"reference": 3}, ConfigTypeError, ["reference", "None for the file itself"]),
    ({"reference": "no/model"}, FormatError, ["no/model"]),
    ({"data": []}, ConfigError, ["data", "at least one batch"]),
    ({"data": 3}, ConfigTypeError, ["data", "iterable of batches"]),
    ({"data": np.zeros([0, 1, 8, 8], "float32")}, ConfigError, ["'x'", "at least one item"]),
    ({"data": np.zeros([2, 1, 8, 8])}, ConfigTypeError, ["'x'", "must be float32"]),
    ({"data": np.zeros([2, 1, 8, 9], "float32")}, ConfigError, ["'x'", "[2, 1, 8, 9]"]),
    ({"runtimes": "paddle"}, ConfigTypeError, ["runtimes", "a list"]),
    ({"runtimes": ["padle"]}, ConfigError, ["runtimes", "did you mean 'paddle'"]),
    ({"runtimes": ["paddlelite"]}, DependencyError, ["PADDLEQ_LITE_PYTHON"]),
    ({"threads": 0}, ConfigError, ["threads"]),
    ({"top1": 1.1}, ConfigError, ["top1", "[0.0, 1.0]"]),
    ({"error": -1.0}, ConfigError, ["error"]),
    ({"seconds": -1}, ConfigError, ["seconds"]),
    ({"float_model": "no/model"}, FormatError, ["no/model"]),
])
def test_invalid_arguments(arguments, error, words, model, monkeypatch):
    monkeypatch.delenv("PADDLEQ_LITE_PYTHON", raising=False)
    path, net, batches = model
    with pytest.raises(error) as caught:
        verify(**{"path": path, "reference": net, "data": batches, **arguments})
    assert all(word in str(caught.value) for word in words), caught.value


def test_agreement_metrics():
    a, b = np.array([[1.0, 2.0], [3.0, 1.0]]), np.array([[2.0, 3.0], [1.0, 3.0]])
    assert top1_agreement([[a]], [[b]]) == 0.5 and top1_agreement([[a], [a]], [[a], [b]]) == 0.75
    assert top1_agreement([[a[:, :1]]], [[b[:, :1]]]) is None
    assert top1_agreement([[a.astype(int)]], [[b.astype(int)]]) is None
    assert top1_agreement([[a * np.nan]], [[a]]) == 0.0
    picture = np.random.RandomState(0).rand(2, 5, 3, 4)
    assert top1_agreement([[picture]], [[picture]]) == 1.0
    assert top1_agreement([[picture[:, ::-1]]], [[picture]]) < 0.5
    assert relative_error([[a, b]], [[a, b]]) == 0.0
    assert relative_error([[a]], [[b]]) == np.sqrt(10.0 / 23.0)
    assert relative_error([[a * np.inf]], [[b]]) == np.inf
    assert relative_error([[a]], [[a * 0]]) == np.sqrt(15.0)


@pytest.mark.slow
@pytest.mark.lite
def test_paddle_lite_on_request(tmp_path, monkeypatch):
    """8-bit weights overflow in the x86 kernels; verify reports it."""
    from paddle_lite import Lite

    monkeypatch.setenv("PADDLEQ_LITE_PYTHON", str(Lite().python))
    x = paddle.randn([4, 16, 16, 16])
    for bits, ok in ((7, True), (8, False)):
        net = nn.Sequential(nn.Conv2D(16, 8, 1), nn.ReLU())
        ptq = paddleq.PTQ("AbsmaxQuantizer", paddleq.paddleslim.PerChannelAbsmaxQuantizer(bits))
        quantized = ptq.quantize(net)
        ptq.calibrate(quantized, [x])
        path = str(tmp_path / f"net{bits}")
        ptq.save_quantized_model(quantized, path, [InputSpec([None, 16, 16, 16], "float32", "x")])
        report = verify(path, quantized, x, runtimes=["paddlelite"], error=1e-3, top1=0.9)
        assert report.ok == ok and report.rows[1].version.startswith("2.")
        assert (report.rows[1].worst_layer is None) == ok
