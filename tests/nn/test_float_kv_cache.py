"""KV caches in float data types, bit for bit against ``ml_dtypes`` and tables in numpy."""

import numpy as np
import paddle
import pytest
from float_reference import rounded, scale_of
from paddle import nn

import paddleq
from paddleq.algorithms import quantize_layer_by_layer
from paddleq.config import LayerConfig, QuantConfig
from paddleq.errors import ConfigError, ExportError
from paddleq.nn import Float8KVCache, Int8KVCache
from paddleq.nn.kv_cache import FLOAT_DTYPES

KINDS = ["per_channel", "per_token"]


def keys_and_values(axis, tokens=7):
    rng = np.random.RandomState(axis)
    shape = [2, tokens, 3, 8] if axis == 1 else [2, 3, tokens, 8]
    x = rng.randn(2, *shape) * np.exp(2 * rng.randn(2, 1, 1, 1, 8))
    return [each.astype(np.float32) for each in x]


def cache_for(kind, dtype, k, v, axis):
    if kind == "per_token":
        return Float8KVCache("per_token", token_axis=axis, dtype=dtype)
    return Float8KVCache.from_abs_max(
        *(paddle.to_tensor(np.abs(x).max(axis=(0, axis))) for x in (k, v)), token_axis=axis,
        dtype=dtype)


def simulated(x, kind, dtype, axis):
    axes = -1 if kind == "per_token" else (0, axis)
    scale = scale_of(np.abs(x).max(axis=axes, keepdims=True), dtype)
    element = paddleq.QuantSpec(dtype=dtype).element
    return rounded(x / scale, element) * scale


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("axis", [1, 2])
def test_keys_and_values_equal_reference(kind, dtype, axis):
    k, v = keys_and_values(axis)
    cache = cache_for(kind, dtype, k, v, axis)
    found = cache(paddle.to_tensor(k), paddle.to_tensor(v))
    for x, y in zip((k, v), found):
        assert np.array_equal(y.numpy(), simulated(x, kind, dtype, axis))
    stored = found[2]
    assert [each.dtype for each in stored[:2]] == [paddle.uint8] * 2
    for y, kept in zip(found, cache.read(stored)):
        assert np.array_equal(kept.numpy(), y.numpy())
    size = sum(each.numpy().nbytes for each in stored)
    assert size == 2 * k.size * (1 if kind == "per_channel" else 1.5)  # 4 bytes for 8 features
    # Token by token, the values are the same.
    past = None
    for token in range(7):
        at = [slice(None)] * 4
        at[axis] = slice(token, token + 1)
        y_k, y_v, past = cache(*(paddle.to_tensor(x[tuple(at)]) for x in (k, v)), past)
    assert np.array_equal(y_k.numpy(), found[0].numpy())
    assert np.array_equal(y_v.numpy(), found[1].numpy())
    assert np.array_equal(past[0].numpy(), stored[0].numpy())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_engine_replaces_the_caches_of_a_model(kind, dtype, tmp_path):
    def build():
        paddle.seed(0)
        model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0), 2)
        model.eval()
        return model

    model, x = build(), paddle.randn([2, 5, 16])
    exact = model(x).numpy()
    config = QuantConfig()
    config.add_type(nn.MultiHeadAttention, LayerConfig(kv_cache=kind, kv_cache_dtype=dtype))
    quantize_layer_by_layer(model, config=config, data=[x])
    caches = [layer for layer in model.sublayers() if isinstance(layer, Int8KVCache)]
    assert [cache.quant_type for cache in caches] == [f"C({dtype})-{kind}"] * 2
    assert f"C({dtype})-{kind}" in paddleq.summary(model)
    y = model(x).numpy()
    assert 0 < np.linalg.norm(y - exact) < 0.05 * np.linalg.norm(exact)
    # Caches of Paddle's attention: the past is stored in codes.
    cache = model.gen_cache(x[:, :1])
    _, cache = model(x[:, :1], cache=cache)
    assert cache[0].k.dtype == paddle.uint8
    paddleq.save_checkpoint(model, str(tmp_path / "model"))
    loaded = build()
    paddleq.load_checkpoint(loaded, str(tmp_path / "model"))
    assert np.array_equal(loaded(x).numpy(), y)
    target = tmp_path / "file"
    with pytest.raises(ExportError, match="no runtime has operators"):
        paddleq.save_quantized_model(model, str(target / "model"),
                                     [paddle.static.InputSpec([None, 5, 16], "float32")])
    assert not target.exists() or not list(target.iterdir())


def test_arguments_are_checked():
    with pytest.raises(ConfigError, match="dtype must be one of 'float8_e4m3fn'"):
        Float8KVCache("per_token", dtype="nf4")
    with pytest.raises(ConfigError, match="kv_cache_dtype must be one of 'int8'"):
        LayerConfig(kv_cache="per_token", kv_cache_dtype="mxfp8_e4m3fn")
