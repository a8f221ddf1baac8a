"""Linear layers whose weights and activations are in float data types, bit for bit.

The reference computes scales in float32 and rounds with ``ml_dtypes``, or by tables, in numpy.
"""

import copy
import pickle

import numpy as np
import paddle
import pytest
from float_reference import rounded, scale_of, scales_of_weight
from paddle import nn
from runtimes import onnxruntime, paddle_inference

import paddleq
from paddleq import PerBlock, PerChannel, PerGroup, PerTensor, PerToken, QuantSpec
from paddleq.algorithms import AWQ, GPTQ, RoundToNearest, SmoothQuant, quantize_layer_by_layer
from paddleq.config import LayerConfig, QuantConfig
from paddleq.errors import ConfigError, ExportError
from paddleq.nn import IntegerLinear
from paddleq.number_formats import DATA_TYPES, NF4
from paddleq.observers import ChannelStats, KLObserver
from paddleq.spec import HALF_UP

MX = [name for name, each in DATA_TYPES.items() if each.block]
FREE = [name for name in DATA_TYPES if name not in MX]
SPECS = [*(QuantSpec(dtype=name) for name in MX),
         *(QuantSpec(dtype=name, granularity=granularity) for name in FREE
           for granularity in (PerTensor(), PerChannel(1), PerGroup(32), PerBlock(32, 16)))]


def weight_of(rows=72, columns=21, seed=0):
    """Weights whose columns have magnitudes from 2**-9 to 2**3; a group of zeros."""
    rng = np.random.RandomState(seed)
    weight = rng.randn(rows, columns) * 2.0 ** rng.uniform(-9, 3, columns)
    weight[:32, 3] = 0.0
    return weight.astype(np.float32)


def linear_of(weight, seed=0):
    linear = nn.Linear(*weight.shape)
    linear.weight.set_value(paddle.to_tensor(weight))
    linear.bias.set_value(np.random.RandomState(seed).randn(weight.shape[1]).astype("float32"))
    return linear


def layer_of(linear, spec, activation=None, qparams=None, rounder=None, stats=None):
    quantized = (rounder or RoundToNearest()).quantize(linear.weight, spec, stats)
    return IntegerLinear.from_linear(linear, quantized, activation, qparams)


def expected_weight(weight, spec):
    full, stored = scales_of_weight(weight, spec)
    return rounded(weight / full, spec.element) * full, stored


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_weight_equals_reference(spec):
    weight = weight_of()
    layer = layer_of(linear_of(weight), spec)
    expected, scales = expected_weight(weight, spec)
    assert np.array_equal(layer.dequantized_weight().numpy(), expected)
    assert np.array_equal(layer.dequantized_weight("weight", 32, 72).numpy(), expected[32:])
    # In memory: one byte for a number of 8 bits or two of 4, one for the scale of an MX block.
    rows = 36 if spec.bits == 4 else 72
    assert layer.weight.dtype == paddle.uint8 and list(layer.weight.shape) == [rows, 21]
    assert list(layer.weight_scale.shape) == list(scales.shape)
    assert layer.weight_scale.dtype == (paddle.uint8 if spec.dtype in MX else paddle.float32)
    x = np.random.RandomState(1).randn(2, 5, 72).astype(np.float32)
    exact = x.astype(np.float64) @ expected.astype(np.float64) + layer.bias.numpy()
    np.testing.assert_allclose(layer(paddle.to_tensor(x)).numpy(), exact, rtol=1e-5, atol=1e-4)
    assert layer.quant_type.startswith(f"W({spec.dtype})-per_")


def test_large_weights_are_multiplied_in_blocks(monkeypatch):
    monkeypatch.setattr("paddleq.nn.integer_linear._BLOCK", 40 * 21)
    weight, x = weight_of(), paddle.randn([3, 72])
    for spec in (QuantSpec(dtype="mxfp4_e2m1"), QuantSpec(dtype="nf4", granularity=PerChannel(1)),
                 QuantSpec(dtype="float8_e5m2", granularity=PerBlock(16, 16))):
        layer = layer_of(linear_of(weight), spec)
        exact = x.numpy().astype(np.float64) @ expected_weight(weight, spec)[0] + layer.bias.numpy()
        np.testing.assert_allclose(layer(x).numpy(), exact, rtol=1e-5, atol=1e-4)


ACTIVATIONS = [*(QuantSpec(dtype=name, granularity=granularity) for name in FREE if name != "nf4"
                 for granularity in (PerTensor(), PerToken())),
               *(QuantSpec(dtype=name) for name in MX)]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("features", [64, 40])
def test_quantized_activations_equal_reference(activation, features):
    rng = np.random.RandomState(features)
    x = (rng.randn(2, 6, features) * 2.0 ** rng.uniform(-6, 6, (2, 6, 1))).astype(np.float32)
    x[0, 0] = 0.0
    weight = paddle.eye(features).numpy()  # in each format exactly: y is the quantized x
    spec, qparams = QuantSpec(dtype="float8_e4m3fn", granularity=PerTensor()), None
    linear = linear_of(weight)
    linear.bias.set_value(paddle.zeros([features]))
    if isinstance(activation.granularity, PerTensor):
        scale = scale_of(np.float32([3.0]), activation.dtype)
        qparams = (paddle.to_tensor(scale), None)
    elif isinstance(activation.granularity, PerToken):
        scale = scale_of(np.abs(x).max(axis=-1, keepdims=True), activation.dtype)
    else:
        blocks = np.pad(x, [(0, 0), (0, 0), (0, -features % 32)]).reshape(2, 6, -1, 32)
        scale = scale_of(np.abs(blocks).max(axis=-1), activation.dtype)
        scale = np.repeat(scale, 32, axis=-1)[..., :features]
    expected = rounded(x / scale, activation.element) * scale
    layer = layer_of(linear, spec, activation, qparams)
    product = layer(paddle.to_tensor(x)).numpy()
    # 1 / 448 * 448 is 1 in float32, and sums with zeros are exact.
    assert np.array_equal(product, expected)
    assert layer.quant_type.split("-A")[1].startswith(f"({activation.dtype})-per_")


def test_codes_survive_a_checkpoint(tmp_path):
    specs = [QuantSpec(dtype="mxfp4_e2m1"), QuantSpec(dtype="nf4"),
             QuantSpec(dtype="hifloat8", granularity=PerChannel(1)),
             QuantSpec(dtype="float8_e4m3fn", granularity=PerBlock(16, 16)), QuantSpec(4)]
    activations = [None, QuantSpec(dtype="float8_e5m2"), QuantSpec(dtype="mxfp8_e4m3fn"), None,
                   QuantSpec(dtype="float8_e4m3fn", granularity=PerToken())]

    def build(seed):
        paddle.seed(seed)
        return nn.Sequential(*(
            layer_of(nn.Linear(64, 64), spec, activation,
                     (paddle.to_tensor([0.1]), None) if activation == activations[1] else None)
            for spec, activation in zip(specs, activations)))

    saved, x = build(1), paddle.randn([3, 64])
    paddleq.save_checkpoint(saved, str(tmp_path / "model"))
    for loaded in (build(2), nn.Sequential(*(nn.Linear(64, 64) for _ in specs))):
        loaded = paddleq.load_checkpoint(loaded, str(tmp_path / "model")) or loaded
        for name, value in saved.state_dict().items():
            found = loaded.state_dict()[name]
            assert found.dtype == value.dtype and np.array_equal(found.numpy(), value.numpy())
        assert np.array_equal(loaded(x).numpy(), saved(x).numpy())
        assert [layer.quant_type for layer in loaded] == [layer.quant_type for layer in saved]
    table = paddleq.summary(saved)
    for spec in specs:
        assert str(spec) in table


@pytest.mark.parametrize("name", list(DATA_TYPES))
def test_engine_quantizes_a_model(name):
    """Weights alone, layer by layer: each weight is the reference's, in half precision too."""
    for dtype in ("float32", "bfloat16"):
        paddle.seed(3)
        model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0), 2)
        model.eval()
        model.to(dtype=dtype)
        weights = {key: layer.weight.astype("float32").numpy()
                   for key, layer in model.named_sublayers() if isinstance(layer, nn.Linear)}
        config = QuantConfig()
        config.add_type(nn.Linear, LayerConfig(QuantSpec(dtype=name)))
        quantize_layer_by_layer(model, config=config)
        layers = dict(model.named_sublayers())
        assert len(weights) == 12
        for key, weight in weights.items():
            expected, _ = expected_weight(weight, QuantSpec(dtype=name))
            assert np.array_equal(layers[key].dequantized_weight().numpy(), expected)
        # (On a CPU, attention has no products in bfloat16.)
        layer = model.layers[0].linear1
        y = layer(paddle.randn([1, 5, 32]).astype(dtype))
        assert isinstance(layer, IntegerLinear) and y.dtype == getattr(paddle, dtype)


@pytest.mark.parametrize("name", [name for name in FREE if name != "nf4"])
def test_simulated_and_frozen_layers_agree(name):
    paddle.seed(4)
    model = nn.Sequential(nn.Conv2D(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    x = paddle.randn([4, 3, 8, 8])
    config = QuantConfig()
    for cls in (nn.Conv2D, nn.Linear):
        config.add_type(cls, LayerConfig(QuantSpec(dtype=name, granularity=PerChannel(0)),
                                         QuantSpec(dtype=name)))
    simulated = paddleq.quantize(model, config)
    paddleq.calibrate(simulated, [x])
    simulated.eval()
    expected, names = simulated(x).numpy(), {}
    weight = model[0].weight.numpy()
    scale = scale_of(np.abs(weight).max(axis=(1, 2, 3), keepdims=True), name)
    names["0"] = rounded(weight / scale, QuantSpec(dtype=name).element) * scale
    frozen = paddleq.freeze(simulated) or simulated
    assert np.array_equal(frozen[0].dequantized_weight().numpy(), names["0"])
    assert frozen[0].weight.dtype == paddle.uint8
    assert np.array_equal(frozen(x).numpy(), expected)
    assert not np.array_equal(expected, model(x).numpy())


def test_gradient_passes_straight_through():
    paddle.seed(5)
    config = QuantConfig()
    spec = QuantSpec(dtype="float8_e4m3fn")
    config.add_type(nn.Linear, LayerConfig(spec, spec))
    model = paddleq.quantize(nn.Sequential(nn.Linear(6, 3)), config)
    x = paddle.randn([7, 6])
    x.stop_gradient = False
    model.train()
    y = model(x)
    y.sum().backward()
    scale = scale_of(np.float32([np.abs(x.numpy()).max()]), "float8_e4m3fn")
    quantized = rounded(x.numpy() / scale, spec.element) * scale
    # d sum(x W) / dW = sum of the quantized x, whatever the rounding of W
    np.testing.assert_allclose(model[0].weight.grad.numpy(),
                               np.repeat(quantized.sum(axis=0)[:, None], 3, axis=1), rtol=1e-5)
    weight = model[0].weight.numpy()
    scale = scale_of(np.float32([np.abs(weight).max()]), "float8_e4m3fn")
    weight = rounded(weight / scale, spec.element) * scale
    np.testing.assert_allclose(x.grad.numpy(), np.repeat(weight.sum(axis=1)[None], 7, axis=0),
                               rtol=1e-5)


def correlated(rng, tokens, features):
    """Inputs whose features share most of their variance."""
    common = rng.randn(tokens, 4) @ rng.randn(4, features)
    return (common + 0.2 * rng.randn(tokens, features)).astype(np.float32)


def stats_of(x, needs):
    stats = ChannelStats(needs)
    stats.update(paddle.to_tensor(x))
    return stats


@pytest.mark.parametrize("spec", [
    QuantSpec(dtype="float8_e4m3fn", granularity=PerChannel(1)), QuantSpec(dtype="mxfp4_e2m1"),
    QuantSpec(dtype="nf4"), QuantSpec(dtype="hifloat8", granularity=PerChannel(1)),
    QuantSpec(dtype="float4_e2m1", granularity=PerGroup(32)),
    QuantSpec(dtype="float4_e2m1", granularity=PerBlock(32, 4))], ids=str)
def test_gptq_and_awq_round_to_the_format(spec):
    rng = np.random.RandomState(6)
    x, weight = correlated(rng, 256, 64), paddle.to_tensor(rng.randn(64, 12).astype("float32"))
    eye = stats_of(np.sqrt(64) * np.eye(64, dtype=np.float32), {"hessian"})
    nearest = RoundToNearest().quantize(weight, spec)
    found = GPTQ().quantize(weight, spec, eye)
    assert np.array_equal(found.integers.numpy(), nearest.integers.numpy())

    def error(quantized):
        return np.linalg.norm(x @ (quantized.dequantize() - weight).numpy())

    stats = stats_of(x, {"hessian", "mean_abs"})
    assert error(GPTQ().quantize(weight, spec, stats)) < 0.7 * error(nearest)
    if not isinstance(spec.granularity, PerBlock):
        x[:, :3] *= 30.0
        stats = stats_of(x, AWQ.needs)
        s = AWQ().scales([weight], stats, spec)
        smoothed = RoundToNearest().quantize(weight * s.unsqueeze(1), spec)
        change = smoothed.dequantize() / s.unsqueeze(1) - weight
        # An MX scale is a power of two and hides most of a factor.
        assert np.linalg.norm(x @ change.numpy()) <= error(nearest)


def test_activations_can_be_smoothed():
    config = LayerConfig(QuantSpec(dtype="float8_e4m3fn", granularity=PerChannel(1)),
                         QuantSpec(dtype="float8_e4m3fn"), SmoothQuant(0.5))
    assert config.needs == {"abs_max", "range"}


@pytest.mark.parametrize("form", ["pdmodel", "onnx",
                                  pytest.param("pir", marks=pytest.mark.needs_pir)])
def test_weights_are_exported_and_activations_refused(form, tmp_path):
    weight = weight_of(64, 16)
    specs = [QuantSpec(dtype="mxfp4_e2m1"), QuantSpec(dtype="nf4", granularity=PerGroup(8)),
             QuantSpec(dtype="hifloat8", granularity=PerChannel(1)),
             QuantSpec(dtype="float8_e4m3fn", granularity=PerBlock(16, 16))]
    model = nn.Sequential(layer_of(linear_of(weight), specs[0]), nn.ReLU(),
                          *(layer_of(linear_of(weight_of(16, 16, seed)), spec)
                            for seed, spec in enumerate(specs[1:])))
    x = np.random.RandomState(2).randn(3, 64).astype(np.float32)
    path = str(tmp_path / "model")
    inputs = [paddle.static.InputSpec([None, 64], "float32", "x")]
    paddleq.save_quantized_model(model, path, inputs, format=form)
    expected = model(paddle.to_tensor(x)).numpy()
    if form == "onnx":
        (found,) = onnxruntime(path, [x])
    elif form == "pdmodel":
        (found,) = paddle_inference(path, [x])
    else:
        found = paddle.jit.load(path)(paddle.to_tensor(x)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4 * np.abs(expected).max())
    for activation in (QuantSpec(dtype="float8_e4m3fn", granularity=PerToken()),
                       QuantSpec(dtype="mxfp8_e4m3fn")):
        refused = nn.Sequential(layer_of(linear_of(weight), specs[0], activation))
        target = tmp_path / "refused"
        with pytest.raises(ExportError, match="no runtime has operators"):
            paddleq.save_quantized_model(refused, str(target / "model"), inputs, format=form)
        assert not target.exists() or not list(target.iterdir())


def test_simulated_weights_are_exported_as_values(tmp_path):
    config = QuantConfig()
    config.add_type(nn.Linear, LayerConfig(QuantSpec(dtype="float8_e5m2")))
    model = paddleq.quantize(nn.Sequential(nn.Linear(8, 4)), config)
    model.eval()
    path, x = str(tmp_path / "model"), np.random.RandomState(3).randn(2, 8).astype(np.float32)
    paddleq.save_quantized_model(model, path, [paddle.static.InputSpec([None, 8], "float32")])
    (found,) = paddle_inference(path, [x])
    np.testing.assert_allclose(found, model(paddle.to_tensor(x)).numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("arguments, words", [
    ({"dtype": "float8"}, "dtype"),
    ({"dtype": "nf4", "bits": 3}, "bits must be 4"),
    ({"dtype": "mxfp4_e2m1", "granularity": PerGroup(16)}, r"PerGroup\(32\)"),
    ({"dtype": "mxfp8_e5m2", "granularity": PerTensor()}, r"PerGroup\(32\)"),
    ({"dtype": "float8_e4m3fn", "symmetric": False}, "symmetric must be True"),
    ({"dtype": "float8_e4m3fn", "signed": False}, "signed must be True"),
    ({"dtype": "float8_e4m3fn", "narrow_range": True}, "narrow_range must be False"),
    ({"dtype": "float8_e4m3fn", "rounding": HALF_UP}, "rounding must be"),
    ({"dtype": "float8_e4m3fn", "limits": (-1, 1)}, "limits must be None"),
    ({"granularity": PerBlock()}, "float dtype"),
])
def test_specs_are_checked(arguments, words):
    with pytest.raises(ConfigError, match=words):
        QuantSpec(**arguments)


def test_users_of_integer_levels_refuse_float_data_types():
    spec = QuantSpec(dtype="float8_e4m3fn")
    with pytest.raises(ConfigError, match="integers, for KLObserver"):
        KLObserver(spec)
    with pytest.raises(ConfigError, match="integers, for LSQ"):
        paddleq.LSQ(spec=spec)
    with pytest.raises(ConfigError, match="AWQ\\(clip=False\\)"):
        LayerConfig(QuantSpec(dtype="float8_e4m3fn", granularity=PerBlock()), smoother=AWQ())
    with pytest.raises(ConfigError, match="MX data type"):
        LayerConfig(spec, QuantSpec(dtype="float8_e4m3fn", granularity=PerGroup(32)))


def test_spec_survives_pickling():
    spec = QuantSpec(dtype="nf4")
    for other in (pickle.loads(pickle.dumps(spec)), copy.deepcopy(spec)):
        assert other == spec and other.element.name == NF4.name
        layer = layer_of(linear_of(weight_of()), other)
        assert np.array_equal(layer.dequantized_weight().numpy(),
                              expected_weight(weight_of(), spec)[0])
