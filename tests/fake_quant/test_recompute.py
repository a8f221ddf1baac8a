"""Training with recompute equals training without: scales, counters, statistics and gradients."""

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.distributed.fleet.utils import recompute

import paddleq
from paddleq import FakeQuantize, observers
from paddleq.engine.state import fake_quantizers
from paddleq.golden_stick import SimulatedQuantizationAwareTraining as SimQAT

X = [paddle.to_tensor((1 + i) * np.random.default_rng(i).normal(size=[4, 3, 6, 6]), "float32")
     for i in range(4)]


class Net(nn.Layer):
    """Two blocks, the second shared by two calls, run by ``run(block, x)``."""

    def __init__(self, run):
        super().__init__()
        # Without reentrance, a batch norm of Paddle 3 ends in a segmentation fault, in float too.
        norm = [] if run is not_reentrant else [nn.BatchNorm2D(4)]
        self.run = run
        self.first = nn.Sequential(nn.Conv2D(3, 4, 3, padding=1), *norm, nn.ReLU())
        self.second = nn.Sequential(nn.Conv2D(4, 4, 3, padding=1), nn.GELU())
        self.last = nn.Linear(6, 2)

    def forward(self, x):
        x = self.run(self.first, x)
        x = self.run(self.second, x) + self.run(self.second, 2.0 * x)
        return self.run(self.last, x)


def reentrant(block, x):
    return recompute(block, x)


def not_reentrant(block, x):
    return recompute(block, x, use_reentrant=False, preserve_rng_state=False)


def nested(block, x):
    return recompute(lambda x: recompute(lambda x: recompute(block, x), x) * 1.0, x)


def sequential(block, x):
    from paddle.distributed.fleet.recompute import recompute_sequential

    if not isinstance(block, nn.Sequential):
        return recompute(block, x)
    # One segment is not recomputed on Paddle 2.6, two raise an error on 3.x.
    segments = 2 if paddle.__version__.startswith("2.") else 1
    return recompute_sequential({"segments": segments}, block, x)


MODES = [reentrant, not_reentrant, nested, sequential]
QUANTIZE = {
    "moving average": lambda net: paddleq.QAT().quantize(net),
    "abs_max": lambda net: paddleq.QAT({"activation_quantize_type": "abs_max"}).quantize(net),
    "range": lambda net: paddleq.QAT({"activation_quantize_type": "range_abs_max"}).quantize(net),
    "PACT": lambda net: paddleq.QAT({"activation_preprocess_type": "PACT"}).quantize(net),
    "LSQ": lambda net: paddleq.QAT({"weight_quantize_type": "lsq",
                                    "activation_quantize_type": "lsq"}).quantize(net),
    "Golden Stick": lambda net: SimQAT({"enable_fusion": True}).apply(net, X[0]),
    "one conv": lambda net: SimQAT({"enable_fusion": True, "bn_fold": True}).apply(net, X[0]),
    "two conv": lambda net: SimQAT({"enable_fusion": True, "bn_fold": True,
                                    "one_conv_fold": False}).apply(net, X[0]),
    "frozen norms": lambda net: SimQAT({"enable_fusion": True, "bn_fold": True,
                                        "freeze_bn": 2}).apply(net, X[0]),
    "delayed": lambda net: SimQAT({"quant_delay": 2}).apply(net, X[0]),
}
ONE_OF_A_KIND = {("moving average", mode) for mode in MODES} | {
    (kind, reentrant) for kind in QUANTIZE} | {("PACT", not_reentrant)}
FOLDED = ("one conv", "two conv", "frozen norms")


def trained(kind, mode, run=None, between=lambda net, x: None):
    paddle.seed(3)
    net = Net(mode)
    net.run = lambda block, x: block(x)
    net = QUANTIZE[kind](net)
    net.run = run or mode
    net.train()
    optimizer = paddle.optimizer.SGD(1e-2, parameters=net.parameters())
    for x in X:
        x = x.clone()
        x.stop_gradient = False
        optimizer.clear_grad()
        y = net(x)
        between(net, x)
        y.square().mean().backward()
        optimizer.step()
    return net, x.grad.numpy()


def assert_trained_alike(one, other, statistics):
    (net, grad), (plain, expected) = one, other
    assert np.linalg.norm(grad - expected) <= 1e-6 * np.linalg.norm(expected)
    for (name, parameter), (_, same) in zip(net.named_parameters(), plain.named_parameters()):
        if same.grad is not None:
            difference = np.linalg.norm((parameter.grad - same.grad).numpy())
            assert difference <= 1e-5 * np.linalg.norm(same.grad.numpy()) + 1e-7, name
    expected = plain.state_dict()
    for name, value in net.state_dict().items():
        if statistics or not name.endswith(("_mean", "_variance")):
            np.testing.assert_allclose(value.numpy(), expected[name].numpy(), rtol=1e-5, atol=1e-6,
                                       err_msg=name)


@pytest.mark.parametrize("kind, mode", [
    pytest.param(kind, mode, id=f"{kind}-{mode.__name__}",
                 marks=[] if (kind, mode) in ONE_OF_A_KIND else pytest.mark.nightly)
    for kind in QUANTIZE for mode in MODES if (kind in FOLDED, mode) != (True, not_reentrant)])
def test_recompute_trains_as_without(kind, mode):
    plain = trained(kind, mode, lambda block, x: block(x))
    # Paddle's own batch norm updates its statistics in each pass.
    assert_trained_alike(trained(kind, mode), plain, statistics=kind in FOLDED)


class Cut(nn.Layer):
    """A convolution, a norm and a ReLU, which ``run`` recomputes from ``begin`` to ``end``."""

    def __init__(self, begin, end, norm):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2D(3, 4, 3), *([nn.BatchNorm2D(4)] if norm else []),
                                    nn.ReLU(), nn.Conv2D(4, 4, 3), nn.ReLU())
        self.begin, self.end, self.run = begin, end, None

    def forward(self, x):
        run = self.run or (lambda part, x: part(x))
        x = self.layers[:self.begin](x) if self.begin else x
        x = run(self.layers[self.begin:self.end], x)
        return self.layers[self.end:](x) if self.end < len(self.layers) else x


@pytest.mark.parametrize("begin, end, norm, mode", [
    (1, 3, False, reentrant), (0, 1, False, reentrant), (1, 3, False, not_reentrant),
    (0, 1, False, not_reentrant), (2, 4, True, reentrant), (0, 2, True, reentrant),
    (1, 5, True, reentrant), (1, 4, False, nested)])
def test_recompute_that_begins_or_ends_inside_a_fused_block(begin, end, norm, mode):
    def gradients(run):
        paddle.seed(1)
        net = SimQAT({"enable_fusion": True}).apply(Cut(begin, end, norm), X[0])
        net.run = run
        net.train()
        found = []
        for x in X:
            x = x.clone()
            x.stop_gradient = False
            net(x).square().mean().backward()
            found.append(x.grad.numpy())
        return net, found

    (net, found), (plain, expected) = gradients(mode), gradients(None)
    assert [q.observer.num_batches for _, q in fake_quantizers(net)] == [
        q.observer.num_batches for _, q in fake_quantizers(plain)]
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_scales_that_change_between_the_passes():
    """Other batches run before backward, so that the observers have moved on."""
    def other_batch(net, x):
        with paddle.no_grad():
            net(10.0 * x)

    plain = trained("moving average", reentrant, lambda block, x: block(x), other_batch)
    assert_trained_alike(trained("moving average", reentrant, None, other_batch), plain, False)


@pytest.mark.parametrize("mode", [reentrant, not_reentrant])
def test_two_forward_passes_before_backward(mode):
    def gradients(run):
        paddle.seed(0)
        net = paddleq.QAT().quantize(nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 6)))
        inputs = [x.clone() for x in X[:2]]
        for x in inputs:
            x.stop_gradient = False
        for loss in reversed([run(net, x).square().mean() for x in inputs]):
            loss.backward()
        return [x.grad.numpy() for x in inputs], net[0].activation_quantizer.observer.num_batches

    found, batches = gradients(mode)
    expected, _ = gradients(lambda block, x: block(x))
    assert batches == 2
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_skipped_batches_are_counted_once():
    quantizer = FakeQuantize(observers.MovingAverageAbsMaxObserver)
    for value in (1.0, np.nan, 2.0):
        x = paddle.full([3], value)
        x.stop_gradient = False
        recompute(quantizer, x).sum().backward()
    assert quantizer.skipped_batches.item() == 1
    assert quantizer.observer.num_batches == 2


def test_evaluation_with_recompute_changes_nothing():
    net = trained("moving average", reentrant)[0]
    net.eval()
    before = {name: q.abs_max.numpy() for name, q in fake_quantizers(net)}
    x = X[0].clone()
    x.stop_gradient = False
    net(100.0 * x).sum().backward()
    for name, quantizer in fake_quantizers(net):
        np.testing.assert_array_equal(quantizer.abs_max.numpy(), before[name])
