"""IntegerLinear against float64 formulas; its memory and its state_dict.

    x' = (x / input_scale)[permutation];  W = (q - zero point) * scale, by column or group
    static:     x'' = (clip(round(x' / s) + z, qmin, qmax) - z) * s
per token:  as static, with s = max|x'| / levels of the token, z = 0
    y = x'' W + b
"""

import copy
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from deployed import ACTIVATIONS, AFFINE, WEIGHTS, deploy, rounded, static_qparams
from hypothesis import given
from hypothesis import strategies as st
from paddle import nn

from paddleq import PerChannel, PerGroup, PerTensor, PerToken, QuantSpec
from paddleq.errors import ConfigError, ConfigTypeError, FormatError, ModelError
from paddleq.functional import pack_int4
from paddleq.nn import IntegerLinear, gpu_linear, integer_linear, keep_dequantized


def float64_weight(layer_integers, grid, rows):
    scale, zero = (np.asarray(0.0 if t is None else t.numpy(), np.float64)
                   for t in (grid.scale, grid.zero_point))
    if isinstance(grid.spec.granularity, PerGroup):
        group = np.arange(rows) // grid.spec.granularity.size
        scale, zero = scale[group], zero[group] if zero.ndim else zero
    return (layer_integers.numpy().astype(np.float64) - zero) * scale


def round_clip(t, spec, zero=0.0):
    return np.clip(np.rint(t) + zero, spec.quant_min, spec.quant_max) - zero


def reference(x, weight, bias, spec, qparams, factor, order):
    x = x.astype(np.float64)
    if factor is not None:
        x = x / factor.numpy().astype(np.float64)
    if order is not None:
        x = x[..., order.numpy()]
    if spec is not None and isinstance(spec.granularity, PerToken):
        step = np.maximum(np.abs(x).max(axis=-1, keepdims=True), 1e-8) / spec.quant_max
        x = round_clip(x / step, spec) * step
    elif spec is not None:
        step, zero = (0.0 if t is None else float(t.numpy()[0]) for t in qparams)
        x = round_clip(x / step, spec, zero) * step
    return x @ weight + (0.0 if bias is None else bias.numpy().astype(np.float64))


def on_grid(random, shape, step, levels):
    """Return values near multiples of the step, which float32 rounds like float64."""
    integers = random.randint(-levels, levels + 1, shape)
    return ((integers + random.uniform(-0.3, 0.3, shape)) * step).astype(np.float32)


def build(random, rows, columns, weight, activation, smoothed, permuted, bias=True):
    """Return (layer, float64 reference, matching input)."""
    linear = nn.Linear(rows, columns, bias_attr=None if bias else False)
    if bias:
        linear.bias.set_value(random.randn(columns).astype("float32"))
    order = paddle.to_tensor(random.permutation(rows)) if permuted else None
    # Powers of two: division by them is exact.
    factor = paddle.to_tensor(np.exp2(random.randint(-1, 2, rows)).astype("float32"))
    factor = factor if smoothed else None
    held = rounded(linear.weight, weight, order)
    x = random.randn(3, 4, rows).astype("float32")
    qparams = None
    if activation is not None and not isinstance(activation.granularity, PerToken):
        qparams = static_qparams(activation, -2.0, 2.5)
        x = on_grid(random, x.shape, qparams[0].item(), activation.quant_max)
    elif activation is not None:
        x = on_grid(random, x.shape, 1.0, activation.quant_max - 1)
        x[..., 0] = activation.quant_max
        x = (x * random.uniform(0.01, 100.0, (3, 4, 1))).astype("float32")
    if activation is not None and factor is not None:
        x = x * factor.numpy()
    layer = IntegerLinear.from_linear(linear, held, activation, qparams, factor)
    float_weight = float64_weight(held.integers, held.qparams, rows)

    def compute(x):
        return reference(x, float_weight, linear.bias, activation, qparams, factor, order)

    return layer, compute, x


def close(found, expected, bound=2e-6):
    found = found.astype("float32").numpy().astype(np.float64)
    assert found.shape == expected.shape
    return np.linalg.norm(found - expected) <= bound * np.linalg.norm(expected)


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("smoothed, permuted", [(False, False), (True, True)])
def test_forward_matches_float64_reference(weight, activation, smoothed, permuted):
    layer, compute, x = build(np.random.RandomState(1), 100, 24, WEIGHTS[weight],
                              ACTIVATIONS[activation], smoothed, permuted)
    assert close(layer(paddle.to_tensor(x)), compute(x))


@given(rows=st.integers(1, 80), columns=st.integers(1, 20), size=st.integers(1, 90),
       bits=st.integers(2, 8), affine=st.booleans(), bias=st.booleans(),
       activation=st.sampled_from(sorted(ACTIVATIONS)), seed=st.integers(0, 2**31))
def test_forward_matches_float64_reference_for_random_shapes(rows, columns, size, bits, affine,
                                                             bias, activation, seed):
    weight = QuantSpec(bits, granularity=PerGroup(size), **(AFFINE if affine else {}))
    layer, compute, x = build(np.random.RandomState(seed), rows, columns, weight,
                              ACTIVATIONS[activation], True, True, bias)
    expected = compute(x)
    # Cancellation: the error is relative to the terms, not to their sum.
    slack = 2e-6 * (np.abs(expected).max() + np.abs(x).max() * rows * 2.0)
    assert np.abs(layer(paddle.to_tensor(x)).numpy() - expected).max() <= slack


@pytest.mark.parametrize("weight", WEIGHTS)
def test_block_size_does_not_change_the_result(weight, monkeypatch):
    layer, compute, x = build(np.random.RandomState(2), 100, 37, WEIGHTS[weight], None, False,
                              False)
    monkeypatch.setattr(integer_linear, "_BLOCK", 1300)  # blocks of 34 or 32 rows
    assert close(layer(paddle.to_tensor(x)), compute(x))
    monkeypatch.setattr(integer_linear, "_BLOCK", 1)  # below the smallest block: 2 or 32 rows
    assert close(layer(paddle.to_tensor(x)), compute(x))


@pytest.mark.parametrize("weight", WEIGHTS)
def test_kept_weights_give_the_same_result(weight, monkeypatch):
    """Bitwise, and without a further dequantization: the integers may change unnoticed."""
    for block, activation in ((1300, None), (1 << 20, "A8 token")):
        monkeypatch.setattr(integer_linear, "_BLOCK", block)
        layer, _, x = build(np.random.RandomState(3), 100, 37, WEIGHTS[weight],
                            activation and ACTIVATIONS[activation], True, True)
        x, integers = paddle.to_tensor(x), layer.weight.clone()
        expected = layer(x).numpy()
        with keep_dequantized(layer) as names:
            assert names == [""]
            assert np.array_equal(layer(x).numpy(), expected)
            layer.weight.set_value(np.zeros_like(integers.numpy()))
            assert np.array_equal(layer(x).numpy(), expected)
        assert not np.array_equal(layer(x).numpy(), expected)
        layer.weight.set_value(integers)
        assert np.array_equal(layer(x).numpy(), expected)


def test_kept_weights_respect_the_limit_and_are_released():
    def linear():
        return IntegerLinear(16, 8, QuantSpec(4))

    model = nn.Sequential(linear(), nn.Sequential(linear(), nn.Linear(8, 16)), linear())
    keys = list(model.state_dict())
    for limit, expected in ((None, ["0", "1.0", "2"]), (2 * 512, ["0", "1.0"]), (1023, ["0"]),
                            (0, [])):
        with keep_dequantized(model, limit) as names:
            assert names == expected
    with pytest.raises(RuntimeError), keep_dequantized(model, 512):
        model[0](paddle.ones([1, 16]))
        with keep_dequantized(model) as names:  # the layer that keeps its weight already is left
            assert names == ["1.0", "2"]
        assert list(model.state_dict()) == keys
        assert model[0]._kept_blocks and model[2]._kept_blocks is None
        raise RuntimeError
    assert model[0]._kept_blocks is None
    with pytest.raises(ConfigError, match="max_bytes must be"), keep_dequantized(model, -1):
        pass
    with pytest.raises(ConfigTypeError, match="model must be"), keep_dequantized("model"):
        pass


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_other_dtypes_are_computed_in_float32(dtype, activation):
    random = np.random.RandomState(3)
    layer, compute, x = build(random, 64, 16, WEIGHTS["W4 g32"], ACTIVATIONS[activation], False,
                              False)
    layer.bias = layer.create_parameter([16], dtype=dtype, is_bias=True)
    x = paddle.to_tensor(x).astype(dtype)
    y = layer(x)
    assert y.dtype == x.dtype
    assert np.array_equal(y.astype("float32").numpy(),
                          layer(x.astype("float32")).astype(dtype).astype("float32").numpy())


def test_bias_keeps_its_dtype():
    linear = nn.Linear(8, 4)
    linear.to(dtype="float16")
    layer = IntegerLinear.from_linear(linear, rounded(linear.weight, WEIGHTS["W8 channel"]))
    assert layer.description()["dtype"] == "float16" and layer.bias is linear.bias
    assert layer.weight_scale.dtype == paddle.float32


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_single_token_many_tokens_and_empty_input(activation):
    random = np.random.RandomState(4)
    layer, compute, x = build(random, 32, 8, WEIGHTS["W8 channel"], ACTIVATIONS[activation], True,
                              True)
    assert close(layer(paddle.to_tensor(x[0, 0])), compute(x[0, 0]))
    empty = layer(paddle.zeros([0, 5, 32], "float16"))
    assert list(empty.shape) == [0, 5, 8] and empty.dtype == paddle.float16
    # Zeros quantize to zeros with any scale.
    at_zero = np.zeros((2, 32), np.float32)
    assert close(layer(paddle.to_tensor(at_zero)), compute(at_zero))


@pytest.mark.parametrize("activation", ["A16", "A8 tensor", "A8 token"])
def test_gradients_pass_to_the_input(activation):
    layer, compute, x = build(np.random.RandomState(5), 32, 8, WEIGHTS["W4 g32"],
                              ACTIVATIONS[activation], False, False)
    x = paddle.to_tensor(x, stop_gradient=False)
    layer(x).sum().backward()
    # Activation quantization is a straight-through estimator.
    expected = layer.dequantized_weight().sum(axis=1).numpy()
    assert np.allclose(x.grad.numpy(), expected, rtol=1e-5, atol=1e-6)


STATES = {
    ("W8 channel", None, False, False): {
        "weight": ("int8", [33, 6]), "weight_scale": ("float32", [1, 6])},
    ("W8 tensor", "A8 tensor", False, False): {
        "weight": ("int8", [33, 6]), "weight_scale": ("float32", [1, 1]),
        "activation_scale": ("float32", [1])},
    ("W8 channel affine", "A8 tensor affine", True, False): {
        "weight": ("uint8", [33, 6]), "weight_scale": ("float32", [1, 6]),
        "weight_zero_point": ("uint8", [1, 6]), "input_scale": ("float32", [33]),
        "activation_scale": ("float32", [1]), "activation_zero_point": ("int64", [1])},
    ("W4 g32 affine", "A8 token", False, True): {
        "weight": ("uint8", [17, 6]), "weight_scale": ("float32", [2, 6]),
        "weight_zero_point": ("uint8", [2, 6]), "permutation": ("int64", [33])},
    ("W4 g32", "A16", False, False): {
        "weight": ("uint8", [17, 6]), "weight_scale": ("float32", [2, 6])},
}


def kinds(layer):
    return {name: (str(value.dtype).replace("paddle.", ""), list(value.shape))
            for name, value in layer.state_dict().items()}


@pytest.mark.parametrize("case", STATES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_state_dict_keys(case, bias):
    weight, activation, smoothed, permuted = case
    expected = {**STATES[case], **({"bias": ("float32", [6])} if bias else {})}
    empty = IntegerLinear(33, 6, WEIGHTS[weight], bias, ACTIVATIONS.get(activation), smoothed,
                          permuted)
    assert kinds(empty) == expected
    full, _, _ = build(np.random.RandomState(6), 33, 6, WEIGHTS[weight],
                       ACTIVATIONS.get(activation), smoothed, permuted, bias)
    assert kinds(full) == expected


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_description_and_state_dict_restore_the_layer(weight, activation):
    layer, _, x = build(np.random.RandomState(7), 50, 12, WEIGHTS[weight],
                        ACTIVATIONS[activation], True, True)
    text = json.dumps(layer.description())
    again = IntegerLinear.from_description(json.loads(text))
    assert again.description() == layer.description()
    assert again.weight_spec == layer.weight_spec
    assert again.activation_spec == layer.activation_spec
    missing, left_over = again.set_state_dict(layer.state_dict())
    assert not missing and not left_over
    x = paddle.to_tensor(x)
    assert np.array_equal(again(x).numpy(), layer(x).numpy())


def test_description_of_limits_and_rounding():
    spec = QuantSpec(6, limits=(-20, 21), rounding="half_up", granularity=PerChannel(1))
    layer = IntegerLinear(4, 2, spec)
    text = json.dumps(layer.description())
    assert IntegerLinear.from_description(json.loads(text)).weight_spec == spec


def changed(description, path, value):
    description = copy.deepcopy(description)
    inner = description
    for key in path[:-1]:
        inner = inner[key]
    if value is KeyError:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return description


@pytest.mark.parametrize("path, value, word", [
    (["weight"], None, "weight"),
    (["weight"], 4, "4"),
    (["weight", "bits"], 9, "bits"),
    (["weight", "bits"], "8", "bits"),
    (["weight", "bits"], KeyError, "bits"),
    (["weight", "granularity"], "per_tensor", "per_tensor"),
    (["weight", "granularity"], {"kind": "per_row"}, "per_row"),
    (["weight", "granularity"], {"kind": ["per_row"]}, "per_row"),
    (["weight", "granularity", "axis"], 0, "weight"),
    (["weight", "granularity", "size"], 3, "size"),
    (["weight", "limits"], [1], "limits"),
    (["in_features"], 0, "in_features"),
    (["in_features"], 2.0, "in_features"),
    (["bias"], 1, "bias"),
    (["dtype"], "int8", "dtype"),
    (["smoothed"], KeyError, "smoothed"),
    (["colour"], "red", "colour"),
])
def test_invalid_descriptions(path, value, word):
    description = IntegerLinear(4, 2, WEIGHTS["W8 channel"]).description()
    with pytest.raises((ConfigError, ConfigTypeError, FormatError), match=word):
        IntegerLinear.from_description(changed(description, path, value))


@pytest.mark.parametrize("arguments, error, word", [
    ({"weight": 8}, ConfigTypeError, "weight"),
    ({"weight": QuantSpec(9)}, ConfigError, "weight.bits"),
    ({"weight": QuantSpec(1)}, ConfigError, "weight.bits"),
    ({"weight": QuantSpec(granularity=PerChannel(0))}, ConfigError, "weight"),
    ({"weight": QuantSpec(granularity=PerToken())}, ConfigError, "weight"),
    ({"activation": 8}, ConfigTypeError, "activation"),
    ({"activation": QuantSpec(16)}, ConfigError, "activation.bits"),
    ({"activation": QuantSpec(granularity=PerChannel(1))}, ConfigError, "granularity"),
    ({"activation": QuantSpec(granularity=PerToken(), **AFFINE)}, ConfigError, "symmetric"),
    ({"in_features": "4"}, ConfigTypeError, "in_features"),
    ({"out_features": 0}, ConfigError, "out_features"),
    ({"bias": 1}, ConfigTypeError, "bias"),
    ({"smoothed": "yes"}, ConfigTypeError, "smoothed"),
    ({"dtype": "float8"}, ConfigError, "dtype"),
])
def test_invalid_arguments(arguments, error, word):
    arguments = {"in_features": 4, "out_features": 2, "weight": QuantSpec(), **arguments}
    with pytest.raises(error, match=word):
        IntegerLinear(**arguments)


def test_from_linear_rejects_inconsistent_arguments():
    linear = nn.Linear(8, 4)
    held = rounded(linear.weight, WEIGHTS["W8 channel"])
    static = QuantSpec(8)
    with pytest.raises(ConfigError, match="activation_scale"):
        IntegerLinear.from_linear(linear, held, static)  # no qparams
    with pytest.raises(ConfigError, match="activation_zero_point"):
        IntegerLinear.from_linear(linear, held, static,
                                  (paddle.to_tensor([0.1]), paddle.to_tensor([3])))
    with pytest.raises(ConfigError, match="input_scale"):
        IntegerLinear.from_linear(linear, held, input_scale=paddle.ones([7]))
    other = SimpleNamespace(integers=held.integers, permutation=None, qparams=SimpleNamespace(
        spec=WEIGHTS["W8 g32"], scale=paddle.ones([2, 4]), zero_point=None))
    with pytest.raises(ConfigError, match="weight_scale"):
        IntegerLinear.from_linear(linear, other)


def test_from_linear_does_not_modify_the_linear():
    linear = nn.Linear(8, 4)
    before = {name: value.numpy().copy() for name, value in linear.state_dict().items()}
    held = rounded(linear.weight, WEIGHTS["W4 g32"])
    layer = IntegerLinear.from_linear(linear, held)
    layer.weight_scale.set_value(paddle.zeros_like(layer.weight_scale))
    assert held.qparams.scale.min().item() > 0.0  # a copy
    for name, value in linear.state_dict().items():
        assert np.array_equal(value.numpy(), before[name])


def encoder():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0), 2)


@pytest.mark.parametrize("weight, bound", [
    (QuantSpec(4, granularity=PerGroup(64)), 0.16),
    (QuantSpec(4, granularity=PerGroup(64), **AFFINE), 0.16),
    (QuantSpec(4, granularity=PerChannel(1)), 0.14),
    (QuantSpec(8, granularity=PerGroup(64)), 0.27),
    (QuantSpec(8, granularity=PerTensor()), 0.26),
])
def test_state_dict_size(weight, bound):
    """Bytes of the weights, with scales and zero points, in a state_dict."""
    def size(model, name_of):
        return sum(value.numpy().nbytes for name, value in model.state_dict().items()
                   if any(part in name for part in name_of) and "bias" not in name)

    model, linears = encoder(), ("proj", "linear")
    before = size(model, linears)
    assert before == 2 * 12 * 128 * 128 * 4
    after = size(deploy(model, weight), linears)
    assert after <= bound * before
    # No attribute outside of state_dict keeps a float copy.
    for layer in model.sublayers():
        if isinstance(layer, IntegerLinear):
            held = [value for value in vars(layer).values() if isinstance(value, paddle.Tensor)]
            assert held == [] and "weight" not in layer._parameters


MEMORY = """
import zlib, paddle, sys
from paddle.base import core
from paddleq import PerGroup, QuantSpec
from paddleq.nn import IntegerLinear

layer = IntegerLinear(2048, 4096, QuantSpec(4, granularity=PerGroup(64)))
layer.bias = None
x = paddle.ones([1, 2048])
before = core.host_memory_stat_current_value("Allocated", 0)
assert before >= layer.weight.numpy().nbytes  # that statistic does count
layer(x)
sys.stdout.write(str(core.host_memory_stat_peak_value("Allocated", 0) - before))
"""


def test_forward_does_not_dequantize_the_whole_matrix():
    """The float weight takes 32 MiB. Peak memory is measured in a new process."""
    found = subprocess.run([sys.executable, "-c", MEMORY], stdout=subprocess.PIPE, check=True)
    assert int(found.stdout) <= 20 << 20


def test_forward_in_a_transformer_and_in_its_copy():
    model = encoder()
    x = paddle.randn([2, 9, 128])
    before = model(x)
    deploy(model, WEIGHTS["W8 channel"], ACTIVATIONS["A8 token"])
    y = model(x)
    assert 0.0 < (y - before).norm().item() <= 0.05 * before.norm().item()
    assert np.array_equal(copy.deepcopy(model)(x).numpy(), y.numpy())


# Translation of the syntax tree and of bytecode. The latter of Paddle 2.6 writes the result of a
# division into its input, for any layer.
FULL_GRAPH = [True] if paddle.__version__.startswith("2.") else [True, False]


@pytest.mark.parametrize("full_graph", FULL_GRAPH)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_traced_program(activation, full_graph):
    layer, compute, x = build(np.random.RandomState(9), 64, 8, WEIGHTS["W4 g32"],
                              ACTIVATIONS[activation], True, True)
    traced = paddle.jit.to_static(nn.Sequential(layer, nn.ReLU()), full_graph=full_graph)
    expected = np.maximum(compute(x), 0.0)
    assert close(traced(paddle.to_tensor(x)), expected)


def test_casting_a_model():
    layer, compute, x = build(np.random.RandomState(8), 64, 8, WEIGHTS["W4 g32"],
                              ACTIVATIONS["A8 token"], True, False)
    layer.to(dtype="float16")
    y = layer(paddle.to_tensor(x).astype("float16"))
    assert y.dtype == paddle.float16 and layer.weight.dtype == paddle.uint8
    assert close(y, compute(x), 5e-3)


def test_repr_and_quant_type():
    layer = IntegerLinear(64, 8, WEIGHTS["W4 g32"], activation=ACTIVATIONS["A8 token"],
                          smoothed=True)
    assert layer.quant_type == "W4-per_group-A8-per_token"
    assert "in_features=64" in repr(layer) and "smoothed" in repr(layer)
    assert IntegerLinear(4, 2, QuantSpec(), activation=QuantSpec()).quant_type == (
        "W8-per_tensor-A8-per_tensor")
    assert IntegerLinear(4, 2, WEIGHTS["W8 channel"]).quant_type == "W8-per_channel"


def full_range_layer(spec, activation=None, rows=128, columns=32):
    """Return a layer whose weight has the highest level in each column."""
    random = np.random.RandomState(12)
    layer, _, _ = build(random, rows, columns, spec, activation, False, False)
    top = spec.quant_max
    integers = random.randint(-top, top + 1, [rows, columns])
    integers[random.randint(0, rows, columns), np.arange(columns)] = top
    packed = paddle.to_tensor(integers)
    layer._set_buffer("weight", pack_int4(packed, spec.signed) if layer.packed else packed)
    return layer, integers


@pytest.mark.parametrize("architecture", [70, 80])
@pytest.mark.parametrize("spec", ["W8 channel", "W4 channel"])
def test_gpu_kernel_weight_layout(spec, architecture):
    """Reference layout in numpy: each byte or half byte has an offset."""
    layer, integers = full_range_layer(WEIGHTS[spec])
    assert gpu_linear.kernel_skip_reason(layer) == ""
    kernel = gpu_linear.Kernel(layer, "float16", architecture)
    held = kernel.weight.numpy().view("uint8").ravel()
    bits = WEIGHTS[spec].bits
    if bits == 4:
        held = np.concatenate([held & 15, held >> 4])
    found = held.astype(int) - 2 ** (bits - 1)
    assert np.array_equal(np.sort(found), np.sort(integers.ravel()))
    assert kernel.scale.dtype == paddle.float16 and list(kernel.scale.shape) == [32]


def test_gpu_kernel_weight_layout_per_token():
    layer, integers = full_range_layer(WEIGHTS["W8 channel"], ACTIVATIONS["A8 token"])
    kernel = gpu_linear.Kernel(layer, "bfloat16", 80)
    assert np.array_equal(kernel.weight.numpy(), integers.T)
    assert np.array_equal(kernel.scale.numpy(), layer.weight_scale.flatten().numpy())


@pytest.mark.parametrize("spec, activation, sizes, why", [
    ("W8 channel affine", "A16", (128, 32), "symmetric"),
    ("W5 channel", "A16", (128, 32), "4 or 8 bits"),
    ("W8 tensor", "A16", (128, 32), "per channel"),
    ("W4 g32", "A16", (128, 32), "groups of 64"),
    ("W8 channel", "A8 tensor", (128, 32), "activations"),
    ("W4 channel", "A8 token", (128, 32), "activations"),
    ("W8 channel", "A16", (100, 32), "multiples"),
    ("W8 channel", "A16", (128, 24), "multiples"),
])
def test_unsupported_gpu_kernels_report_the_reason(spec, activation, sizes, why):
    layer, _ = full_range_layer(WEIGHTS[spec], ACTIVATIONS[activation], *sizes)
    assert why in gpu_linear.kernel_skip_reason(layer)


def test_gpu_kernels_require_columns_with_the_highest_level():
    layer, integers = full_range_layer(WEIGHTS["W8 channel"])
    integers[:, 3] = integers[:, 3] // 2
    layer._set_buffer("weight", paddle.to_tensor(integers))
    assert "highest level" in gpu_linear.kernel_skip_reason(layer)


def test_gpu_kernels_fall_back_without_a_gpu():
    model = nn.Sequential(IntegerLinear(64, 16, WEIGHTS["W8 channel"]))
    with pytest.raises(ConfigTypeError, match="float32"):
        gpu_linear.use_gpu_kernels(model, "float32")
    with pytest.raises(ModelError, match="no GPU"):
        gpu_linear.use_gpu_kernels(model)
    # The kernel accepts GPU tensors only, so the layer uses its own forward.
    layer, _ = full_range_layer(WEIGHTS["W8 channel"])
    x = paddle.randn([2, 128]).astype("float16")
    before = layer(x)
    layer._kernel = gpu_linear.Kernel(layer, "float16", 80)
    assert np.array_equal(layer(x).numpy(), before.numpy())
