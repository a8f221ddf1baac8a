"""Training with batch norms folded into the preceding weights."""

import copy

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from nets import train_steps
from paddle import nn

import paddleq
from paddleq.engine import fake_quantizers, quantization_off
from paddleq.frontends.golden_stick import SimulatedQuantizationAwareTraining as SimQAT
from paddleq.graph import FoldedNorm
from paddleq.graph.dataflow import find_pairs

MODES = {
    "off": {"enable_fusion": True},
    "one conv": {"enable_fusion": True, "bn_fold": True},
    "two conv": {"enable_fusion": True, "bn_fold": True, "one_conv_fold": False},
}
FOLDED = ["one conv", "two conv"]

PAIRS = {
    "Conv2D": (lambda: nn.Conv2D(3, 6, 3), lambda: nn.BatchNorm2D(6), [4, 3, 5, 5]),
    "Conv2D without bias": (
        lambda: nn.Conv2D(3, 6, 3, bias_attr=False), lambda: nn.BatchNorm2D(6), [4, 3, 5, 5]),
    "Conv2D in groups": (
        lambda: nn.Conv2D(4, 6, 3, groups=2), lambda: nn.BatchNorm2D(6), [4, 4, 5, 5]),
    "Conv2D NHWC": (
        lambda: nn.Conv2D(3, 6, 3, data_format="NHWC"),
        lambda: nn.BatchNorm2D(6, data_format="NHWC"), [4, 5, 5, 3]),
    "BatchNorm without gamma and beta": (
        lambda: nn.Conv2D(3, 6, 3),
        lambda: nn.BatchNorm2D(6, weight_attr=False, bias_attr=False), [4, 3, 5, 5]),
    "nn.BatchNorm": (lambda: nn.Conv2D(3, 6, 3), lambda: nn.BatchNorm(6), [4, 3, 5, 5]),
    "momentum, epsilon": (
        lambda: nn.Conv2D(3, 6, 3), lambda: nn.BatchNorm2D(6, momentum=0.7, epsilon=1e-2),
        [4, 3, 5, 5]),
    "Conv1D": (lambda: nn.Conv1D(3, 6, 3), lambda: nn.BatchNorm1D(6), [4, 3, 9]),
    "Conv3D": (lambda: nn.Conv3D(2, 6, 3), lambda: nn.BatchNorm3D(6), [4, 2, 4, 4, 4]),
    "Conv2DTranspose in groups": (
        lambda: nn.Conv2DTranspose(4, 6, 3, groups=2), lambda: nn.BatchNorm2D(6), [4, 4, 4, 4]),
    "Linear": (lambda: nn.Linear(5, 6), lambda: nn.BatchNorm1D(6), [16, 5]),
    "Linear without bias": (
        lambda: nn.Linear(5, 6, bias_attr=False), lambda: nn.BatchNorm1D(6), [16, 5]),
}


def randomize_norms(norm):
    """Set random running statistics and parameters."""
    channels = norm._mean.shape[0]
    norm._mean.set_value(paddle.linspace(-1.0, 1.0, channels))
    norm._variance.set_value(paddle.linspace(0.3, 2.0, channels))
    if norm.weight is not None and not norm.weight.stop_gradient:
        norm.weight.set_value(paddle.linspace(-0.7, 1.5, channels))
        norm.bias.set_value(paddle.linspace(0.5, -0.5, channels))


def quantized_pair(pair, mode, **config):
    """Return (float network, its simulated-QAT copy, input shape)."""
    layer, norm, shape = PAIRS[pair]
    plain = nn.Sequential(layer(), norm(), nn.ReLU())
    randomize_norms(plain[1])
    net = SimQAT({**MODES[mode], **config}).apply(
        copy.deepcopy(plain), paddle.randn(shape))
    return plain, net, shape


def without_fake_quant(net):
    for _, quantizer in fake_quantizers(net):
        quantizer.fake_quant_enabled = False
    return net


def trained(net):
    """Trained (name, parameter) pairs; Paddle's named_parameters includes running statistics."""
    return [(name, p) for name, p in net.named_parameters() if not p.stop_gradient]


def folding(net):
    return net[0].norm_folding


def assert_near(found, expected, what):
    found, expected = np.asarray(found), np.asarray(expected)
    scale = max(1.0, np.abs(expected).max())
    assert np.abs(found - expected).max() <= 1e-5 * scale, what


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pair", PAIRS)
def test_trains_as_plain_batch_norm_for_50_steps(pair, mode):
    plain, net, shape = quantized_pair(pair, mode)
    without_fake_quant(net)
    batches, target = [paddle.randn(shape) for _ in range(5)], None
    optimizers = [paddle.optimizer.Momentum(0.02, parameters=each.parameters())
                  for each in (plain, net)]
    for step in range(50):
        x = batches[step % 5]
        outputs = [each(x) for each in (plain, net)]
        if target is None:
            target = paddle.randn(outputs[0].shape)
        for output in outputs:
            (output - target).square().mean().backward()
        assert_near(outputs[1].numpy(), outputs[0].numpy(), f"output of step {step}")
        found = dict(net.named_parameters())
        for name, parameter in trained(plain):
            assert_near(found[name].grad.numpy(), parameter.grad.numpy(),
                        f"gradient of {name} in step {step}")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.clear_grad()
        state = net.state_dict()
        for name, value in plain.state_dict().items():
            assert_near(state[name].numpy(), value.numpy(), f"{name} after step {step}")
    if mode in FOLDED:
        assert folding(net).step.item() == 50


class Reference:
    """A 1x1 convolution and its norm in float64 numpy."""

    def __init__(self, net):
        def array(tensor):
            return tensor.numpy().astype("float64")

        conv, norm = net[0], net[1]
        self.w, self.b = array(conv.weight)[:, :, 0, 0], array(conv.bias)
        self.gamma, self.beta = array(norm.weight), array(norm.bias)
        self.mean, self.variance = array(norm._mean), array(norm._variance)
        self.epsilon, self.momentum = norm._epsilon, norm._momentum

    def conv(self, x, w):
        return np.einsum("oc,nchw->nohw", w, x.numpy().astype("float64"))

    @staticmethod
    def as_channels(vector):
        return vector[None, :, None, None]

    def sigma(self, variance):
        return np.sqrt(variance + self.epsilon)

    def batch(self, u):
        return u.mean((0, 2, 3)), u.var((0, 2, 3))

    def folded(self, q):
        return q(self.w * (self.gamma / self.sigma(self.variance))[:, None])

    def one_conv(self, x, q):
        sigma = self.sigma(self.variance)
        z = (self.conv(x, self.folded(q)) * self.as_channels(sigma / self.gamma)
             + self.as_channels(self.b))
        mean, variance = self.batch(z)
        return (z - self.as_channels(mean)) * self.as_channels(
            self.gamma / self.sigma(variance)) + self.as_channels(self.beta), mean, variance

    def two_conv(self, x, q):
        mean, variance = self.batch(self.conv(x, self.w) + self.as_channels(self.b))
        y = self.conv(x, self.folded(q)) * self.as_channels(
            self.sigma(self.variance) / self.sigma(variance))
        shift = self.beta + self.gamma * (self.b - mean) / self.sigma(variance)
        return y + self.as_channels(shift), mean, variance

    def frozen(self, x, q):
        shift = self.beta + self.gamma * (self.b - self.mean) / self.sigma(self.variance)
        return self.conv(x, self.folded(q)) + self.as_channels(shift)

    def updated_statistics(self, mean, variance):
        return (self.mean * self.momentum + mean * (1 - self.momentum),
                self.variance * self.momentum + variance * (1 - self.momentum))


class Coarse(nn.Layer):
    """A weight quantizer with a known step and a straight-through gradient."""

    def forward(self, w):
        return w + (paddle.floor(w * 8.0 + 0.5) / 8.0 - w).detach()


def coarse(w):
    return np.floor(w * 8.0 + 0.5) / 8.0


def coarse_pair(mode, **config):
    net = nn.Sequential(nn.Conv2D(3, 6, 1), nn.BatchNorm2D(6))
    randomize_norms(net[1])
    x = paddle.randn([4, 3, 5, 5])
    net = SimQAT({**MODES[mode], **config}).apply(net, x)
    without_fake_quant(net)
    net[0].weight_quantizer = Coarse()
    return net, Reference(net), x


@pytest.mark.parametrize("mode", FOLDED)
def test_formula_before_the_freeze(mode):
    net, reference, x = coarse_pair(mode)
    formula = reference.one_conv if mode == "one conv" else reference.two_conv
    expected, mean, variance = formula(x, coarse)
    assert_near(net(x).numpy(), expected, "output")
    moved = reference.updated_statistics(mean, variance)
    assert_near(net[1]._mean.numpy(), moved[0], "running mean")
    assert_near(net[1]._variance.numpy(), moved[1], "running variance")
    assert not np.allclose(expected, formula(x, lambda w: w)[0], atol=1e-3)  # q matters


@pytest.mark.parametrize("mode", FOLDED)
@pytest.mark.parametrize("when", ["freeze_bn", "eval", "eval of the norm", "use_global_stats"])
def test_formula_with_running_statistics(mode, when):
    net, reference, x = coarse_pair(mode, freeze_bn=0 if when == "freeze_bn" else 100)
    if when == "eval":
        net.eval()
    elif when == "eval of the norm":
        net[1].eval()  # the usual way to freeze batch norms
    elif when == "use_global_stats":
        net[1]._use_global_stats = True
    before = [net[1]._mean.numpy(), net[1]._variance.numpy()]
    assert_near(net(x).numpy(), reference.frozen(x, coarse), "output")
    assert np.array_equal(before[0], net[1]._mean.numpy())
    assert np.array_equal(before[1], net[1]._variance.numpy())
    assert folding(net).step.item() == (1 if when == "freeze_bn" else 0)


@pytest.mark.parametrize("mode", FOLDED)
def test_freeze_bn_counts_training_steps(mode):
    net, _, x = coarse_pair(mode, freeze_bn=2)
    moved = []
    for training in (True, False, True, True, True):
        net.train() if training else net.eval()
        before = net[1]._mean.numpy()
        net(x)
        moved.append(not np.array_equal(before, net[1]._mean.numpy()))
    assert moved == [True, False, True, False, False]
    assert folding(net).step.item() == 4


@pytest.mark.parametrize("mode", FOLDED)
def test_frozen_norm_trains_gamma_beta_and_weight(mode):
    net, _, x = coarse_pair(mode, freeze_bn=0)
    (net(x) * paddle.randn([4, 6, 5, 5])).sum().backward()
    assert [name for name, p in trained(net) if paddle.abs(p.grad).max().item() > 0.0] == [
        "0.weight", "0.bias", "1.weight", "1.bias"]


@pytest.mark.parametrize("mode", FOLDED)
def test_folding_with_zero_gamma(mode):
    plain, net, shape = quantized_pair("Conv2D", mode)
    for each in (plain, net):
        gamma = each[1].weight.numpy()
        gamma[:3] = [0.0, 1e-30, -1e-5]
        each[1].weight.set_value(gamma)
    x, weights = paddle.randn(shape), paddle.randn([4, 6, 3, 3])
    with_quantizers = copy.deepcopy(net)
    without_fake_quant(net)
    for each in (plain, net, with_quantizers):
        (each(x) * weights).sum().backward()
        assert all(paddle.isfinite(p.grad).all().item() for _, p in trained(each))
    found = dict(net.named_parameters())
    for name, parameter in trained(plain):
        assert_near(found[name].grad.numpy(), parameter.grad.numpy(), name)
    for each in (net, with_quantizers):
        each.eval()
        assert paddle.isfinite(each(x)).all().item()


@pytest.mark.parametrize("config", [{}, {"symmetric": True, "per_channel": (False, True)}],
                         ids=["", "symmetric per channel"])
@pytest.mark.parametrize("mode", FOLDED)
@pytest.mark.parametrize("pair", PAIRS)
def test_converted_network_equals_the_trained_one(pair, mode, config):
    """With quantized inputs and weights; in outputs a float error may become a step."""
    _, net, shape = quantized_pair(pair, mode, **config)
    train_steps(net, paddle.randn(shape))
    net[0].output_quantizer.fake_quant_enabled = False
    x = paddle.randn(shape)
    expected = net(x).numpy()
    converted = SimQAT().convert(net)
    converted[0].output_quantizer.fake_quant_enabled = False
    assert isinstance(converted[1], FoldedNorm) and converted[0].bias is not None
    assert_near(converted(x).numpy(), expected, "quantized")
    assert np.array_equal(net(x).numpy(), expected)  # the trained network is unchanged
    with quantization_off(net), quantization_off(converted):
        assert_near(converted(x).numpy(), net(x).numpy(), "float")
        assert np.abs(net(x).numpy() - expected).max() > 1e-4  # quantization was active above


@pytest.mark.parametrize("pair", PAIRS)
def test_unfolded_conversion_differs_by_weight_rounding(pair):
    """Training quantizes w, deployment w*gamma/sigma; see the documentation of convert."""
    _, net, shape = quantized_pair(pair, "off")
    train_steps(net, paddle.randn(shape))
    x = paddle.randn(shape)
    converted = SimQAT().convert(net)
    with quantization_off(net), quantization_off(converted):
        expected = net(x).numpy()
        assert_near(converted(x).numpy(), expected, "float")
    error = np.abs(converted(x).numpy() - net(x).numpy()).max()
    assert error <= 0.05 * np.abs(expected).max()


def test_unfolded_conversion_is_exact_for_per_channel_symmetric_weights():
    """With a symmetric narrow range per channel, gamma/sigma scales the step."""
    for pair in ("Conv2D", "Linear"):
        _, net, shape = quantized_pair(pair, "off", symmetric=True, per_channel=(False, True),
                                       narrow_range=(False, True))
        train_steps(net, paddle.randn(shape))
        net[0].output_quantizer.fake_quant_enabled = False
        x = paddle.randn(shape)
        converted = SimQAT().convert(net)
        converted[0].output_quantizer.fake_quant_enabled = False
        assert_near(converted(x).numpy(), net(x).numpy(), pair)


class Everything(nn.Layer):
    """Blocks of all lengths, separated by layers outside of blocks."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2D(1, 4, 3, padding=1, bias_attr=False), nn.BatchNorm2D(4)
        self.conv2, self.bn2 = nn.Conv2D(4, 4, 3, padding=1), nn.BatchNorm2D(4)
        self.relu = nn.ReLU()
        self.fc1, self.bn3 = nn.Linear(64, 8), nn.BatchNorm1D(8)
        self.fc2 = nn.Linear(8, 10)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(x + self.bn2(self.conv2(x)))
        return self.fc2(F.relu(self.bn3(self.fc1(F.max_pool2d(x, 2).flatten(1)))))


@pytest.mark.parametrize("mode", FOLDED)
def test_half_precision_under_amp_trains(mode):
    net = Everything()
    x = paddle.rand([4, 1, 8, 8])
    net = SimQAT(MODES[mode]).apply(net, x)
    with paddle.amp.auto_cast(dtype="bfloat16"):
        net(x).astype("float32").sum().backward()
    assert paddle.isfinite(net.conv1.weight.grad).all().item()


@pytest.mark.parametrize("mode", FOLDED)
def test_copies_of_a_folded_network_are_independent(mode):
    _, net, shape = quantized_pair("Conv2D", mode)
    x = paddle.randn(shape)
    net(x)
    other = copy.deepcopy(net)
    assert folding(other).norm is other[1]
    before = {name: value.numpy() for name, value in net.state_dict().items()}
    other(x)
    for name, value in net.state_dict().items():
        assert np.array_equal(value.numpy(), before[name]), name
    assert folding(other).step.item() == 2


def test_folding_under_to_static_training_is_refused():
    _, net, shape = quantized_pair("Conv2D", "one conv")
    net(paddle.randn(shape))
    static = paddle.jit.to_static(net, full_graph=True)
    with pytest.raises(paddleq.errors.ModelError, match="0 is trained with a folded batch norm"):
        static(paddle.randn(shape))


def test_norm_along_another_axis_is_not_folded():
    """A Linear on [N, L, C] and a norm over L: sizes match if L == C, a fold is still wrong."""
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1D(6))
    net.eval()
    pairs = find_pairs(net, lambda: net(paddle.ones([4, 6, 5])))
    assert pairs.found == []
    assert pairs.refused == {
        ("0", "1"): "1 normalizes axis 1, but the channels of 0 are along axis 2"}


def test_norm_over_linear_features_of_sequences_is_folded():
    plain = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1D(6, data_format="NLC"))
    x = paddle.randn([4, 7, 5])
    for mode in FOLDED:
        net = without_fake_quant(SimQAT(MODES[mode]).apply(
            copy.deepcopy(plain), x))
        assert_near(net(x).numpy(), copy.deepcopy(plain)(x).numpy(), mode)
