"""BRECQ and QDrop: blocks of Layers and stages of saved models."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from low_bits import distance, low_bits, smooth
from nets import save_float
from paddle import nn
from runtimes import paddle_inference

import paddleq
from paddleq import FakeQuantize, QuantSpec
from paddleq.algorithms import BRECQ, AdaRound, QDrop, reconstruct
from paddleq.algorithms.reconstruction.activation_steps import LearnedStep
from paddleq.algorithms.reconstruction.blocks import find_blocks, mixed
from paddleq.engine import quantized_layers
from paddleq.errors import ConfigError, ConfigTypeError, ModelError
from paddleq.observers import FixedScaleObserver


class Residual(nn.Layer):
    def __init__(self, channels):
        super().__init__()
        self.first = nn.Conv2D(channels, channels, 3, padding=1)
        self.second = nn.Conv2D(channels, channels, 3, padding=1)

    def forward(self, x, scale=1.0):
        return F.relu(x + scale * self.second(F.relu(self.first(x))))


class Net(nn.Layer):
    """Stem, two residual blocks in a list, a gate with two branches, a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2D(1, 6, 3, stride=2, padding=1)
        self.blocks = nn.LayerList([Residual(6), Residual(6)])
        self.gate = nn.Sequential(nn.Conv2D(6, 3, 1), nn.ReLU(), nn.Conv2D(3, 6, 1))
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = F.hardswish(self.stem(x))
        for number, block in enumerate(self.blocks):
            x = block(x, scale=0.5 + number)
        x = x * F.sigmoid(self.gate(x.mean([2, 3], keepdim=True)))
        return self.head(x.mean([2, 3]))


SHAPE = [6, 1, 10, 10]
DATA = [smooth(SHAPE, seed) for seed in range(8)]
METHODS = {"brecq": BRECQ(iterations=100), "qdrop": QDrop(iterations=100)}


@pytest.fixture(scope="module")
def net():
    paddle.seed(4)
    made = Net()
    made.eval()
    return made


def test_blocks_of_a_layer_are_its_sublayers(net):
    _, model = low_bits(net, DATA[:1], 3, "round")
    names = [name for name, _ in quantized_layers(model)]
    calls = {name: 1 for name, layer in model.named_sublayers(include_self=True)
             if not isinstance(layer, nn.LayerList)}
    blocks = find_blocks(model, names, calls, 4)
    assert [each[0] for each in blocks] == ["stem", "blocks.0", "blocks.1", "gate", "head"]
    assert blocks[1][1:] == ["blocks.0.first", "blocks.0.second"]
    assert find_blocks(model, names, calls, 8) == [["", *names]]
    twice = {**calls, "blocks.0": 2}
    assert ["blocks.0.first", "blocks.0.first"] in find_blocks(model, names, twice, 4)


@pytest.fixture(scope="module")
def saved(net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("float")
    save_float(net, str(folder / "net"), [1, 10, 10])
    return folder


def test_stages_of_a_saved_model_hold_whole_residual_blocks(saved):
    model = paddleq.SavedModel(saved)
    x = DATA[0]
    with paddle.no_grad():
        values = dict(model.begin(paddle.to_tensor(x)))
        stages = model.stages(values, set(model.bindings), 1)
        layers = [stage.layers for stage in stages]
        # A residual block is one stage, and so is the gate with the product behind it.
        assert [len(each) for each in layers] == [1, 2, 2, 2, 1]
        assert sum(layers, ()) == tuple(model.bindings)
        for stage in stages:
            values = dict(model.run_stage(stage, values))
        expected = model(paddle.to_tensor(x))
        assert bool((values[model.output_names[0]] == expected).all())
        larger = model.stages(dict(model.begin(paddle.to_tensor(x))), set(model.bindings), 3)
        assert [len(stage.layers) for stage in larger] == [3, 4, 1]


@pytest.mark.one_version
@pytest.mark.parametrize("method", METHODS)
def test_layer_is_closer_to_float(method, net):
    _, nearest = low_bits(net, DATA, 3, "round")
    _, model = low_bits(net, DATA, 3, "round")
    settings = type(METHODS[method])(iterations=100, most_layers=4)
    report = reconstruct(model, DATA, settings)
    assert list(report.errors) == ["stem", "blocks.0", "blocks.1", "gate", "head"]
    assert all(learned <= nearest for nearest, learned in report.errors.values())
    x = paddle.to_tensor(smooth(SHAPE, 30))
    assert distance(model, net, x) < 0.8 * distance(nearest, net, x)
    assert not any(parameter.stop_gradient or parameter.grad is not None
                   for parameter in model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_saved_model_is_closer_to_float_and_written_as_simulated(method, net, saved, tmp_path):
    x = smooth(SHAPE, 30)
    expected = net(paddle.to_tensor(x)).numpy()

    def error(round_type):
        paddleq.quant_post_static(saved, tmp_path / "out", DATA, algo="abs_max", weight_bits=3,
                                  round_type=round_type)
        (found,) = paddle_inference(str(tmp_path / "out" / "model"), [x])
        return np.linalg.norm(found - expected)

    assert error(METHODS[method]) < 0.9 * error("round")


@pytest.mark.one_version
def test_dropped_quantization_helps_with_few_bits_of_activations(net, saved):
    """The activations have three bits, so that a rounding learned with float ones fits less."""
    def error(method):
        model = paddleq.PTQ("mse", paddleq.paddleslim.PerChannelAbsmaxQuantizer(3),
                            quant_bits=3).quantize(paddleq.SavedModel(saved))
        paddleq.calibrate(model, DATA)
        if method is not None:
            reconstruct(model, DATA, method)
        return distance(model, net, paddle.to_tensor(smooth(SHAPE, 30)))

    assert error(METHODS["qdrop"]) < 0.9 * error(None)


@pytest.mark.one_version
def test_learned_steps_of_activations_mend_ranges_that_are_too_wide(net, saved):
    """The ranges of abs_max are too wide for three bits."""
    def error(learn_steps):
        model = paddleq.PTQ("abs_max", paddleq.paddleslim.PerChannelAbsmaxQuantizer(3),
                            quant_bits=3).quantize(paddleq.SavedModel(saved))
        paddleq.calibrate(model, DATA)
        before = scales(model)
        reconstruct(model, DATA, QDrop(iterations=100, learn_steps=learn_steps))
        assert (scales(model) != before) == learn_steps
        return distance(model, net, paddle.to_tensor(np.concatenate(
            [smooth(SHAPE, seed) for seed in range(30, 34)])))

    assert error(True) < 0.8 * error(False)


def scales(model):
    return [layer.activation_quantizer.scale.item() for _, layer in quantized_layers(model)]


@pytest.mark.parametrize("symmetric", [True, False])
def test_step_follows_the_gradient_of_lsq(symmetric):
    """Of a random linear loss, in float64: Adam's first update is the rate times the sign."""
    generator = np.random.default_rng(2)
    x, factors = generator.normal(0.0, 2.0, 200), generator.normal(size=200)
    spec = QuantSpec(bits=3, signed=symmetric, symmetric=symmetric, rounding="half_even")
    zero = 0 if symmetric else 3
    learned = LearnedStep(FakeQuantize(FixedScaleObserver(spec, scale=0.7, zero_point=zero)))
    learned.leaf()
    y = learned.quantize(paddle.to_tensor(x.astype("float32")))
    (y * paddle.to_tensor(factors.astype("float32"))).sum().backward()
    learned.step(0.1)
    position = np.float32(x).astype("float64") / np.float32(0.7)
    low, high = spec.quant_min - zero, spec.quant_max - zero
    slopes = np.where(position <= low, low, np.where(position >= high, high,
                                                     np.round(position) - position))
    outside = (position < low) | (position > high)
    if not symmetric:  # the offset -0.7 * 3 is kept: beyond the range, the limit moves by its steps
        slopes = slopes + zero * outside
    expected = 0.7 * np.exp(-0.1 * np.sign(np.sum(factors * slopes)))
    step, *offset = (each.item() for each in learned.tensors())
    assert step == pytest.approx(expected, rel=1e-5)  # Adam's epsilon
    if not symmetric:
        assert offset == [pytest.approx(
            -2.1 - 0.1 * 0.7 * 7 * np.sign(np.sum(factors * outside)), rel=1e-5)]


class Branches(nn.Layer):
    """Two layers read one tensor; a third one reads another with the same range."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        return self.third(-x) + self.first(x) * self.second(x)


def test_quantizers_of_one_tensor_keep_one_step():
    paddle.seed(1)
    net, data = Branches(), [smooth([32, 6], seed) for seed in range(4)]
    model = paddleq.PTQ("abs_max", paddleq.paddleslim.PerChannelAbsmaxQuantizer(3),
                        quant_bits=3).quantize(net)
    paddleq.calibrate(model, data)
    before = scales(model)
    assert len(set(before)) == 1
    reconstruct(model, data, QDrop(iterations=50))
    first, second, third = scales(model)
    assert first == second != before[0] and third not in (first, before[0])


def test_mixed_inputs_take_each_element_from_either():
    paddle.seed(0)
    ones, zeros = paddle.ones([1000]), paddle.zeros([1000])
    count = paddle.to_tensor([3])
    values = {"b": [ones, count], "a": (ones * 2.0,), "c": None}
    found = mixed(values, {"b": [zeros, count], "a": (zeros,), "c": None}, 0.25)
    assert list(found) == ["b", "a", "c"] and found["c"] is None and found["b"][1] is count
    assert set(found["b"][0].numpy()) == {0.0, 1.0} and set(found["a"][0].numpy()) == {0.0, 2.0}
    assert 0.7 < found["b"][0].mean().item() < 0.8


@pytest.mark.parametrize("make, words", [
    (lambda: QDrop(drop_probability=1.5), "drop_probability"),
    (lambda: QDrop(learn_steps=1), "learn_steps"),
    (lambda: QDrop(step_learning_rate=0.0), "step_learning_rate"),
    (lambda: BRECQ(least_layers=0), "least_layers"),
    (lambda: BRECQ(images=0), "images"),
])
def test_wrong_settings_are_refused(make, words):
    with pytest.raises((ConfigError, ConfigTypeError), match=words):
        make()


class Ordered(nn.Layer):
    """The middle operator has no gradient in a saved model."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        x = self.first(x)
        return self.second(x * paddle.kthvalue(x, 2, axis=1, keepdim=True)[0])


def test_operator_without_gradient_is_named(tmp_path):
    paddle.seed(0)
    save_float(Ordered(), str(tmp_path / "float" / "net"), [6])
    data = [smooth([32, 6], seed) for seed in range(3)]
    with pytest.raises(ModelError, match="operator kthvalue .* 'adaround'"):
        paddleq.quant_post_static(tmp_path / "float", tmp_path / "out", data,
                                  round_type=QDrop(iterations=2))
    paddleq.quant_post_static(tmp_path / "float", tmp_path / "out", data,
                              round_type=AdaRound(iterations=2))
