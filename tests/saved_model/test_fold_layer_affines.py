"""Folding of multiplications and additions of parameters of Layers, in PTQ and QAT."""

import copy
import logging
import pickle

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from affine_cases import Affine, FrozenBatchNorm
from nets import warmed
from paddle import nn
from paddle.static import InputSpec
from runtimes import paddle_inference, relative_error

import paddleq
from paddleq import engine
from paddleq.engine.hooks import to_static_enabled
from paddleq.export.program.program import Program
from paddleq.saved_model.fold_layer_affines import fold_layers
from paddleq.saved_model.operators import read_operators


class LCNetBlock(nn.Layer):
    """Depthwise and pointwise convolutions with learnable affines around activations."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2D(3, 4, 3, bias_attr=False), nn.BatchNorm2D(4)
        self.affines = nn.LayerList([Affine() for _ in range(4)])
        self.depthwise = nn.Conv2D(4, 4, 3, padding=1, groups=4, bias_attr=False)
        self.last, self.fc = nn.Conv2D(4, 6, 1, bias_attr=False), nn.Linear(6, 3)

    def forward(self, x):
        x = self.affines[1](F.hardswish(self.affines[0](self.norm(self.first(x)))))
        x = self.affines[3](F.hardswish(self.affines[2](self.depthwise(x))))
        return self.fc(F.relu(self.last(x)).mean([2, 3]))


class LayerScale(nn.Layer):
    """Residual branches times a vector, as in vision transformers."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 12), nn.Linear(12, 6)
        self.gamma = self.create_parameter(
            [6], default_initializer=nn.initializer.Uniform(0.01, 0.1))

    def forward(self, x):
        return x + self.gamma * self.down(F.gelu(self.up(self.norm(x))))


class Sequence(nn.Layer):
    """A division and a subtraction of buffers, between convolutions of sequences."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1D(4, 6, 3), nn.Conv1D(6, 5, 3, bias_attr=False)
        self.register_buffer("mean", paddle.randn([6, 1]))
        self.register_buffer("deviation", paddle.rand([6, 1]) + 0.5)

    def forward(self, x):
        return self.b((F.relu(self.a(x)) - self.mean) / self.deviation)


class Branched(nn.Layer):
    """Sum of branches before an affine, of a block that is not re-parameterized yet."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2D(3, 4, 1), nn.Conv2D(3, 4, 3, padding=1)
        self.norms = nn.LayerList([nn.BatchNorm2D(4), nn.BatchNorm2D(4)])
        self.affine, self.up = Affine(), nn.Conv2DTranspose(4, 4, 2, stride=2, groups=2)
        self.last = Affine(1, 4, 1, 1)

    def forward(self, x):
        x = F.hardswish(self.affine(self.norms[0](self.a(x)) + self.norms[1](self.b(x))))
        return F.hardswish(self.last(self.up(x)))


NETS = {"learnable affines": (LCNetBlock, [2, 3, 9, 9]), "layer scale": (LayerScale, [4, 6]),
        "sequence": (Sequence, [2, 4, 9]), "branches": (Branched, [2, 3, 8, 8])}


def float_copy(make, shape):
    """(net with statistics, input, its output in float64)."""
    x = paddle.randn(shape)
    net = warmed(make(), x)
    double = copy.deepcopy(net).to(dtype="float64")
    double.eval()
    return net, x, double(x.astype("float64")).numpy()


def neutral(net):
    """Parameters of operators that change nothing."""
    return [getattr(layer, name) for layer in net.sublayers(include_self=True)
            if hasattr(layer, "_paddleq") for name in layer._paddleq.neutral]


def assert_exported_without(parameters, prefix):
    program = Program.load(f"{prefix}.pdmodel", f"{prefix}.pdiparams")
    assert parameters and program.arrays.keys().isdisjoint(each.name for each in parameters)


@pytest.mark.parametrize("on_first_batch", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_ptq_folds_affines_of_layers(name, on_first_batch, prefix):
    make, shape = NETS[name]
    net, x, expected = float_copy(make, shape)
    before = {key: value.numpy() for key, value in net.state_dict().items()}
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    quantized = ptq.quantize(net, fuse=True, inputs=None if on_first_batch else x)
    if on_first_batch:
        quantized = pickle.loads(pickle.dumps(quantized))
    observed = quantized(x)  # computes in float
    assert relative_error(observed.numpy(), expected) < 2e-6
    ptq.calibrate(quantized, [x])
    assert all((value.numpy() == before[key]).all() for key, value in net.state_dict().items())
    ptq.save_quantized_model(quantized, prefix, [InputSpec([None, *shape[1:]], "float32")])
    assert_exported_without(neutral(quantized), prefix)
    outputs = paddle_inference(prefix, [x.numpy()])
    assert relative_error(outputs[0], quantized(x).numpy()) < 1e-6


@pytest.mark.parametrize("name", NETS)
def test_folded_affines_are_neutral_and_not_trained(name):
    make, shape = NETS[name]
    net, x, expected = float_copy(make, shape)
    fold_layers(net, x)
    assert relative_error(net(x).numpy(), expected) < 2e-6
    assert neutral(net) and all(each.stop_gradient for each in neutral(net))
    assert all(np.isin(each.numpy(), (0.0, 1.0)).all() for each in neutral(net))


def test_qat_trains_folded_weights_and_exports_without_affines(prefix):
    net, x, expected = float_copy(LCNetBlock, [4, 3, 9, 9])
    quanter = paddleq.QAT({"fuse_conv_bn": True})
    quanter.quantize(net, inputs=x)
    optimizer = paddle.optimizer.Adam(1e-3, parameters=net.parameters())
    net.train()
    for _ in range(3):
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.clear_grad()
    net.eval()
    assert net.affines[0].scale.item() == 1.0 and net.affines[0].shift.item() == 0.0
    assert net.affines[1].scale.item() == 1.0 and net.affines[1].shift.item() != 0.0
    assert "scale folded into depthwise" in paddleq.summary(net)
    quanter.save_quantized_model(net, prefix, [InputSpec([None, 3, 9, 9], "float32")])
    assert_exported_without(neutral(net), prefix)
    assert relative_error(paddle_inference(prefix, [x.numpy()])[0], net(x).numpy()) < 1e-6


class Refused(nn.Layer):
    """Affines that stay: read twice, with a shared weight, with a computed constant."""

    def __init__(self, kind):
        super().__init__()
        self.a, self.b, self.affine, self.kind = nn.Linear(4, 4), nn.Linear(4, 4), Affine(4), kind
        if kind == "shared weight":
            self.b.weight = self.a.weight

    def forward(self, x):
        if self.kind == "read twice":
            y = self.a(x)
            return F.gelu(self.affine(y)) + F.gelu(y)
        if self.kind == "shared weight":
            return F.gelu(self.affine(self.a(F.gelu(self.b(x)))))
        if self.kind == "shared constant":
            return F.gelu(self.affine(self.a(x))) + F.gelu(self.affine(self.b(x)))
        if self.kind == "computed constant":
            return F.gelu(self.a(x) * F.sigmoid(self.affine.scale))
        return F.gelu(self.a(x) * 2.0)


@pytest.mark.parametrize("kind", ["read twice", "shared weight", "shared constant",
                                  "computed constant", "number"])
def test_affines_of_layers_that_cannot_be_folded_stay(kind):
    net, x, expected = float_copy(lambda: Refused(kind), [3, 4])
    before = {key: value.numpy() for key, value in net.state_dict().items()}
    fold_layers(net, x)
    assert all((value.numpy() == before[key]).all() for key, value in net.state_dict().items())
    assert relative_error(net(x).numpy(), expected) < 1e-6


class Untraceable(nn.Layer):
    def __init__(self):
        super().__init__()
        self.fc, self.affine = nn.Linear(4, 4), Affine()

    def forward(self, x):
        return F.gelu(self.affine(self.fc(x * max(map(max, x.tolist())))))


def test_a_model_that_cannot_be_traced_is_not_folded_and_warns(caplog):
    net, x, expected = float_copy(Untraceable, [3, 4])
    with caplog.at_level(logging.WARNING, "paddleq"):
        fold_layers(net, x)
    assert "are not folded" in caplog.text
    assert relative_error(net(x).numpy(), expected) < 1e-6


def test_an_error_in_the_first_batch_restores_the_affines():
    net, x, _ = float_copy(LCNetBlock, [2, 3, 9, 9])
    before = {key: value.numpy() for key, value in net.state_dict().items()}
    quantized = paddleq.PTQ("AbsmaxQuantizer").quantize(net, fuse=True)
    with pytest.raises(Exception):  # noqa: B017 (of Paddle, which refuses the shape)
        quantized(x[:, :2])
    after = {key: value.numpy() for key, value in quantized.state_dict().items() if key in before}
    assert all((after[key] == before[key]).all() for key in after)
    engine.calibrate(quantized, [x])
    assert quantized.affines[0].scale.item() == 1.0


def test_a_norm_of_buffers_stays_and_the_norm_before_it_is_folded():
    x = paddle.randn([2, 3, 7, 7])
    net = warmed(nn.Sequential(nn.Conv2D(3, 5, 3), nn.BatchNorm2D(5), FrozenBatchNorm(5),
                               nn.ReLU()), x)
    expected = net(x).numpy()
    fold_layers(net, x)
    assert relative_error(net(x).numpy(), expected) < 2e-6
    assert paddleq.summary(net).count("folded") >= 1


class Trained(nn.Layer):
    """Affines behind layers of each kind, and one before a quantizer, which stays."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2D(3, 4, 3, bias_attr=False), nn.BatchNorm2D(4)
        self.depthwise = nn.Conv2D(4, 4, 3, padding=1, groups=4, bias_attr=False)
        self.up, self.fc = nn.Conv2DTranspose(4, 6, 2), nn.Linear(6, 5)
        self.line = nn.Conv1D(6, 6, 1)
        self.behind = nn.LayerList([Affine(), Affine(4, 1, 1, negative=True), Affine(1, 6, 1, 1),
                                    Affine(6, 1), Affine(5)])
        self.before = Affine()

    def forward(self, x):
        x = F.hardswish(self.behind[0](self.norm(self.first(x))))
        x = F.hardswish(self.behind[1](self.depthwise(self.before(x))))
        x = F.hardswish(self.behind[2](self.up(x))).flatten(2)
        x = F.hardswish(self.behind[3](self.line(x))).mean(-1)
        return F.softmax(self.behind[4](self.fc(x)))


CONFIGURATIONS = {
    "default": {}, "PACT": {"activation_preprocess_type": "PACT"},
    "4 bits": {"weight_bits": 4}, "LSQ": {"weight_quantize_type": "channel_wise_lsq"},
    "fake operators": {"onnx_format": False}}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_qat_folds_trained_affines_behind_layers_at_export(name, prefix):
    net, x = Trained(), paddle.randn([4, 3, 9, 9])
    quanter = paddleq.QAT({**CONFIGURATIONS[name], "quantizable_layer_type": [
        "Conv2D", "Linear", "Conv1D", "Conv2DTranspose"]})
    quanter.quantize(net)
    adam = paddle.optimizer.Adam(1e-2, parameters=net.parameters())
    for _ in range(3):
        net(x).square().mean().backward()
        adam.step()
        adam.clear_grad()
    net.eval()
    expected, shift = net(x).numpy(), net.behind[1].shift.numpy()
    quanter.save_quantized_model(net, prefix, [InputSpec([None, 3, 9, 9], "float32")])
    assert_exported_without(net.behind.parameters(), prefix)
    program = Program.load(f"{prefix}.pdmodel", f"{prefix}.pdiparams")
    assert {each.name for each in net.before.parameters()} <= program.arrays.keys()
    (found,) = paddle_inference(prefix, [x.numpy()])
    assert relative_error(found, expected) < 1e-6
    assert (net(x).numpy() == expected).all() and (net.behind[1].shift.numpy() == shift).all()


def test_factors_of_channels_behind_one_scale_stay_at_export(prefix):
    net, x = Trained(), paddle.randn([4, 3, 9, 9])
    quanter = paddleq.QAT({"weight_quantize_type": "abs_max"})
    quanter.quantize(net)
    net(x)
    net.eval()
    quanter.save_quantized_model(net, prefix, [InputSpec([None, 3, 9, 9], "float32")])
    program = Program.load(f"{prefix}.pdmodel", f"{prefix}.pdiparams")
    kept = {each.name for each in net.behind[1].parameters()}
    assert kept & program.arrays.keys()
    assert relative_error(paddle_inference(prefix, [x.numpy()])[0], net(x).numpy()) < 1e-6


class Numbers(nn.Layer):
    """Factors in the code."""

    def __init__(self, factors):
        super().__init__()
        self.factors = factors
        self.a, self.b, self.affine = nn.Conv2D(3, 4, 3), nn.Linear(4, 5), Affine()

    def forward(self, x):
        x = F.hardswish(self.affine(self.a(x)) * self.factors[0]).mean([2, 3])
        return F.softmax(self.b(x) * self.factors[1])


@pytest.mark.parametrize("factors, static, kept", [
    ((4.0, -0.125), False, 0), ((0.5, 2.0), True, 0), ((1.5, 0.25), False, 1),
    ((3.0, 8 ** -0.5), False, 2)])
def test_powers_of_two_in_the_code_are_folded_at_export(factors, static, kept, prefix):
    net, x, expected = float_copy(lambda: Numbers(factors), [4, 3, 7, 7])
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    quantized = ptq.quantize(paddle.jit.to_static(net) if static else net, fuse=True,
                             inputs={"x": x})
    ptq.calibrate(quantized, [{"x": x}])
    assert quantized.affine.scale.item() == 1.0
    with to_static_enabled(False):
        simulated = quantized(x).numpy()
    assert relative_error(simulated, expected) < 0.1
    assert exported_factors(quantized, [None, 3, 7, 7], prefix) == kept
    assert (paddle_inference(prefix, [x.numpy()])[0] == simulated).all()


def exported_factors(model, shape, prefix):
    """Number of multiplications in the exported program."""
    paddleq.save_quantized_model(model, prefix, [InputSpec(shape, "float32")])
    program = Program.load(f"{prefix}.pdmodel", f"{prefix}.pdiparams")
    kinds = [op.type for op in read_operators(program.desc.blocks[0])
             if op.get("scale", 1.0) != 1.0 or op.type != "scale"]  # Paddle 2.6 ends with it
    return kinds.count("scale") + kinds.count("elementwise_mul")


@pytest.mark.parametrize("fuse", [True, False])
def test_distilled_models_fold_powers_of_two_at_export(fuse, prefix):
    net, x, _ = float_copy(lambda: Numbers((4.0, -0.125)), [4, 3, 7, 7])
    student = paddleq.distill(net, [x], epochs=1, fuse=fuse).model
    # Without folding: the two numbers, and the scale of Affine.
    assert exported_factors(student, [None, 3, 7, 7], prefix) == (0 if fuse else 3)
    assert (paddle_inference(prefix, [x.numpy()])[0] == student(x).numpy()).all()


class Halved(nn.Layer):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 5)

    def forward(self, x):
        return F.relu(self.linear(x) * 0.5)


@pytest.mark.parametrize("fuse", [True, False])
def test_a_loaded_checkpoint_folds_at_export_as_the_saved_model(fuse, prefix):
    net, x, _ = float_copy(Halved, [6, 4])
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    quantized = ptq.quantize(net, fuse=fuse, inputs=x if fuse else None)
    ptq.calibrate(quantized, [x])
    paddleq.save_checkpoint(quantized, prefix)
    loaded = paddleq.load_checkpoint(ptq.quantize(Halved()), prefix)
    assert exported_factors(loaded, [None, 4], prefix) == (0 if fuse else 1)
    assert (paddle_inference(prefix, [x.numpy()])[0] == quantized(x).numpy()).all()
