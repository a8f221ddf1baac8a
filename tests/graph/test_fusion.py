"""Batch norm fusion follows the data flow."""

import copy

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from nets import SmallNet, warmed
from paddle import nn
from runtimes import paddle_inference, relative_error

import paddleq
from paddleq import engine
from paddleq.graph import FoldedNorm, fuse
from paddleq.graph.dataflow import find_pairs


def folded(net):
    return sorted(name for name, layer in net.named_sublayers() if isinstance(layer, FoldedNorm))


def fused_copy(net, x, **options):
    """Return a copy of ``net`` with folded batch norms; assert equal outputs."""
    net = warmed(net, x)
    expected = net(x)
    expected = expected if isinstance(expected, (list, tuple)) else [expected]
    copied = copy.deepcopy(net)
    copied.eval()
    fuse(copied, lambda: copied(x), **options)
    found = copied(x)
    found = found if isinstance(found, (list, tuple)) else [found]
    for a, b in zip(found, expected):
        assert relative_error(a.numpy(), b.numpy()) < 1e-5
    return copied


def one_pair(layer, norm, shape):
    net = nn.Sequential(layer, norm, nn.ReLU())
    return fused_copy(net, paddle.randn(shape)), shape


@pytest.mark.parametrize("layer, norm, shape", [
    (lambda: nn.Conv2D(3, 6, 3), lambda: nn.BatchNorm2D(6), [4, 3, 6, 6]),
    (lambda: nn.Conv2D(3, 6, 3, bias_attr=False), lambda: nn.BatchNorm2D(6), [4, 3, 6, 6]),
    (lambda: nn.Conv2D(4, 6, 3, groups=2), lambda: nn.BatchNorm2D(6), [4, 4, 6, 6]),
    (lambda: nn.Conv2D(3, 6, 3, data_format="NHWC"),
     lambda: nn.BatchNorm2D(6, data_format="NHWC"), [4, 6, 6, 3]),
    (lambda: nn.Conv2D(3, 6, 3),
     lambda: nn.BatchNorm2D(6, weight_attr=False, bias_attr=False), [4, 3, 6, 6]),
    (lambda: nn.Conv2D(3, 6, 3), lambda: nn.BatchNorm(6), [4, 3, 6, 6]),
    (lambda: nn.Conv2DTranspose(3, 6, 3), lambda: nn.BatchNorm2D(6), [4, 3, 6, 6]),
    (lambda: nn.Conv2DTranspose(4, 6, 3, groups=2), lambda: nn.BatchNorm2D(6), [4, 4, 6, 6]),
    (lambda: nn.Conv1D(3, 6, 3), lambda: nn.BatchNorm1D(6), [4, 3, 9]),
    (lambda: nn.Conv1DTranspose(3, 6, 3), lambda: nn.BatchNorm1D(6), [4, 3, 9]),
    (lambda: nn.Conv3D(2, 6, 3), lambda: nn.BatchNorm3D(6), [4, 2, 5, 5, 5]),
    (lambda: nn.Linear(5, 6), lambda: nn.BatchNorm1D(6), [8, 5]),
    (lambda: nn.Linear(5, 6, bias_attr=False), lambda: nn.BatchNorm1D(6), [8, 5]),
])
def test_every_layer_type_folds_exactly(layer, norm, shape):
    net, _ = one_pair(layer(), norm(), shape)
    assert folded(net) == ["1"]
    assert net[0].bias is not None


class Branched(nn.Layer):
    """conv -> BN -> ReLU with an extra consumer of the conv, of the BN, or none."""

    def __init__(self, reader):
        super().__init__()
        self.conv, self.bn = nn.Conv2D(3, 6, 3, padding=1), nn.BatchNorm2D(6)
        self.reader = reader

    def forward(self, x):
        y = self.conv(x)
        z = F.relu(self.bn(y))
        if self.reader == "conv":
            return z + y
        if self.reader == "conv, swallowed by a maximum":
            return paddle.maximum(z, y)
        if self.reader == "conv, as an output":
            return z, y
        if self.reader == "bn":
            return z + z * 2
        return z


@pytest.mark.parametrize("reader, expected", [
    ("", ["bn"]), ("bn", ["bn"]), ("conv", []), ("conv, swallowed by a maximum", []),
    ("conv, as an output", []),
])
def test_conv_with_several_consumers_is_not_fused(reader, expected):
    net = fused_copy(Branched(reader), paddle.randn([4, 3, 6, 6]))
    assert folded(net) == expected


class KeywordInputs(nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2D(3, 3, 1), nn.BatchNorm2D(3), nn.ReLU()

    def forward(self, x):
        return self.relu(x=self.bn(input=self.conv(x)))


def test_norm_that_is_called_by_keyword_is_fused():
    x = paddle.randn([2, 3, 4, 4])
    assert folded(fused_copy(KeywordInputs(), x)) == ["bn"]
    simulated = paddleq.golden_stick.SimulatedQuantizationAwareTraining({"enable_fusion": True})
    net = simulated.apply(KeywordInputs(), x)
    (block,) = engine.blocks_of(net)
    assert (block.producer, block.norm, block.relu) == (net.conv, net.bn, net.relu)
    net(x)
    net.eval()
    expected = net(x)
    assert relative_error(engine.convert(net)(x).numpy(), expected.numpy()) < 0.02  # a step


@pytest.mark.parametrize("on_first_batch", [True, False])
def test_norms_of_a_model_under_to_static_are_fused(on_first_batch):
    x = paddle.randn([2, 3, 4, 4])
    net, ptq = KeywordInputs(), paddleq.PTQ("AbsmaxQuantizer")
    net.eval()
    expected = net(x)
    quantized = ptq.quantize(paddle.jit.to_static(net), fuse=True,
                             inputs=None if on_first_batch else x)
    ptq.calibrate(quantized, [x])
    assert folded(quantized) == ["bn"]
    assert relative_error(quantized(x).numpy(), expected.numpy()) < 0.1


class BnFeedsTwo(nn.Layer):
    """The BN's output feeds a ReLU and a second branch; folding is still exact."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2D(3, 6, 3, padding=1), nn.BatchNorm2D(6)
        self.second = nn.Conv2D(6, 6, 1)

    def forward(self, x):
        y = self.bn(self.conv(x))
        return F.relu(y) + self.second(y)


def test_norm_with_several_consumers_is_fused():
    assert folded(fused_copy(BnFeedsTwo(), paddle.randn([4, 3, 6, 6]))) == ["bn"]


class OutOfOrder(nn.Layer):
    """Layers are defined in another order than they are called."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2D(3, 6, 1), nn.Conv2D(6, 6, 1)
        self.bn_of_b, self.bn_of_a = nn.BatchNorm2D(6), nn.BatchNorm2D(6)

    def forward(self, x):
        return self.bn_of_b(self.b(F.relu(self.bn_of_a(self.a(x)))))


def test_pairs_follow_data_flow():
    net = warmed(OutOfOrder(), paddle.randn([4, 3, 5, 5]))
    pairs = find_pairs(net, lambda: net(paddle.ones([2, 3, 5, 5])))
    assert sorted(pairs.found) == [("a", "bn_of_a"), ("b", "bn_of_b")]
    assert folded(fused_copy(net, paddle.randn([4, 3, 5, 5]))) == ["bn_of_a", "bn_of_b"]


class SharedNorm(nn.Layer):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.bn = nn.Conv2D(3, 6, 1), nn.Conv2D(3, 6, 1), nn.BatchNorm2D(6)

    def forward(self, x):
        return self.bn(self.a(x)) + self.bn(self.b(x))


class CalledTwice(nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, 3, 1)
        self.bn1, self.bn2 = nn.BatchNorm2D(3), nn.BatchNorm2D(3)

    def forward(self, x):
        return self.bn2(self.conv(self.bn1(self.conv(x))))


class InPlace(nn.Layer):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2D(3, 6, 1), nn.BatchNorm2D(6)

    def forward(self, x):
        y = self.conv(x)
        F.relu_(y)
        return self.bn(y)


@pytest.mark.parametrize("make, pair, why", [
    (SharedNorm, ["a", "bn"], "applied 2 times"),
    (CalledTwice, ["conv", "bn1"], "called 2 times"),
    (InPlace, ["conv", "bn"], "changed in place"),
    (lambda: Branched("conv"), ["conv", "bn"], "feeds something besides bn"),
    (OutOfOrder, ["a", "bn_of_b"], "goes into bn_of_a, not into bn_of_b"),
])
def test_invalid_fuse_list_pair_is_rejected_with_the_reason(make, pair, why):
    x = paddle.randn([4, 3, 5, 5])
    net = warmed(make(), x)
    before = {k: v.numpy().copy() for k, v in net.state_dict().items()}
    for inputs in (x, None):
        ptq = paddleq.PTQ()
        with pytest.raises(paddleq.errors.FusionError, match=why):
            quantized = ptq.quantize(net, fuse=True, fuse_list=[pair], inputs=inputs)
            ptq.calibrate(quantized, [x])  # without example inputs the first batch decides
    assert type(net.conv if hasattr(net, "conv") else net.a) is nn.Conv2D
    for key, value in net.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[key])
    assert folded(fused_copy(net, x)) in ([], ["bn_of_a", "bn_of_b"])


def test_summary_explains_unfused_norms():
    x = paddle.randn([4, 3, 5, 5])
    ptq = paddleq.PTQ()
    net = ptq.quantize(warmed(SharedNorm(), x), fuse=True, inputs=x)
    assert "not fused with a, b: bn is applied 2 times" in paddleq.summary(net)


def test_ptq_fuses_on_the_first_batch_and_exports(tmp_path):
    x = paddle.rand([4, 1, 8, 8])
    net = warmed(SmallNet(), x)
    expected = net(x).numpy()
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    quantized = ptq.quantize(net, fuse=True)
    ptq.calibrate(quantized, [x])
    assert folded(quantized) == ["bn1", "bn2"] and folded(net) == []
    assert relative_error(quantized(x).numpy(), expected) < 0.05
    path = str(tmp_path / "m")
    ptq.save_quantized_model(quantized, path)  # the shape of the calibration batch
    assert relative_error(paddle_inference(path, [x.numpy()])[0], quantized(x).numpy()) < 1e-6


def test_qat_fuse_conv_bn_trains_the_folded_bias():
    x = paddle.rand([4, 1, 8, 8])
    net = warmed(SmallNet(), x)
    expected = net(x).numpy()
    quanter = paddleq.QAT({"fuse_conv_bn": True})
    quanter.quantize(net)
    optimizer = paddle.optimizer.SGD(0.1, parameters=net.parameters())
    net.train()
    output = net(x)
    assert folded(net) == ["bn1", "bn2"]
    assert relative_error(output.numpy(), expected) < 0.1
    bias = net.conv1.bias.numpy().copy()
    output.square().mean().backward()
    optimizer.step()
    assert np.abs(net.conv1.bias.numpy() - bias).max() > 0


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.SimpleRNN])
def test_models_with_recurrent_dropout_are_fused(cls):
    class Net(nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv1D(3, 4, 3), nn.BatchNorm1D(4)
            self.cells = cls(6, 5, num_layers=2, dropout=0.3)

        def forward(self, x):
            return self.cells(self.norm(self.conv(x)))[0]

    net, x = Net(), paddle.randn([2, 3, 8])
    net.eval()
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    quantized = ptq.quantize(net, fuse=True)
    ptq.calibrate(quantized, [x])
    assert folded(quantized) == ["norm"]
    assert relative_error(quantized(x).numpy(), net(x).numpy()) < 0.05
