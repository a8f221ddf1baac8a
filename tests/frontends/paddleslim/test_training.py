"""Training, copying, saving and tracing of quantized models."""

import copy
import logging

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from nets import SmallNet, train_steps, warmed
from paddle import nn
from runtimes import openvino, paddle_inference, relative_error

import paddleq
from paddleq.fake_quant import PACT
from paddleq.golden_stick import SimulatedQuantizationAwareTraining as SimQAT

CONFIGS = {"plain": {}, "pact": {"activation_preprocess_type": "PACT"}}


def quantized(config="plain", seed=0):
    paddle.seed(seed)
    net = SmallNet()
    return paddleq.QAT(CONFIGS[config]).quantize(net)


@pytest.mark.parametrize("config", list(CONFIGS))
def test_qat_learns_digits_with_model_fit(config, digits):
    x, y = digits.train
    net = quantized(config)
    model = paddle.Model(net)
    optimizer = paddle.optimizer.Adam(1e-2, parameters=net.parameters())
    model.prepare(optimizer, nn.CrossEntropyLoss(), paddle.metric.Accuracy())
    dataset = paddle.io.TensorDataset([paddle.to_tensor(x), paddle.to_tensor(y.reshape(-1, 1))])
    model.fit(dataset, batch_size=32, epochs=8, verbose=0)
    net.eval()
    accuracy = (net(paddle.to_tensor(digits.test[0])).numpy().argmax(1) == digits.test[1]).mean()
    assert accuracy > 0.75


def test_uninitialized_quantizer_is_identity():
    float_net, x = SmallNet(), paddle.rand([2, 1, 8, 8])
    float_net.eval()
    net = copy.deepcopy(float_net)
    # 16-bit weights: only the activations, which have no statistics, could change the output.
    paddleq.QAT({"weight_bits": 16}).quantize(net)
    net.eval()
    assert relative_error(net(x).numpy(), float_net(x).numpy()) < 1e-3


def test_scales_are_updated_in_training_only():
    net, x = quantized(), paddle.rand([2, 1, 8, 8])
    train_steps(net, x)
    scale = net.conv2.activation_quantizer.abs_max.item()
    net.eval()
    net(x * 10)
    assert net.conv2.activation_quantizer.abs_max.item() == scale
    net.train()
    net(x * 10)
    assert net.conv2.activation_quantizer.abs_max.item() > scale


def test_gradients_accumulate_over_backward_calls():
    x = paddle.rand([4, 1, 8, 8])
    net = quantized()
    train_steps(net, x)  # scales settle; in eval mode they stay
    net.eval()
    (net(x[:2]).sum() + net(x[2:]).sum()).backward()
    together = net.conv1.weight.grad.numpy().copy()
    net.clear_gradients()
    net(x[:2]).sum().backward()
    net(x[2:]).sum().backward()
    np.testing.assert_allclose(net.conv1.weight.grad.numpy(), together, rtol=1e-4, atol=1e-5)


def test_straight_through_gradient_is_that_of_the_quantized_weights():
    """d loss / d w of a quantized layer = that of a float layer that holds the quantized values."""
    net, x = nn.Sequential(nn.Linear(6, 4)), paddle.randn([5, 6])
    paddleq.QAT().quantize(net)
    net(x)
    net.eval()
    net(x).square().sum().backward()
    plain = nn.Linear(6, 4)
    plain.weight.set_value(net[0].quantized_weight("weight").detach())
    plain.bias.set_value(net[0].bias)
    scale = net[0].activation_quantizer.abs_max.item()
    quantized_x = np.clip(np.rint(x.numpy() / scale * 127), -128, 127) * scale / 127
    plain(paddle.to_tensor(quantized_x.astype("float32"))).square().sum().backward()
    np.testing.assert_allclose(net[0].weight.grad.numpy(), plain.weight.grad.numpy(),
                               rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", list(CONFIGS))
def test_deepcopy_and_state_dict(config, tmp_path):
    x = paddle.rand([4, 1, 8, 8])
    net = quantized(config)
    train_steps(net, x)
    expected = net(x).numpy()
    copied = copy.deepcopy(net)
    copied.eval()
    np.testing.assert_array_equal(copied(x).numpy(), expected)
    assert type(copied.conv1) is type(net.conv1) and copied.conv1 is not net.conv1
    path = str(tmp_path / "model.pdparams")
    paddle.save(net.state_dict(), path)
    fresh = quantized(config, seed=1)
    missing, unexpected = fresh.set_state_dict(paddle.load(path))
    assert not missing and not unexpected
    fresh.eval()
    np.testing.assert_array_equal(fresh(x).numpy(), expected)
    train_steps(copied, x * 5)
    np.testing.assert_array_equal(net(x).numpy(), expected)


@pytest.mark.parametrize("config", list(CONFIGS))
def test_resumed_training_is_identical(config, tmp_path):
    x = paddle.rand([4, 1, 8, 8])

    path = str(tmp_path / "x")
    with paddle.utils.unique_name.guard():
        net = quantized(config)
        optimizer = train_steps(net, x, steps=3)
        paddle.save(net.state_dict(), path + ".pdparams")
        paddle.save(optimizer.state_dict(), path + ".pdopt")
        train_steps(net, x, steps=3, optimizer=optimizer)
    with paddle.utils.unique_name.guard():  # parameter names restart at 0, as in a new process
        again = quantized(config, seed=1)
        other = paddle.optimizer.Momentum(1e-3, parameters=again.parameters())
        again.set_state_dict(paddle.load(path + ".pdparams"))
        other.set_state_dict(paddle.load(path + ".pdopt"))
        train_steps(again, x, steps=3, optimizer=other)
    np.testing.assert_array_equal(again(x).numpy(), net(x).numpy())


@pytest.mark.parametrize("config", list(CONFIGS))
@pytest.mark.parametrize("full_graph", [True, False])
def test_to_static_training(config, full_graph, tmp_path):
    x = paddle.rand([4, 1, 8, 8])
    dynamic, static = quantized(config), quantized(config)
    traced = paddle.jit.to_static(static, full_graph=full_graph)
    for net, call in ((dynamic, dynamic), (static, traced)):
        optimizer = paddle.optimizer.Momentum(1e-3, parameters=net.parameters())
        net.train()
        for _ in range(4):
            call(x).square().mean().backward()
            optimizer.step()
            optimizer.clear_grad()
        net.eval()
    np.testing.assert_allclose(static.conv2.activation_quantizer.abs_max.numpy(),
                               dynamic.conv2.activation_quantizer.abs_max.numpy(), rtol=1e-4)
    np.testing.assert_allclose(static.conv1.weight.numpy(), dynamic.conv1.weight.numpy(),
                               rtol=1e-3, atol=1e-5)
    assert static.conv2.activation_quantizer.observer.num_batches == 4


@pytest.mark.parametrize("config", list(CONFIGS))
def test_amp_o1(config):
    # On a CPU auto_cast knows bfloat16 only, and casts where Paddle was built to.
    x = paddle.rand([4, 1, 8, 8])
    net, plain = quantized(config), quantized(config)
    with paddle.amp.auto_cast(level="O1", dtype="bfloat16"):
        output = net(x)
        output.astype("float32").square().mean().backward()
    assert net.conv1.weight.dtype == paddle.float32
    assert net.conv1.weight.grad is not None
    assert relative_error(output.astype("float32").numpy(), plain(x).numpy()) < 0.05


def test_low_precision_activations_keep_their_dtype():
    quantizer = paddleq.FakeQuantize(paddleq.observers.AbsMaxObserver())
    x = paddle.rand([8]).astype("bfloat16")
    assert quantizer(x).dtype == paddle.bfloat16
    assert quantizer.abs_max.dtype == paddle.float32


KINDS = {
    "moving average": {"config": {}},
    "window": {"config": {"activation_quantize_type": "range_abs_max"}},
    "largest": {"config": {"activation_quantize_type": "abs_max"}},
    "saturating": {"act_quantize": paddleq.FakeQuantize},
}


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_pact_training_and_evaluation_use_equal_levels(kind, bits):
    """alpha decreases while the observer still has wider ranges."""
    arguments = copy.deepcopy(KINDS[kind])
    if "config" in arguments:
        arguments["config"]["activation_bits"] = bits
    net = paddleq.QAT(act_preprocess=lambda: PACT(3.0), **arguments).quantize(
        nn.Sequential(nn.Linear(8, 3)))
    layer, x = net[0], paddle.rand([16, 8]) * 4.0
    for alpha in (3.0, 3.0, 0.9):
        layer.activation_preprocess.alpha.set_value(paddle.to_tensor([alpha]))
        net.train()
        trained = net(x).numpy()
        traced = paddle.jit.to_static(copy.deepcopy(net), full_graph=True)
        abs_max = layer.activation_quantizer.abs_max.item()
        net.eval()
        np.testing.assert_allclose(net(x).numpy(), trained, rtol=1e-5, atol=1e-6)
    assert kind == "largest" or abs_max > 1.0
    # A traced program observes this batch again, which changes a moving average.
    if kind != "moving average":
        np.testing.assert_allclose(traced(x).numpy(), trained, rtol=1e-5, atol=1e-6)


def test_quantize_twice_is_an_error():
    net = quantized()
    for again in (paddleq.QAT().quantize, paddleq.PTQ().quantize):
        with pytest.raises(paddleq.errors.ModelError, match="'conv1' is already quantized"):
            again(net)


def test_inplace_and_copy():
    net = SmallNet()
    quanter = paddleq.QAT()
    copied = quanter.quantize(net, inplace=False)
    assert copied is not net and type(net.conv1) is nn.Conv2D
    assert [p.name for p in copied.parameters()] == [p.name for p in net.parameters()]
    assert quanter.quantize(net) is net


def test_hooks_are_built_once_for_each_layer():
    built = []

    class Counting(PACT):
        def __init__(self):
            super().__init__()
            built.append(self)

    net = SmallNet()
    paddleq.QAT(act_preprocess=Counting).quantize(net)
    layers = [layer for layer in net.sublayers() if hasattr(layer, "activation_preprocess")]
    assert len(built) == len(layers) == 4
    assert {id(layer.activation_preprocess) for layer in layers} == {id(hook) for hook in built}


def test_calibration_resumes_and_shards_merge(tmp_path):
    batches = [paddle.rand([2, 1, 8, 8]) * (i + 1) for i in range(4)]
    net = warmed(SmallNet(), batches[0])
    ptq = paddleq.PTQ("KLQuantizer")
    whole = ptq.quantize(net)
    assert ptq.calibrate(whole, batches) == 4
    stopped = ptq.quantize(net)
    assert ptq.calibrate(stopped, batches, num_batches=2) == 2
    path = str(tmp_path / "s.pdparams")
    paddle.save(stopped.state_dict(), path)
    resumed = ptq.quantize(net)
    resumed.set_state_dict(paddle.load(path))
    ptq.calibrate(resumed, batches[2:])
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_plain_forward_calls_calibrate(tmp_path):
    x = paddle.rand([4, 1, 8, 8])
    net = warmed(SmallNet(), x)
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    by_loader, by_calls = ptq.quantize(net), ptq.quantize(net)
    ptq.calibrate(by_loader, [x])
    np.testing.assert_array_equal(by_calls(x).numpy(), net(x).numpy())  # float while observing
    path = str(tmp_path / "m")
    ptq.save_quantized_model(by_calls, path)  # without convert(): it goes on observing
    assert by_calls.conv1.activation_quantizer.state is paddleq.State.CALIBRATION
    ptq.convert(by_calls)
    np.testing.assert_array_equal(by_calls(x).numpy(), by_loader(x).numpy())
    assert relative_error(paddle_inference(path, [x.numpy()])[0], by_calls(x).numpy()) < 1e-6


def test_ptq_accuracy_on_digits(digits, tmp_path):
    paddle.seed(0)
    net = SmallNet()
    x, y = (paddle.to_tensor(value) for value in digits.train)
    optimizer = paddle.optimizer.Adam(1e-2, parameters=net.parameters())
    net.train()
    for _ in range(6):
        for i in range(0, len(x), 64):
            F.cross_entropy(net(x[i:i + 64]), y[i:i + 64]).backward()
            optimizer.step()
            optimizer.clear_grad()
    net.eval()
    test, labels = paddle.to_tensor(digits.test[0]), digits.test[1]
    float_top1 = (net(test).numpy().argmax(1) == labels).mean()
    for name in ("KLQuantizer", "HistQuantizer", "AbsmaxQuantizer"):
        for fuse in (True, False):
            ptq = paddleq.PTQ(name)
            model = ptq.quantize(net, fuse=fuse)
            ptq.calibrate(model, [x[:64], x[64:128]])
            top1 = (model(test).numpy().argmax(1) == labels).mean()
            assert top1 > float_top1 - 0.02, (name, fuse)
            path, simulated = str(tmp_path / "m"), model(test).numpy()
            ptq.save_quantized_model(model, path)
            images = digits.test[0]
            assert relative_error(paddle_inference(path, [images])[0], simulated) < 1e-6
            # In a trained net, values that OpenVINO rounds differently have a small effect.
            for as_is in (True, False):
                assert relative_error(openvino(path, [images], as_is)[0], simulated) < 1e-2


def test_library_uses_logging_instead_of_print(capsys, caplog):
    with caplog.at_level(logging.INFO, logger="paddleq"):
        ptq = paddleq.PTQ()
        net = ptq.quantize(SmallNet())
        ptq.calibrate(net, [paddle.rand([2, 1, 8, 8])])
    assert "4 layers quantized" in caplog.text
    assert capsys.readouterr().out == ""


def test_summary_lists_every_layer():
    net, x = SmallNet(), paddle.rand([2, 1, 8, 8])
    net.conv2.skip_quant = True
    assert "the model was not quantized" in paddleq.summary(net)
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    net = ptq.quantize(net)
    assert "no scale yet" in paddleq.summary(net)
    ptq.calibrate(net, [x])
    rows = {line.split("|")[0].strip(): line for line in paddleq.summary(net).splitlines()}
    assert set(rows) >= {"conv1", "bn1", "conv2", "bn2", "conv3", "fc"}
    assert "skip_quant is set" in rows["conv2"] and "left" in rows["conv2"]
    assert "int8 per_channel(0)" in rows["conv1"] and "int8 per_tensor" in rows["conv1"]
    assert f"scale {x.max().item() / 127:.4g}" in rows["conv1"]
    assert "no rule matches" in rows["bn1"]


SAVED = {
    "trained": lambda net, x: paddleq.QAT().quantize(net),
    "trained PACT": lambda net, x: paddleq.QAT(CONFIGS["pact"]).quantize(net),
    "trained LSQ": lambda net, x: paddleq.QAT(
        {"weight_quantize_type": "lsq", "activation_quantize_type": "lsq"}).quantize(net),
    "maximum of the batch": lambda net, x: paddleq.QAT(
        {"activation_quantize_type": "abs_max"}).quantize(net),
    "folded norms": lambda net, x: SimQAT({"enable_fusion": True, "bn_fold": True}).apply(net, x),
    "delayed": lambda net, x: SimQAT({"quant_delay": 2}).apply(net, x),
    "calibrated histograms": lambda net, x: calibrated_by(net, x, "HistQuantizer"),
}


def calibrated_by(net, x, observer):
    net = paddleq.PTQ(observer).quantize(net)
    paddleq.calibrate(net, [x])
    return net


@pytest.mark.parametrize("mode", ["train", pytest.param("eval", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("kind", SAVED)
def test_jit_save_equals_evaluation(kind, mode, tmp_path):
    """jit.save sets batch norms to evaluation; a file must not observe its inputs either."""
    x = paddle.rand([4, 1, 8, 8])
    net = nn.Sequential(nn.Conv2D(1, 4, 3), nn.BatchNorm2D(4), nn.ReLU(), nn.Conv2D(4, 2, 3))
    net = SAVED[kind](net, x)
    if kind != "calibrated histograms":
        train_steps(net, x)
    getattr(net, mode)()
    before = {name: value.numpy() for name, value in net.state_dict().items()}
    paddle.jit.save(net, str(tmp_path / "net"), [paddle.static.InputSpec([None, 1, 8, 8])])
    assert net.training == (mode == "train")
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name], err_msg=name)
    loaded = paddle.jit.load(str(tmp_path / "net"))
    loaded.eval()
    net.eval()
    for each in (x, x * 9, x):
        np.testing.assert_allclose(loaded(each).numpy(), net(each).numpy(), rtol=1e-5, atol=1e-5)


def test_model_save_for_inference_after_fit(tmp_path):
    x = paddle.rand([8, 1, 8, 8])
    net = quantized()
    model = paddle.Model(net, paddle.static.InputSpec([None, 1, 8, 8], "float32", "x"),
                         paddle.static.InputSpec([None, 1], "int64", "y"))
    model.prepare(paddle.optimizer.SGD(1e-2, parameters=net.parameters()), nn.CrossEntropyLoss())
    dataset = paddle.io.TensorDataset([x, paddle.zeros([8, 1], "int64")])
    model.fit(dataset, batch_size=4, epochs=1, verbose=0)
    model.save(str(tmp_path / "net"), training=False)
    net.eval()
    loaded = paddle.jit.load(str(tmp_path / "net"))
    loaded.eval()
    np.testing.assert_allclose(loaded(x * 3).numpy(), net(x * 3).numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config, part", [
    ({"activation_preprocess_type": "PACT"}, "0.weight"),
    ({"weight_preprocess_type": "PACT"}, "0.weight"),
    ({"activation_preprocess_type": "PACT", "activation_quantize_type": "abs_max"}, "0.weight"),
    ({"activation_preprocess_type": "PACT", "activation_quantize_type": "range_abs_max"},
     "0.weight"),
    ({"activation_quantize_type": "lsq", "weight_quantize_type": "channel_wise_lsq"},
     "the input of 0"),
    ({}, "0.weight")], ids=["PACT", "PACT of weights", "batch maximum", "window", "LSQ", "plain"])
def test_training_that_diverged_goes_on_with_nan_and_is_not_exported(config, part, tmp_path):
    """As a float model does; a loop that checks its loss or a GradScaler needs no exception."""
    paddle.seed(0)
    net = paddle.nn.Sequential(paddle.nn.Conv2D(1, 4, 3), paddle.nn.ReLU(), paddle.nn.Flatten(),
                               paddle.nn.Linear(144, 3))
    quanter = paddleq.QAT(config)
    quanter.quantize(net)
    optimizer = paddle.optimizer.SGD(0.1, parameters=net.parameters())
    x = paddle.rand([2, 1, 8, 8])
    for factor in (1.0, float("nan"), 1.0, 1.0):
        loss = (net(x) * factor).sum()
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    net.eval()
    assert np.isnan(loss.item()) and np.isnan(net(x).numpy()).all()
    with pytest.raises(paddleq.errors.ExportError, match=f"^{part} has a value .* not finite"):
        quanter.save_quantized_model(net, str(tmp_path / "net"),
                                     [paddle.static.InputSpec([None, 1, 8, 8], "float32")])
    assert not list(tmp_path.iterdir())
