"""Cross-layer equalization: links along the data flow, factors, front ends."""

import copy

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from low_bits import distance, smooth
from nets import save_float
from paddle import nn
from runtimes import paddle_inference

import paddleq
from paddleq.algorithms import equalize
from paddleq.errors import ConfigError, ConfigTypeError, ModelError
from paddleq.paddleslim import AbsmaxQuantizer


def uneven(layer, axis, seed=0):
    """Give output channels along ``axis`` ranges that differ by up to 1000."""
    weight = layer.weight.numpy()
    shape = [1] * weight.ndim
    shape[axis] = -1
    factors = 10.0 ** np.random.default_rng(seed).uniform(-1.5, 1.5, weight.shape[axis])
    layer.weight.set_value((weight * factors.reshape(shape)).astype("float32"))
    return layer


class Net(nn.Layer):
    """One link of each kind, and refusals."""

    def __init__(self):
        super().__init__()
        self.stem = uneven(nn.Conv2D(1, 6, 3, padding=1), 0)
        self.depthwise = uneven(nn.Conv2D(6, 6, 3, padding=1, groups=6), 0, 1)
        self.pointwise = uneven(nn.Conv2D(6, 8, 1), 0, 2)
        self.prelu = nn.PReLU(8, init=0.3)
        self.grouped = uneven(nn.Conv2D(8, 4, 3, groups=2), 0, 3)
        self.up = uneven(nn.Conv2DTranspose(4, 4, 2, stride=2, groups=2), 1, 4)
        self.flat = nn.Linear(4 * 6 * 6, 5)
        self.branches = nn.LayerList([nn.Linear(5, 5), nn.Linear(5, 5)])
        self.clipped, self.residual, self.sigmoid, self.head = (nn.Linear(5, 5) for _ in range(4))

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.leaky_relu(self.depthwise(x), 0.1)
        x = F.max_pool2d(self.prelu(self.pointwise(x)), 2)
        x = self.up(self.grouped(x))
        x = F.relu(self.flat(paddle.flatten(F.relu(x), 1)))
        x = self.branches[0](x) + F.relu(self.branches[1](x))
        x = F.relu6(self.clipped(x))
        x = x + self.residual(x)
        return F.sigmoid(self.sigmoid(x)) + self.head(x)


CONSUMERS = {"stem": ["depthwise"], "depthwise": ["pointwise"], "pointwise": ["grouped"],
             "grouped": ["up"], "up": ["flat"], "flat": ["branches.0", "branches.1"]}
X = smooth([4, 1, 10, 10], 0)


@pytest.fixture
def net():
    paddle.seed(0)
    made = Net()
    made.eval()
    return made


def test_links_follow_the_data_flow_and_refusals_give_reasons(net):
    report = equalize(net, paddle.to_tensor(X))
    assert report.consumers == CONSUMERS
    assert set(report.refused) == {"branches.0", "branches.1", "clipped", "residual", "sigmoid",
                                   "head"}
    assert "clipped and residual are not positively homogeneous" in report.refused["clipped"]
    for name in ("branches.0", "branches.1"):
        assert f"between {name} and clipped" in report.refused[name]
    assert "output of the model" in report.refused["head"]
    assert "clipped: the operators between" in str(report)


def test_model_computes_the_same_function(net):
    other, x = copy.deepcopy(net), paddle.to_tensor(smooth([4, 1, 10, 10], 5))
    report = equalize(net, paddle.to_tensor(X))
    assert distance(net, other, x) < 1e-6
    for name in ("stem", "depthwise", "pointwise"):
        before, after = report.ranges[name]
        assert after < 0.1 * before


def ranges(weight, axis):
    others = tuple(i for i in range(weight.ndim) if i != axis)
    return np.abs(weight.numpy().astype("float64")).max(others)


def test_ranges_are_those_of_the_paper():
    """Of a pair the geometric mean of both, with a depthwise layer the cube root of the product."""
    paddle.seed(1)
    pair = nn.Sequential(uneven(nn.Linear(6, 7), 1), nn.ReLU(), nn.Linear(7, 3))
    expected = np.sqrt(ranges(pair[0].weight, 1) * ranges(pair[2].weight, 0))
    bias = pair[0].bias.numpy() / ranges(pair[0].weight, 1) * expected
    equalize(pair, paddle.randn([4, 6]))
    for layer, axis in ((pair[0], 1), (pair[2], 0)):
        np.testing.assert_allclose(ranges(layer.weight, axis), expected, rtol=1e-5)
    np.testing.assert_allclose(pair[0].bias.numpy(), bias, rtol=1e-5, atol=1e-8)
    three = nn.Sequential(uneven(nn.Conv2D(2, 5, 1), 0), nn.ReLU(),
                          uneven(nn.Conv2D(5, 5, 3, groups=5), 0, 1), nn.ReLU(),
                          nn.Conv2D(5, 4, 1))
    places = ((three[0], 0), (three[2], 0), (three[4], 1))
    expected = np.cbrt(np.prod([ranges(layer.weight, axis) for layer, axis in places], 0))
    equalize(three, paddle.randn([2, 2, 6, 6]))
    for layer, axis in places:
        np.testing.assert_allclose(ranges(layer.weight, axis), expected, rtol=5e-3)


def test_channels_without_weights_stay():
    paddle.seed(2)
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    for layer, index in ((net[0], (slice(None), 1)), (net[2], (2, slice(None)))):
        weight = layer.weight.numpy()
        weight[index] = 0.0
        layer.weight.set_value(weight)
    before = [each.numpy() for each in (net[0].weight, net[2].weight)]
    x = paddle.randn([8, 4])
    expected = net(x).numpy()
    equalize(net, x)
    np.testing.assert_array_equal(net[0].weight.numpy()[:, 2], before[0][:, 2])
    np.testing.assert_array_equal(net[2].weight.numpy()[1], before[1][1])
    np.testing.assert_allclose(net(x).numpy(), expected, rtol=1e-5, atol=1e-6)


class Twice(nn.Layer):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))
        self.third.weight = self.first.weight

    def forward(self, x):
        return self.second(F.relu(self.second(F.relu(self.first(x))))) + self.third(x)


def test_layers_that_are_shared_or_called_twice_are_refused():
    net, x = Twice(), paddle.randn([3, 4])
    before = {name: each.numpy() for name, each in net.state_dict().items()}
    report = equalize(net, x)
    assert not report.consumers and "2 times" in report.refused["second"]
    assert "shares its weight" in report.refused["first"]
    assert all((each.numpy() == before[name]).all() for name, each in net.state_dict().items())


class ReadsWeight(nn.Layer):
    def __init__(self):
        super().__init__()
        self.first, self.second = uneven(nn.Linear(4, 4), 1), nn.Linear(4, 4)

    def forward(self, x):
        return self.second(F.relu(self.first(x))) + self.first.weight.sum()


def test_weight_that_is_read_elsewhere_is_restored():
    net, x = ReadsWeight(), paddle.randn([3, 4])
    before = net.first.weight.numpy()
    with pytest.raises(ModelError, match="read outside"):
        equalize(net, x)
    np.testing.assert_array_equal(net.first.weight.numpy(), before)


def test_quantized_models_and_missing_inputs_are_refused(net):
    with pytest.raises(ConfigTypeError, match="inputs"):
        equalize(net, None)
    with pytest.raises(ModelError, match="equalize=True"):
        equalize(paddleq.PTQ().quantize(net), paddle.to_tensor(X))
    with pytest.raises(ConfigTypeError, match="equalize"):
        paddleq.PTQ(equalize=1)


class Normed(nn.Layer):
    """Norms whose factors give the channels different ranges."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2D(1, 8, 3), nn.Conv2D(8, 4, 3)
        self.norm, self.head = nn.BatchNorm2D(8), nn.Linear(4, 3)
        self.norm.weight.set_value((10.0 ** np.linspace(-1.5, 1.5, 8)).astype("float32"))
        self.second.weight.set_value(self.second.weight.numpy() * (
            10.0 ** np.linspace(1.5, -1.5, 8).astype("float32").reshape([1, 8, 1, 1])))

    def forward(self, x):
        x = self.second(F.relu(self.norm(self.first(x))))
        return self.head(F.relu(x).mean([2, 3]))


@pytest.mark.parametrize("inputs", [None, X])
def test_weights_with_one_scale_are_closer_to_float(inputs, tmp_path):
    paddle.seed(3)
    net, x = Normed(), paddle.to_tensor(X)
    net.eval()

    def quantized(**options):
        ptq = paddleq.PTQ("abs_max", AbsmaxQuantizer(8), **options)
        model = ptq.quantize(net, fuse=True,
                             inputs=None if inputs is None else paddle.to_tensor(inputs))
        ptq.calibrate(model, [X])
        return model

    found = quantized(equalize=True)
    assert distance(found, net, x) < 0.1 * distance(quantized(), net, x)
    with paddleq.engine.quantization_off(found):
        assert distance(found, net, x) < 1e-6


def test_saved_model_with_one_scale_is_closer_to_float(tmp_path):
    paddle.seed(3)
    net, x = Normed(), X
    net.eval()
    save_float(net, str(tmp_path / "float" / "net"), [1, 10, 10])
    expected = net(paddle.to_tensor(x)).numpy()

    def error(**options):
        paddleq.quant_post_static(tmp_path / "float", tmp_path / "out", [X], algo="abs_max",
                                  weight_quantize_type="abs_max", **options)
        (found,) = paddle_inference(str(tmp_path / "out" / "model"), [x])
        return np.linalg.norm(found - expected)

    assert error(equalize=True) < 0.1 * error()


def test_saved_model_has_the_links_of_its_layers(net, tmp_path):
    save_float(net, str(tmp_path / "net"), [1, 10, 10])
    model, x = paddleq.SavedModel(tmp_path), paddle.to_tensor(X)
    expected = model(x).numpy()
    model.fold_affines()
    report = equalize(model, x)
    assert len(report.consumers) == len(CONSUMERS)
    np.testing.assert_allclose(model(x).numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("inputs, error, message", [
    (paddle.rand([2, 5, 8, 8]), ConfigError, r"must have the shape \[any, 3, any, any\]"),
    (paddle.rand([2, 3, 8, 8], "float64"), ConfigTypeError, "must be float32, but is float64"),
    ({"x": paddle.rand([2, 3, 8, 8])}, ConfigError, "forward takes 'input', .* dict of 'x'"),
    ([], ConfigError, "inputs must hold the 1 arguments"),
    (paddle.rand([0, 3, 8, 8]), ConfigError, "inputs must hold at least one item"),
    ("images", ConfigTypeError, "inputs must be a tensor")])
@pytest.mark.parametrize("use", ["equalize", "PTQ(equalize)", "fuse"])
def test_example_inputs_that_do_not_fit_are_named(use, inputs, error, message):
    net = nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.ReLU(), nn.Conv2D(4, 2, 1))
    net.eval()
    with pytest.raises(error, match=f"inputs.*{message.replace('inputs ', '')}"):
        if use == "equalize":
            equalize(net, inputs)
        elif use == "fuse":
            paddleq.PTQ().quantize(net, fuse=True, inputs=inputs)
        else:
            paddleq.PTQ(equalize=True).quantize(net, inputs=inputs)
