"""Batches with NaN or infinity in training: skipped, counted, reported; exports refuse the rest."""

import copy
import logging

import numpy as np
import paddle
import pytest
from paddle import nn
from runtimes import paddle_inference

import paddleq
from paddleq import QAT, FakeQuantize, observers
from paddleq.errors import ExportError
from paddleq.fake_quant import PACT
from paddleq.golden_stick import SimulatedQuantizationAwareTraining as SimQAT

SPEC = [paddle.static.InputSpec([None, 4], "float32")]
AFFINE = {"dtype": "quint8", "qscheme": "per_tensor_affine"}
PER_CHANNEL = {"qscheme": "per_channel_symmetric", "ch_axis": 1, "channel_len": 4}
QUANTIZERS = {
    "moving average": lambda: FakeQuantize(observers.MovingAverageAbsMaxObserver),
    "maximum": lambda: FakeQuantize(observers.AbsMaxObserver),
    "maximum of the batch": lambda: FakeQuantize(observers.AbsMaxObserver, track_batch=True),
    "window": lambda: FakeQuantize(observers.RangeAbsMaxObserver, window_size=3),
    "mean": lambda: FakeQuantize(observers.AverageObserver),
    "affine": lambda: FakeQuantize(observers.MovingAverageMinMaxObserver, **AFFINE),
    "per channel": lambda: FakeQuantize(observers.MinMaxObserver, **PER_CHANNEL),
    "histogram": lambda: FakeQuantize(observers.HistogramObserver),
}


def batch(number, bad=None):
    values = np.random.default_rng(number).normal(size=[6, 4]).astype("float32")
    if bad is not None:
        values[number % 6, number % 4] = bad
    return paddle.to_tensor(values)


def state(layer):
    return {name: value.numpy() for name, value in layer.state_dict().items()}


def assert_same_state(one, other):
    expected = state(other)
    for name, value in state(one).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_a_skipped_batch_leaves_the_statistics_as_they_were(kind, bad):
    for position in (0, 2):
        with_bad, without = QUANTIZERS[kind](), QUANTIZERS[kind]()
        for number in range(4):
            if number == position:
                with_bad(batch(number, bad))
            with_bad(batch(number))
            without(batch(number))
        assert_same_state(with_bad, without)
        assert with_bad.skipped_batches.item() == 1
        assert "skipped_batches" not in with_bad.state_dict()


@pytest.mark.parametrize("kind", [kind for kind in QUANTIZERS if kind != "histogram"])
def test_programs_of_to_static_skip_too(kind):
    static, dynamic = nn.Sequential(QUANTIZERS[kind]()), nn.Sequential(QUANTIZERS[kind]())
    traced = paddle.jit.to_static(static, full_graph=True)
    for number, bad in enumerate([np.nan, None, np.inf, None]):
        traced(batch(number, bad))
        dynamic(batch(number, bad))
    for name, value in state(dynamic).items():
        np.testing.assert_allclose(state(static)[name], value, rtol=1e-6, err_msg=name)
    assert static[0].skipped_batches.item() == 2


def test_large_finite_values_are_observed():
    quantizer = FakeQuantize(observers.AbsMaxObserver)
    quantizer(paddle.full([4], 3e38))  # the sum overflows
    assert quantizer.skipped_batches.item() == 0
    np.testing.assert_allclose(quantizer.abs_max.numpy(), [3e38], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_overflow_is_skipped(dtype):
    quantizer = FakeQuantize(observers.AbsMaxObserver)
    quantizer(paddle.full([512], 300.0).astype(dtype))  # the sum overflows in float16
    quantizer(paddle.to_tensor([np.inf, 1.0]).astype(dtype))
    assert quantizer.abs_max.item() == 300.0
    assert quantizer.skipped_batches.item() == 1


def test_a_clipping_range_is_not_observed_in_place_of_nan():
    net = paddleq.QAT(act_preprocess=lambda: PACT(5.0)).quantize(nn.Sequential(nn.Linear(4, 3)))
    net(batch(0))
    before = net[0].activation_quantizer.abs_max.item()
    net(batch(1, np.nan))
    net(batch(2, np.inf))
    assert net[0].activation_quantizer.abs_max.item() == before


def test_warning_names_the_layer_once(caplog):
    net = paddleq.QAT().quantize(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    with caplog.at_level(logging.WARNING, "paddleq"):
        for number in range(3):
            net[0](batch(number, np.inf))
    warnings = [each.message for each in caplog.records if each.levelno >= logging.WARNING]
    assert [message.split(":")[0] for message in warnings] == ["0.activation_quantizer"]
    assert net[0].activation_quantizer.skipped_batches.item() == 3


def test_export_after_an_infinite_batch_equals_that_without(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    qat, outputs, path = paddleq.QAT(), [], str(tmp_path / "net")
    for each, bad in ((copy.deepcopy(net), np.inf), (net, None)):
        qat.quantize(each)
        if bad is not None:
            each(batch(9, bad))
        for number in range(6):
            each(batch(number))
        each.eval()
        qat.save_quantized_model(each, path, SPEC)
        outputs += [paddle_inference(path, [batch(1).numpy()])[0], each(batch(1)).numpy()]
    assert np.abs(outputs[0]).max() > 0.1
    for output in outputs[1:]:
        np.testing.assert_array_equal(output, outputs[0])


def only_nan(net):
    net(batch(0, np.nan))


def huge_scale(net):
    net(batch(0))
    net[0].activation_quantizer.abs_max.set_value(paddle.to_tensor([4e36]))


def nan_scale(net):
    net(batch(0))
    net[0].activation_quantizer.abs_max.set_value(paddle.to_tensor([np.inf], dtype="float32"))


def nan_weight(net):
    net(batch(0))
    weight = net[0].weight.numpy()
    weight[1, 2] = np.nan
    net[0].weight.set_value(weight)


@pytest.mark.parametrize("break_net, words", [
    (only_nan, "0.activation_quantizer .its 1 batches with NaN"),
    (huge_scale, "the input of 0 .*not finite"), (nan_scale, "the input of 0 .*not finite"),
    (nan_weight, "0.weight .*not finite")])
def test_export_refuses_scales_that_are_not_finite(break_net, words, tmp_path):
    qat = paddleq.QAT()
    net = qat.quantize(nn.Sequential(nn.Linear(4, 4)))
    break_net(net)
    with pytest.raises(ExportError, match=words):
        qat.save_quantized_model(net, str(tmp_path / "net"), SPEC)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("config", [{}, {"per_channel": [False, True]}, {"quant_delay": 1}])
def test_weights_that_diverged_give_nan_and_no_error(config):
    net = SimQAT(config).apply(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), batch(0))
    net.train()
    for number, bad in enumerate([None, np.nan, None, None]):
        loss = net(batch(number, bad)).square().mean()
        loss.backward()
    for parameter in net.parameters():
        if len(parameter.shape) == 2:
            parameter.set_value(paddle.full_like(parameter, np.nan))
    for _ in range(2):
        loss = net(batch(0)).square().mean()
        loss.backward()
    assert np.isnan(loss.item())


def trained(kind, factor):
    """Return a model with learned steps after two batches; that of the input is multiplied."""
    paddle.seed(0)
    net = QAT({"weight_quantize_type": "lsq", "activation_quantize_type": kind}).quantize(
        nn.Sequential(nn.Linear(4, 4)))
    net.train()
    net(batch(0))
    quantizer = net[0].activation_quantizer
    with paddle.no_grad():  # a learning rate that is too large
        quantizer.step.set_value(quantizer.step * factor)
    net(batch(1))
    return net


@pytest.mark.parametrize("kind", ["lsq", "lsq_plus"])
def test_learned_scales_that_round_all_to_zero_are_refused(kind, tmp_path):
    largest = max(np.abs(batch(number).numpy()).max() for number in (0, 1))
    net = trained(kind, 1e4)
    scale = net[0].activation_quantizer.scale.item()
    assert scale > 2.0 * largest
    with pytest.raises(ExportError, match="input of 0 has the learned scale") as raised:
        paddleq.save_quantized_model(net, str(tmp_path / "m"), SPEC, format="onnx")
    for value in (scale, largest, largest / net[0].activation_quantizer.spec.quant_max):
        assert f"{value:.6g}" in str(raised.value)
    assert not any(tmp_path.iterdir())


def test_a_batch_with_infinity_does_not_raise_the_limit_of_learned_scales(tmp_path):
    net = trained("lsq", 1e4)
    net(batch(2, np.inf))
    net(batch(3, np.nan))
    with pytest.raises(ExportError, match="learned scale"):
        paddleq.save_quantized_model(net, str(tmp_path / "m"), SPEC)


def set_scale(net):
    net[0].activation_quantizer.set_qparams(50.0)


def set_scale_and_train(net):
    set_scale(net)
    net(batch(2))


def load_state(net):
    other = trained("lsq", 1.0)
    set_scale(other)
    net.set_state_dict(other.state_dict())


@pytest.mark.parametrize("change", [set_scale, set_scale_and_train, load_state])
def test_learned_scales_that_a_user_set_are_exported(change, tmp_path):
    net = trained("lsq", 1.0)
    change(net)
    net.eval()
    paddleq.save_quantized_model(net, str(tmp_path / "m"), SPEC)
    x = batch(5).numpy()
    np.testing.assert_array_equal(paddle_inference(str(tmp_path / "m"), [x])[0],
                                  net(paddle.to_tensor(x)).numpy())


@pytest.mark.parametrize("factor", [1.0, 20.0])
def test_learned_scales_within_the_data_are_exported(factor, tmp_path):
    paddleq.save_quantized_model(trained("lsq", factor), str(tmp_path / "m"), SPEC)


@pytest.mark.parametrize("full_graph", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_programs_record_the_largest_value_for_learned_scales(full_graph):
    net = paddle.jit.to_static(trained("lsq", 1e4), full_graph=full_graph)
    net(batch(2) * 50.0)
    largest = np.abs(batch(2).numpy() * np.float32(50.0)).max()
    assert net[0].activation_quantizer.largest.item() == largest
    net(batch(3, np.inf))
    assert net[0].activation_quantizer.largest.item() == largest
