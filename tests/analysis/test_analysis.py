"""Layer errors, sensitivity, and the accuracy-aware restoration of float layers."""

import copy
import math
from functools import partial

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
import vision
from hypothesis import given
from hypothesis import strategies as st
from nets import SmallNet, warmed
from paddle import nn
from paddle.vision.models import mobilenet_v1, resnet18
from runtimes import openvino, paddle_inference, relative_error
from separable import LAYERS, SeparableNet, accuracy, enlarge_channel, train

import paddleq
from paddleq._layer_state import read_state
from paddleq.analysis import keep_accuracy, layer_errors, report, sensitivity
from paddleq.analysis.accuracy import AccuracySearch
from paddleq.analysis.sqnr import SQNR
from paddleq.engine import freeze, quantizing_only, restore_float
from paddleq.errors import (
    AccuracyError,
    CalibrationError,
    ConfigError,
    ConfigTypeError,
    ModelError,
    NonFiniteError,
)
from paddleq.frontends.golden_stick import SimulatedQuantizationAwareTraining as SimQAT


def calibrated(net, data, quantizer="AbsmaxQuantizer", **options):
    ptq = paddleq.PTQ(quantizer)
    quantized = ptq.quantize(net, **options)
    ptq.calibrate(quantized, data)
    return quantized


def db(reference, value):
    """SQNR by the formula, in float64."""
    reference, value = (np.asarray(a, np.float64) for a in (reference, value))
    return 10 * np.log10((reference ** 2).sum() / ((value - reference) ** 2).sum())


def outputs(model, layer, batches):
    """Outputs of ``layer`` in plain forward passes, recorded by a hook of Paddle."""
    seen = []
    handle = layer.register_forward_post_hook(lambda _layer, _inputs, y: seen.append(y.numpy()))
    with paddle.no_grad():
        for x in batches:
            model(x)
    handle.remove()
    return np.concatenate(seen)


# --- the ratio


@given(st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.floats(-1.0, 1.0, width=32)),
                min_size=1, max_size=40), st.integers(1, 40))
def test_sqnr_follows_the_formula_for_any_split_into_batches(pairs, size):
    reference, noise = np.array(pairs, np.float32).T
    value = reference + noise
    ratio = SQNR("x")
    for i in range(0, len(pairs), size):
        ratio.add(*(paddle.to_tensor(a[i:i + size]) for a in (reference, value)))
    signal = (reference.astype(np.float64) ** 2).sum()
    error = ((value - reference).astype(np.float64) ** 2).sum()
    if error == 0:
        assert ratio.db == math.inf
    elif signal == 0:
        assert ratio.db == -math.inf
    else:
        assert ratio.db == pytest.approx(10 * np.log10(signal / error), abs=1e-6)


def test_sqnr_accepts_nested_outputs():
    x, y = paddle.to_tensor([3.0, 4.0]), paddle.to_tensor([1], dtype="int64")
    ratio = SQNR("x")
    ratio.add({"b": x, "a": (y, [x])}, {"a": (y + 1, [x]), "b": x + 1.0})
    assert ratio.db == pytest.approx(10 * np.log10(50 / 2))
    empty = SQNR("x")
    empty.add(y, y + 1)
    assert empty.db is None


# --- errors of layers


def fake(x, threshold):
    """int8 by the formula, in float64."""
    step = np.float64(np.float32(threshold)) / 127
    return np.clip(np.rint(x / step), -128, 127) * step


def test_layer_errors_equal_a_float64_reference():
    rng = np.random.RandomState(0)
    w1, w2 = rng.randn(6, 8), rng.randn(8, 3)
    batches = [rng.randn(20, 6).astype("float32") * s for s in (1.0, 0.5, 2.0)]
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    for layer, w in ((net[0], w1), (net[2], w2)):
        layer.weight.set_value(w.astype("float32"))
    w1, w2 = (w.astype("float32").astype(np.float64) for w in (w1, w2))
    x = np.concatenate(batches).astype(np.float64)
    h = np.maximum(x @ w1, 0)
    q1, q2 = (fake(w, np.abs(w).max(0)) for w in (w1, w2))
    qx, qh = fake(x, np.abs(x).max()), fake(h, h.max())
    h_all = np.maximum(qx @ q1, 0)
    expected = {
        "0": (db(x @ w1, qx @ q1), db(x @ w1, qx @ q1), db(x, qx), db(w1, q1)),
        "2": (db(h @ w2, qh @ q2), db(h @ w2, fake(h_all, h.max()) @ q2), db(h, qh), db(w2, q2))}
    quantized = calibrated(net, batches)
    errors = layer_errors(quantized, batches)
    for row in errors:
        found = row.alone, row.accumulated, row.input, row.weight
        assert found == pytest.approx(expected[row.name], abs=0.02)
    assert errors.output == pytest.approx(errors["2"].accumulated, abs=1e-9)


@pytest.mark.parametrize("fuse", [False, True])
def test_layer_errors_equal_separate_forward_passes(fuse, digits):
    """The reference runs the model once for each layer without the analysis."""
    batches = digits.batches(16, 3)
    net = warmed(SmallNet(), batches[0])
    quantized = calibrated(net, batches, fuse=fuse)
    errors = layer_errors(quantized, batches)
    everything = dict(quantized.named_sublayers())
    for row in errors:
        layer = everything[row.name]
        with quantizing_only(quantized, []):
            reference = outputs(quantized, layer, batches)
        with quantizing_only(quantized, [row.name]):
            assert row.alone == pytest.approx(db(reference, outputs(quantized, layer, batches)),
                                              abs=1e-4)
        assert row.accumulated == pytest.approx(
            db(reference, outputs(quantized, layer, batches)), abs=1e-4)
    against_float = layer_errors(quantized, batches, net)
    assert [row.name for row in against_float] == ["conv1", "conv2", "conv3", "fc"]
    for row in against_float:
        assert row.alone == pytest.approx(errors[row.name].alone, abs=1e-3)
        assert row.accumulated == pytest.approx(errors[row.name].accumulated, abs=1e-3)


def test_layer_errors_of_a_trained_model_against_its_float_model(digits):
    batches = digits.batches(16, 2)
    net = warmed(SmallNet(), batches[0])
    quantized = paddleq.QAT().quantize(net, inplace=False)
    quantized.train()
    quantized(batches[0])
    with paddle.no_grad():
        quantized.conv2.weight.set_value(quantized.conv2.weight * 1.25)
    quantized.eval()
    against = layer_errors(quantized, batches, net)
    inputs = []
    net.conv2.register_forward_pre_hook(lambda _layer, x: inputs.append(x[0]))
    reference = outputs(net, net.conv2, batches)
    alone = np.concatenate([quantized.conv2(x).numpy() for x in inputs])
    assert against["conv2"].alone == pytest.approx(db(reference, alone), abs=1e-4)
    everything = outputs(quantized, quantized.conv2, batches)
    assert against["conv2"].accumulated == pytest.approx(db(reference, everything), abs=1e-4)
    # Scaling the weight by 1.25 is 12 dB, which is invisible without the float model.
    assert against["conv2"].alone < 13 < 25 < layer_errors(quantized, batches)["conv2"].alone
    assert quantized.conv2.training is False and net.training is False


@pytest.mark.parametrize("fuse", [False, True])
def test_layer_errors_of_frozen_layers_equal_the_simulation(fuse, digits):
    batches = digits.batches(16, 2)
    net = warmed(SmallNet(), batches[0])
    quantized = calibrated(net, batches, fuse=fuse)
    expected = layer_errors(quantized, batches, net)
    frozen = freeze(copy.deepcopy(quantized))
    found = layer_errors(frozen, batches, net)
    assert found.output == pytest.approx(expected.output, abs=1e-3)
    for row in expected:
        assert found[row.name].type == row.type
        assert found[row.name].alone == pytest.approx(row.alone, abs=1e-3)
        assert found[row.name].accumulated == pytest.approx(row.accumulated, abs=1e-3)
    with pytest.raises(ConfigError, match="float_model must be"):
        layer_errors(frozen, batches)
    for function in (sensitivity, lambda model, data: report(model, "r.html", data)):
        with pytest.raises(ModelError, match="'conv1' is frozen to integers"):
            function(frozen, batches)


class UnusualCalls(nn.Layer):
    """Layer that is called twice, keyword arguments, in-place activations, a list argument."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.shared = nn.Linear(6, 6)
        self.never = nn.Linear(6, 6)
        self.join = paddleq.QuantizableFunction(paddle.concat, inputs=1)
        self.out = nn.Linear(12, 4)

    def forward(self, ids, x):
        y = F.relu_(self.shared(input=x))
        y = self.shared(y)
        joined = self.join([y, self.embedding(ids)], axis=-1)
        return {"logits": self.out(joined), "ids": ids, "more": [y]}


def test_layer_errors_with_unusual_calls():
    net = UnusualCalls()
    batch = {"ids": paddle.to_tensor([1, 3, 5]), "x": paddle.randn([3, 6])}
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    quantized = ptq.quantize(net, skip="never",
                             quantizable_layer_type=["Linear", "Embedding"])
    ptq.calibrate(quantized, [batch])
    errors = layer_errors(quantized, [batch] * 2)
    assert [row.name for row in errors] == ["embedding", "shared", "join", "out"]
    assert all(15 < row.alone < 60 and 15 < row.accumulated < 60 for row in errors), str(errors)
    assert errors["embedding"].input is None and errors["join"].weight is None
    seen = []
    quantized.shared.register_forward_post_hook(
        lambda _layer, _inputs, y: seen.append(y.numpy().copy()))
    with quantizing_only(quantized, []):
        quantized(**batch)
    quantized(**batch)
    assert errors["shared"].accumulated == pytest.approx(db(seen[:2], seen[2:]), abs=1e-4)


def test_ranking_omits_layers_without_data():
    net = UnusualCalls()
    batch = {"ids": paddle.to_tensor([1, 3, 5]), "x": paddle.randn([3, 6])}
    quantized = paddleq.QAT().quantize(net)
    quantized.train()
    quantized(**batch)
    quantized.never(batch["x"])
    quantized.eval()
    errors = layer_errors(quantized, [batch])
    assert errors["never"].alone is None and errors["never"].weight > 30
    assert "never" not in errors.worst(9) and len(errors.worst(9)) == len(errors) - 1
    assert errors.table().splitlines()[-2].startswith("never")


@pytest.mark.parametrize("bn_fold", [False, True])
def test_layer_error_of_a_fused_block_uses_the_relu_output(bn_fold, digits):
    batches = digits.batches(16, 2)
    net = SeparableNet(8)
    algorithm = SimQAT(
        {"symmetric": True, "enable_fusion": True, "bn_fold": bn_fold})
    quantized = algorithm.apply(net, inputs=batches[0])
    quantized.train()
    for x in batches:
        quantized(x)
    quantized.eval()
    errors = layer_errors(quantized, batches)
    relu = quantized.blocks[2][2]
    with quantizing_only(quantized, []):
        reference = outputs(quantized, relu, batches)
    with quantizing_only(quantized, ["blocks.2.0"]):
        alone = db(reference, outputs(quantized, relu, batches))
    assert errors["blocks.2.0"].alone == pytest.approx(alone, abs=1e-4)
    assert errors["blocks.2.0"].accumulated == pytest.approx(
        db(reference, outputs(quantized, relu, batches)), abs=1e-4)
    # The analysis leaves the model unchanged.
    before = quantized(batches[0]).numpy()
    layer_errors(quantized, batches)
    assert np.array_equal(before, quantized(batches[0]).numpy())


def test_layer_errors_include_pact():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    x = paddle.randn([64, 4]) * 3.0
    quantized = paddleq.QAT({"activation_preprocess_type": "PACT"}).quantize(net)
    quantized.train()
    for _ in range(50):  # the average of maxima starts at 1
        quantized(x)
    quantized.eval()
    wide = layer_errors(quantized, [x])["0"]
    for parameter in quantized[0].activation_preprocess.parameters():
        parameter.set_value(paddle.full_like(parameter, 1.0))
    clipped = layer_errors(quantized, [x])["0"]
    expected = db(x.numpy(), np.clip(x.numpy(), -1.0, 1.0))
    assert wide.input > 30 and clipped.input == pytest.approx(expected, abs=0.1)


def test_layer_errors_of_to_static_and_of_a_single_layer():
    x = paddle.randn([8, 4])
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    plain = calibrated(net, [x])
    compiled = paddle.jit.to_static(copy.deepcopy(plain))
    compiled(x)
    assert str(layer_errors(compiled, [x])) == str(layer_errors(plain, [x]))
    assert type(compiled.forward).__name__.endswith("StaticFunction")
    single = calibrated(nn.Linear(4, 2), [x])
    (row,) = layer_errors(single, [x])
    assert row.name == "" and row.alone == row.accumulated > 30


def test_analysis_leaves_the_model_unchanged_even_after_an_error(digits):
    batches = digits.batches(16, 2)
    quantized = calibrated(warmed(SmallNet(), batches[0]), batches)
    quantized.train()
    before = {name: (layer.training, dict(layer.__dict__).keys())
              for name, layer in quantized.named_sublayers(include_self=True)}
    state = {key: value.numpy() for key, value in quantized.state_dict().items()}
    layer_errors(quantized, batches)
    sensitivity(quantized, batches)
    with pytest.raises(Exception, match="shape|dimension|channel"):
        layer_errors(quantized, [paddle.ones([2, 3, 8, 8])])
    for name, layer in quantized.named_sublayers(include_self=True):
        training, keys = before[name]
        assert layer.training is training
        assert set(layer.__dict__) - set(keys) <= {"_paddleq"}
        assert not read_state(layer).compute_float
    for key, value in quantized.state_dict().items():
        assert np.array_equal(state[key], value.numpy()), key


@pytest.mark.parametrize("analyse", [layer_errors, sensitivity])
def test_results_name_the_nearest_layer_for_an_unknown_name(analyse):
    data = [paddle.rand([4, 8])]
    results = analyse(calibrated(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), data), data)
    assert results["0"].name == "0"
    with pytest.raises(ConfigError, match=r"no layer '00' .*did you mean '0'"):
        results["00"]


def test_invalid_arguments():
    x = paddle.randn([4, 4])
    net = nn.Sequential(nn.Linear(4, 4))
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    fresh = ptq.quantize(net)
    for function in (layer_errors, sensitivity):
        with pytest.raises(CalibrationError, match="0.activation_quantizer"):
            function(fresh, [x])
        with pytest.raises(ModelError, match="no quantized layer"):
            function(net, [x])
        with pytest.raises(ConfigTypeError, match="model must be"):
            function("net", [x])
    fresh(x)  # calibrating, not quantizing yet
    with pytest.raises(CalibrationError, match="not calibrated"):
        layer_errors(fresh, [x])
    ptq.convert(fresh)
    for function in (layer_errors, sensitivity):
        with pytest.raises(ConfigTypeError, match="iterable of batches"):
            function(fresh, 3)
        with pytest.raises(CalibrationError, match="empty"):
            function(fresh, [])
        with pytest.raises(ConfigError, match="num_batches"):
            function(fresh, [x], num_batches=0)
        with pytest.raises(NonFiniteError, match=r"'0'.*\(batch 1 of data\)"):
            function(fresh, [x, x * float("inf")])
    with pytest.raises(ModelError, match="already quantized"):
        layer_errors(fresh, [x], fresh)
    with pytest.raises(ModelError, match="has no '0'"):
        layer_errors(fresh, [x], nn.Linear(4, 4))
    with pytest.raises(ModelError, match=r"shape \[4, 4\].*\[4, 5\]"):
        layer_errors(fresh, [x], nn.Sequential(nn.Linear(4, 5)))
    with pytest.raises(ConfigError, match="data must be"):
        sensitivity(fresh)
    with pytest.raises(ConfigTypeError, match="function of the model"):
        sensitivity(fresh, metric=0.5)
    with pytest.raises(ConfigTypeError, match="return a number"):
        sensitivity(fresh, metric=lambda model: None)
    with pytest.raises(ConfigError, match="finite"):
        sensitivity(fresh, metric=lambda model: float("nan"))
    with pytest.raises(ConfigError, match="did you mean '0'"), quantizing_only(fresh, ["00"]):
        pass
    with pytest.raises(ConfigError, match="count"):
        layer_errors(fresh, [x]).worst(0)


# --- sensitivities


def test_sensitivity_equals_the_output_error_with_one_quantized_layer(digits):
    batches = digits.batches(16, 3)
    quantized = calibrated(warmed(SmallNet(), batches[0]), batches)
    found = sensitivity(quantized, iter(batches))
    with paddle.no_grad(), quantizing_only(quantized, []):
        reference = np.concatenate([quantized(x).numpy() for x in batches])
    for row in found:
        with paddle.no_grad(), quantizing_only(quantized, [row.name]):
            value = np.concatenate([quantized(x).numpy() for x in batches])
        assert row.sqnr == pytest.approx(db(reference, value), abs=1e-4)
    assert [row.sqnr for row in found.ranking()] == sorted(row.sqnr for row in found)


def test_sensitivity_by_a_metric(digits):
    images, labels = digits.test
    batches = digits.batches(16, 3)
    quantized = calibrated(warmed(SmallNet(), batches[0]), batches)
    models = []

    def metric(model):
        assert not model.training and not model.conv1.training
        models.append(model)
        with paddle.no_grad():
            loss = F.cross_entropy(model(paddle.to_tensor(images)), paddle.to_tensor(labels))
        return -loss  # a tensor of one element

    found = sensitivity(quantized, metric=metric)
    assert len(models) == 5 and all(model is quantized for model in models)
    for row in found:
        with quantizing_only(quantized, [row.name]):
            assert row.metric == pytest.approx(metric(quantized).item(), abs=1e-7)
        assert row.drop == pytest.approx(found.float_metric - row.metric)
        assert row.sqnr is None
    drops = [row.drop for row in found.ranking()]
    assert drops == sorted(drops, reverse=True)
    assert f"{found.float_metric:.6g}" in str(found)


@pytest.fixture(scope="module")
def separable(digits):
    """A :class:`SeparableNet` trained on digits."""
    paddle.seed(0)
    return train(SeparableNet(), *digits.train)


def planted(net, places, channel=5):
    """A copy of ``net`` with a large channel between each (norm, conv) of ``places``."""
    net = copy.deepcopy(net)
    layers = dict(net.named_sublayers())
    for norm, conv in places:
        enlarge_channel(layers[norm], layers[conv], channel)
    return net


def with_batch_statistics(net, x):
    """Set the statistics of batch norms from ``x`` against vanishing signals."""
    norms = [layer for layer in net.sublayers() if isinstance(layer, nn.BatchNorm2D)]
    for norm in norms:
        norm._momentum = 0.0
    net.train()
    with paddle.no_grad():
        net(x)
    net.eval()
    return net


PLACES = {"separable": ("blocks.2.1", "blocks.2.3"),
          "ResNet18": ("layer2.0.bn1", "layer2.0.conv2"),
          "MobileNetV1": ("conv4_1._depthwise_conv.1", "conv4_1._pointwise_conv.0")}


def check_ranking(net, batches, name, quantizer):
    """Check that a layer with an outlier channel is the first of both rankings."""
    norm, conv = PLACES[name]
    bad = planted(net, [(norm, conv)])
    with paddle.no_grad():
        assert np.allclose(bad(batches[0]).numpy(), net(batches[0]).numpy(), atol=1e-3)
    quantized = calibrated(bad, batches, quantizer, fuse=True)
    assert sensitivity(quantized, batches[:1]).worst() == [conv]
    errors = layer_errors(quantized, batches)
    assert errors.worst() == [conv]
    assert errors[conv].input < errors[conv].weight  # the activation causes the error


QUANTIZERS = ["AbsmaxQuantizer", "HistQuantizer", "KLQuantizer"]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_sensitivity_finds_a_layer_with_an_outlier_channel(quantizer, separable, digits):
    """The input of one convolution has a channel that is a hundred times larger."""
    check_ranking(separable, digits.batches(32, 4), "separable", quantizer)


@pytest.mark.parametrize("name, make, size", [
    ("ResNet18", resnet18, 32), ("MobileNetV1", partial(mobilenet_v1, scale=0.25), 64)])
def test_sensitivity_finds_an_outlier_channel_in_random_networks(name, make, size, digits):
    batches = [F.interpolate(x, [size, size], mode="bilinear").expand([-1, 3, -1, -1])
               for x in digits.batches(4, 2)]
    net = with_batch_statistics(make(num_classes=10), batches[0])
    check_ranking(net, batches, name, "AbsmaxQuantizer")


@pytest.mark.slow
@pytest.mark.parametrize("name, quantizer", [
    pytest.param(name, quantizer, marks=[pytest.mark.xdist_group(name), *marks])
    for name, quantizer, marks in (
        ("ResNet18", "HistQuantizer", []), ("MobileNetV1", "AbsmaxQuantizer", []),
        ("ResNet18", "AbsmaxQuantizer", [pytest.mark.nightly]),
        ("MobileNetV1", "HistQuantizer", [pytest.mark.nightly]))])
def test_sensitivity_finds_an_outlier_channel_in_trained_networks(name, quantizer):
    """KL is left out: its clipping of other layers costs these two networks more."""
    net, recipe = vision.network(name), vision.MODELS[name]
    net.eval()
    check_ranking(net, [recipe.pictures(np.arange(i, i + 8)) for i in (0, 8)], name, quantizer)



# --- restoring layers to float


def test_a_restored_layer_is_float_in_model_summary_and_export(digits, tmp_path):
    batches = digits.batches(16, 2)
    quantized = calibrated(warmed(SmallNet(), batches[0]), batches)
    keys = set(quantized.state_dict())
    with quantizing_only(quantized, ["conv1", "conv3"]):
        expected = quantized(batches[0]).numpy()
    restore_float(quantized, {"conv2": "because", "fc": "because of that too"})
    assert np.array_equal(quantized(batches[0]).numpy(), expected)
    assert type(quantized.conv2) is nn.Conv2D and type(quantized.fc) is nn.Linear
    gone = keys - set(quantized.state_dict())
    assert gone and all(key.startswith(("conv2.", "fc.")) for key in gone)
    rows = {line.split("|")[0].strip(): line for line in paddleq.summary(quantized).splitlines()}
    assert "Conv2D" in rows["conv2"] and "left" in rows["conv2"] and "because" in rows["conv2"]
    assert "quantized" in rows["conv3"]
    path = str(tmp_path / "net")
    paddleq.export.save(quantized, path, [paddle.static.InputSpec([None, 1, 8, 8], "float32")])
    for run in (paddle_inference, openvino):
        assert relative_error(run(path, [batches[0].numpy()])[0], expected) < 1e-5
    program = paddleq.export.program.program.Program.load(f"{path}.pdmodel", f"{path}.pdiparams")
    kinds = [op.type for op in program.desc.blocks[0].ops]
    assert kinds.count("quantize_linear") == 2 and kinds.count("dequantize_linear") == 4
    stored = [program.arrays[layer.weight.name].dtype for layer in (
        quantized.conv1, quantized.conv2, quantized.conv3, quantized.fc)]
    assert stored == ["int8", "float32", "int8", "float32"]


def test_a_restored_layer_can_be_quantized_again_and_trained():
    x = paddle.randn([8, 4])
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    quantized = calibrated(net, [x])
    with pytest.raises(ConfigError, match="no quantized layer '7'"):
        restore_float(quantized, {"0": "x", "7": "x"})
    restore_float(quantized, {"0": "x", "1": "x"})
    assert np.array_equal(quantized(x).numpy(), net(x).numpy())
    again = calibrated(quantized, [x])
    assert np.array_equal(again(x).numpy(), calibrated(net, [x])(x).numpy())
    again(x).sum().backward()
    assert again[0].weight.grad is not None


def test_restoring_one_layer_of_a_shared_weight_keeps_the_other_quantized(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    x = paddle.randn([8, 4])
    quantized = calibrated(net, [x])
    with quantizing_only(quantized, ["2"]):
        expected = quantized(x).numpy()
    restore_float(quantized, {"0": "x"})
    assert np.array_equal(quantized(x).numpy(), expected)
    paddleq.export.save(quantized, str(tmp_path / "m"), [x])
    assert relative_error(paddle_inference(str(tmp_path / "m"), [x.numpy()])[0], expected) < 1e-5


def test_a_layer_of_a_fused_block_cannot_be_restored(digits):
    quantized = SimQAT({"enable_fusion": True}).apply(
        SeparableNet(8), inputs=digits.batches(8, 1)[0])
    quantized(digits.batches(8, 1)[0])
    quantized.eval()
    with pytest.raises(ModelError, match="as one with the layers after it"):
        restore_float(quantized, {"blocks.2.0": "x"})
    with pytest.raises(ModelError, match="as one with the layers after it"):
        keep_accuracy(quantized, digits.batches(8, 1), lambda model: 0.0, 0.1)


# --- accuracy-aware quantization


@pytest.mark.parametrize("quantizer", ["AbsmaxQuantizer", "HistQuantizer"])
@pytest.mark.parametrize("places", [
    [("blocks.2.1", "blocks.2.3")],
    [("blocks.1.4", "blocks.2.0"), ("blocks.3.1", "blocks.3.3")]], ids=["one", "two"])
def test_the_allowed_drop_is_met_with_few_float_layers(places, quantizer, separable, digits,
                                                      tmp_path):
    net, evaluated = planted(separable, places), []

    def metric(model):
        evaluated.append(model)
        return accuracy(model, *digits.test)

    ptq = paddleq.PTQ(quantizer)
    quantized, report = ptq.quantize_with_accuracy(net, digits.batches(32, 8), metric, 0.01,
                                                   fuse=True)
    assert report.float_metric == accuracy(net, *digits.test) > 0.9
    assert report.quantized_metric < report.float_metric - 0.05  # quantization of all layers fails
    assert report.metric == accuracy(quantized, *digits.test)
    assert report.drop <= 0.01 and report.met
    assert report.layers == LAYERS and len(report.left_float) < 0.2 * LAYERS
    assert {conv for _, conv in places} == set(report.left_float)
    assert report.evaluations == len(evaluated) <= 8
    summary = paddleq.summary(quantized)
    rows = {line.split("|")[0].strip(): line for line in summary.splitlines()}
    for name in report.left_float:
        assert "left float by quantize_with_accuracy" in rows[name]
        assert name in str(report)
    assert sum("| quantized" in line for line in summary.splitlines()) == (
        LAYERS - len(report.left_float))
    path, images = str(tmp_path / "net"), digits.test[0]
    ptq.save_quantized_model(quantized, path,
                             [paddle.static.InputSpec([None, 1, 8, 8], "float32")])
    exported = (openvino(path, [images])[0].argmax(1) == digits.test[1]).mean()
    assert report.float_metric - exported <= 0.01


def test_no_layer_is_restored_if_the_drop_is_met(separable, digits):
    quantized, report = paddleq.PTQ("AbsmaxQuantizer").quantize_with_accuracy(
        separable, digits.batches(32, 4), lambda model: accuracy(model, *digits.test), 0.02)
    assert report.left_float == {} and report.evaluations == 2 and report.met
    assert report.metric == report.quantized_metric == accuracy(quantized, *digits.test)
    assert type(separable.head) is nn.Linear  # a copy was quantized


def test_an_unreachable_drop_is_an_error(digits):
    batches = digits.batches(16, 2)
    quantized = calibrated(warmed(SmallNet(), batches[0]), batches)

    def metric(model):  # every quantized layer costs one
        return -sum(paddleq.nn.is_quantized(layer) and not layer._paddleq.compute_float
                    for layer in model.sublayers())

    with pytest.raises(AccuracyError, match="3 of 4 layers float.*a drop of 1 .*0.5 is") as caught:
        keep_accuracy(quantized, batches, metric, 0.5)
    report = caught.value.report
    assert not report.met and len(report.left_float) == 3 and report.metric == -1
    assert [number for number, _ in report.trials] == [4, 0, 1, 2, 3]
    with pytest.raises(AccuracyError, match="2 of 4 layers float"):
        keep_accuracy(quantized, batches, metric, 1.5, max_float=0.5)
    with pytest.raises(AccuracyError, match="0 of 4 layers float"):
        keep_accuracy(quantized, batches, metric, 1.5, max_float=0.2)
    assert len([name for name in quantized.sublayers() if paddleq.nn.is_quantized(name)]) == 4
    report = keep_accuracy(quantized, batches, metric, 1.5, max_float=0.75)
    assert len(report.left_float) == 3 and report.met


def test_a_nondeterministic_metric_is_an_error(digits):
    batches = digits.batches(16, 2)
    quantized = calibrated(warmed(SmallNet(), batches[0]), batches)
    numbers = iter([1.0, 0.0, 1.0, 0.0])
    with pytest.raises(AccuracyError, match="metric of the same model .* differs"):
        keep_accuracy(quantized, batches, lambda model: next(numbers), 0.1)


@given(st.integers(2, 40), st.data())
def test_the_search_finds_the_layers_that_a_metric_requires(count, data):
    """The metric drops if any of some layers at random ranks is quantized."""
    needed = data.draw(st.sets(st.integers(0, count - 2), min_size=1, max_size=6))

    class FixedRanking(AccuracySearch):
        def run_on(self, names):
            self.names, self.trials = names, []
            self.report = paddleq.analysis.AccuracyReport(0.0, 1.0, 0.0, 0.0, len(names))
            return self._search()

        def _measure(self):
            self.sqnr = {name: float(name) for name in self.names}
            self.costs = dict.fromkeys(self.names, 1.0)

        def _evaluate(self, left):
            self.trials.append((len(left), 0.0))
            return float(needed <= set(left))

    search = FixedRanking([0], lambda model: 0.0, 0.0, evaluations=1000)
    assert set(search.run_on(list(range(count)))) == needed
    assert len(search.trials) <= 2 * math.ceil(math.log2(count)) + 1 + max(needed)
    limited = FixedRanking([0], lambda model: 0.0, 0.0, evaluations=1)
    assert limited.run_on(list(range(count))) == list(range(max(needed) + 1))


def test_invalid_arguments_of_the_accuracy_search(digits):
    net, batches = SmallNet(), digits.batches(16, 2)
    ptq = paddleq.PTQ("AbsmaxQuantizer")

    def metric(model):
        return 0.0

    for arguments, error, match in (
            ((iter(batches), metric, 0.1), ConfigError, "iterated again"),
            ((batches, 0.9, 0.1), ConfigTypeError, "metric must be a function.*error.*labels"),
            ((batches, metric, -0.1), ConfigError, "max_drop"),
            ((batches, metric, "1%"), ConfigTypeError, "max_drop")):
        with pytest.raises(error, match=match):
            ptq.quantize_with_accuracy(net, *arguments)
    for name, value in (("max_float", 0.0), ("max_float", 1.5), ("ranking_batches", 0),
                        ("evaluations", 0), ("num_batches", 0)):
        with pytest.raises(ConfigError, match=name):
            ptq.quantize_with_accuracy(net, batches, metric, 0.1, **{name: value})
    with pytest.raises(TypeError, match="fuze"):
        ptq.quantize_with_accuracy(net, batches, metric, 0.1, fuze=True)
    with pytest.raises(ConfigError, match="finite"):
        ptq.quantize_with_accuracy(net, batches, lambda model: float("inf"), 0.1)
