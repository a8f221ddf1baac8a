"""Layers that a trace loses: an error that names them, and no file; unused layers are no error."""

import os

import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from runtimes import onnxruntime, paddle_inference, relative_error

import paddleq
from paddleq import PTQ, QAT
from paddleq.errors import ExportError

PIR = not paddle.__version__.startswith("2.")
SPEC = [paddle.static.InputSpec([16, 32], "float32")]
CHANNEL = {"type": "int8", "symmetric": True, "strategy": "channel"}


def add_(y, z):
    y.add_(z)


def scatter_(y, z):
    # Not a view of z: Paddle 2.6 refuses to trace that.
    y.scatter_(paddle.arange(4), z[:4] * 1.0)


def index_add_(y, z):
    y.index_add_(paddle.arange(4), 0, z[:4] * 1.0)


def put_along_axis_(y, z):
    y.put_along_axis_(paddle.zeros([1, 32], "int64"), z[:1] * 1.0, 0)


def assign_output(y, z):
    paddle.assign(z, y)


def set_in_method(y, z):
    y.multiply_(z).add_(z)


IN_PLACE = [add_, scatter_, index_add_, put_along_axis_, set_in_method] + [assign_output] * PIR


class InPlace(nn.Layer):
    """Adds what one of two layers computes to a tensor in place."""

    def __init__(self, write):
        super().__init__()
        self.write, self.kept, self.lost = write, nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        y = self.kept(x) * 1.0
        self.write(y, F.relu(self.lost(x)))
        return y


class UnusedOutput(nn.Layer):
    """Computes a head in evaluation too, and returns only the main output."""

    def __init__(self):
        super().__init__()
        self.main, self.aux = nn.Linear(32, 32), nn.Sequential(nn.Linear(32, 8), nn.ReLU())

    def forward(self, x):
        y = self.main(x)
        outputs = {"main": y, "aux": self.aux(y)}
        return outputs["main"]


class Experts(nn.Layer):
    """Experts as of Mixtral: each adds its tokens to a tensor in place."""

    def __init__(self, in_place=True):
        super().__init__()
        self.in_place, self.gate = in_place, nn.Linear(32, 4)
        self.experts = nn.LayerList([nn.Linear(32, 32) for _ in range(4)])
        self.out = nn.Linear(32, 32)

    def forward(self, x):
        weights, y = F.softmax(self.gate(x), -1), paddle.zeros_like(x)
        for number, expert in enumerate(self.experts):
            weight = weights[:, number:number + 1]
            product = expert(x) * weight * (weight > 0.25).astype("float32")
            if self.in_place:
                y.index_add_(paddle.arange(16), 0, product)
            else:
                y = paddle.index_add(y, paddle.arange(16), 0, product)
        return self.out(x) + y


def batch():
    paddle.seed(7)
    return paddle.randn([16, 32])


def simulated(net):
    net.eval()
    net = PTQ("AbsmaxQuantizer").quantize(net)
    paddleq.calibrate(net, [batch()])
    return net


def trained(net):
    net = QAT().quantize(net)
    net(batch())
    net.eval()
    return net


def frozen(net):
    return paddleq.freeze(simulated(net))


def weights_only(net):
    net.eval()
    paddleq.amct.quantize(net, {"batch_num": 1, "quant_cfg": {"weights": CHANNEL},
                                "algorithm": "minmax"})
    net(batch())
    paddleq.amct.convert(net)
    return net


QUANTIZE = [simulated, trained, frozen, weights_only]


@pytest.mark.parametrize("write, quantize", [
    (write, quantize) for index, write in enumerate(IN_PLACE)
    for quantize in (QUANTIZE if write is add_ else [QUANTIZE[index % 4]])])
def test_a_layer_whose_output_is_written_in_place_is_refused(write, quantize, tmp_path):
    net = quantize(InPlace(write))
    before, x = net.state_dict(), batch()
    expected = net(x)
    with pytest.raises(ExportError, match="lost 1 quantized layers.*: lost.*in place"):
        paddleq.save_quantized_model(net, str(tmp_path / "m"), SPEC)
    assert os.listdir(tmp_path) == []
    assert (net(x) == expected).all() and before.keys() == net.state_dict().keys()


@pytest.mark.parametrize("format", ["onnx", "pir"])
@pytest.mark.parametrize("quantize", [simulated, weights_only])
def test_lost_layers_are_found_in_every_format(format, quantize, tmp_path):
    if format == "onnx":
        pytest.importorskip("onnx")
    elif not PIR:
        pytest.skip("Paddle 2.6 writes no PIR")
    with pytest.raises(ExportError, match="lost 1 quantized layers.*: lost"):
        paddleq.save_quantized_model(quantize(InPlace(add_)), str(tmp_path / "m"), SPEC,
                                     format=format)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("quantize", QUANTIZE)
def test_a_layer_on_which_no_output_depends_is_left_out(quantize, tmp_path, caplog):
    net = quantize(UnusedOutput())
    paddleq.save_quantized_model(net, str(tmp_path / "m"), SPEC)
    x = batch()
    assert relative_error(paddle_inference(str(tmp_path / "m"), [x.numpy()])[0],
                          net(x).numpy()) < 1e-6
    assert not [record for record in caplog.records if "lost" in record.message]


def test_an_unused_layer_is_left_out_of_an_onnx_file(tmp_path):
    pytest.importorskip("onnxruntime")
    net, x = weights_only(UnusedOutput()), batch()
    paddleq.save_quantized_model(net, str(tmp_path / "m"), SPEC, format="onnx")
    assert relative_error(onnxruntime(str(tmp_path / "m"), [x.numpy()])[0], net(x).numpy()) < 1e-5


@pytest.mark.parametrize("quantize", [simulated, weights_only])
def test_experts_that_write_in_place_are_refused_and_their_remedy_works(quantize, tmp_path):
    # The gate of experts is a router, which golden_stick and amct leave float.
    with pytest.raises(ExportError, match=r"lost [45] quantized .*experts\.0, .*3.*index_add\("):
        paddleq.save_quantized_model(quantize(Experts()), str(tmp_path / "m"), SPEC)
    net, x = quantize(Experts(in_place=False)), batch()
    paddleq.save_quantized_model(net, str(tmp_path / "m"), SPEC)
    assert relative_error(paddle_inference(str(tmp_path / "m"), [x.numpy()])[0],
                          net(x).numpy()) < 1e-6


class OfIds(nn.Layer):
    """Integer and boolean inputs of an open length."""

    def __init__(self):
        super().__init__()
        self.table, self.main, self.lost = nn.Embedding(2, 32), nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, ids, mask):
        x = self.table(ids)
        y = self.main(x) * mask.astype("float32").unsqueeze(-1)
        y.add_(self.lost(x))
        return y


def test_example_inputs_have_the_type_and_shape_of_the_specification(tmp_path):
    net = PTQ("AbsmaxQuantizer").quantize(OfIds())
    net.eval()
    paddleq.calibrate(net, [[paddle.zeros([2, 5], "int64"), paddle.ones([2, 5], "bool")]])
    spec = [paddle.static.InputSpec([None, None], dtype) for dtype in ("int64", "bool")]
    paddle.seed(3)
    expected = paddle.rand([4])
    paddle.seed(3)
    with pytest.raises(ExportError, match="lost 1 quantized layers.*: lost"):
        paddleq.save_quantized_model(net, str(tmp_path / "m"), spec)
    assert (paddle.rand([4]) == expected).all()


class Picky(InPlace):
    """Runs on no random input."""

    def forward(self, x):
        if paddle.in_dynamic_mode():
            assert x.min() >= 0.0
        y = self.kept(x) * 1.0
        self.write(y, F.relu(self.lost(x)))
        return y


def test_layers_are_named_where_the_model_runs_on_no_example_input(tmp_path, caplog):
    net = PTQ("AbsmaxQuantizer").quantize(Picky(add_))
    paddleq.calibrate(net, [paddle.ones([16, 32])])
    paddleq.save_quantized_model(net, str(tmp_path / "m"), SPEC)
    (warning,) = [r.message for r in caplog.records if "not in the traced program" in r.message]
    assert "1 quantized layers" in warning and ": lost." in warning


class TrainingHead(nn.Layer):
    """A head of training beside the layers that are exported."""

    def __init__(self):
        super().__init__()
        self.main, self.head = nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x):
        y = self.main(x)
        return (y, self.head(y)) if self.training else y


@pytest.mark.parametrize("change, names", [
    (lambda net: setattr(net, "main", nn.Linear(32, 32)), ["main"]),
    (lambda net: setattr(net, "main", nn.Sequential(net.main, nn.Linear(32, 32))), ["main.1"]),
    (lambda net: setattr(net, "head", nn.Linear(32, 8)), []),  # that only training runs
    (lambda net: net.add_sublayer("norm", nn.BatchNorm1D(32)), []),
], ids=["replaced", "wrapped", "not exported", "not a layer to quantize"])
@pytest.mark.parametrize("format", ["pdmodel", "onnx"])
def test_added_layers_are_named_where_the_program_has_them(change, names, format, tmp_path, caplog):
    if format == "onnx":
        pytest.importorskip("onnx")
    net = QAT().quantize(nn.Sequential(TrainingHead()))
    change(net[0])
    net(batch())
    paddleq.save_quantized_model(net, str(tmp_path / "m"), SPEC, format=format)
    found = [r.message for r in caplog.records if "added or replaced" in r.message]
    assert len(found) == len(names) and all(f": 0.{name}." in found[0] for name in names)


def state_warnings(caplog):
    found = [r.message for r in caplog.records if "still computes in float" in r.message]
    caplog.clear()
    return found


def test_an_export_says_that_the_model_in_memory_still_observes(tmp_path, caplog):
    ptq, path, x = PTQ("AbsmaxQuantizer"), str(tmp_path / "m"), batch()
    net = ptq.quantize(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)))
    net(x)
    ptq.save_quantized_model(net, path, SPEC)
    (message,) = state_warnings(caplog)
    assert "PTQ.convert" in message and "Predictor" in message
    expected = paddle_inference(path, [x.numpy()])[0]
    assert relative_error(net(x).numpy(), expected) > 1e-4  # still float, as the message says
    ptq.convert(net)
    assert relative_error(net(x).numpy(), expected) < 1e-6
    ptq.save_quantized_model(net, path, SPEC)
    assert state_warnings(caplog) == []


def test_an_onnx_export_says_that_the_model_still_observes(tmp_path, caplog):
    pytest.importorskip("onnx")
    net = PTQ("AbsmaxQuantizer").quantize(nn.Sequential(nn.Linear(32, 4)))
    net(batch())
    paddleq.export.to_onnx(net, str(tmp_path / "m"), SPEC)
    assert len(state_warnings(caplog)) == 1


@pytest.mark.parametrize("quantize", QUANTIZE)
def test_a_model_that_simulates_is_exported_without_the_warning(quantize, tmp_path, caplog):
    net = quantize(nn.Sequential(nn.Linear(32, 4)))
    paddleq.save_quantized_model(net, str(tmp_path / "m"), SPEC)
    assert state_warnings(caplog) == []


class Diagnosis(nn.Layer):
    """Evaluation computes a value that it does not return, with a layer that has no scale."""

    def __init__(self):
        super().__init__()
        self.main, self.extra = nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x):
        y = self.main(x)
        if not self.training:
            self.extra(y)
        return y


def test_a_quantizer_without_a_scale_that_the_program_does_not_contain_is_no_error(tmp_path):
    net = QAT().quantize(Diagnosis())
    net(batch())
    paddleq.save_quantized_model(net, str(tmp_path / "m"), SPEC)
    net.eval()
    x = batch()
    assert relative_error(paddle_inference(str(tmp_path / "m"), [x.numpy()])[0],
                          net(x).numpy()) < 1e-6


def affine_head():
    """A head with zero points, which no .pdmodel can hold."""
    config, symmetric = paddleq.QuantConfig(), paddleq.QuantSpec()
    config.add_type(nn.Linear, paddleq.LayerConfig(symmetric, symmetric))
    affine = paddleq.QuantSpec(signed=False, symmetric=False)
    config.add_name("head", paddleq.LayerConfig(symmetric, affine))
    net = paddleq.quantize(TrainingHead(), config)
    net(batch())
    return net


def head_with_infinite_weight():
    net = QAT().quantize(TrainingHead())
    net(batch())
    with paddle.no_grad():
        net.head.weight[0, 0] = float("inf")
    return net


@pytest.mark.parametrize("make", [affine_head, head_with_infinite_weight])
def test_a_layer_that_cannot_be_exported_is_refused_only_where_the_program_has_it(make, tmp_path):
    net = make()
    paddleq.save_quantized_model(net, str(tmp_path / "m"), SPEC)
    with pytest.raises(ExportError, match="head"):
        paddleq.save_quantized_model(nn.Sequential(net.main, net.head), str(tmp_path / "n"), SPEC)
    assert not (tmp_path / "n.pdmodel").exists()
