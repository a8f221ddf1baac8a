"""Float types and their algorithms of quantize(model, config), a row for each row of the tables.

The reference of each scale and value is numpy with ``ml_dtypes`` or tables. For "ofmr" it computes
the outputs of the layer for each candidate in float64.
"""

import numpy as np
import paddle
import pytest
from float_reference import levels, rounded, scale_of, scales_of_weight
from paddle import nn

import paddleq
from paddleq import PerChannel, PerGroup, PerTensor, PerToken, QuantSpec
from paddleq.errors import CalibrationError, ConfigError, ConfigTypeError
from paddleq.frontends.amct_config import AmctConfig
from paddleq.nn import IntegerLinear

FEATURES, OUTPUTS, BATCHES = 96, 40, 3


def weights(kind, strategy="tensor", **more):
    return {"type": kind, "symmetric": True, "strategy": strategy, **more}


def config(algorithm, weight, inputs=None, **more):
    quant = {"weights": weight, **({} if inputs is None else {"inputs": inputs})}
    return {"batch_num": BATCHES, "quant_cfg": quant, "algorithm": algorithm, **more}


def group(kind, size=32):
    return weights(kind, "group", group_size=size)


def batches():
    rng = np.random.RandomState(0)
    common = rng.randn(5, FEATURES)
    return [(rng.randn(2, 7, 5) @ common * scale + 0.1 * rng.randn(2, 7, FEATURES)
             ).astype(np.float32) for scale in (0.5, 1.0, 0.7)]


def linear():
    paddle.seed(1)
    layer = nn.Linear(FEATURES, OUTPUTS)
    scales = 2.0 ** np.random.RandomState(2).uniform(-7, 1, OUTPUTS)
    layer.weight.set_value(layer.weight * paddle.to_tensor(scales.astype("float32")))
    layer.bias.set_value(paddle.randn([OUTPUTS]))
    return layer


def quantized(given):
    """Return (float weight, bias, quantized layer) of a model after calibration."""
    model = nn.Sequential(linear())
    weight, bias = model[0].weight.numpy(), model[0].bias.numpy()
    paddleq.amct.quantize(model, given)
    for batch in batches():
        model(paddle.to_tensor(batch))
    paddleq.amct.convert(model)
    assert isinstance(model[0], IntegerLinear)
    return weight, bias, model[0]


def expected_weight(weight, spec):
    full, _ = scales_of_weight(weight, spec)
    return rounded(weight / full, spec.element) * full


WEIGHTS = {"hifloat8": ("tensor", "channel"), "float8_e4m3fn": ("tensor", "channel"),
           "mxfp8_e4m3fn": ("group",), "mxfp4_e2m1": ("group",), "float4_e2m1": ("group",)}
TENSOR, TOKEN, GROUP = "tensor", "token", "group"
# Type of the weights -> (type of the inputs, their strategies) -> algorithms: the documented rows.
COMBINATIONS = {
    "hifloat8": {("hifloat8", (TENSOR, TOKEN)): ("ofmr", "cast", "quantile", "smoothquant"),
                 (None, (None,)): ("ofmr", "gptq", "cast", "quantile")},
    "float8_e4m3fn": {("float8_e4m3fn", (TENSOR, TOKEN)): ("ofmr",),
                      (None, (None,)): ("ofmr", "gptq")},
    "mxfp8_e4m3fn": {("mxfp8_e4m3fn", (GROUP,)): ("mxquant",)},
    "mxfp4_e2m1": {(None, (None,)): ("mxquant", "awq", "gptq")},
    "float4_e2m1": {("float8_e4m3fn", (TENSOR,)): ("minmax", "smoothquant"),
                    (None, (None,)): ("minmax", "awq", "gptq")},
}
ALGORITHMS = ("minmax", "awq", "gptq", "smoothquant", "ofmr", "mxquant", "cast", "quantile")
INPUTS = [(None, None), *((kind, strategy) for kind in ("hifloat8", "float8_e4m3fn")
                          for strategy in (TENSOR, TOKEN)), ("mxfp8_e4m3fn", GROUP)]
ROWS = [(kind, strategy, inputs, algorithm) for kind, strategies in WEIGHTS.items()
        for strategy in strategies for inputs in INPUTS for algorithm in ALGORITHMS]


def given_of(kind, strategy, inputs, algorithm):
    weight = group(kind) if strategy == "group" else weights(kind, strategy)
    return config(algorithm, weight, None if inputs[0] is None else weights(*inputs))


def is_valid(kind, inputs, algorithm):
    return any(inputs[0] == other and inputs[1] in strategies and algorithm in algorithms
               for (other, strategies), algorithms in COMBINATIONS[kind].items())


@pytest.mark.parametrize("kind, strategy, inputs, algorithm", ROWS)
def test_combination(kind, strategy, inputs, algorithm):
    given = given_of(kind, strategy, inputs, algorithm)
    if is_valid(kind, inputs, algorithm):
        assert AmctConfig.parse(given).algorithm == algorithm
    else:
        with pytest.raises(ConfigError, match="config.* must be .*but is"):
            AmctConfig.parse(given)


@pytest.mark.parametrize("kind, strategy, inputs, algorithm",
                         [row for row in ROWS if is_valid(row[0], row[2], row[3])])
def test_every_combination_is_effective(kind, strategy, inputs, algorithm):
    """The weights are numbers of the format times their scales, near the float weights."""
    weight, bias, layer = quantized(given_of(kind, strategy, inputs, algorithm))
    held, spec = layer.dequantized_weight().numpy(), layer.weight_spec
    numbers = layer.integers().numpy()
    assert np.isin(numbers, levels(spec.element)).all() and len(np.unique(numbers)) > 8
    factor = 1.0 if not layer.smoothed else layer.input_scale.numpy()[:, None]
    # (GPTQ moves single weights; AWQ clips.)
    assert np.linalg.norm(held / factor - weight) < 0.4 * np.linalg.norm(weight)
    name = {"smoothquant": "SmoothQuant-", "awq": "AWQ-", "gptq": "GPTQ-", "ofmr": "OFMR-"}
    dtype = "mxfp4_e2m1_nearest" if kind == "mxfp4_e2m1" else kind
    scheme = f"{name.get(algorithm, '')}W({dtype})-per_{strategy}"
    if inputs[0]:
        given = TENSOR if algorithm == "cast" else inputs[1]
        scheme += f"-A({inputs[0]})-per_{given}"
    assert layer.quant_type == scheme
    x = batches()[1]
    exact = x.astype(np.float64) @ weight + bias
    error = np.linalg.norm(layer(paddle.to_tensor(x)).numpy() - exact)
    assert 0 < error < (0.05 if "8" in kind else 0.25) * np.linalg.norm(exact)


# Values


@pytest.mark.parametrize("given, spec", [
    (weights("hifloat8"), QuantSpec(dtype="hifloat8")),
    (weights("float8_e4m3fn", "channel"),
     QuantSpec(dtype="float8_e4m3fn", granularity=PerChannel(1))),
    (group("mxfp4_e2m1"), QuantSpec(dtype="mxfp4_e2m1_nearest")),
    *((group("float4_e2m1", size), QuantSpec(dtype="float4_e2m1", granularity=PerGroup(size)))
      for size in (32, 64, 128, 256)),
])
def test_weights(given, spec):
    assert AmctConfig.parse(config("gptq", given)).weight == spec


@pytest.mark.parametrize("given, spec", [
    (weights("hifloat8"), QuantSpec(dtype="hifloat8")),
    (weights("hifloat8", "token"), QuantSpec(dtype="hifloat8", granularity=PerToken())),
    (weights("hifloat8", "token", dynamic=True),
     QuantSpec(dtype="hifloat8", granularity=PerToken())),
    (weights("float8_e4m3fn"), QuantSpec(dtype="float8_e4m3fn", granularity=PerTensor())),
    (weights("mxfp8_e4m3fn", "group"), QuantSpec(dtype="mxfp8_e4m3fn")),
])
def test_inputs(given, spec):
    kind = given["type"]
    weight = group(kind) if kind.startswith("mx") else weights(kind)
    algorithm = "mxquant" if kind.startswith("mx") else "ofmr"
    assert AmctConfig.parse(config(algorithm, weight, given)).activation == spec


@pytest.mark.parametrize("given, words", [
    (config("ofmr", {**weights("hifloat8"), "symmetric": False}),
     r"\['weights'\]\['symmetric'\] must be True for the type 'hifloat8'"),
    (config("ofmr", weights("hifloat8"), {**weights("hifloat8"), "symmetric": False}),
     r"\['inputs'\]\['symmetric'\] must be True for the type 'hifloat8'"),
    (config("gptq", group("hifloat8")), "'tensor' or 'channel' for the type 'hifloat8'"),
    (config("gptq", weights("float4_e2m1")), "must be 'group' for the type 'float4_e2m1'"),
    (config("mxquant", group("mxfp4_e2m1", 64)), r"\['group_size'\] must be one of 32 for"),
    (config("gptq", group("float4_e2m1", 96)), "must be one of 32, 64, 128, 256 for the type"),
    (config("ofmr", weights("hifloat8"), weights("hifloat8", "group")),
     "'tensor', 'token' for the type 'hifloat8'"),
    (config("mxquant", group("mxfp8_e4m3fn"), weights("mxfp8_e4m3fn", "token")),
     "'group' for the type 'mxfp8_e4m3fn'"),
    (config("ofmr", weights("hifloat8"), weights("hifloat8", "token", dynamic=False)),
     r"\['dynamic'\] must be True, or left out"),
    (config("ofmr", weights("hifloat8"), weights("hifloat8", dynamic=True)),
     "left out with strategy 'tensor'"),
    (config("mxquant", group("mxfp8_e4m3fn")),
     r"\['inputs'\] must be of the type 'mxfp8_e4m3fn' with weights of the type 'mxfp8_e4m3fn', "
     "but is left out"),
    (config("minmax", weights("int8"), weights("hifloat8")),
     "must be of the type 'int8' or left out with weights of the type 'int8'"),
    (config("smoothquant", weights("hifloat8"), weights("int8")), "but is of the type 'int8'"),
    (config("ofmr", weights("int8")), "must be one of .* for integers, but is 'ofmr'"),
    (config("cast", weights("int4")), "must be one of .* for integers, but is 'cast'"),
    (config("ofmr", weights("hifloat4")), "did you mean 'hifloat8'"),
    (config("ofmr", weights("float8_e5m2")), "did you mean 'float8_e4m3fn'"),
    (config({"ofmr": {"grids_num": 3}}, weights("hifloat8")), "'grids_num'"),
    (config("cast", weights("hifloat8"), kvcache={}), "'kvcache'"),
])
def test_values_that_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        AmctConfig.parse(given)


def test_dynamic_is_a_bool():
    with pytest.raises(ConfigTypeError, match=r"\['dynamic'\] must be a bool"):
        AmctConfig.parse(config("ofmr", weights("hifloat8"),
                                weights("hifloat8", "token", dynamic=1)))


def test_group_must_be_smaller_than_the_inputs_of_a_layer():
    model = nn.Sequential(nn.Linear(64, 4))
    with pytest.raises(ConfigError, match="less than K = 64 of layer '0'"):
        paddleq.amct.quantize(model, config("minmax", group("float4_e2m1", 64)))


# Algorithms


@pytest.mark.parametrize("kind", ["mxfp8_e4m3fn", "mxfp4_e2m1"])
def test_mxquant(kind):
    inputs = weights(kind, "group") if kind == "mxfp8_e4m3fn" else None
    weight, bias, layer = quantized(config("mxquant", group(kind), inputs))
    held = expected_weight(weight, layer.weight_spec)
    assert np.array_equal(layer.dequantized_weight().numpy(), held)
    x = batches()[2]
    if inputs:
        blocks = np.abs(x.reshape(2, 7, 3, 32)).max(axis=-1)
        scale = np.repeat(scale_of(blocks, kind), 32, axis=-1)
        x = rounded(x / scale, layer.weight_spec.element) * scale
    y = layer(paddle.to_tensor(batches()[2])).numpy()
    np.testing.assert_allclose(y, x.astype(np.float64) @ held + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strategy", ["tensor", "channel"])
@pytest.mark.parametrize("inputs", [None, TENSOR, TOKEN])
def test_cast(strategy, inputs):
    weight, bias, layer = quantized(config(
        "cast", weights("hifloat8", strategy), inputs and weights("hifloat8", inputs)))
    largest = np.abs(weight).max(axis=None if strategy == "tensor" else 0, keepdims=True)
    scale = largest / np.float32(16)
    held = rounded(weight / scale, layer.weight_spec.element) * scale
    assert np.array_equal(layer.dequantized_weight().numpy(), held)
    x = batches()[0]
    if inputs:  # converted directly
        x = rounded(x, layer.weight_spec.element)
    y = layer(paddle.to_tensor(batches()[0])).numpy()
    np.testing.assert_allclose(y, x.astype(np.float64) @ held + bias, rtol=1e-4, atol=1e-4)


def test_quantile():
    weight, _, layer = quantized(config("quantile", weights("hifloat8", "channel"),
                                        weights("hifloat8")))
    assert np.array_equal(layer.dequantized_weight().numpy(),
                          expected_weight(weight, layer.weight_spec))
    q = None
    for batch in batches():
        most = np.abs(batch).max().astype(np.float64)
        q = most if q is None else 0.99 * q + 0.01 * most
    np.testing.assert_allclose(layer.activation_scale.item(), q / 16, rtol=1e-6)
    assert q < max(np.abs(batch).max() for batch in batches())


def test_quantile_per_token_is_dynamic():
    weight, bias, layer = quantized(config("quantile", weights("hifloat8"),
                                           weights("hifloat8", "token", dynamic=True)))
    x = batches()[0]
    scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(16)
    expected = rounded(x / scale, layer.weight_spec.element) * scale.astype(np.float64)
    held = layer.dequantized_weight().numpy()
    np.testing.assert_allclose(layer(paddle.to_tensor(x)).numpy(), expected @ held + bias,
                               rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["hifloat8", "float8_e4m3fn"])
@pytest.mark.parametrize("strategy", ["tensor", "channel"])
def test_ofmr(kind, strategy):
    weight, _, layer = quantized(config("ofmr", weights(kind, strategy), weights(kind)))
    element, wide = layer.weight_spec.element, weight.astype(np.float64)
    candidates = 2.0 ** np.arange(-5, 6)
    of_weight, of_input = [], []
    for scale in candidates:
        change = rounded((weight / scale).astype(np.float32), element) * scale - wide
        losses = sum(np.square(x.astype(np.float64) @ change).sum(axis=(0, 1)) for x in batches())
        of_weight.append(losses.sum(keepdims=True) if strategy == "tensor" else losses)
        of_input.append(sum(np.square(
            (rounded((x / scale).astype(np.float32), element) * scale - x) @ wide).mean()
            for x in batches()))
    best = candidates[np.argmin(of_weight, axis=0)]
    assert np.array_equal(layer.weight_scale.numpy(), best[None].astype(np.float32))
    assert layer.activation_scale.item() == candidates[np.argmin(of_input)]
    held = rounded((weight / best).astype(np.float32), element) * best
    assert np.array_equal(layer.dequantized_weight().numpy(), held.astype(np.float32))


def test_ofmr_of_inputs_needs_the_layer():
    from paddleq.algorithms.float_ranges import OutputErrorObserver

    observer = OutputErrorObserver(QuantSpec(dtype="hifloat8"))
    with pytest.raises(CalibrationError, match="paddleq.amct.quantize"):
        observer.update(paddle.ones([2, 2]))
    with pytest.raises(ConfigError, match="float data type"):
        OutputErrorObserver(QuantSpec())


def test_converted_model_survives_a_checkpoint(tmp_path):
    _, _, layer = quantized(config("ofmr", weights("hifloat8", "channel"), weights("hifloat8")))
    saved, loaded = nn.Sequential(layer), nn.Sequential(linear())
    paddleq.save_checkpoint(saved, str(tmp_path / "model"))
    paddleq.load_checkpoint(loaded, str(tmp_path / "model"))
    x = paddle.to_tensor(batches()[0])
    assert np.array_equal(loaded(x).numpy(), saved(x).numpy())
    assert "hifloat8 per_channel(1) | hifloat8 per_tensor" in paddleq.summary(loaded)
