"""Blocks of layers that are quantized at their ends, found from the data flow."""

import copy

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from nets import SmallNet
from paddle import nn

import paddleq
from paddleq import engine
from paddleq.config import LayerConfig, QuantConfig, QuantizerConfig
from paddleq.engine import blocks_of
from paddleq.engine.fuse_blocks import same_parameters
from paddleq.frontends.golden_stick import SimulatedQuantizationAwareTraining as SimQAT
from paddleq.frontends.golden_stick.simulated_qat import DelayedFakeQuantize
from paddleq.nn.block import BlockMember
from paddleq.observers import AbsMaxObserver, CurrentAbsMaxObserver, MovingAverageAbsMaxObserver
from paddleq.spec import QuantSpec


def simulated(net, x, inputs=True, **config):
    algorithm = SimQAT({"enable_fusion": True, **config})
    net = algorithm.apply(net, x if inputs else None)
    if not inputs:
        net(x)
    return net


def blocks(net):
    """Return the layer names of each block, in order."""
    names = {id(layer): name for name, layer in net.named_sublayers()}
    return [tuple(names[id(layer)] for layer in (block.producer, block.norm, block.relu)
                  if layer is not None) for block in blocks_of(net)]


def quantizers(net):
    """Map layer names to the ends at which they quantize."""
    return {name: [n.replace("activation_quantizer", "in").replace("_quantizer", "").replace(
        "output", "out") for n, _ in layer.quantizers() if n != "weight_quantizer"]
        for name, layer in engine.quantized_layers(net)}


IMAGE, ROW = [4, 3, 6, 6], [8, 5]

PATTERNS = {
    "Conv + BN": ([lambda: nn.Conv2D(3, 4, 3), lambda: nn.BatchNorm2D(4)], IMAGE),
    "Conv + BN + ReLU": (
        [lambda: nn.Conv2D(3, 4, 3), lambda: nn.BatchNorm2D(4), nn.ReLU], IMAGE),
    "Conv + ReLU": ([lambda: nn.Conv2D(3, 4, 3), nn.ReLU], IMAGE),
    "Dense + BN + ReLU": ([lambda: nn.Linear(5, 4), lambda: nn.BatchNorm1D(4), nn.ReLU], ROW),
    "Dense + BN": ([lambda: nn.Linear(5, 4), lambda: nn.BatchNorm1D(4)], ROW),
    "Dense + ReLU": ([lambda: nn.Linear(5, 4), nn.ReLU], ROW),
}


@pytest.mark.parametrize("inputs", [True, False], ids=["inputs", "first batch"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_fusion_patterns(pattern, inputs):
    layers, shape = PATTERNS[pattern]
    net = nn.Sequential(*[make() for make in layers])
    x = paddle.randn(shape)
    last = []
    net[len(layers) - 1].register_forward_post_hook(lambda _, __, y: last.append(y))
    net = simulated(net, x, inputs)
    assert blocks(net) == [tuple(str(i) for i in range(len(layers)))]
    assert quantizers(net) == {"0": ["in", "out"]}
    net.eval()
    y = net(x)
    assert y is last[-1]  # the output of the last layer is not quantized
    grid = y / net[0].output_quantizer.scale
    assert len(np.unique(np.round(grid.numpy(), 3))) <= 256  # and its input is quantized


@pytest.mark.parametrize("pattern", PATTERNS)
def test_blocks_require_enable_fusion(pattern):
    layers, shape = PATTERNS[pattern]
    net = simulated(nn.Sequential(*[make() for make in layers]), paddle.randn(shape),
                    enable_fusion=False)
    assert blocks(net) == []
    assert quantizers(net) == {"0": ["in", "out"]}
    assert [type(layer).__name__ for layer in net.children()][1:] == [
        type(make()).__name__ for make in layers][1:]


class Residual(nn.Layer):
    """As in ResNet: a ReLU ends a block and is used again after an addition."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2D(3, 3, 3, padding=1), nn.BatchNorm2D(3)
        self.conv2, self.bn2 = nn.Conv2D(3, 3, 3, padding=1), nn.BatchNorm2D(3)
        self.relu = nn.ReLU()

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(x + self.bn2(self.conv2(y)))


class OneRelu(nn.Layer):
    """One ReLU ends two blocks."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.relu = nn.Linear(5, 5), nn.Linear(5, 5), nn.ReLU()

    def forward(self, x):
        return self.relu(self.fc2(self.relu(self.fc1(x))))


class OutOfOrder(nn.Layer):
    def __init__(self):
        super().__init__()
        self.relu, self.bn = nn.ReLU(), nn.BatchNorm1D(5)
        self.fc2, self.fc1 = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x):
        return self.relu(self.bn(self.fc2(self.fc1(x))))


@pytest.mark.parametrize("make, shape, expected, ends", [
    (Residual, IMAGE, [("conv1", "bn1", "relu"), ("conv2", "bn2")],
     {"conv1": ["in", "out"], "conv2": ["out"]}),
    (OneRelu, ROW, [("fc1", "relu"), ("fc2", "relu")], {"fc1": ["in", "out"], "fc2": ["out"]}),
    (OutOfOrder, ROW, [("fc2", "bn", "relu")], {"fc2": ["out"], "fc1": ["in", "out"]}),
    # F.relu is not detected.
    (SmallNet, [2, 1, 8, 8], [("conv1", "bn1"), ("conv2", "bn2")],
     {"conv1": ["in", "out"], "conv2": ["in", "out"], "conv3": ["in", "out"],
      "fc": ["in", "out"]}),
])
def test_quantizers_are_kept_at_block_ends(make, shape, expected, ends):
    for inputs in (True, False):
        net = simulated(make(), paddle.randn(shape), inputs)
        assert sorted(blocks(net)) == sorted(expected)
        assert quantizers(net) == ends


def test_shared_relu_quantizes_each_block_with_a_separate_scale():
    x = paddle.randn(ROW)
    net = simulated(OneRelu(), x)
    net(x)
    net.eval()
    outputs = []
    net.relu.register_forward_post_hook(lambda _, __, y: outputs.append(y))
    net(x)
    for layer, y in zip((net.fc1, net.fc2), outputs):
        step = layer.output_quantizer.scale
        counts = (y / step).numpy()
        assert np.abs(counts - counts.round()).max() < 1e-3
        assert counts.max() >= 127
    assert net.fc1.output_quantizer.scale.item() != net.fc2.output_quantizer.scale.item()


class Branched(nn.Layer):
    def __init__(self, what):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2D(3, 3, 1), nn.BatchNorm2D(3), nn.ReLU()
        self.conv2, self.what = nn.Conv2D(3, 3, 1), what

    def forward(self, x):
        y = self.conv(x)
        if self.what == "conv is read by an addition too":
            return self.relu(self.bn(y)) + y
        if self.what == "conv is an output too":
            return self.relu(self.bn(y)), y
        if self.what == "conv is changed in place":
            F.relu_(y)
            return self.bn(y)
        if self.what == "bn is read by an addition too":
            z = self.bn(y)
            return self.relu(z) + z
        if self.what == "bn is read by a maximum too":
            z = self.bn(y)
            return paddle.maximum(self.relu(z), 0.5 * z)
        if self.what == "conv feeds two ReLUs":
            return self.relu(y) + self.relu(y)
        if self.what == "bn follows two convs":
            return self.bn(y) + self.bn(self.conv2(x))
        if self.what == "conv is called twice":
            return self.relu(self.bn(self.conv(y)))
        if self.what == "something lies between conv and bn":
            return self.relu(self.bn(y * 2.0))
        return None


@pytest.mark.parametrize("what, expected, why", [
    ("conv is read by an addition too", [], "feeds something besides bn"),
    ("conv is an output too", [], "feeds something besides bn"),
    ("conv is changed in place", [], "changed in place before bn"),
    ("bn is read by an addition too", [("conv", "bn")], "feeds something besides relu"),
    ("bn is read by a maximum too", [("conv", "bn")], "feeds something besides relu"),
    ("conv feeds two ReLUs", [], "relu reads the output of conv 2 times"),
    ("bn follows two convs", [], "bn is applied 2 times"),
    ("conv is called twice", [], "conv is called 2 times"),
    ("something lies between conv and bn", [], None),
])
def test_rejected_blocks_are_explained_in_the_summary(what, expected, why):
    for config in ({}, {"bn_fold": True}):
        x = paddle.randn(IMAGE)
        net = simulated(Branched(what), x, **config)
        assert blocks(net) == expected
        assert why is None or why in paddleq.summary(net)
        net(x)


def test_skipped_layers_do_not_start_a_block():
    net = nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.ReLU(),
                        nn.Conv2D(4, 4, 3), nn.BatchNorm2D(4), nn.ReLU())
    net[0].skip_quant = True
    net = simulated(net, paddle.randn(IMAGE))
    assert blocks(net) == [("3", "4", "5")]
    assert not isinstance(net[1], BlockMember)


def test_layers_with_overridden_forward_do_not_start_a_block():
    class Mine(nn.Conv2D):
        def forward(self, x):
            return super().forward(x) * 2.0

    net = nn.Sequential(Mine(3, 4, 1), nn.BatchNorm2D(4), nn.Conv2D(4, 4, 1))
    assert blocks(simulated(net, paddle.randn(IMAGE))) == []


def test_members_of_a_block_take_keyword_inputs():
    x = paddle.randn([2, 3, 8, 8])
    net = simulated(nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.ReLU()), x)
    net(x)
    net.eval()
    by_keyword = net[2](x=net[1](input=net[0](x=x)))
    assert np.array_equal(by_keyword.numpy(), net(x).numpy())


def test_pretrained_statistics_survive_fusion():
    net = nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.ReLU())
    for _ in range(3):
        net(paddle.randn(IMAGE))
    before = {name: value.numpy() for name, value in net.state_dict().items()}
    for config in ({}, {"bn_fold": True}, {"bn_fold": True, "one_conv_fold": False}):
        after = simulated(copy.deepcopy(net), paddle.randn(IMAGE), **config).state_dict()
        for name, value in before.items():
            assert np.array_equal(after[name].numpy(), value), name


def test_copies_of_a_fused_network_are_independent():
    x = paddle.randn(ROW)
    net = simulated(OneRelu(), x)
    net(x)
    other = copy.deepcopy(net)
    assert [block.producer for block in blocks_of(other)] == [other.fc1, other.fc2]
    before = net.fc1.output_quantizer.scale.item()
    other(100.0 * x)
    assert net.fc1.output_quantizer.scale.item() == before
    assert other.fc1.output_quantizer.scale.item() > before


def test_copy_before_the_first_batch_finds_its_blocks():
    net = SimQAT({"enable_fusion": True}).apply(OneRelu())
    other = copy.deepcopy(net)
    other(paddle.randn(ROW))
    assert blocks(other) == [("fc1", "relu"), ("fc2", "relu")] and blocks(net) == []
    net(paddle.randn(ROW))
    assert blocks(net) == [("fc1", "relu"), ("fc2", "relu")]


def test_failing_first_batch_does_not_change_the_model():
    net = SimQAT({"enable_fusion": True}).apply(OneRelu())
    with pytest.raises(ValueError, match="(?s).*"):
        net(paddle.randn([8, 4]))
    net(paddle.randn(ROW))
    assert blocks(net) == [("fc1", "relu"), ("fc2", "relu")]


def test_failing_example_inputs_leave_the_model_float():
    net = OneRelu()
    with pytest.raises(ValueError, match="(?s).*"):
        SimQAT({"enable_fusion": True}).apply(
            net, paddle.randn([8, 4]))
    assert type(net.fc1) is nn.Linear


def test_first_batch_of_keyword_arguments_shows_the_data_flow():
    net = SimQAT({"enable_fusion": True}).apply(OneRelu())
    net(x=paddle.randn(ROW))
    assert blocks(net) == [("fc1", "relu"), ("fc2", "relu")]


# Redundant quantizers


def chain(first, second):
    """Two Linears with these (output, input) configurations between them."""
    net = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    weight = QuantizerConfig(CurrentAbsMaxObserver)
    config = QuantConfig()
    config.add_name("0", LayerConfig(weight, QuantizerConfig(AbsMaxObserver), output=first))
    config.add_name("1", LayerConfig(weight, second))
    x = paddle.randn(ROW)
    engine.prepare(net, config)
    with engine.quantization_off(net):
        engine.fuse_blocks(net, engine.find_block_structure(net, lambda: net(x)))
    return net


def delayed(delay):
    return QuantizerConfig(quantizer=lambda **options: DelayedFakeQuantize(
        AbsMaxObserver, saturate=False, delay=delay, **options))


def moving_average(rate):
    return lambda spec, channels: MovingAverageAbsMaxObserver(spec, channels, moving_rate=rate)


@pytest.mark.parametrize("first, second, redundant", [
    (QuantizerConfig(AbsMaxObserver), QuantizerConfig(AbsMaxObserver), True),
    (QuantizerConfig(AbsMaxObserver, QuantSpec(bits=8)),
     QuantizerConfig(AbsMaxObserver, QuantSpec(bits=4)), False),
    (QuantizerConfig(AbsMaxObserver), QuantizerConfig(MovingAverageAbsMaxObserver), False),
    (QuantizerConfig(moving_average(0.9)), QuantizerConfig(moving_average(0.9)), True),
    (QuantizerConfig(moving_average(0.9)), QuantizerConfig(moving_average(0.8)), False),
    (delayed(3), delayed(3), True),
    (delayed(3), delayed(4), False),
    (delayed(0), QuantizerConfig(AbsMaxObserver), False),
    (None, QuantizerConfig(AbsMaxObserver), False),
], ids=["same", "bits", "observer", "same rate", "rate", "same delay", "delay", "class", "none"])
def test_quantizers_with_different_parameters_are_not_redundant(first, second, redundant):
    net = chain(first, second)
    assert (getattr(net[1], "activation_quantizer", None) is None) == redundant
    if first is not None and not redundant:
        assert not same_parameters(net[0].output_quantizer, net[1].activation_quantizer)
    assert ("its input is quantized by 0" in paddleq.summary(net)) == redundant
    names = [name for name in net.state_dict() if name.startswith("1.activation_quantizer")]
    assert (not names) == redundant


class Between(nn.Layer):
    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.join, self.how = paddleq.QuantizableFunction(paddle.add), how

    def forward(self, x):
        y = self.a(x)
        if self.how == "directly":
            return self.b(y)
        if self.how == "two consumers":
            return self.b(y) + self.c(y)
        if self.how == "an addition":
            return self.b(y + 1.0)
        if self.how == "changed in place":
            y.add_(paddle.ones([5]))
            return self.b(y)
        if self.how == "called twice, once with something else":
            return self.b(y) + self.b(x)
        if self.how == "called twice":
            return self.b(y) + self.b(self.c(x))
        if self.how == "a function of two":
            return self.join(y, x)
        return self.b(input=y)


@pytest.mark.parametrize("how, expected", [
    ("directly", {"b": ["out"]}),
    ("two consumers", {"b": ["out"], "c": ["out"]}),
    ("an addition", {"b": ["in", "out"]}),
    ("changed in place", {"b": ["in", "out"]}),
    ("called twice, once with something else", {"b": ["in", "out"]}),
    ("called twice", {"b": ["out"]}),
    ("a function of two", {"join": ["in_1", "out"]}),
    ("by keyword", {"b": ["out"]}),
])
def test_quantizers_of_modified_tensors_are_not_redundant(how, expected):
    for fusion in (True, False):
        net = simulated(Between(how), paddle.randn(ROW), enable_fusion=fusion)
        found = quantizers(net)
        assert {name: found[name] for name in expected} == expected


def test_removing_redundant_quantizers_is_exact():
    """A quantizer does not change a tensor that is on its grid."""
    x = paddle.randn(ROW)
    net = chain(QuantizerConfig(AbsMaxObserver), QuantizerConfig(AbsMaxObserver))
    net(x)
    net.eval()
    expected = net(x)
    again = copy.deepcopy(net[0].output_quantizer)
    seen = []
    again.register_forward_post_hook(lambda *_: seen.append(1))
    net[1].activation_quantizer = again
    assert np.array_equal(net(x).numpy(), expected.numpy()) and seen
