"""Programs that ``to_static`` compiled before the quantization of a model changed.

Paddle compiles again for another shape or mode, not for another state of a quantizer.
"""

import copy

import paddle
import pytest
from paddle import nn

import paddleq
from paddleq import PTQ
from paddleq.golden_stick import SimulatedQuantizationAwareTraining as SimQAT

BATCH = paddle.to_tensor(paddle.linspace(-1.0, 1.0, 2 * 3 * 9 * 9).reshape([2, 3, 9, 9]))
CALLED = []  # the model that call_model calls


def call_model(x):
    """Call :data:`CALLED`: ``to_static`` of Paddle 2.6 compiles no closure."""
    return CALLED[0](x)


class Decorated(nn.Layer):
    """A model whose class has a compiled ``forward``."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    @paddle.jit.to_static(full_graph=True)
    def forward(self, x):
        return self.layers(x)


def network():
    paddle.seed(3)
    net = nn.Sequential(nn.Conv2D(3, 8, 3), nn.ReLU(), nn.Conv2D(8, 4, 3))
    net.eval()
    return net


def dynamic(call):
    """Output of a call in dynamic mode."""
    paddle.jit.enable_to_static(False)
    try:
        return call(BATCH)
    finally:
        paddle.jit.enable_to_static(True)


def distance(compiled, call):
    return (compiled(BATCH) - dynamic(call)).abs().max().item()


def compile_as(place, model, full_graph):
    """Compile ``model``, a part of it, or what calls it; return what to call."""
    if place == "model":
        return paddle.jit.to_static(model, full_graph=full_graph)
    if place == "layer":
        paddle.jit.to_static(model[0], full_graph=full_graph)
        return model
    if place == "parent":
        parent = nn.Sequential(model)
        parent.eval()
        return paddle.jit.to_static(parent, full_graph=full_graph)
    CALLED[:] = [model]
    return paddle.jit.to_static(call_model, full_graph=full_graph)


@pytest.mark.parametrize("full_graph", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("place", ["model", "layer", "parent", "function"])
def test_programs_compiled_before_calibration_quantize_after_it(place, full_graph):
    ptq = PTQ("AbsmaxQuantizer")
    model = ptq.quantize(network())
    call = compile_as(place, model, full_graph)
    unquantized = call(BATCH)
    ptq.calibrate(model, [BATCH])
    assert distance(call, model) == 0.0
    assert (call(BATCH) - unquantized).abs().max().item() > 1e-3
    paddleq.freeze(model)
    assert distance(call, model) == 0.0


@pytest.mark.parametrize("full_graph", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_programs_of_a_float_model_are_dropped_when_it_is_quantized_in_place(full_graph):
    model = paddle.jit.to_static(network(), full_graph=full_graph)
    before = model(BATCH)
    ptq = PTQ("AbsmaxQuantizer")
    ptq.quantize(model, inplace=True)
    ptq.calibrate(model, [BATCH])
    assert distance(model, model) == 0.0
    assert (model(BATCH) - before).abs().max().item() > 1e-3


def perceptron():
    paddle.seed(3)
    net = nn.Sequential(nn.Linear(9, 64), nn.ReLU(), nn.Linear(64, 4))
    net.eval()
    return net


def by_ptq(model):
    ptq = PTQ("AbsmaxQuantizer")
    ptq.quantize(model, inplace=True)
    ptq.calibrate(model, [BATCH])


def by_training(quantize):
    def change(model):
        quantize(model)
        model.train()
        model(BATCH)
        model.eval()
    return change


def by_amct(model):
    paddleq.amct.quantize(model, {
        "batch_num": 1, "algorithm": "minmax",
        "quant_cfg": {"weights": {"type": "int4", "symmetric": True, "strategy": "channel"}}})
    model(BATCH)
    paddleq.amct.convert(model)


@pytest.mark.parametrize("full_graph", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("place", ["parent", "function"])
@pytest.mark.parametrize("change", [
    by_ptq, by_training(paddleq.QAT().quantize), by_training(SimQAT().apply), by_amct],
    ids=["PTQ", "QAT", "SimQAT", "AMCT"])
def test_programs_around_a_float_model_are_dropped_when_it_is_quantized_in_place(
        change, place, full_graph):
    model = perceptron()
    call = compile_as(place, model, full_graph)
    unquantized = call(BATCH)
    change(model)
    assert distance(call, model) == 0.0
    assert (call(BATCH) - unquantized).abs().max().item() > 1e-3


def test_programs_of_other_models_are_kept_when_a_model_is_quantized():
    model = perceptron()
    other = paddle.jit.to_static(perceptron(), full_graph=True)
    other(BATCH)
    by_ptq(model)
    assert len(other.forward.program_cache) == 1


def test_programs_of_a_class_with_a_compiled_forward_are_dropped():
    model = Decorated(network())
    model.eval()
    model(BATCH)
    ptq = PTQ("AbsmaxQuantizer")
    ptq.quantize(model, inplace=True)
    ptq.calibrate(model, [BATCH])
    assert distance(model, model) == 0.0


def test_programs_follow_switches_of_quantizers_and_the_layers_left_float():
    ptq = PTQ("AbsmaxQuantizer")
    model = ptq.quantize(network())
    ptq.calibrate(model, [BATCH])
    compiled = paddle.jit.to_static(model, full_graph=True)
    quantized = compiled(BATCH)
    compiled.apply(paddleq.disable_fake_quant)
    assert (compiled(BATCH) - dynamic(network())).abs().max().item() < 1e-6
    compiled.apply(paddleq.enable_fake_quant)
    assert bool((compiled(BATCH) == quantized).all())


def test_programs_of_a_copy_and_of_its_original_are_separate():
    ptq = PTQ("AbsmaxQuantizer")
    model = paddle.jit.to_static(ptq.quantize(network()), full_graph=True)
    ptq.calibrate(model, [BATCH])
    other = copy.deepcopy(model)
    model(BATCH), other(BATCH)
    other.apply(paddleq.disable_fake_quant)
    assert distance(model, model) == 0.0
    assert distance(other, other) == 0.0
    assert (model(BATCH) - other(BATCH)).abs().max().item() > 1e-3


def test_calibration_of_a_compiled_model_collects_as_in_dynamic_mode():
    quantizers = []
    for compiled in (False, True):
        ptq = PTQ("KLQuantizer")
        model = ptq.quantize(network())
        if compiled:
            paddle.jit.to_static(model, full_graph=True)
        ptq.calibrate(model, [BATCH, BATCH * 2])
        quantizers.append(model[2].activation_quantizer.abs_max.item())
    assert quantizers[0] == quantizers[1] > 0.0
