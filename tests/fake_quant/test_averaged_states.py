"""Averages of state dicts (EMA) load, and have the scales of the averaged observers."""

import copy
import math
import weakref

import numpy as np
import paddle
import pytest
from paddle import nn

import paddleq
from paddleq import FakeQuantize, observers
from paddleq.engine.state import fake_quantizers
from paddleq.golden_stick import SimulatedQuantizationAwareTraining as SimQAT


class ModelEMA:
    """PaddleDetection's average of a state dict: of all entries, in float32."""

    def __init__(self, model, kind, decay=0.9):
        self.kind, self.decay, self.step = kind, decay, 0
        self.state = {name: paddle.zeros_like(value, dtype="float32")
                      for name, value in model.state_dict().items()}
        self.held = {name: weakref.ref(value) for name, value in model.state_dict().items()}

    def update(self):
        decay = self.decay
        if self.kind == "threshold":
            decay = min(decay, (1 + self.step) / (10 + self.step))
        elif self.kind == "exponential":
            decay = decay * (1 - math.exp(-(self.step + 1) / 2000))
        self.last = decay
        for name, value in self.state.items():
            now = self.held[name]().detach().astype("float32")
            self.state[name] = decay * value + (1 - decay) * now
        self.step += 1

    def apply(self):
        if self.kind == "exponential":
            return self.state
        return {name: value / (1 - self.last ** self.step) for name, value in self.state.items()}


def net():
    paddle.seed(0)
    return nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.ReLU(), nn.Conv2D(4, 2, 3))


QUANTIZE = {
    "moving average": lambda: paddleq.QAT().quantize(net()),
    "maximum": lambda: paddleq.QAT({"activation_quantize_type": "abs_max"}).quantize(net()),
    "window": lambda: paddleq.QAT({"activation_quantize_type": "range_abs_max"}).quantize(net()),
    "LSQ": lambda: paddleq.QAT({"weight_quantize_type": "lsq",
                                "activation_quantize_type": "lsq"}).quantize(net()),
    "Golden Stick": lambda: SimQAT(
        {"enable_fusion": True, "bn_fold": True, "quant_delay": 1}).apply(net(), batch(0)),
    "affine": lambda: paddleq.QAT(act_quantize=lambda: FakeQuantize(
        observers.MovingAverageMinMaxObserver, dtype="quint8", qscheme="per_tensor_affine",
        averaging_constant=0.1)).quantize(net()),
}


def batch(number):
    values = np.random.default_rng(number).normal(size=[4, 3, 7, 7]) * 30.0
    return paddle.to_tensor(values.astype("float32"))


def scales(model):
    return {name: q.scale.numpy() for name, q in fake_quantizers(model) if not q.observer.dynamic}


def steps(model, count, after):
    """Run training batches of one distribution, so that all averages of scales are near."""
    model.train()
    for number in range(count):
        model(batch(number))
        after()
    model.eval()


@pytest.mark.parametrize("quantize, kind", [
    pytest.param(quantize, kind, marks=[] if kind == "exponential" or quantize == "moving average"
                 else pytest.mark.nightly)
    for quantize in QUANTIZE for kind in ("normal", "threshold", "exponential")])
def test_average_of_all_entries_loads(quantize, kind):
    model = QUANTIZE[quantize]()
    ema = ModelEMA(model, kind)
    steps(model, 25, ema.update)
    averaged = copy.deepcopy(model)
    missing, unexpected = averaged.set_state_dict(ema.apply())
    assert not missing and not unexpected
    expected = scales(model)
    for name, scale in scales(averaged).items():
        np.testing.assert_allclose(scale, expected[name], rtol=0.25, err_msg=name)
    for name, value in averaged.state_dict().items():
        assert value.dtype == model.state_dict()[name].dtype, name
    averaged(batch(3))


@pytest.mark.parametrize("quantize", QUANTIZE)
def test_average_that_starts_with_the_untrained_copy(quantize):
    """States without data have no weight: their scales of 0 do not lower the average."""
    model = QUANTIZE[quantize]()
    state = {name: value.clone().astype("float32") for name, value in model.state_dict().items()}

    def update():
        now = model.state_dict()
        for name in state:
            state[name] = 0.99 * state[name] + 0.01 * now[name].astype("float32")

    steps(model, 20, update)
    expected = scales(model)
    model.set_state_dict(state)
    for name, scale in scales(model).items():
        np.testing.assert_allclose(scale, expected[name], rtol=0.25, err_msg=name)


@pytest.mark.parametrize("integers", [True, False])
def test_average_that_is_loaded_after_each_step(integers):
    model = QUANTIZE["moving average"]()
    mean = copy.deepcopy(model)

    def update():
        state, now = mean.state_dict(), model.state_dict()
        for name, value in state.items():
            if integers or paddle.is_floating_point(value):
                state[name] = 0.999 * value.astype("float32") + 0.001 * now[name].astype("float32")
        mean.set_state_dict(state)

    accumulated, weights = 0.0, 0.0
    quantizer = model[0].activation_quantizer

    def update_and_sum():
        nonlocal accumulated, weights
        update()
        accumulated = 0.999 * accumulated + 0.001 * quantizer.observer.accum.item()
        weights = 0.999 * weights + 0.001 * quantizer.observer.state.item()

    steps(model, 20, update_and_sum)
    averaged = mean[0].activation_quantizer
    assert averaged.abs_max.item() == pytest.approx(accumulated / weights, rel=1e-4)


@pytest.mark.parametrize("quantize", QUANTIZE)
def test_plain_states_load_exactly(quantize):
    model, fresh = QUANTIZE[quantize](), QUANTIZE[quantize]()
    steps(model, 4, lambda: None)
    fresh.set_state_dict({name: value.numpy() for name, value in model.state_dict().items()})
    for name, value in fresh.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), model.state_dict()[name].numpy(), err_msg=name)


@pytest.mark.parametrize("set_scale", [
    lambda q: q.set_qparams(0.5), lambda q: q.abs_max.set_value(np.float32([63.5]))],
    ids=["set_qparams", "buffer"])
def test_scales_that_were_set_are_kept(set_scale):
    model, fresh = QUANTIZE["moving average"](), QUANTIZE["moving average"]()
    steps(model, 3, lambda: None)
    set_scale(model[0].activation_quantizer)
    fresh.set_state_dict(model.state_dict())
    assert fresh[0].activation_quantizer.scale.item() == 0.5
    assert fresh[3].activation_quantizer.scale.item() == model[3].activation_quantizer.scale.item()


def test_training_goes_on_from_an_average():
    model = QUANTIZE["moving average"]()
    ema = ModelEMA(model, "normal")
    steps(model, 5, ema.update)
    model.set_state_dict(ema.apply())
    steps(model, 40, lambda: None)
    largest = max(np.abs(batch(number).numpy()).max() for number in range(40))
    quantizer = model[0].activation_quantizer
    assert 0.6 * largest < quantizer.abs_max.item() <= largest
    assert quantizer.observer.num_batches >= 41
