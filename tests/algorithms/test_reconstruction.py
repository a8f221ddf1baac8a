"""AdaRound: formulas, samples of layers, learned roundings, front ends and exports."""

import copy
import itertools
import pickle

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from low_bits import QUICK, correlated, distance, low_bits, smooth
from nets import SmallNet, save_float, warmed
from paddle import nn
from runtimes import paddle_inference

import paddleq
from paddleq import engine
from paddleq.algorithms import ROUND_TYPES, AdaRound, reconstruct, register_round_type
from paddleq.algorithms.reconstruction.patches import product, product_of
from paddleq.engine import quantization_off, quantized_layers
from paddleq.errors import CalibrationError, ConfigError, ConfigTypeError, ModelError
from paddleq.fake_quant.learned_rounding import LearnedRounding
from paddleq.functional import soft_rounding
from paddleq.graph.activations import find_activations
from paddleq.paddleslim import PerChannelAbsmaxQuantizer

# Formulas, in float64.

V = np.linspace(-6.0, 6.0, 41)


def h_of(v):
    return np.clip(1.2 / (1.0 + np.exp(-v)) - 0.1, 0.0, 1.0)


def test_rectified_sigmoid_and_its_inverse_are_those_of_the_paper():
    found = soft_rounding.rectified_sigmoid(paddle.to_tensor(V)).numpy()
    np.testing.assert_allclose(found, h_of(V), atol=1e-7)
    shares = np.linspace(0.0, 0.999, 20)
    inverse = soft_rounding.inverse_rectified_sigmoid(paddle.to_tensor(shares)).numpy()
    np.testing.assert_allclose(h_of(inverse), shares, atol=1e-7)


@pytest.mark.parametrize("beta", [20.0, 5.5, 2.0])
def test_regularizer_and_its_slope_are_those_of_the_paper(beta):
    h = h_of(V)
    found = soft_rounding.regularizer(paddle.to_tensor(h), beta).item()
    assert found == pytest.approx(np.sum(1.0 - np.abs(2.0 * h - 1.0) ** beta), rel=1e-6)
    inside = h[(h > 0.01) & (h < 0.99)]
    step = 1e-6
    numeric = [(np.abs(2 * each - 2 * step - 1) ** beta - np.abs(2 * each + 2 * step - 1) ** beta)
               / (2 * step) for each in inside]
    slopes = soft_rounding.regularizer_slope(paddle.to_tensor(inside), beta).numpy()
    np.testing.assert_allclose(slopes, numeric, rtol=1e-4, atol=1e-6)


def test_slope_is_the_derivative_of_the_rectified_sigmoid():
    step = 1e-6
    numeric = (h_of(V + step) - h_of(V - step)) / (2 * step)
    np.testing.assert_allclose(soft_rounding.slope(paddle.to_tensor(V)).numpy(), numeric,
                               atol=1e-6)


def test_beta_falls_linearly_after_the_warm_start():
    settings = AdaRound(iterations=100)
    assert settings.beta(19) is None
    assert settings.beta(20) == 20.0
    assert settings.beta(60) == pytest.approx(11.0)


# Layers as products on sampled positions.

LAYERS = [
    (lambda: nn.Linear(5, 3), [2, 7, 5]),
    (lambda: nn.Conv1D(4, 6, 3, padding=1, stride=2), [2, 4, 9]),
    (lambda: nn.Conv1D(4, 6, 3, padding="SAME", data_format="NLC"), [2, 9, 4]),
    (lambda: nn.Conv2D(4, 6, 3, stride=2, padding=1, groups=2), [2, 4, 9, 8]),
    (lambda: nn.Conv2D(4, 8, 3, padding=[1, 0], dilation=2, groups=4), [2, 4, 9, 8]),
    (lambda: nn.Conv2D(4, 6, [3, 2], padding="SAME", stride=[1, 2]), [2, 4, 9, 8]),
    (lambda: nn.Conv2D(4, 6, 3, padding="SAME", dilation=2), [2, 4, 9, 8]),
    (lambda: nn.Conv2D(4, 6, 3, padding=[1, 2, 0, 1]), [2, 4, 9, 8]),
    (lambda: nn.Conv2D(4, 6, 3, padding=[[0, 0], [0, 0], [1, 2], [0, 1]]), [2, 4, 9, 8]),
    (lambda: nn.Conv2D(4, 6, 3, padding=1, data_format="NHWC"), [2, 9, 8, 4]),
    (lambda: nn.Conv2D(4, 6, 3, padding=1, padding_mode="reflect"), [2, 4, 9, 8]),
    (lambda: nn.Conv2D(4, 6, 3, padding=1, padding_mode="circular"), [2, 4, 9, 8]),
    (lambda: nn.Conv3D(4, 6, [1, 2, 3], padding=1, groups=2), [1, 4, 5, 6, 7]),
    (lambda: nn.Conv1DTranspose(4, 6, 3, stride=2, padding=1), [2, 4, 5]),
    (lambda: nn.Conv2DTranspose(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
     [2, 4, 5, 6]),
    (lambda: nn.Conv2DTranspose(4, 6, [2, 3], stride=[2, 3], padding=2, dilation=2),
     [2, 4, 5, 6]),
    (lambda: nn.Conv2DTranspose(4, 6, 1, stride=3, output_padding=2), [2, 4, 5, 6]),
    (lambda: nn.Conv2DTranspose(4, 4, 3, stride=2, padding="SAME", groups=4), [2, 4, 5, 6]),
    (lambda: nn.Conv2DTranspose(4, 6, 3, stride=3, data_format="NHWC"), [2, 5, 6, 4]),
    (lambda: nn.Conv3DTranspose(4, 6, 2, stride=2), [1, 4, 3, 4, 5]),
]


@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_product_on_positions_is_the_output_of_the_layer(number):
    paddle.seed(number)
    layer, shape = LAYERS[number][0](), LAYERS[number][1]
    x = paddle.randn(shape)
    y, made = layer(x).numpy(), product_of(layer, type(layer))
    chosen = np.random.default_rng(0).permutation(made.positions(y))[:11]
    matrix = made.matrix(layer.weight.numpy())
    np.testing.assert_array_equal(made.weight(matrix), layer.weight.numpy())
    found = product(*map(paddle.to_tensor, (
        made.inputs(x.numpy(), y.shape, chosen), matrix, made.bias(layer.bias.numpy()))))
    np.testing.assert_allclose(found.numpy(), made.outputs(y, chosen), atol=5e-6)


# Activation functions behind layers.


class Activations(nn.Layer):
    """Functions and layers behind Linears; two outputs have a second reader."""

    def __init__(self):
        super().__init__()
        self.relu, self.gelu, self.swish, self.product, self.residual, self.last = (
            nn.Linear(4, 4) for _ in range(6))
        self.twice = nn.Linear(4, 4)
        self.layer = nn.GELU()

    def forward(self, x):
        x = self.layer(self.gelu(F.relu(self.relu(x))))
        x = F.silu(self.swish(x))
        y = self.product(x)
        x = y * F.sigmoid(y)
        y = self.residual(x)
        x = F.relu(y) + y
        x = F.relu(self.twice(x)) + F.hardswish(self.twice(x))
        return self.last(x)


def test_activation_is_found_where_it_alone_reads_the_output():
    paddle.seed(0)
    net = Activations()
    x = paddle.randn([3, 4])
    layers = {name: layer for name, layer in net.named_sublayers() if isinstance(layer, nn.Linear)}
    with paddle.no_grad():
        found = find_activations(lambda: net(x), layers)
    assert set(found) == {"relu", "gelu", "swish"}
    y = paddle.randn([5])
    for name, expected in (("relu", F.relu), ("gelu", F.gelu), ("swish", F.silu)):
        assert bool((found[name](y) == expected(y)).all())


# Learned roundings.


def outputs64(x, weight, bias):
    return np.float64(x) @ np.float64(weight) + np.float64(bias)


@pytest.mark.one_version
@pytest.mark.parametrize("seed", range(3))
def test_error_lies_near_that_of_the_best_of_all_roundings(seed):
    """Exhaustive search over the 256 roundings of the weights of each output, in float64."""
    paddle.seed(seed)
    layer = nn.Linear(8, 8)
    x = correlated(400, 8, seed)
    _, model = low_bits(nn.Sequential(layer), [x], 3, AdaRound(iterations=300))
    weight = np.float64(layer.weight.numpy())
    scale = np.abs(weight).max(0) / 3.0
    quantized = np.float64(model[0].activation_quantizer(paddle.to_tensor(x)).numpy())
    target = np.float64(x) @ weight

    def errors(integers):
        return np.mean((quantized @ (integers * scale) - target) ** 2, 0)

    low = np.floor(weight / scale)
    best = np.min([errors(np.clip(low + np.reshape(up, [8, 1]), -4, 3))
                   for up in itertools.product([0, 1], repeat=8)], 0).sum()
    learned = model[0].quantized_weight("weight").numpy() / scale
    assert np.abs(learned - np.round(learned)).max() < 1e-5
    nearest, found = errors(np.round(weight / scale)).sum(), errors(np.round(learned)).sum()
    assert best * 0.999 < found < best + 0.6 * (nearest - best)


KINDS = {
    "linear": (lambda: nn.Linear(16, 8), [64, 16]),
    "conv": (lambda: nn.Conv2D(4, 6, 3, padding=1), [4, 4, 8, 8]),
    "grouped": (lambda: nn.Conv2D(4, 6, 3, stride=2, groups=2), [8, 4, 13, 13]),
    "depthwise": (lambda: nn.Conv2D(4, 4, 5, padding=2, groups=4), [4, 4, 8, 8]),
    "conv1d": (lambda: nn.Conv1D(4, 6, 5, padding=2), [4, 4, 16]),
    "transposed": (lambda: nn.Conv2DTranspose(4, 6, 3, stride=2), [4, 4, 5, 5]),
    "channels last": (lambda: nn.Conv2D(4, 6, 3, data_format="NHWC"), [4, 8, 8, 4]),
}


@pytest.mark.one_version
@pytest.mark.parametrize("kind, granularity", [
    ("linear", "AbsmaxQuantizer"), ("grouped", "PerChannelAbsmaxQuantizer"),
    ("transposed", "PerChannelAbsmaxQuantizer"),
    *(pytest.param(kind, granularity, marks=pytest.mark.nightly) for kind in KINDS
      for granularity in ("PerChannelAbsmaxQuantizer", "AbsmaxQuantizer"))])
def test_output_is_closer_to_float_than_that_of_rounding_to_nearest(kind, granularity):
    paddle.seed(1)
    layer, shape = KINDS[kind][0](), KINDS[kind][1]
    data = [smooth(shape, seed) for seed in range(4)]
    quantizer = getattr(paddleq.paddleslim, granularity)(3)
    ptq = paddleq.PTQ("abs_max", quantizer, round_type=QUICK)
    model = ptq.quantize(nn.Sequential(layer))
    paddleq.calibrate(model, data)
    x = paddle.to_tensor(smooth(shape, 9))  # held out

    def error():
        found, expected = (np.float64(each(x).numpy()) for each in (model, layer))
        return np.mean((found - expected) ** 2)

    nearest = error()
    scale = model[0].weight_quantizer.qparams_of(layer.weight)[0].numpy() / 3.0
    reconstruct(model, data, QUICK)
    assert error() < 0.9 * nearest
    axis = [1] * layer.weight.ndim
    if len(scale) > 1:
        axis[model[0]._paddleq.kind.weights["weight"]] = -1
    position = np.float64(layer.weight.numpy()) / scale.reshape(axis)
    integers = model[0].quantized_weight("weight").numpy() / scale.reshape(axis)
    assert np.abs(integers - np.round(integers)).max() < 1e-4
    low = np.floor(position)
    assert np.all((np.abs(integers - low) < 1e-3) | (np.abs(integers - low - 1) < 1e-3)
                  | (np.abs(position - np.round(position)) < 1e-3))


def small_net():
    paddle.seed(0)
    return warmed(SmallNet(), paddle.to_tensor(smooth([16, 1, 12, 12], 0)))


DATA = [smooth([8, 1, 12, 12], seed) for seed in range(1, 5)]


def test_whole_model_is_closer_to_float_and_keeps_the_float_weights(tmp_path):
    net, x = small_net(), paddle.to_tensor(smooth([8, 1, 12, 12], 20))
    _, nearest = low_bits(net, DATA, 4, "round", fuse=True)
    ptq, model = low_bits(net, DATA, 4, fuse=True)
    assert distance(model, net, x) < 0.8 * distance(nearest, net, x)
    with quantization_off(model):
        assert distance(model, net, x) < 1e-5
    assert isinstance(model.conv3.weight_preprocess, LearnedRounding)
    assert "rounding learned" in paddleq.summary(model)
    # As it stands, frozen, copied and loaded: the same.
    expected = model(x).numpy()
    for onnx_format in (True, False):
        prefix = str(tmp_path / f"net{onnx_format}")
        ptq.save_quantized_model(model, prefix, onnx_format=onnx_format)
        (found,) = paddle_inference(prefix, [x.numpy()])
        assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)
    copied = copy.deepcopy(model)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.set_value(paddle.zeros_like(parameter))
    other.set_state_dict(model.state_dict())
    for each in (copied, other):
        np.testing.assert_array_equal(each(x).numpy(), expected)
    found = paddleq.freeze(copied)(x).numpy()
    assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)


def test_saved_model_and_layer_get_the_same_rounding(tmp_path):
    net, x = small_net(), smooth([8, 1, 12, 12], 20)
    save_float(net, str(tmp_path / "float" / "net"), [1, 12, 12])
    names = paddleq.quant_post_static(
        tmp_path / "float", tmp_path / "int4", DATA, algo="abs_max", weight_bits=4,
        round_type=QUICK)
    assert len(names) == 4
    (found,) = paddle_inference(str(tmp_path / "int4" / "model"), [x])
    _, model = low_bits(net, DATA, 4, fuse=True)
    expected = model(paddle.to_tensor(x)).numpy()
    assert np.linalg.norm(found - expected) <= 0.02 * np.linalg.norm(expected)
    float_output = net(paddle.to_tensor(x)).numpy()
    _, nearest = low_bits(net, DATA, 4, "round", fuse=True)
    assert (np.linalg.norm(found - float_output)
            < 0.8 * distance(nearest, net, paddle.to_tensor(x)) * np.linalg.norm(float_output))


# States.


def by_state_dict(model, fresh, folder):
    paddle.save(model.state_dict(), str(folder / "state.pdparams"))
    missing, unexpected = fresh.set_state_dict(paddle.load(str(folder / "state.pdparams")))
    assert not missing and not unexpected
    return fresh


def by_checkpoint(model, fresh, folder):
    paddleq.save_checkpoint(model, folder / "checkpoint")
    return paddleq.load_checkpoint(fresh, folder / "checkpoint")


def by_pickle(model, fresh, folder):
    return pickle.loads(pickle.dumps(model))


def by_copy(model, fresh, folder):
    return copy.deepcopy(model)


STATE_NETS = {
    "convolutions": (small_net, DATA[:2], True),
    "shared": (lambda: shared_net(), [correlated(128, 8)], False),
    "transposed": (lambda: nn.Sequential(nn.Conv2DTranspose(4, 6, 3, stride=2)),
                   [smooth([4, 4, 5, 5], 0)], False),
}
QUANTIZERS = {"channel": PerChannelAbsmaxQuantizer(4),
              "tensor": paddleq.paddleslim.AbsmaxQuantizer(4)}


def shared_net():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    net[2].weight = net[0].weight
    return net


@pytest.mark.parametrize("way", [by_state_dict, by_checkpoint, by_pickle, by_copy])
@pytest.mark.parametrize("kind, granularity", [
    ("convolutions", "channel"), ("shared", "tensor"), ("transposed", "channel")])
def test_learned_rounding_survives(way, kind, granularity, tmp_path):
    make, data, fuse = STATE_NETS[kind]
    ptq = paddleq.PTQ("abs_max", QUANTIZERS[granularity], round_type=AdaRound(iterations=60))
    inputs = paddle.to_tensor(data[0]) if fuse else None
    paddle.seed(0)
    model = ptq.quantize(make(), fuse=fuse, inputs=inputs)
    ptq.calibrate(model, data)
    x, nearest = paddle.to_tensor(data[0]), copy.deepcopy(model)
    learned = [layer for _, layer in quantized_layers(nearest)
               if layer.weight_parts("weight")[0] is not None]
    for layer in learned:
        layer.weight_preprocess.up.set_value(nearest_up(layer))
    assert distance(model, nearest, x) > 1e-3  # the rounding matters
    paddle.seed(9)
    fresh = paddleq.PTQ("abs_max", QUANTIZERS[granularity]).quantize(
        make(), fuse=fuse, inputs=inputs)
    if way is by_checkpoint:
        paddleq.calibrate(fresh, data)  # also folds the norms
    elif fuse:
        paddleq.calibrate(fresh, data[:1])
    found = way(model, fresh, tmp_path)
    engine.set_state(found, "validation")
    np.testing.assert_array_equal(found(x).numpy(), model(x).numpy())
    # A later computation of the scales keeps those of the state.
    for _, quantizer in engine.fake_quantizers(found):
        if quantizer.observer.fixed:
            quantizer.finalize()
    np.testing.assert_array_equal(found(x).numpy(), model(x).numpy())


def nearest_up(layer):
    """Return the rounding to nearest, in float64."""
    rounding = layer.weight_preprocess
    scale = rounding.abs_max.numpy().astype("float64") / rounding.spec.quant_max
    if len(scale) > 1:
        shape = [1] * layer.weight.ndim
        shape[rounding.spec.channel_axis] = -1
        scale = scale.reshape(shape)
    position = np.float64(layer.weight.numpy()) / scale
    return (position - np.floor(position) >= 0.5).astype("int8")


def test_learned_rounding_of_a_saved_model_survives_a_state_dict(tmp_path):
    net, x = small_net(), paddle.to_tensor(DATA[0])
    save_float(net, str(tmp_path / "net"), [1, 12, 12])

    def quantized():
        model = ptq.quantize(paddleq.SavedModel(tmp_path))
        paddleq.calibrate(model, DATA[:2])
        return model

    ptq = paddleq.PTQ("abs_max", PerChannelAbsmaxQuantizer(4))
    model, fresh = quantized(), quantized()
    reconstruct(model, DATA[:2], AdaRound(iterations=60))
    assert distance(fresh, model, x) > 1e-3
    fresh.set_state_dict(model.state_dict())
    np.testing.assert_array_equal(fresh(x).numpy(), model(x).numpy())


@pytest.mark.parametrize("way, quantizer, message", [
    (by_state_dict, PerChannelAbsmaxQuantizer(3), "learned rounding of 0.weight .*-8, 7"),
    (by_state_dict, paddleq.paddleslim.AbsmaxQuantizer(4), "learned rounding of 0.weight .*-8, 7"),
    (by_checkpoint, paddleq.paddleslim.AbsmaxQuantizer(4), "differ in more than the bits")])
def test_learned_rounding_on_another_grid_is_refused(quantizer, way, message, tmp_path):
    x = correlated(64, 8)
    _, model = low_bits(nn.Sequential(nn.Linear(8, 8)), [x], 4, AdaRound(iterations=20))
    other = paddleq.PTQ("abs_max", quantizer).quantize(nn.Sequential(nn.Linear(8, 8)))
    paddleq.calibrate(other, [x])
    with pytest.raises(ModelError, match=message):
        way(model, other, tmp_path)


def test_checkpoints_give_a_learned_rounding_its_bits(tmp_path):
    x = correlated(64, 8)
    _, model = low_bits(nn.Sequential(nn.Linear(8, 8)), [x], 4, AdaRound(iterations=20))
    other = paddleq.PTQ("abs_max", PerChannelAbsmaxQuantizer(3)).quantize(
        nn.Sequential(nn.Linear(8, 8)))
    found = by_checkpoint(model, other, tmp_path)
    np.testing.assert_array_equal(found(paddle.to_tensor(x)).numpy(),
                                  model(paddle.to_tensor(x)).numpy())


@pytest.mark.one_version
def test_same_seed_gives_the_same_rounding():
    net = small_net()
    first, second, third = (low_bits(net, DATA, 4, AdaRound(iterations=60, seed=seed))[1]
                            for seed in (1, 1, 2))
    weights = [model.conv3.quantized_weight("weight").numpy() for model in (first, second, third)]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert (weights[0] != weights[2]).any()


def test_shared_weight_is_rounded_once():
    paddle.seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    net[2].weight = net[0].weight
    _, model = low_bits(net, [correlated(128, 8)], 3)
    assert model[0].weight_preprocess is model[2].weight_preprocess
    np.testing.assert_array_equal(model[0].quantized_weight("weight").numpy(),
                                  model[2].quantized_weight("weight").numpy())


class Recurrent(nn.Layer):
    def __init__(self):
        super().__init__()
        self.embedding, self.linear = nn.Embedding(10, 8), nn.Linear(8, 8)

    def forward(self, ids):
        x = self.embedding(ids)
        for _ in range(2):  # two calls in a forward pass
            x = F.tanh(self.linear(x))
        return x


def test_layers_without_a_product_are_reported():
    paddle.seed(0)
    ptq = paddleq.PTQ("abs_max", PerChannelAbsmaxQuantizer(3))
    model = ptq.quantize(Recurrent(), quantizable_layer_type=["Embedding", "Linear"])
    data = [paddle.randint(0, 10, [16, 4])]
    ptq.calibrate(model, data)
    report = reconstruct(model, data, QUICK)
    assert set(report.errors) == {"linear"}
    assert "Embedding" in report.skipped["embedding"]
    assert "embedding: rounded to nearest" in str(report)


def test_symmetric_reconstruction_takes_float_inputs():
    x, net = correlated(512, 16), nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    _, model = low_bits(net, [x], 3, AdaRound(iterations=150, asymmetric=False))
    _, nearest = low_bits(net, [x], 3, "round")
    held_out = paddle.to_tensor(correlated(64, 16, 5))
    assert distance(model, net, held_out) < distance(nearest, net, held_out)


# Arguments.


@pytest.mark.parametrize("make, error, words", [
    (lambda: paddleq.PTQ(round_type="adarond"), ConfigError, "'adaround'"),
    (lambda: paddleq.PTQ(round_type=3), ConfigTypeError, "round_type"),
    (lambda: AdaRound(iterations=0), ConfigError, "iterations"),
    (lambda: AdaRound(warm_start=1.0), ConfigError, "warm_start"),
    (lambda: AdaRound(asymmetric=1), ConfigTypeError, "asymmetric"),
    (lambda: AdaRound(samples=0), ConfigError, "samples"),
    (lambda: reconstruct(small_net(), DATA), ModelError, "quantize"),
    (lambda: reconstruct(small_net(), DATA, "round"), ConfigError, "method"),
])
def test_wrong_arguments_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_uncalibrated_model_is_refused():
    model = paddleq.PTQ().quantize(small_net())
    with pytest.raises(CalibrationError, match="calibrate"):
        reconstruct(model, DATA)


def test_forward_calls_cannot_learn_a_rounding():
    ptq = paddleq.PTQ(round_type="adaround")
    model = ptq.quantize(small_net())
    model(paddle.to_tensor(DATA[0]))
    with pytest.raises(ConfigError, match="calibrate"):
        ptq.convert(model)


def test_registered_round_type_is_accepted_by_name():
    @register_round_type("coarse")
    class Coarse(AdaRound):
        def beta(self, step):
            return None

    try:
        assert isinstance(paddleq.PTQ(round_type="coarse").round_type, Coarse)
    finally:
        ROUND_TYPES.unregister("coarse")


def test_iterator_of_batches_is_read_once():
    ptq = paddleq.PTQ("abs_max", PerChannelAbsmaxQuantizer(4), round_type=QUICK)
    model = ptq.quantize(small_net())
    assert ptq.calibrate(model, iter(DATA), num_batches=3) == 3
    assert "rounding learned" in paddleq.summary(model)
