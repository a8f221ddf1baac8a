"""Int8 KV caches of decoders that keep the past as tuples, against float64 numpy."""

import copy

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.nn import functional as F
from runtimes import paddle_inference, relative_error

import paddleq
from paddleq.errors import ConfigError, ConfigTypeError, ModelError
from paddleq.golden_stick import PTQ, PTQConfig
from paddleq.nn import Int8KVCache, KVCache, adapt_tuple_cache

WIDTH, HEADS, KV_HEADS, DIM, WORDS = 32, 4, 2, 8, 40
FREQUENCIES = 10000.0 ** (-np.arange(DIM // 2) * 2.0 / DIM)
KINDS = ["per_channel", "per_token"]


def rotated(x, angles):
    turned = paddle.concat([-x[..., DIM // 2:], x[..., :DIM // 2]], -1)
    return x * angles.cos() + turned * angles.sin()


class Attention(nn.Layer):
    """As in LLaMA: rotary positions, grouped queries; the past is a tuple joined in forward."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.o_proj = nn.Linear(WIDTH, HEADS * DIM), nn.Linear(HEADS * DIM, WIDTH)
        self.k_proj, self.v_proj = (nn.Linear(WIDTH, KV_HEADS * DIM) for _ in range(2))

    def forward(self, hidden_states, position_ids, past_key_value=None, attention_mask=None,
                output_attentions=False, use_cache=False):
        q = self.q_proj(hidden_states).reshape([0, 0, HEADS, DIM])
        k, v = (proj(hidden_states).reshape([0, 0, KV_HEADS, DIM])
                for proj in (self.k_proj, self.v_proj))
        angles = position_ids.astype("float32").unsqueeze(-1) * paddle.to_tensor(
            FREQUENCIES, dtype="float32")
        angles = paddle.concat([angles, angles], -1).unsqueeze(-2)
        q, k = rotated(q, angles), rotated(k, angles)
        if past_key_value is not None:
            k = paddle.concat([past_key_value[0], k], axis=1)
            v = paddle.concat([past_key_value[1], v], axis=1)
        q, all_k, all_v = (x.transpose([0, 2, 1, 3]) for x in (q, *(
            paddle.repeat_interleave(each, HEADS // KV_HEADS, axis=2) for each in (k, v))))
        scores = F.softmax(q @ all_k.transpose([0, 1, 3, 2]) / DIM ** 0.5 + attention_mask)
        y = self.o_proj((scores @ all_v).transpose([0, 2, 1, 3]).flatten(2))
        outputs = (y, scores) if output_attentions else (y,)
        if use_cache:
            outputs += ((k, v),)
        return outputs[0] if len(outputs) == 1 else outputs


class HeadsFirst(nn.Layer):
    """Keys [batch, heads, tokens, head_dim]; the past has another name and is always returned."""

    def __init__(self):
        super().__init__()
        self.inner = Attention()

    def forward(self, hidden_states, position_ids, attention_mask=None, layer_past=None):
        past = layer_past and tuple(x.transpose([0, 2, 1, 3]) for x in layer_past)
        y, present = self.inner(hidden_states, position_ids, past, attention_mask, use_cache=True)
        return [y, tuple(x.transpose([0, 2, 1, 3]) for x in present)]


class Block(nn.Layer):
    def __init__(self, heads_first=False):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.self_attn, self.heads_first = (HeadsFirst if heads_first else Attention)(), heads_first
        self.up, self.down = nn.Linear(WIDTH, 48), nn.Linear(48, WIDTH)

    def forward(self, x, positions, mask, past=None, use_cache=False):
        if self.heads_first:
            y, past = self.self_attn(self.norm1(x), positions, mask, layer_past=past)
        else:
            y = self.self_attn(self.norm1(x), positions, past, attention_mask=mask,
                               use_cache=use_cache)
            y, past = y if use_cache else (y, None)
        x = x + y
        return x + self.down(F.relu(self.up(self.norm2(x)))), past


class Decoder(nn.Layer):
    def __init__(self, heads_first=False):
        super().__init__()
        self.embedding, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS)
        self.layers = nn.LayerList([Block(heads_first) for _ in range(2)])
        self.token_axis = 2 if heads_first else 1

    def forward(self, tokens, pasts=None, use_cache=False):
        new, old = paddle.arange(paddle.shape(tokens)[1]), 0
        if pasts is not None:
            old = paddle.shape(pasts[0][0].astype("float32"))[self.token_axis].astype("int64")
        positions = new + old
        ahead = paddle.arange(positions[-1] + 1).unsqueeze(0) > positions.unsqueeze(1)
        x, kept = self.embedding(tokens), []
        for number, layer in enumerate(self.layers):
            x, past = layer(x, positions.unsqueeze(0), ahead.astype("float32") * -1e9,
                            None if pasts is None else pasts[number], use_cache)
            kept.append(past)
        return (self.head(x), kept) if use_cache else self.head(x)


class Step(nn.Layer):
    """The decoder with its past as input and output, for an export."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens, pasts=None):
        return self.decoder(tokens, pasts, True)


def decoder(heads_first=False, adapted=True):
    paddle.seed(4)
    net = Decoder(heads_first)
    net.eval()
    for parameter in net.parameters():
        parameter.set_value(parameter + 0.3 * paddle.randn(parameter.shape))
    for layer in net.layers if adapted else ():
        if heads_first:
            adapt_tuple_cache(layer.self_attn, "layer_past", None, token_axis=2)
        else:
            adapt_tuple_cache(layer.self_attn)
    return net


def tokens(count=10):
    return paddle.to_tensor(np.random.RandomState(0).randint(0, WORDS, [2, count]))


def quantized(kind, heads_first=False, **config):
    net = decoder(heads_first)
    config = PTQConfig(kvcache_quant_dtype="int8", kvcache_quant_granularity=kind, **config)
    return PTQ(config).apply(net, datasets=[{"tokens": tokens()}])


# -- float64 reference ---------------------------------------------------------------------------


class Reference:
    """The decoder in float64; keys and values are rounded when a call ends."""

    def __init__(self, net, kind):
        self.kind = kind
        self.w = {name: value.numpy().astype(np.float64)
                  for name, value in net.state_dict().items()}
        self.pasts = [None] * len(net.layers)

    def linear(self, name, x):
        return x @ self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def norm(self, name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x ** 2).mean(-1, keepdims=True) + 1e-5)
        return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def rounded(self, name, slot, x):
        if self.kind == "per_token":
            step = np.abs(x).max(-1, keepdims=True) / 127
        else:
            step = self.w[f"{name}.kv_cache.{'kv'[slot]}_scale"]
        return np.clip(np.rint(x / step), -128, 127) * step

    def attention(self, number, x, positions):
        name = f"layers.{number}.self_attn"
        angles = np.tile(positions[:, None] * FREQUENCIES, 2)[:, None]

        def split(proj, heads, rotate=True):
            y = self.linear(f"{name}.{proj}", x).reshape([*x.shape[:2], heads, DIM])
            turned = np.concatenate([-y[..., DIM // 2:], y[..., :DIM // 2]], -1)
            return y * np.cos(angles) + turned * np.sin(angles) if rotate else y

        q, new = split("q_proj", HEADS), [split("k_proj", KV_HEADS),
                                          split("v_proj", KV_HEADS, False)]
        old = self.pasts[number]
        k, v = new if old is None else (np.concatenate(pair, 1) for pair in zip(old, new))
        late = [self.rounded(name, slot, each) for slot, each in enumerate(new)]
        self.pasts[number] = late if old is None else [
            np.concatenate(pair, 1) for pair in zip(old, late)]
        k, v = (np.repeat(each, HEADS // KV_HEADS, 2) for each in (k, v))
        scores = np.einsum("bqhd,bkhd->bhqk", q, k) / DIM ** 0.5
        scores += np.where(np.arange(k.shape[1]) > positions[:, None], -1e9, 0.0)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        mixed = np.einsum("bhqk,bkhd->bqhd", scores, v).reshape([*x.shape[:2], HEADS * DIM])
        return self.linear(f"{name}.o_proj", mixed)

    def __call__(self, ids):
        old = 0 if self.pasts[0] is None else self.pasts[0][0].shape[1]
        positions, x = old + np.arange(ids.shape[1]), self.w["embedding.weight"][ids]
        for number in range(len(self.pasts)):
            name = f"layers.{number}"
            x = x + self.attention(number, self.norm(f"{name}.norm1", x), positions)
            up = np.maximum(self.linear(f"{name}.up", self.norm(f"{name}.norm2", x)), 0.0)
            x = x + self.linear(f"{name}.down", up)
        return self.linear("head", x)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_generation_equals_float64(kind):
    net = quantized(kind, weight_quant_dtype=None)
    reference, ids, pasts = Reference(net, kind), tokens(), None
    for _ in range(8):
        scores, pasts = net(ids, pasts, use_cache=True)
        expected = reference(ids.numpy())
        assert relative_error(scores.numpy(), expected) < 1e-5
        ids = scores[:, -1:].argmax(-1)
        assert np.array_equal(ids.numpy(), expected[:, -1:].argmax(-1))
    assert [each.dtype for each in pasts[0][:2]] == [paddle.int8] * 2
    assert list(pasts[0][0].shape) == [2, 17, KV_HEADS, DIM]
    assert len(pasts[0]) == (2 if kind == "per_channel" else 4)


# -- around it -----------------------------------------------------------------------------------


@pytest.mark.parametrize("heads_first", [False, True])
def test_adapted_float_decoder_computes_the_same(heads_first):
    plain, net = decoder(heads_first, adapted=False), decoder(heads_first)
    assert list(net.state_dict()) == list(plain.state_dict())
    expected, (first, second) = plain(tokens()), tokens().split([7, 3], 1)
    _, pasts = net(first, use_cache=True)
    found, _ = net(second, pasts, True)
    assert relative_error(found.numpy(), expected[:, 7:].numpy()) < 1e-6
    assert np.array_equal(net(tokens()).numpy(), expected.numpy())
    assert isinstance(copy.deepcopy(net).layers[0].self_attn.kv_cache, KVCache)
    # The same float past is read by a quantized decoder.
    found, pasts = quantized("per_token", heads_first, weight_quant_dtype=None)(second, pasts, True)
    assert pasts[0][0].dtype == paddle.int8
    assert 0 < relative_error(found.numpy(), expected[:, 7:].numpy()) < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_heads_before_tokens(kind):
    """Both layouts store the same integers."""
    first, last = (quantized(kind, each, weight_quant_dtype=None) for each in (True, False))
    last.set_state_dict({name.replace(".inner", ""): value
                         for name, value in first.state_dict().items()})
    for net in (first, last):
        assert isinstance(net.layers[0].self_attn.kv_cache, Int8KVCache)
    x, y = tokens(7), tokens()[:, 7:]
    found = [net(y, net(x, use_cache=True)[1], True) for net in (first, last)]
    assert relative_error(found[0][0].numpy(), found[1][0].numpy()) < 1e-5
    for a, b in zip(found[0][1][0], found[1][1][0]):
        difference = np.abs(a.transpose([0, 2, 1, 3]).numpy() - b.numpy().astype("float32"))
        assert difference.max() <= 1 and np.mean(difference > 1e-4) < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_export_with_and_without_a_past(kind, tmp_path):
    net, spec = quantized(kind), [paddle.static.InputSpec([None, None], "int64", "tokens")]
    (first, second), path = tokens().split([7, 3], 1), str(tmp_path / "m")
    scores, pasts = net(first, use_cache=True)
    paddleq.save_quantized_model(Step(net), path, spec)
    found = paddle_inference(path, [first.numpy()])
    assert relative_error(found[0], scores.numpy()) < 1e-6
    stored = [each.numpy() for layer in pasts for each in layer]
    assert all(np.array_equal(a, b) or a.dtype == np.float32 for a, b in zip(found[1:], stored))
    scores, after = net(second, pasts, True)
    specs = [tuple(paddle.static.InputSpec([None, None, *x.shape[2:]], x.numpy().dtype.name)
                   for x in layer) for layer in pasts]
    paddleq.save_quantized_model(Step(net), path, [*spec, specs])
    found = paddle_inference(path, [second.numpy(), *stored])
    assert relative_error(found[0], scores.numpy()) < 1e-6
    assert found[1].dtype == np.int8 and np.array_equal(found[1], after[0][0].numpy())


def test_checkpoint_of_an_adapted_decoder(tmp_path):
    net, path = quantized("per_channel"), str(tmp_path / "m")
    paddleq.save_checkpoint(net, path)
    loaded = decoder()
    paddleq.load_checkpoint(loaded, path)
    expected, found = (each(tokens(), None, True) for each in (net, loaded))
    assert np.array_equal(found[0].numpy(), expected[0].numpy())
    assert np.array_equal(found[1][1][1].numpy(), expected[1][1][1].numpy())


def test_invalid_adaptations():
    for arguments, error, words in (
            (("past",), ConfigError, "past must be one of"),
            (("past_key_value", "cache"), ConfigError, "use_cache must be one of"),
            ((3,), ConfigTypeError, "past must be a str"),
            (("past_key_value", "use_cache", 3), ConfigError, "token_axis")):
        with pytest.raises(error, match=words):
            adapt_tuple_cache(Attention(), *arguments)
    with pytest.raises(ConfigTypeError, match="attention must be a paddle.nn.Layer"):
        adapt_tuple_cache(None)
    attention = Attention()
    adapt_tuple_cache(attention)
    with pytest.raises(ConfigError, match="no kv_cache yet"):
        adapt_tuple_cache(attention)

    class Other(nn.Layer):
        def forward(self, x, past=None):
            return x, None

    other = Other()
    adapt_tuple_cache(other, "past", None)
    with pytest.raises(ModelError, match="Other returned no tuple of keys and values"):
        other(paddle.ones([1]))
