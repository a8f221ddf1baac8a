"""quant_post_static: saved programs, calibrated and quantized without Python classes."""

import os

import numpy as np
import paddle
import pytest
from nets import SmallNet, save_float, warmed
from paddle import nn
from runtimes import openvino, paddle_inference, relative_error

import paddleq
from paddleq.config import LayerConfig
from paddleq.deploy import has_vnni, to_paddle_int8
from paddleq.errors import (
    CalibrationError,
    ConfigError,
    ConfigTypeError,
    FormatError,
    ModelError,
    NonFiniteError,
)
from paddleq.export.program.program import Program
from paddleq.frontends.paddleslim import ObserverQuantizer, PerChannelAbsmaxQuantizer
from paddleq.graph.fold_batch_norm import fuse
from paddleq.post_training import PostTrainingPlan
from paddleq.post_training.saved_models import calibrated_rules, operator_sensitivities
from paddleq.saved_model.files import find_files


class Norms(nn.Layer):
    """Every position in which a norm is folded, and two in which it is kept."""

    def __init__(self):
        super().__init__()
        self.plain, self.plain_norm = nn.Conv2D(3, 6, 3, bias_attr=False), nn.BatchNorm2D(6)
        self.depthwise, self.depthwise_norm = nn.Conv2D(6, 6, 3, groups=6), nn.BatchNorm2D(6)
        self.up, self.up_norm = nn.Conv2DTranspose(6, 4, 2, groups=2), nn.BatchNorm2D(4)
        self.twice, self.twice_norm = nn.Conv2D(4, 4, 1), nn.BatchNorm2D(4)
        self.first_norm = nn.BatchNorm2D(3)
        self.line, self.line_norm = nn.Conv1D(4, 4, 1), nn.BatchNorm1D(4)
        self.fc, self.fc_norm = nn.Linear(4, 5), nn.BatchNorm1D(5)

    def forward(self, x):
        x = self.plain_norm(self.plain(self.first_norm(x)))
        x = self.up_norm(self.up(self.depthwise_norm(self.depthwise(x))))
        y = self.twice(x)
        x = (y + self.twice_norm(y)).mean([2, 3])
        x = self.line_norm(self.line(x.unsqueeze(-1))).squeeze(-1)
        return self.fc_norm(self.fc(x))


def live_statistics(net):
    for layer in net.sublayers():
        if isinstance(layer, (nn.BatchNorm1D, nn.BatchNorm2D)):
            n = layer._mean.shape[0]
            layer._mean.set_value(paddle.randn([n]) * 0.3)
            layer._variance.set_value(paddle.rand([n]) + 0.5)
            layer.weight.set_value(paddle.randn([n]))
            layer.bias.set_value(paddle.randn([n]))
    net.eval()
    return net


@pytest.fixture
def saved(digits, tmp_path):
    """Return (net, source folder, target folder, calibration batches, test images)."""
    images = digits.test[0]
    batches = digits.batches(64, 4)
    net = warmed(SmallNet(), batches[0])
    save_float(net, str(tmp_path / "float" / "net"), [1, 8, 8])
    return net, str(tmp_path / "float"), str(tmp_path / "int8"), batches, images


def test_norms_are_folded_where_valid(tmp_path):
    net = live_statistics(Norms())
    x = paddle.randn([4, 3, 8, 8])
    expected = net(x).numpy()
    save_float(net, str(tmp_path / "net"), [3, 8, 8])
    ending = ".json" if (tmp_path / "net.json").exists() else ".pdmodel"
    model = paddleq.SavedModel(str(tmp_path / f"net{ending}"))
    folded = [model.weight_names[producer] for producer, _ in fuse(model, lambda: model(x))]
    program = model.to_program()
    names = {net.plain.weight.name, net.depthwise.weight.name, net.up.weight.name,
             net.fc.weight.name}
    assert names <= set(folded)
    assert net.twice.weight.name not in folded
    left = [op.type for op in program.desc.blocks[0].ops].count("batch_norm")
    assert left == 7 - len(folded)
    program.save(str(tmp_path / "out.pdmodel"), str(tmp_path / "out.pdiparams"))
    found = paddle_inference(str(tmp_path / "out"), [x.numpy()])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("algo, name, options", [
    ("abs_max", "AbsmaxQuantizer", {}), ("KL", "KLQuantizer", {}),
    ("hist", "HistQuantizer", {"hist_percent": 0.999})])
@pytest.mark.parametrize("weights", ["channel_wise_abs_max", "abs_max"])
def test_saved_program_equals_ptq_simulation(saved, algo, name, options, weights):
    """Compare with the live model, calibrated on the same batches."""
    net, folder, out, batches, images = saved
    ptq = paddleq.PTQ(name, {"abs_max": "AbsmaxQuantizer"}.get(
        weights, "PerChannelAbsmaxQuantizer"), **options)
    live = ptq.quantize(net, fuse=True, inputs=batches[0])
    ptq.calibrate(live, batches)
    expected = live(paddle.to_tensor(images)).numpy()
    written = paddleq.quant_post_static(
        folder, out, batches, algo=algo, weight_quantize_type=weights, **options)
    assert len(written) == 4
    found = paddle_inference(f"{out}/model", [images])[0]
    # Folding in float64 and in float32 moves single values across a rounding border.
    assert relative_error(found, expected) < 5e-3
    assert relative_error(found, net(paddle.to_tensor(images)).numpy()) > 1e-3
    assert relative_error(openvino(f"{out}/model", [images])[0], found) < 1e-2
    arrays = Program.load(f"{out}/model.pdmodel", f"{out}/model.pdiparams").arrays
    assert sum(value.dtype == np.int8 for value in arrays.values()) == 4


def test_int8_kernels_run_the_program(saved):
    net, folder, out, batches, images = saved
    paddleq.quant_post_static(folder, out, batches)
    simulated = paddle_inference(f"{out}/model", [images])[0]
    path = f"{out}/model"
    if not has_vnni():  # int8 kernels saturate there in the model as it is
        path = f"{out}/copy"
        assert to_paddle_int8(f"{out}/model", path) > 0
    fast = paddle_inference(path, [images], ir_optim=True, int8=True)[0]
    assert relative_error(fast, simulated) < 0.06  # the kernels round between operators too


def test_without_folding_and_with_fewer_bits(saved):
    net, folder, out, batches, images = saved
    expected = net(paddle.to_tensor(images)).numpy()
    errors = []
    for bits in (8, 4):
        paddleq.quant_post_static(folder, out, batches, optimize_model=False, weight_bits=bits,
                                  activation_bits=bits, algo="mse")
        ops = Program.load(f"{out}/model.pdmodel", f"{out}/model.pdiparams").desc.blocks[0].ops
        assert sum(op.type == "batch_norm" for op in ops) == 2
        errors.append(relative_error(paddle_inference(f"{out}/model", [images])[0], expected))
    assert errors[0] < 0.05 < errors[1] < 0.6


def test_skipped_layers_stay_float(saved):
    net, folder, out, batches, images = saved
    names = paddleq.quant_post_static(folder, out, batches, skip_tensor_list=[net.fc.weight.name])
    assert net.fc.weight.name not in names and len(names) == 3
    arrays = Program.load(f"{out}/model.pdmodel", f"{out}/model.pdiparams").arrays
    np.testing.assert_array_equal(arrays[net.fc.weight.name], net.fc.weight.numpy())
    names = paddleq.quant_post_static(folder, out, batches, quantizable_op_type=["mul"])
    assert names == [net.fc.weight.name]


class Two(nn.Layer):
    """Two inputs, a shared weight, a Conv1D, a feed that is the input of a weighted layer."""

    def __init__(self):
        super().__init__()
        self.fc, self.line = nn.Linear(6, 6), nn.Conv1D(6, 3, 1)

    def forward(self, a, b):
        return self.line((self.fc(a) + self.fc(paddle.tanh(b))).unsqueeze(-1))


def test_two_inputs_in_every_form_of_batch(tmp_path):
    net = Two()
    net.eval()
    spec = [paddle.static.InputSpec([None, 6], "float32", name) for name in ("a", "b")]
    paddle.jit.save(net, str(tmp_path / "float" / "net"), spec)
    a, b = paddle.randn([32, 6]), paddle.randn([32, 6])
    outputs = []
    for batch in ([a, b], (a.numpy(), b.numpy(), np.zeros(32)), {"b": b, "a": a}):
        out = str(tmp_path / "int8")
        assert len(paddleq.quant_post_static(str(tmp_path / "float"), out, [batch])) == 2
        outputs.append(paddle_inference(f"{out}/model", [a.numpy(), b.numpy()])[0])
    np.testing.assert_array_equal(outputs[0], outputs[1])
    np.testing.assert_array_equal(outputs[0], outputs[2])
    expected = net(a, b).numpy()
    assert 1e-4 < relative_error(outputs[0], expected) < 0.03
    # (By their names: OpenVINO has its own order.)
    import openvino as ov

    model = ov.Core().compile_model(f"{out}/model.pdmodel", "CPU", {
        "INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"})
    found = model({"a": a.numpy(), "b": b.numpy()})[0]
    assert relative_error(found, outputs[0]) < 1e-3


@pytest.mark.parametrize("options, error, words", [
    ({"algo": "kl"}, ConfigError, ["algo", "'kl'", "'KL'"]),
    ({"weight_bits": 16}, ConfigError, ["weight_bits", "16"]),
    ({"activation_bits": True}, ConfigTypeError, ["activation_bits"]),
    ({"hist_percent": 1.0}, ConfigError, ["hist_percent"]),
    ({"batch_nums": 0}, ConfigError, ["batch_nums"]),
    ({"weight_quantize_type": "per_channel"}, ConfigError, ["weight_quantize_type"]),
    ({"optimize_model": 1}, ConfigTypeError, ["optimize_model"]),
    ({"skip_tensor_list": "fc"}, ConfigTypeError, ["skip_tensor_list"]),
    ({"skip_tensor_list": ["nothing"]}, ConfigError, ["skip_tensor_list", "nothing"]),
    ({"quantizable_op_type": ["convd"]}, ConfigError, ["convd", "conv2d"]),
    ({"quantizable_op_type": ["conv3d"]}, ModelError, ["conv3d"]),
    ({"model_filename": "other.pdmodel"}, FormatError, ["other.pdmodel"]),
    ({"data_loader": []}, CalibrationError, ["data_loader"]),
    ({"data_loader": 3}, ConfigTypeError, ["data_loader"]),
    ({"data_loader": [{"y": np.zeros(1)}]}, ConfigError, ["y"]),
    ({"data_loader": [np.full([1, 1, 8, 8], np.nan, "float32")]}, NonFiniteError, ["batch 0"]),
    ({"model_dir": "nowhere"}, FormatError, ["nowhere"]),
    ({"model_dir": 7}, ConfigTypeError, ["model_dir"]),
])
def test_invalid_arguments_write_nothing(saved, options, error, words):
    _, folder, out, batches, _ = saved
    arguments = {"model_dir": folder, "quantize_model_path": out, "data_loader": batches}
    with pytest.raises(error) as caught:
        paddleq.quant_post_static(**{**arguments, **options})
    assert all(word in str(caught.value) for word in words), caught.value
    assert not os.path.exists(out)


def sensitivities(folder, data, observer="hist"):
    model = paddleq.SavedModel(*find_files(folder))
    rules = calibrated_rules(model, LayerConfig(PerChannelAbsmaxQuantizer().weight(),
                                                ObserverQuantizer(observer).activation()))
    return operator_sensitivities(model, rules, PostTrainingPlan(fuse=True), data)


def test_sensitivity_finds_the_sensitive_operator(saved):
    """One channel of a convolution's input times 100, its weights divided by 100."""
    net, folder, _, batches, _ = saved
    with paddle.no_grad():
        net.bn2.weight[3] *= 100.0
        net.bn2.bias[3] *= 100.0
        net.conv3.weight[:, 3] /= 100.0
    save_float(net, f"{folder}/net", [1, 8, 8])
    found = sensitivities(folder, batches)
    assert found.worst() == [net.conv3.weight.name] and len(found) == 4
    others = [row.sqnr for row in found.ranking()[1:]]
    assert found.ranking()[0].sqnr < min(others) - 6
    # An iterator that can be used only once is accepted.
    again = sensitivities(folder, iter(batches))
    assert [row.sqnr for row in again] == [row.sqnr for row in found]


def test_sensitivity_equals_that_of_the_live_model(saved):
    net, folder, _, batches, _ = saved
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    live = ptq.quantize(net, fuse=True, inputs=batches[0])
    ptq.calibrate(live, batches)
    expected = paddleq.analysis.sensitivity(live, batches)
    found = sensitivities(folder, batches, "abs_max")
    names = {layer.weight.name: name for name, layer in live.named_sublayers()
             if name in ("conv1", "conv2", "conv3", "fc")}
    for row in found:
        assert abs(row.sqnr - expected[names[row.name]].sqnr) < 0.3
