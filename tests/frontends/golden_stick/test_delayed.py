"""quant_delay: fake-quantization that begins after a number of steps."""

import numpy as np
import paddle
import pytest

import paddleq
from paddleq.frontends.golden_stick import SimulatedQuantizationAwareTraining as SimQAT
from paddleq.frontends.golden_stick.simulated_qat import DelayedFakeQuantize
from paddleq.observers import AbsMaxObserver, CurrentAbsMaxObserver

X = [0.3, -1.0, 0.77]


def is_identity(quantizer, x=X):
    """Return True if the quantizer returns ``x`` unchanged."""
    return quantizer(paddle.to_tensor(x)).tolist() == paddle.to_tensor(x).tolist()


@pytest.mark.parametrize("observer", [AbsMaxObserver, CurrentAbsMaxObserver])
@pytest.mark.parametrize("delay", [0, 1, 3])
def test_quantizer_is_identity_until_the_delay(observer, delay):
    quantizer = DelayedFakeQuantize(observer(), delay=delay)
    assert [is_identity(quantizer) for _ in range(5)] == [step < delay for step in range(5)]
    assert quantizer.step.item() == 5


def test_observer_is_updated_during_the_delay():
    quantizer = DelayedFakeQuantize(AbsMaxObserver(), delay=2)
    assert is_identity(quantizer, [4.0, 0.3]) and is_identity(quantizer, [1.0, 0.3])
    assert quantizer.observer.abs_max().tolist() == [4.0]
    step = 4.0 / 127
    found = quantizer(paddle.to_tensor([1.0, 0.3]))
    np.testing.assert_allclose(found.numpy(), np.round(np.array([1.0, 0.3]) / step) * step, 1e-6)


def test_eval_always_quantizes_and_never_counts():
    quantizer = DelayedFakeQuantize(AbsMaxObserver(), delay=10)
    quantizer(paddle.to_tensor(X))
    quantizer.eval()
    assert not is_identity(quantizer) and not is_identity(quantizer)
    assert quantizer.step.item() == 1
    quantizer.train()
    assert is_identity(quantizer) and quantizer.step.item() == 2


@pytest.mark.parametrize("state", ["calibration", "validation"])
def test_other_states_never_count(state):
    quantizer = DelayedFakeQuantize(AbsMaxObserver(), delay=10)
    quantizer(paddle.to_tensor(X))
    quantizer.set_state(state)
    assert is_identity(quantizer) == (state == "calibration")
    assert quantizer.step.item() == 1


def test_gradient_is_identity_during_the_delay():
    quantizer = DelayedFakeQuantize(AbsMaxObserver(), delay=1)
    x = paddle.to_tensor(X, stop_gradient=False)
    (quantizer(x) * paddle.to_tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad.tolist() == [1.0, 2.0, 3.0]


def test_disabled_quantizer_stays_disabled():
    quantizer = DelayedFakeQuantize(AbsMaxObserver(), delay=1)
    quantizer.fake_quant_enabled = False
    assert all(is_identity(quantizer) for _ in range(3))


def test_count_is_restored_from_state_dict():
    quantizer = DelayedFakeQuantize(AbsMaxObserver(), delay=3)
    for _ in range(2):
        quantizer(paddle.to_tensor(X))
    other = DelayedFakeQuantize(AbsMaxObserver(), delay=3)
    other(paddle.to_tensor(X))
    other.set_state_dict(quantizer.state_dict())
    assert is_identity(other) and not is_identity(other)
    early = DelayedFakeQuantize(AbsMaxObserver(), delay=3).state_dict()
    other.set_state_dict(early)
    assert is_identity(other)


def test_quantizers_count_separately():
    net = paddle.nn.Sequential(paddle.nn.Linear(3, 3), paddle.nn.ReLU(), paddle.nn.Linear(3, 3))
    x = paddle.ones([2, 3])
    net = SimQAT().apply(net, x)
    net[0](x)
    net(x)
    steps = {name: value.item() for name, value in net.state_dict().items()
             if name.endswith(".step")}
    assert steps == {
        **{f"0.{part}_quantizer.step": 2 for part in ("activation", "weight", "output")},
        **{f"2.{part}_quantizer.step": 1 for part in ("activation", "weight", "output")}}


def test_to_static():
    class Net(paddle.nn.Layer):
        def __init__(self):
            super().__init__()
            self.quantizer = DelayedFakeQuantize(AbsMaxObserver(), delay=2)

        def forward(self, x):
            return self.quantizer(x)

    net = Net()
    static = paddle.jit.to_static(net, full_graph=True)
    x = paddle.to_tensor(X)
    assert [static(x).tolist() == x.tolist() for _ in range(4)] == [True, True, False, False]
    assert net.quantizer.step.item() == 4


@pytest.mark.parametrize("delay, error", [
    (-1, paddleq.errors.ConfigError), (1.0, paddleq.errors.ConfigTypeError),
    (True, paddleq.errors.ConfigTypeError)])
def test_invalid_delay(delay, error):
    with pytest.raises(error, match="delay must be an int"):
        DelayedFakeQuantize(AbsMaxObserver(), delay=delay)
