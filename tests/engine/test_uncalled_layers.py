"""Layers that neither calibration nor training reaches: left float, and no obstacle to an export.

Models with auxiliary heads, with branches that evaluation does not run, and with layers that
``forward`` never calls.
"""

import copy
import pickle

import paddle
import pytest
from paddle import nn
from runtimes import paddle_inference, relative_error

import paddleq
from paddleq import PTQ, QAT, LayerConfig, QuantConfig, QuantSpec, State
from paddleq.config import QuantizerConfig, SkipKind
from paddleq.engine import summary_rows
from paddleq.engine.summary import layer_rows
from paddleq.errors import CalibrationError, ExportError
from paddleq.golden_stick import SimulatedQuantizationAwareTraining
from paddleq.observers import MSEObserver

SPEC = [paddle.static.InputSpec([None, 3, 8, 8], "float32")]


class Auxiliary(nn.Layer):
    """An auxiliary head that training runs, or evaluation on request."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2D(3, 4, 3, bias_attr=False), nn.BatchNorm2D(4), nn.ReLU())
        self.aux = nn.Sequential(nn.Conv2D(4, 4, 1), nn.BatchNorm2D(4), nn.ReLU())
        self.head = nn.Linear(4, 5)

    def forward(self, x, aux=False):
        x = self.stem(x)
        y = self.head(x.mean([2, 3]))
        return [y, self.aux(x)] if self.training or aux else y


class Unreached(nn.Layer):
    """Layers that forward never calls: in a container, and beside the others."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, 4, 3)
        self.aux = nn.LayerList([nn.Conv2D(4, 4, 3), nn.Linear(2, 2)])

    def forward(self, x):
        return self.conv(x)


class TiedWeights(nn.Layer):
    """The layer that is not called shares its weight with one that is."""

    def __init__(self):
        super().__init__()
        self.conv, self.aux = nn.Conv2D(3, 4, 3), nn.Conv2D(3, 4, 3)
        self.aux.weight = self.conv.weight

    def forward(self, x, aux=False):
        return self.aux(x) if aux else self.conv(x)


def batch():
    paddle.seed(5)
    return paddle.randn([4, 3, 8, 8])


def calibrated(net, quantize):
    net = quantize(net)
    net.eval()
    paddleq.calibrate(net, [batch()])
    return net


def ptq(net):
    return PTQ("AbsmaxQuantizer").quantize(net)


def ptq_folded(net):
    return PTQ("HistQuantizer").quantize(net, fuse=True)


def with_weight_observers(net):
    config = QuantConfig()
    weight = QuantizerConfig(MSEObserver, QuantSpec())
    for cls in (nn.Conv2D, nn.Linear):
        config.add_type(cls, LayerConfig(weight, QuantizerConfig(MSEObserver, QuantSpec())))
    net = paddleq.quantize(net, config)
    net.eval()
    paddleq.set_fake_quantize(net, State.CALIBRATION)
    return net


def uncalled(net):
    return [row.name for row in summary_rows(net)
            if row.reason is not None and row.reason.kind is SkipKind.NOT_CALLED]


def check_export(net, path):
    paddleq.save_quantized_model(net, path, SPEC)
    x = batch()
    net.eval()
    assert relative_error(paddle_inference(path, [x.numpy()])[0], net(x).numpy()) < 1e-6


@pytest.mark.parametrize("quantize", [ptq, ptq_folded, with_weight_observers])
@pytest.mark.parametrize("cls", [Auxiliary, Unreached, TiedWeights])
def test_layers_that_calibration_never_called_are_left_float(cls, quantize, caplog, tmp_path):
    net = calibrated(cls(), quantize)
    names = {Auxiliary: ["aux.0"], Unreached: ["aux.0", "aux.1"], TiedWeights: ["aux"]}[cls]
    assert uncalled(net) == names
    rows = {row.name: row for row in summary_rows(net)}
    assert {(rows[name].done, rows[name].why) for name in names} == {
        ("left", "not called during calibration")}
    (warning,) = [r.message for r in caplog.records if "no data reached them" in r.message]
    assert all(name in warning for name in names)
    assert not any("quantizers" in row for row in layer_rows(net) if row["name"] in names)
    layer = dict(net.named_sublayers())[names[0]]
    x = paddle.randn([1, layer.weight.shape[1], 8, 8])
    assert (layer(x) == nn.functional.conv2d(x, layer.weight, layer.bias)).all()
    check_export(net, str(tmp_path / "m"))
    check_export(copy.deepcopy(net), str(tmp_path / "copy"))


@pytest.mark.parametrize("train", [
    lambda net: QAT().quantize(net),
    lambda net: QAT({"weight_quantize_type": "moving_average_abs_max"}).quantize(net),
    lambda net: SimulatedQuantizationAwareTraining(
        {"symmetric": True, "enable_fusion": True}).apply(net, batch()[:1]),
], ids=["qat", "qat-observed-weights", "golden-stick"])
def test_training_exports_a_model_with_layers_that_forward_never_reaches(train, tmp_path):
    net = train(Unreached())
    for _ in range(3):
        net(batch())
    before = {name: value.numpy().copy() for name, value in net.state_dict().items()}
    if any("output_quantizer" in name for name in before):  # Golden Stick's
        net = SimulatedQuantizationAwareTraining().convert(net)
        assert uncalled(net) == ["aux.0", "aux.1"]
    check_export(net, str(tmp_path / "m"))
    for name, value in net.state_dict().items():
        if name in before and "aux" in name:
            assert (value.numpy() == before[name]).all()


def test_training_can_reach_a_layer_after_an_export_without_it(tmp_path):
    net = QAT().quantize(Unreached())
    net(batch())
    check_export(net, str(tmp_path / "m"))
    net.train()
    x = paddle.randn([1, 4, 8, 8])
    net.aux[0](x)
    # The moving average of PaddleSlim starts with 1.
    expected = (0.9 + x.abs().max().item()) / 1.9
    assert net.aux[0].activation_quantizer.abs_max.item() == pytest.approx(expected)


def test_a_training_head_keeps_its_scales_beside_an_export_without_it(tmp_path):
    net = QAT().quantize(Auxiliary())
    net(batch())
    check_export(net, str(tmp_path / "m"))
    assert uncalled(net) == [] and net.aux[0].activation_quantizer.initialized


@pytest.mark.parametrize("finish", [
    lambda net: net, lambda net: pickle.loads(pickle.dumps(net)), paddleq.freeze],
    ids=["kept", "pickled", "frozen"])
@pytest.mark.parametrize("cls", [Auxiliary, TiedWeights])
def test_an_export_that_contains_an_uncalibrated_layer_is_refused(cls, finish, tmp_path):
    net = finish(calibrated(cls(), ptq))
    paddleq.save_quantized_model(net, str(tmp_path / "m"), SPEC)

    class WithHead(nn.Layer):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x, aux=True)

    with pytest.raises(ExportError, match=r"no scale yet.*aux"):
        paddleq.save_quantized_model(WithHead(), str(tmp_path / "head"), SPEC)
    assert not (tmp_path / "head.pdmodel").exists()


def test_nothing_calibrated_is_an_error(tmp_path):
    net = ptq(Auxiliary())
    for finish in (PTQ().convert, paddleq.convert, paddleq.freeze,
                   lambda net: paddleq.save_quantized_model(net, str(tmp_path / "m"), SPEC)):
        with pytest.raises(CalibrationError, match=r"stem\.0\.activation_quantizer"):
            finish(net)
    net = QAT().quantize(Auxiliary())
    with pytest.raises(ExportError, match=r"stem\.0\.activation_quantizer"):
        paddleq.save_quantized_model(net, str(tmp_path / "m"), SPEC)


def test_a_second_calibration_reaches_what_the_first_one_did_not():
    net = calibrated(Auxiliary(), ptq)
    paddleq.calibrate(net, [{"x": batch(), "aux": True}])
    assert uncalled(net) == []
    expected = net.stem(batch()).abs().max()
    assert net.aux[0].activation_quantizer.abs_max.item() == pytest.approx(expected.item(), rel=0.1)


def test_training_after_calibration_quantizes_the_layers_that_it_left_float():
    net = calibrated(Auxiliary(), ptq)
    net.train()
    paddleq.set_fake_quantize(net, State.QAT)
    net(batch())
    assert uncalled(net) == [] and net.aux[0].activation_quantizer.observer.num_batches == 1


def test_an_error_in_a_second_calibration_keeps_the_layers_float():
    net = calibrated(Auxiliary(), ptq)
    with pytest.raises(ValueError, match=""):
        paddleq.calibrate(net, [paddle.zeros([2, 5])])
    assert uncalled(net) == ["aux.0"]


def test_analyses_run_on_a_model_with_layers_left_float():
    for net in (calibrated(Auxiliary(), ptq), QAT().quantize(Unreached())):
        net(batch())
        net.eval()
        errors = paddleq.analysis.layer_errors(net, [batch()])
        assert errors.worst() and not any(name.startswith("aux") for name in errors.worst(2))


def test_freeze_makes_them_float_layers():
    net = paddleq.freeze(calibrated(Auxiliary(), ptq))
    assert type(net.aux[0]) is nn.Conv2D and uncalled(net) == ["aux.0"]
    assert net.stem[0].weight.dtype == paddle.int8


def test_amct_leaves_layers_float_that_no_batch_reached(tmp_path):
    class Net(nn.Layer):
        def __init__(self):
            super().__init__()
            self.used, self.aux = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x, aux=False):
            return self.aux(x) if aux else self.used(x)

    channel = {"type": "int8", "symmetric": True, "strategy": "channel"}
    net, x = Net(), paddle.randn([4, 8])
    paddleq.amct.quantize(net, {"batch_num": 2, "quant_cfg": {"weights": channel},
                                "algorithm": "minmax"})
    net(x)
    with pytest.raises(CalibrationError, match=r"used \(1\)"):
        paddleq.amct.convert(net)
    net(x)
    paddleq.amct.convert(net)
    assert type(net.aux) is nn.Linear and uncalled(net) == ["aux"]
    paddleq.save_quantized_model(net, str(tmp_path / "m"), [paddle.static.InputSpec([None, 8])])
    assert relative_error(paddle_inference(str(tmp_path / "m"), [x.numpy()])[0],
                          net(x).numpy()) < 1e-6


def kernel_of(conv, norm):
    """(kernel, bias) of a convolution and a batch norm in evaluation, as the repositories do it."""
    factor = norm.weight / paddle.sqrt(norm._variance + norm._epsilon)
    return conv.weight * factor.reshape([-1, 1, 1, 1]), norm.bias - norm._mean * factor


class Branches(nn.Layer):
    """Two branches that become one convolution, added beside them or in their place."""

    def __init__(self, delete):
        super().__init__()
        self.delete, self.deployed = delete, False
        self.conv1, self.norm1 = nn.Conv2D(3, 4, 3, padding=1, bias_attr=False), nn.BatchNorm2D(4)
        self.conv2, self.norm2 = nn.Conv2D(3, 4, 1, bias_attr=False), nn.BatchNorm2D(4)
        self.head = nn.Conv2D(4, 2, 1)

    def re_parameterize(self):
        kernel, bias = kernel_of(self.conv1, self.norm1)
        small, more = kernel_of(self.conv2, self.norm2)
        self.conv = nn.Conv2D(3, 4, 3, padding=1)
        self.conv.weight.set_value(kernel + nn.functional.pad(small, [1, 1, 1, 1]))
        self.conv.bias.set_value(bias + more)
        for name in ("conv1", "conv2", "norm1", "norm2") if self.delete else ():
            delattr(self, name)
        self.deployed = True

    def forward(self, x):
        x = self.conv(x) if self.deployed else self.norm1(self.conv1(x)) + self.norm2(self.conv2(x))
        return self.head(nn.functional.relu(x))


@pytest.mark.parametrize("delete", [False, True], ids=["kept", "deleted"])
@pytest.mark.parametrize("when", ["before calibration", "after calibration", "after training"])
def test_re_parameterization_after_quantize(when, delete, caplog, tmp_path):
    net = Branches(delete)
    net(batch())  # moves the statistics of the batch norms
    if when == "after training":
        net = QAT().quantize(net)
        net(batch())
        net.eval()
    else:
        net.eval()
        net = ptq(net)
        if when == "after calibration":
            paddleq.calibrate(net, [batch()])
    net.re_parameterize()
    if when == "before calibration":
        paddleq.calibrate(net, [batch()])
    caplog.clear()
    check_export(net, str(tmp_path / "m"))
    rows = {row.name: row for row in summary_rows(net)}
    assert rows["conv"].reason.kind is SkipKind.ADDED_LATER and rows["head"].done == "quantized"
    (warning,) = [r.message for r in caplog.records if "added or replaced" in r.message]
    assert "conv" in warning
    assert uncalled(net) == (
        ["conv1", "conv2"] if when == "before calibration" and not delete else [])


def test_re_parameterization_of_folded_batch_norms_says_what_to_do():
    net = Branches(False)
    net.eval()
    net = calibrated(net, ptq_folded)
    with pytest.raises(AttributeError, match="re-parameterize the float model before"):
        net.re_parameterize()
