"""Interrupted changes are rolled back, and one thread at a time calibrates or analyses a model."""

import copy
import os
import sys
import threading

import numpy as np
import paddle
import pytest
from paddle import nn

import paddleq
from paddleq._layer_state import read_state
from paddleq.algorithms import AdaRound, correct_biases, equalize, reconstruct
from paddleq.engine.state import quantizing_only
from paddleq.errors import ModelError
from paddleq.golden_stick import SimulatedQuantizationAwareTraining as SimQAT

PACKAGE = os.path.dirname(paddleq.__file__) + os.sep
X = paddle.linspace(-1.0, 1.0, 96).reshape([2, 3, 4, 4])


def cnn():
    net = nn.Sequential(nn.Conv2D(3, 4, 3, padding=1), nn.BatchNorm2D(4), nn.ReLU(),
                        nn.Sequential(nn.Conv2D(4, 4, 3), nn.Flatten()), nn.Linear(16, 2))
    net[1]._mean.set_value(np.float32([0.1, -0.2, 0.3, 0.0]))
    return net


def snapshot(net):
    """Return everything that a change could leave behind, comparable with ``==``."""
    found = {}
    for name, layer in net.named_sublayers(include_self=True):
        plain = {key: value for key, value in layer.__dict__.items()
                 if isinstance(value, (bool, int, float, str, type(None)))
                 and key not in ("_known_version", "_weighted")}  # of values that are cached
        state = layer.__dict__.get("_paddleq")
        found[name] = (type(layer), sorted(layer.__dict__), plain, layer.training,
                       len(layer._forward_pre_hooks), state and (state.note, state.thread))
    for name, value in net.state_dict().items():
        found[f"value {name}"] = value.numpy().tobytes()
    return found


def values_of(net):
    """Return all on which the outputs depend; notes for the summary may stay."""
    found = {name: (type(layer), layer.training, len(layer._forward_pre_hooks),
                    len(layer._forward_post_hooks), read_state(layer).compute_float,
                    getattr(layer, "state", None), getattr(layer, "fake_quant_enabled", None),
                    getattr(layer, "observer_enabled", None))
             for name, layer in net.named_sublayers(include_self=True)}
    return {**found, **{name: value.numpy().tobytes() for name, value in net.state_dict().items()}}


class InterruptAt:
    """Raise an exception at line number ``count`` that the package executes."""

    def __init__(self, count, error):
        self.count, self.error, self.lines = count, error, 0

    def trace(self, frame, event, _):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.count:
                raise self.error()
        return self.trace

    def __enter__(self):
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_):
        sys.settrace(None)


def positions(action, number):
    """Return ``number`` line numbers spread over those that ``action`` executes."""
    action()  # fills caches
    with InterruptAt(-1, KeyboardInterrupt) as counter:
        action()
    # Later calls may execute a few lines less.
    return np.linspace(2, 0.95 * counter.lines, number).astype(int).tolist()


CHANGES = {
    "QAT": lambda net: paddleq.QAT().quantize(net),
    "QAT, folded": lambda net: paddleq.QAT({"fuse_conv_bn": True}).quantize(net, inputs=X),
    "PTQ, folded": lambda net: paddleq.PTQ("AbsmaxQuantizer").quantize(
        net, inplace=True, fuse=True, inputs=X),
    "Golden Stick": lambda net: SimQAT({"enable_fusion": True, "bn_fold": True}).apply(net, X),
    "rules": lambda net: paddleq.quantize(net, rules(), inplace=True),
}


def rules():
    config = paddleq.QuantConfig()
    config.add_type(nn.Linear, paddleq.LayerConfig(paddleq.QuantSpec(4), paddleq.QuantSpec(8)))
    return config


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("change", CHANGES)
def test_interrupted_quantize_leaves_the_float_model(change, error):
    net = cnn()
    net.eval()
    before, output = snapshot(net), net(X).numpy()
    interrupted = 0
    for count in positions(lambda: CHANGES[change](copy.deepcopy(net)), 12):
        try:
            with InterruptAt(count, error):
                CHANGES[change](net)
        except error:
            interrupted += 1
            assert snapshot(net) == before, count
        else:
            pytest.fail(f"no interrupt at line {count}")
    assert interrupted == 12
    np.testing.assert_array_equal(net(X).numpy(), output)
    CHANGES[change](net)  # a second attempt works


def qat(net):
    net = paddleq.QAT().quantize(net)
    net(X)
    return net


@pytest.mark.parametrize("make", [
    qat, lambda net: paddleq.PTQ("HistQuantizer").quantize(net),
    lambda net: paddleq.PTQ("AbsmaxQuantizer").quantize(net, fuse=True),
    lambda net: SimQAT({"enable_fusion": True}).apply(net)],
    ids=["QAT", "histogram", "folded on the first batch", "fused on the first batch"])
def test_interrupted_calibration_leaves_state_and_statistics(make):
    net = make(cnn())
    data = [X, 2.0 * X]
    before = snapshot(net)
    for count in positions(lambda: paddleq.calibrate(copy.deepcopy(net), data), 12):
        with pytest.raises(KeyboardInterrupt), InterruptAt(count, KeyboardInterrupt):
            paddleq.calibrate(net, data)
        assert snapshot(net) == before, count
    assert paddleq.calibrate(net, data) == 2


def linears():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))


def amct(net):
    paddleq.amct.quantize(net, {
        "batch_num": 1, "algorithm": "smoothquant", "quant_cfg": {
            key: {"type": "int8", "symmetric": True, "strategy": "tensor"}
            for key in ("weights", "inputs")}})


def calibrated_by_amct():
    net = linears()
    amct(net)
    net(paddle.linspace(-1.0, 1.0, 512).reshape([8, 64]))
    return net


def folding():
    net = SimQAT({"enable_fusion": True, "bn_fold": True}).apply(cnn(), X)
    net.train()
    net(X)
    return net


def equalizable():
    return nn.Sequential(nn.Conv2D(3, 4, 3), nn.ReLU(), nn.Conv2D(4, 2, 1))


# name -> (function that creates a model, in-place change of it)
CONVERSIONS = {
    "AMCT": (linears, amct),
    "AMCT, conversion": (calibrated_by_amct, paddleq.amct.convert),
    "conversion that folds": (folding, paddleq.convert),
    "equalization": (equalizable, lambda net: equalize(net, X)),
    "biases": (lambda: calibrated(cnn()), lambda net: correct_biases(net, [X, -X])),
    "biases in order": (lambda: calibrated(cnn()), lambda net: correct_biases(net, [X], "full")),
    "learned rounding": (lambda: calibrated(cnn()),
                         lambda net: reconstruct(net, [X], AdaRound(iterations=2))),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_interrupted_changes_in_place_are_rolled_back(name):
    make, change = CONVERSIONS[name]

    def made():
        paddle.seed(3)  # the steps of equalization depend on the weights
        net = make()
        net.eval()
        return net

    nets, finished = [made(), made()], made()
    change(finished)
    for count in positions(lambda: change(nets.pop()), 6):
        net = made()
        before = values_of(net)
        with pytest.raises(KeyboardInterrupt), InterruptAt(count, KeyboardInterrupt):
            change(net)
        # The last lines of a call come after the change, as that of its report.
        assert values_of(net) in (before, values_of(finished)), count
    change(net)  # a second attempt works


def in_thread(call):
    raised = []

    def run():
        try:
            call()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised


def calibrated(net):
    net = paddleq.PTQ("AbsmaxQuantizer").quantize(net)
    paddleq.calibrate(net, [X])
    return net


def while_calibrating(net, call):
    def data():
        call()
        yield X

    paddleq.calibrate(net, data())


def while_analysed(net, call):
    with quantizing_only(net, ["0"]):
        call()


@pytest.mark.parametrize("activity", [
    while_calibrating, while_analysed,
    lambda net, call: paddleq.analysis.sensitivity(
        net, metric=lambda model: call() or 1.0)],
    ids=["calibration", "one layer", "sensitivity"])
def test_calls_of_other_threads_are_refused_meanwhile(activity):
    net, raised = calibrated(cnn()), []
    expected = net(X).numpy()
    copied = []

    def call():
        raised.extend(in_thread(lambda: net(X)))
        raised.extend(in_thread(lambda: paddleq.calibrate(net, [X])))
        copied.append(copy.deepcopy(net))

    activity(net, call)
    assert raised and all(isinstance(error, ModelError) for error in raised)
    assert "in another thread" in str(raised[0])
    assert not in_thread(lambda: net(X))
    assert not in_thread(lambda: copied[0](X))
    np.testing.assert_array_equal(net(X).numpy(), expected)
