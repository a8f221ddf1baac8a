"""Layers without weights that are called several times: quantizers for each call."""

import copy
import logging
import pickle
import threading

import numpy as np
import paddle
import pytest
from paddle import nn
from runtimes import onnxruntime, paddle_inference

import paddleq
from paddleq import QuantizableFunction
from paddleq.errors import ConfigError, ModelError, StateError, TraceError

X = paddle.to_tensor(np.random.RandomState(0).uniform(-1, 1, [4, 6]).astype("float32"))
FACTORS = (1.0, 1000.0, 0.01)


class Several(nn.Layer):
    """One addition at several places, whose inputs have ranges far apart."""

    def __init__(self, **options):
        super().__init__()
        self.add = QuantizableFunction(paddle.add, **options)

    def forward(self, x):
        return [self.add(x * factor, x * factor * 0.5) for factor in FACTORS]


class Lists(nn.Layer):
    def __init__(self):
        super().__init__()
        self.concat = QuantizableFunction(paddle.concat, inputs=1)

    def forward(self, x):
        return [self.concat([x * factor, x * factor * 0.5], axis=1) for factor in FACTORS]


class Block(nn.Layer):
    def __init__(self, multiply, factor):
        super().__init__()
        self.multiply, self.factor = multiply, factor

    def forward(self, x):
        return self.multiply(x * self.factor, x)


class Blocks(nn.Layer):
    """Blocks that share one function."""

    def __init__(self):
        super().__init__()
        multiply = QuantizableFunction(paddle.multiply)
        self.blocks = nn.LayerList([Block(multiply, factor) for factor in FACTORS])

    def forward(self, x):
        return [block(x) for block in self.blocks]


class Repeated(nn.Layer):
    """A block that is called repeatedly, and a function before it."""

    def __init__(self):
        super().__init__()
        self.block = Block(QuantizableFunction(paddle.multiply), 1.0)

    def forward(self, x):
        return [self.block(x * factor) for factor in FACTORS]


class Registered(nn.Layer):
    """Layer without weights that a user registers."""

    def forward(self, x, y):
        return x - y


paddleq.register_layer(Registered, weights={}, inputs=(0, 1))


class OwnLayer(nn.Layer):
    def __init__(self):
        super().__init__()
        self.subtract = Registered()

    def forward(self, x):
        return [self.subtract(x * factor, y=x * factor * 0.5) for factor in FACTORS]


def rounded(x):
    """Quantize and dequantize to int8 with the largest magnitude of ``x`` itself."""
    x = np.asarray(x, np.float64)
    step = np.abs(x).max() / 127.0
    return np.clip(np.rint(x / step), -128, 127) * step


def expected(function):
    """Outputs of ``function(first, second)`` of quantized inputs for each factor, in float64."""
    x = X.numpy().astype("float64")
    return [function(x, factor) for factor in FACTORS]


NETS = {
    "a loop": (Several, lambda x, f: rounded(x * f) + rounded(x * f * 0.5)),
    "blocks that share it": (Blocks, lambda x, f: rounded(x * f) * rounded(x)),
    "a repeated block": (Repeated, lambda x, f: rounded(x * f) * rounded(x * f)),
    "a registered layer": (OwnLayer, lambda x, f: rounded(x * f) - rounded(x * f * 0.5)),
    "lists": (Lists, lambda x, f: np.clip(np.rint(np.concatenate([x, x * 0.5], 1) * (
        127.0 / np.abs(x).max())), -128, 127) * (np.abs(x).max() * f / 127.0)),
}


# The range in evaluation is that of all training batches.
TRAINING = {"activation_quantize_type": "abs_max", "quantizable_layer_type": [Registered]}


def by_calibrate(net):
    net = paddleq.PTQ("AbsmaxQuantizer").quantize(net)
    paddleq.calibrate(net, [X, X])
    return net


def by_own_loop(net):
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    net = ptq.quantize(net)
    net(X), net(X)
    return ptq.convert(net)


def by_training(net):
    net = paddleq.QAT(TRAINING).quantize(net)
    net.train()
    for _ in range(3):
        net(X)
    net.eval()
    return net


def check(found, function):
    assert len(found) == len(FACTORS)
    for y, exact in zip(found, expected(function)):
        difference = np.abs(np.asarray(y) - exact) / np.abs(exact).max()
        # float32 rounds a few values on the other side of a step.
        assert np.mean(difference > 1e-5) <= 0.05 and difference.max() < 0.02


@pytest.mark.parametrize("quantize", [by_calibrate, by_own_loop, by_training])
@pytest.mark.one_version
@pytest.mark.parametrize("name", NETS)
def test_each_call_is_quantized_with_its_own_range(name, quantize, tmp_path):
    make, function = NETS[name]
    net = quantize(make())
    check(net(X), function)
    check(net(X), function)
    paddleq.save_quantized_model(net, tmp_path / "net")
    for found, simulated in zip(paddle_inference(tmp_path / "net", [X.numpy()]), net(X)):
        assert (found == simulated.numpy()).all()


@pytest.mark.one_version
@pytest.mark.parametrize("name", NETS)
def test_copies_frozen_layers_and_other_formats_equal_the_simulation(name, tmp_path):
    make, function = NETS[name]
    net = by_calibrate(make())
    check(pickle.loads(pickle.dumps(net))(X), function)
    check(copy.deepcopy(net)(X), function)
    paddleq.export.to_onnx(net, tmp_path / "net")
    check(onnxruntime(tmp_path / "net", [X.numpy()]), function)
    frozen = paddleq.freeze(copy.deepcopy(net))
    for found, simulated in zip(frozen(X), net(X)):
        assert (found == simulated).all()
    paddleq.save_quantized_model(frozen, tmp_path / "frozen")
    check(paddle_inference(tmp_path / "frozen", [X.numpy()]), function)


@pytest.mark.parametrize("name", ["a loop", "blocks that share it", "a repeated block"])
def test_outputs_of_each_call_have_their_own_range(name, tmp_path):
    """Golden Stick quantizes outputs too."""
    net = paddleq.golden_stick.SimulatedQuantizationAwareTraining(
        {"symmetric": True}).apply(NETS[name][0]())
    net.train()
    for _ in range(60):  # its range is a moving average
        net(X)
    net.eval()
    for y, exact in zip(net(X), NETS[name][0]()(X)):
        error = (y - exact).abs().max() / exact.abs().max()
        assert 0 < error.item() < 0.05
    paddleq.save_quantized_model(net, tmp_path / "net")
    for found, simulated in zip(paddle_inference(tmp_path / "net", [X.numpy()]), net(X)):
        assert (found == simulated.numpy()).all()
    with pytest.raises(ModelError, match="called 3 times .* outputs are quantized"):
        paddleq.freeze(copy.deepcopy(net))


@pytest.mark.parametrize("float_model", [None, Several])
def test_layer_errors_compare_each_call_with_its_quantizers(float_model):
    net = by_calibrate(Several())
    (row,) = paddleq.analysis.layer_errors(net, [X], float_model and float_model())
    assert row.alone > 40 and row.accumulated > 40 and row.input > 40


def test_a_part_that_is_called_alone_counts_its_own_calls():
    net = by_calibrate(Repeated())
    x = X * FACTORS[0]
    first = net(X)[0]
    assert (net.block(x) == first).all() and (net.block(x) == first).all()


def test_a_failed_forward_pass_does_not_shift_the_calls():
    net = by_calibrate(Several())
    with pytest.raises(Exception, match="(?s)."):
        net("no tensor")
    check(net(X), NETS["a loop"][1])


def test_threads_count_their_own_calls():
    net, results = by_calibrate(Several()), []
    threads = [threading.Thread(target=lambda: results.append([net(X) for _ in range(20)]))
               for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    for outputs in (each for result in results for each in result):
        check(outputs, NETS["a loop"][1])


def test_state_dict_is_loaded_with_the_number_of_calls():
    trained = by_training(Several())
    fresh = paddleq.QAT(TRAINING).quantize(Several(calls=3))
    assert fresh.state_dict().keys() == trained.state_dict().keys()
    fresh.set_state_dict(trained.state_dict())
    fresh.eval()
    check(fresh(X), NETS["a loop"][1])


def test_more_calls_than_were_calibrated_are_an_error(tmp_path):
    class Growing(Several):
        many = False

        def forward(self, x):
            return [self.add(x, x) for _ in range(3 if self.many else 2)]

    net = by_calibrate(Growing())
    net.many = True
    with pytest.raises(StateError, match="add is called more often .* 2 times.*calls="):
        net(X)
    with pytest.raises(TraceError, match="add is called more often"):
        paddleq.save_quantized_model(net, tmp_path / "net")
    with pytest.raises(StateError, match="fixed scales for 2 calls"):
        paddleq.freeze(net)(X)


def test_quantizers_with_parameters_need_the_number_of_calls():
    config = {"activation_quantize_type": "lsq"}
    net = paddleq.QAT(config).quantize(Several())
    with pytest.raises(StateError, match="create the QuantizableFunction with calls=2"):
        net(X)
    net = paddleq.QAT(config).quantize(Several(calls=3))
    optimizer = paddle.optimizer.SGD(1e-3, parameters=net.parameters())
    assert len(net.parameters()) == 6
    sum(y.sum() for y in net(X)).backward()
    optimizer.step()
    scales = [float(q.abs_max) for _, q in net.add.quantizers()]
    assert max(scales) > 1000 * min(scales)


@pytest.mark.parametrize("calls", [0, -1, 1.0, True])
def test_number_of_calls_is_checked(calls):
    with pytest.raises((ConfigError, TypeError), match="calls must be"):
        QuantizableFunction(paddle.add, calls=calls)


class SharedLinear(nn.Layer):
    def __init__(self, factor):
        super().__init__()
        self.fc, self.factor = nn.Linear(6, 6), factor

    def forward(self, x):
        return self.fc(x) + self.fc(x * self.factor)


@pytest.mark.parametrize("calibrate", [by_calibrate, by_own_loop])
@pytest.mark.parametrize("factor, warns", [(1.0, False), (3.0, False), (0.0, False),
                                           (100.0, True), (0.001, True)])
def test_calls_of_a_shared_layer_with_ranges_far_apart_are_a_warning(
        calibrate, factor, warns, caplog):
    with caplog.at_level(logging.WARNING, logger="paddleq"):
        calibrate(SharedLinear(factor))
    found = [record.message for record in caplog.records if "called 2 times" in record.message]
    assert len(found) == warns
    if warns:
        assert found[0].startswith("fc is called 2 times") and "share one scale" in found[0]


class Fails(nn.Layer):
    def forward(self, x):
        raise RuntimeError("of the user")


def test_a_failed_forward_pass_does_not_number_the_calls_of_other_models():
    def model(*after):
        return paddleq.PTQ("AbsmaxQuantizer").quantize(
            nn.Sequential(nn.Linear(6, 6), QuantizableFunction(paddle.tanh), *after))

    failing, other = model(Fails()), model()
    with pytest.raises(RuntimeError, match="of the user"):
        failing(X)
    paddleq.calibrate(other, [X])
    expected = other(X).numpy()
    for _ in range(3):
        other[1](X)  # a part
        np.testing.assert_array_equal(other(X).numpy(), expected)
    assert other[1]._paddleq.calls == 1
    failing[2] = nn.Identity()
    assert paddleq.calibrate(failing, [X, X]) == 2
    assert failing[1]._paddleq.calls == 1
