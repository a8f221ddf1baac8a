"""Int8 KV caches against float64 formulas, in Paddle's attention and in a user-defined one."""

import math

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paddle import nn
from paddle.nn import functional as F
from runtimes import openvino, paddle_inference, relative_error

import paddleq
from paddleq.errors import CalibrationError, ConfigError
from paddleq.nn import Int8KVCache, KVCache
from paddleq.nn.kv_cache import insert_cache, supports_cache

KINDS = ["per_channel", "per_token"]
AXES = [1, 2]


def cache_for(kind, k, v, token_axis=1):
    """Return an int8 cache; per channel it has the scales of these keys and values."""
    if kind == "per_token":
        return Int8KVCache("per_token", token_axis=token_axis)
    return Int8KVCache.from_abs_max(*(x.abs().max(axis=[0, token_axis]) for x in (k, v)),
                                    token_axis=token_axis)


def simulated(x, kind, token_axis, most=None):
    """Return the float64 fake-quantized values and the steps."""
    x = np.asarray(x, "float64")
    if kind == "per_token":
        step = np.abs(x).max(-1, keepdims=True) / 127
    else:
        most = np.abs(x).max((0, token_axis)) if most is None else np.asarray(most, "float64")
        step = np.expand_dims(most, (0, token_axis)) / 127
    step = np.maximum(step, 1e-8 / 127)
    return np.clip(np.rint(x / step), -128, 127) * step, np.broadcast_to(step, x.shape)


def keys_and_values(seed, batch, tokens, heads, dim, token_axis, size=1.0):
    """Return keys and values whose magnitude varies by feature and token."""
    random = np.random.RandomState(seed)
    shape = [batch, tokens, heads, dim] if token_axis == 1 else [batch, heads, tokens, dim]
    x = random.randn(2, *shape) * np.exp(random.randn(2, 1, 1, 1, dim)) * size
    return [paddle.to_tensor(each.astype("float32")) for each in x]


@given(st.integers(0, 2 ** 31 - 1), st.integers(1, 3), st.integers(1, 9), st.integers(1, 3),
       st.integers(1, 8), st.sampled_from(KINDS), st.sampled_from(AXES),
       st.sampled_from([1e-5, 1.0, 1e4]))
def test_dequantized_keys_and_values_match_float64_reference(seed, batch, tokens, heads, dim, kind,
                                                             axis, size):
    k, v = keys_and_values(seed, batch, tokens, heads, dim, axis, size)
    cache = cache_for(kind, k, v, axis)
    k2, v2, past = cache(k, v)
    for x, y, kept in zip((k, v), (k2, v2), past):
        expected, step = simulated(x.numpy(), kind, axis)
        assert kept.dtype == paddle.int8 and list(kept.shape) == list(x.shape)
        # In float32 a value on a rounding border may differ by one step.
        off = np.abs(y.numpy() - expected) / step
        on_border = np.abs(np.abs(x.numpy() / step % 1) - 0.5) < 1e-4
        assert np.all(off[~on_border] < 1e-4) and np.all(off < 1 + 1e-4)
        assert np.all(np.abs(y.numpy() - x.numpy()) <= 0.5001 * step)


@given(st.integers(0, 2 ** 31 - 1), st.lists(st.integers(1, 4), min_size=1, max_size=4),
       st.sampled_from([None, *KINDS]), st.sampled_from(AXES))
def test_incremental_update_equals_a_single_update(seed, chunks, kind, axis):
    k, v = keys_and_values(seed, 2, sum(chunks), 2, 4, axis)
    cache = KVCache(axis) if kind is None else cache_for(kind, k, v, axis)
    k_all, v_all, kept = cache(k, v)
    past = None
    for new_k, new_v in zip(paddle.split(k, chunks, axis), paddle.split(v, chunks, axis)):
        k2, v2, past = cache(new_k, new_v, past)
    for mine, theirs in zip((k2, v2, *past), (k_all, v_all, *kept)):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
    assert past[0].shape[axis] == sum(chunks)


@pytest.mark.parametrize("kind", KINDS)
def test_cache_size(kind):
    k, v = keys_and_values(0, 2, 16, 4, 64, 1)
    past = cache_for(kind, k, v)(k, v)[2]
    size = sum(each.numpy().nbytes for each in past)
    assert size / (2 * k.numpy().nbytes) == (0.25 if kind == "per_channel" else 0.25 + 1 / 64)


@pytest.mark.parametrize("kind", KINDS)
def test_values_beyond_the_calibrated_range_are_clipped(kind):
    k, v = keys_and_values(0, 1, 4, 2, 4, 1)
    y = cache_for(kind, k, v)(3 * k, v)[0].numpy()
    most = np.abs(k.numpy()).max((0, 1)) if kind == "per_channel" else None
    np.testing.assert_allclose(y, simulated(3 * k.numpy(), kind, 1, most)[0], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_output_keeps_the_input_dtype(kind, dtype):
    k, v = keys_and_values(0, 2, 5, 2, 4, 1)
    cache = cache_for(kind, k, v)
    k, v = k.astype(dtype), v.astype(dtype)
    expected = cache(k.astype("float32"), v.astype("float32"))[0].astype(dtype)
    y, _, past = cache(k, v)
    y, _, past = cache(k, v, past)
    assert y.dtype == getattr(paddle, dtype) and past[0].dtype == paddle.int8
    np.testing.assert_array_equal(y[:, 5:].astype("float32").numpy(),
                                  expected.astype("float32").numpy())


def test_zeros_are_exact():
    zeros = paddle.zeros([1, 3, 2, 4])
    for kind in KINDS:
        y, _, past = cache_for(kind, zeros, zeros)(zeros, zeros)
        assert y.abs().max().item() == 0 and past[0].astype("int32").abs().max().item() == 0


def test_state_dict_loads_into_an_uncalibrated_cache():
    k, v = keys_and_values(0, 1, 4, 2, 8, 1)
    full = cache_for("per_channel", k, v)
    empty = Int8KVCache.from_description(full.description())
    with pytest.raises(CalibrationError, match="no scales yet"):
        empty(k, v)
    empty.set_state_dict(full.state_dict())
    np.testing.assert_array_equal(empty(k, v)[0].numpy(), full(k, v)[0].numpy())
    token = Int8KVCache("per_token", token_axis=2)
    assert Int8KVCache.from_description(token.description()).description() == token.description()
    assert (full.quant_type, token.quant_type) == ("C8-per_channel", "C8-per_token")


def test_invalid_arguments_and_inputs():
    k, v = keys_and_values(0, 1, 4, 2, 8, 1)
    with pytest.raises(ConfigError, match="granularity must be one of 'per_channel', 'per_token'"):
        Int8KVCache("per_head")
    with pytest.raises(ConfigError, match="token_axis must be one of 1, 2"):
        KVCache(0)
    with pytest.raises(TypeError, match="head_dim must be an int"):
        Int8KVCache("per_channel", 2)
    with pytest.raises(CalibrationError, match="no scales yet"):
        Int8KVCache("per_channel")(k, v)
    with pytest.raises(ConfigError, match=r"2 kv_heads of 8 features.*shape \[1, 4, 1, 8\]"):
        cache_for("per_channel", k, v)(k[:, :, :1], v[:, :, :1])


# -- paddle.nn.MultiHeadAttention ----------------------------------------------------------------


def quantize_caches(model, kind, run):
    """Quantize the caches of all attentions; per-channel scales come from one ``run``."""
    attentions = [layer for layer in model.sublayers(include_self=True) if supports_cache(layer)]
    seen = {}
    for attention in attentions:
        insert_cache(attention)
        attention.kv_cache.register_forward_pre_hook(
            lambda layer, inputs: seen.__setitem__(layer, inputs))
    run()
    for attention in attentions:
        attention.kv_cache = cache_for(kind, *seen[attention.kv_cache][:2], token_axis=2)
    return attentions


def attention_in_float64(attention, x, memory, kind, causal=False):
    """Compute attention on quantized keys and values in float64 numpy."""
    def linear(layer, y):
        return y @ layer.weight.numpy().astype("float64") + layer.bias.numpy().astype("float64")

    def heads(y):
        return y.reshape(*y.shape[:2], attention.num_heads, -1).transpose(0, 2, 1, 3)

    q, k, v = (heads(linear(layer, y)) for layer, y in (
        (attention.q_proj, x), (attention.k_proj, memory), (attention.v_proj, memory)))
    k, v = simulated(k, kind, 2)[0], simulated(v, kind, 2)[0]
    scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(attention.head_dim)
    if causal:
        scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    y = weights / weights.sum(-1, keepdims=True) @ v
    return linear(attention.out_proj, y.transpose(0, 2, 1, 3).reshape(x.shape))


@pytest.mark.parametrize("kind", KINDS)
def test_multi_head_attention_matches_float64_reference(kind):
    attention = nn.MultiHeadAttention(32, 4)
    x, memory = paddle.randn([2, 5, 32]), paddle.randn([2, 7, 32])
    exact = attention(x, memory, memory).numpy()
    quantize_caches(attention, kind, lambda: attention(x, memory, memory))
    expected = attention_in_float64(attention, x.numpy(), memory.numpy(), kind)
    y = attention(x, memory, memory).numpy()
    # One value on a rounding border moves the output by far less than quantization does.
    error = np.abs(exact - expected).max()
    assert error > 1e-4 and np.abs(y - expected).max() < 0.05 * error
    static = attention.gen_cache(memory, memory, nn.MultiHeadAttention.StaticCache)
    assert static.k.dtype == paddle.int8 and isinstance(static, attention.StaticCache)
    z, same = attention(x, None, None, None, static)
    np.testing.assert_array_equal(z.numpy(), y)
    assert same.k is static.k


@pytest.mark.parametrize("kind", KINDS)
def test_float_attention_is_unchanged_by_a_float_cache(kind):
    attention = nn.MultiHeadAttention(16, 2, need_weights=True)
    names = set(attention.state_dict())
    x = paddle.randn([2, 5, 16])
    expected = [each.numpy() for each in attention(x)]
    step = attention(x, cache=attention.gen_cache(x))
    insert_cache(attention)
    insert_cache(attention)
    assert set(attention.state_dict()) == names and type(attention).__name__.startswith("Cached")
    for mine, theirs in zip(attention(x), expected):
        np.testing.assert_array_equal(mine.numpy(), theirs)
    mine = attention(x, cache=attention.gen_cache(x))
    assert type(mine[2]) is type(step[2])
    for a, b in zip(mine[2], step[2]):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_float_cache_of_the_caller_is_quantized(kind):
    attention = nn.MultiHeadAttention(16, 2)
    x = paddle.randn([2, 6, 16])
    k, v = attention.compute_kv(x[:, :4], x[:, :4])
    quantize_caches(attention, kind, lambda: attention(x))
    given = attention.gen_cache(k, v)
    assert given.k.dtype == paddle.int8
    y, _ = attention(x[:, 4:], cache=given)
    z, _ = attention(x[:, 4:], cache=nn.MultiHeadAttention.Cache(k, v))
    np.testing.assert_array_equal(y.numpy(), z.numpy())


def test_overridden_attention_methods_are_not_replaced():
    class Own(nn.MultiHeadAttention):
        def _prepare_qkv(self, query, key, value, cache=None):
            return super()._prepare_qkv(query, key, value, cache)

    class Named(nn.MultiHeadAttention):
        """Subclass without overrides."""

    assert not supports_cache(Own(8, 2)) and supports_cache(Named(8, 2))
    assert not supports_cache(nn.Linear(2, 2))


class Writer(nn.Layer):
    """Embedding, ``paddle.nn``'s decoder or encoder with a causal mask, logits."""

    def __init__(self, decoder):
        super().__init__()
        self.embedding = nn.Embedding(11, 16)
        if decoder:
            layer = nn.TransformerDecoderLayer(16, 2, 32, normalize_before=True)
            self.stack = nn.TransformerDecoder(layer, 2, nn.LayerNorm(16))
        else:
            layer = nn.TransformerEncoderLayer(16, 2, 32, normalize_before=True)
            self.stack = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16))
        self.head = nn.Linear(16, 11)
        self.decoder = decoder
        self.eval()

    def forward(self, tokens, memory, cache=None):
        x = self.embedding(tokens)
        if cache is None:
            n = x.shape[1]
            mask = paddle.tril(paddle.ones([n, n])).astype("bool").reshape([1, 1, n, n])
            x = self.stack(x, memory, mask) if self.decoder else self.stack(x, mask)
            return self.head(x)
        x, cache = self.stack(x, memory, cache=cache) if self.decoder else self.stack(
            x, cache=cache)
        return self.head(x), cache


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decoder", [True, False])
def test_greedy_generation_with_and_without_cache(kind, decoder):
    model = Writer(decoder)
    memory, start = paddle.randn([2, 7, 16]), paddle.to_tensor([[1, 2, 3], [4, 5, 6]])
    exact = model(start, memory).numpy()
    quantize_caches(model, kind, lambda: model(start, memory))
    tokens, cache = start, model.stack.gen_cache(memory)
    # Paddle's layers accept no mask with a cache, so the prompt is passed token by token.
    for i in range(3):
        logits, cache = model(start[:, i:i + 1], memory, cache)
    for _ in range(6):
        full = model(tokens, memory)[:, -1].numpy()
        # A key on a rounding border may differ by a step if the summation order changes.
        np.testing.assert_allclose(logits[:, -1].numpy(), full, atol=2e-3)
        word = logits[:, -1].argmax(-1, keepdim=True)
        np.testing.assert_array_equal(word.numpy()[:, 0], full.argmax(-1))
        tokens = paddle.concat([tokens, word], axis=1)
        logits, cache = model(word, memory, cache)
    kept = cache[0][0] if decoder else cache[0]
    assert kept.k.dtype == paddle.int8 and kept.k.shape[2] == 9
    assert isinstance(kept, nn.MultiHeadAttention.Cache)
    assert np.abs(model(start, memory).numpy() - exact).max() > 1e-4  # not the float output


@pytest.mark.parametrize("kind", KINDS)
def test_beam_search_reorders_the_cache(kind):
    model = Writer(decoder=True)
    memory, tokens = paddle.randn([3, 4, 16]), paddle.to_tensor([[1], [2], [3]])
    quantize_caches(model, kind, lambda: model(tokens, memory))
    _, cache = model(tokens, memory, model.stack.gen_cache(memory))
    order = paddle.to_tensor([2, 0, 0])
    moved = paddle.utils.map_structure(lambda x: x[order], cache)
    y, _ = model(tokens, paddle.index_select(memory, order), moved)
    z, _ = model(tokens, memory, cache)
    again, _ = model(paddle.to_tensor([[3], [1], [1]]), paddle.index_select(memory, order),
                     paddle.utils.map_structure(lambda x: x, moved))
    assert type(moved[0][0]) is type(cache[0][0])
    assert np.abs(y.numpy()[0] - z.numpy()[0]).max() > 1e-3
    first = model(tokens[2:], memory[2:], paddle.utils.map_structure(lambda x: x[2:], cache))[0]
    np.testing.assert_allclose(again.numpy()[:1], first.numpy(), atol=1e-5)


# -- user-defined attention ----------------------------------------------------------------------


class GroupedAttention(nn.Layer):
    """Grouped-query attention: the cache holds the key heads only."""

    def __init__(self, width=16, heads=4, kv_heads=2):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.q_proj = nn.Linear(width, width, bias_attr=False)
        self.kv_proj = nn.Linear(width, 2 * kv_heads * self.head_dim, bias_attr=False)
        self.kv_cache = KVCache()

    def forward(self, x, past=None):
        q = self.q_proj(x).reshape([0, 0, self.heads, self.head_dim])
        k, v = self.kv_proj(x).reshape([0, 0, 2 * self.kv_heads, self.head_dim]).split(2, axis=2)
        offset = 0 if past is None else past[0].shape[1]
        k, v, past = self.kv_cache(k, v, past)
        k, v = (paddle.tile(each.unsqueeze(3), [1, 1, 1, self.heads // self.kv_heads, 1])
                .reshape([0, 0, self.heads, self.head_dim]).transpose([0, 2, 1, 3])
                for each in (k, v))
        scores = q.transpose([0, 2, 1, 3]) @ k.transpose([0, 1, 3, 2]) / self.head_dim ** 0.5
        hidden = paddle.triu(paddle.full([scores.shape[2], offset + scores.shape[2]], -1e9),
                             offset + 1)
        return (F.softmax(scores + hidden) @ v).transpose([0, 2, 1, 3]).flatten(2), past


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_user_defined_attention(kind):
    attention = GroupedAttention()
    x = paddle.randn([2, 9, 16])
    if kind is not None:
        attention.kv_cache = cache_for(kind, *attention(x)[1])
    y, kept = attention(x)
    assert kept[0].dtype == (paddle.float32 if kind is None else paddle.int8)
    past, outputs = None, []
    for chunk in paddle.split(x, [4, 1, 1, 3], axis=1):
        output, past = attention(chunk, past)
        outputs.append(output)
    assert list(past[0].shape) == [2, 9, 2, 4]
    np.testing.assert_allclose(paddle.concat(outputs, axis=1).numpy(), y.numpy(), atol=5e-3)


# -- programs ------------------------------------------------------------------------------------


class TracedAttention(nn.Layer):
    def __init__(self, own):
        super().__init__()
        self.own, self.linear = own, nn.Linear(16, 16)
        self.attention = GroupedAttention() if own else nn.MultiHeadAttention(16, 4)

    def forward(self, x):
        y = self.attention(self.linear(x))
        return y[0] if self.own else y


def traced_attention(own, kind):
    paddle.seed(3)
    model, x = TracedAttention(own), paddle.randn([2, 9, 16])
    attention, y = model.attention, model.linear(x)
    if own:
        attention.kv_cache = cache_for(kind, *attention(y)[1])
    else:
        quantize_caches(attention, kind, lambda: attention(y))
    model.eval()
    return model, x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own", [True, False])
def test_traced_model_equals_dynamic_model(kind, own, tmp_path):
    model, x = traced_attention(own, kind)
    spec = [paddle.static.InputSpec([None, 9, 16], name="x")]
    paddle.jit.save(model, str(tmp_path / "model"), input_spec=spec)
    z = paddle.jit.load(str(tmp_path / "model"))(x)
    np.testing.assert_allclose(z.numpy(), model(x).numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own", [True, False])
def test_exported_model_equals_simulation(kind, own, tmp_path):
    model, x = traced_attention(own, kind)
    path = str(tmp_path / "model")
    paddleq.save_quantized_model(model, path, [paddle.static.InputSpec([None, 9, 16], name="x")])
    y = model(x).numpy()
    assert relative_error(paddle_inference(path, [x.numpy()])[0], y) < 1e-6
    assert relative_error(paddle_inference(path, [x.numpy()], ir_optim=True)[0], y) < 1e-5
    assert relative_error(openvino(path, [x.numpy()])[0], y) < 1e-5
    float_one = TracedAttention(own)
    float_one.set_state_dict(model.state_dict())
    assert relative_error(float_one(x).numpy(), y) > 1e-4
