"""Perplexity and divergence of logits, compared with float64 numpy."""

import re

import numpy as np
import paddle
import pytest
from paddle import nn

import paddleq
from demo.text.models import Llama
from paddleq.analysis import perplexity
from paddleq.errors import ConfigError, ConfigTypeError, FormatError, ModelError, NonFiniteError

WORDS = 97  # vocabulary of the decoder


@pytest.fixture(scope="module")
def models():
    """An untrained decoder with sharp logits, and one with quantized weights."""
    paddle.seed(3)
    model = Llama(layers=1, width=32, hidden=48, heads=2, kv_heads=1, context=64)
    model.lm_head.weight.set_value(model.lm_head.weight * 30.0)
    model.eval()
    config = paddleq.QuantConfig()
    config.add_type(nn.Linear, paddleq.LayerConfig(paddleq.QuantSpec(3)))
    return model, paddleq.quantize(model, config)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(5).integers(0, WORDS, 83)


def log_probabilities(model, tokens):
    """Float64 [tokens, vocabulary] of what follows each token, from float32 logits."""
    with paddle.no_grad():
        logits = model(paddle.to_tensor(tokens[None])).numpy()[0].astype("float64")
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return np.log(shares / shares.sum(-1, keepdims=True))


def expected(model, reference, tokens, window, stride):
    """(perplexity, tokens, KL divergence, top-1 agreement) token by token, by the definition."""
    losses, divergences, same, scored = [], [], [], set()
    for start in range(0, len(tokens), stride):
        piece = tokens[start:start + window]
        found, wanted = (log_probabilities(each, piece) for each in (model, reference))
        for position in range(1, len(piece)):
            if start + position in scored:
                continue
            scored.add(start + position)
            losses.append(-found[position - 1, piece[position]])
            w, f = wanted[position - 1], found[position - 1]
            divergences.append(np.sum(np.exp(w) * (w - f)))
            same.append(w.argmax() == f.argmax())
    return np.exp(np.mean(losses)), len(losses), np.mean(divergences), np.mean(same)


@pytest.mark.parametrize(("window", "stride"), [(16, None), (16, 15), (20, 7), (9, 1), (83, 83)])
def test_equals_the_definition(models, tokens, window, stride):
    model, quantized = models
    if window > model.context:
        tokens = tokens[:60]
    if stride == 1:
        tokens = tokens[:24]
    found = perplexity(quantized, tokens, window=window, stride=stride, float_model=model)
    value, count, divergence, same = expected(quantized, model, tokens, window, stride or window)
    assert found.tokens == count
    np.testing.assert_allclose(found.value, value, rtol=1e-6)
    np.testing.assert_allclose(found.float_value,
                               expected(model, model, tokens, window, stride or window)[0],
                               rtol=1e-6)
    np.testing.assert_allclose(found.kl_divergence, divergence, rtol=1e-5)
    np.testing.assert_allclose(found.top1_agreement, same)
    assert found.kl_divergence > 0.01 and found.top1_agreement < 1.0  # not a comparison of equals


def test_number_of_scored_tokens(models, tokens):
    """Without overlap, the first token of each window has nothing before it."""
    model, _ = models
    assert perplexity(model, tokens, window=16).tokens == 83 - 6
    assert perplexity(model, tokens, window=16, stride=15).tokens == 82
    assert perplexity(model, tokens[:81], window=16).tokens == 81 - 6  # one token is left over
    assert perplexity(model, tokens, window=16, max_tokens=20).tokens == 15 + 3


def test_texts_of_their_own_do_not_continue_each_other(models, tokens):
    model, _ = models
    found = perplexity(model, [tokens[:40], paddle.to_tensor(tokens[40:60])], window=64)
    losses = [-np.log(expected(model, model, text, 64, 64)[0]) * (len(text) - 1)
              for text in (tokens[:40], tokens[40:60])]
    assert found.tokens == 39 + 19
    np.testing.assert_allclose(found.value, np.exp(-sum(losses) / 58), rtol=1e-6)


def test_text_file(models, tmp_path):
    model, _ = models
    text = "Perplexity \u00e4\u00f6\u00fc of a text.\n" * 3
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")

    def tokenize(text):
        return [ord(each) % WORDS for each in text]

    found = perplexity(model, tmp_path / "text.txt", tokenize=tokenize, window=32)
    assert found == perplexity(model, np.array(tokenize(text)), window=32)
    with pytest.raises(ConfigTypeError, match="tokenize must be a function"):
        perplexity(model, tmp_path / "text.txt")
    with pytest.raises(FormatError, match="no readable UTF-8"):
        perplexity(model, tmp_path / "missing.txt", tokenize=tokenize)


def test_cached_reference(models, tokens, tmp_path):
    model, quantized = models
    path = tmp_path / "logits.npy"
    with pytest.raises(ConfigError, match="float_model must be given"):
        perplexity(quantized, tokens, window=32, cache=path)
    first = perplexity(quantized, tokens, window=32, float_model=model, cache=path)
    assert path.stat().st_size > 80 * WORDS * 4
    direct = perplexity(quantized, tokens, window=32, float_model=model)
    np.testing.assert_allclose(first.kl_divergence, direct.kl_divergence, rtol=1e-4)
    np.testing.assert_allclose(first.float_value, direct.float_value, rtol=1e-6)
    assert perplexity(quantized, tokens, window=32, cache=path) == first  # without the float model
    for other in ({"window": 31}, {"window": 32, "stride": 8}, {"window": 32, "max_tokens": 80}):
        with pytest.raises(FormatError, match="other tokens or windows"):
            perplexity(quantized, tokens, cache=path, **other)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(FormatError, match="no file of log-probabilities"):
        perplexity(quantized, tokens, window=32, cache=path)


class Wrapped(nn.Layer):
    """Returns what ``wrap(logits)`` makes of the logits of a model."""

    def __init__(self, model, wrap):
        super().__init__()
        self.model, self.wrap = model, wrap

    def forward(self, tokens):
        return self.wrap(self.model(tokens))


def test_logits_are_found_in_other_outputs(models, tokens):
    model, _ = models
    direct = perplexity(model, tokens, window=64)
    for wrap in (lambda y: (y, [y[..., :3]]), lambda y: (y.mean(), y), lambda y: {"logits": y}):
        assert perplexity(Wrapped(model, wrap), tokens, window=64) == direct


def test_state_of_the_model_is_kept(models, tokens):
    model, _ = models
    model.train()
    perplexity(model, tokens, window=64)
    assert model.training
    model.eval()


@pytest.mark.parametrize(("data", "options", "error", "message"), [
    (np.zeros([2, 3], "int64"), {"window": 1}, ConfigError, "window must be"),
    (np.zeros(9, "int64"), {"window": 4, "stride": 5}, ConfigError, "stride must be"),
    (np.zeros(9, "float32"), {}, ConfigError, "integers"),
    (np.zeros(1, "int64"), {}, ConfigError, "at least two tokens"),
    ([], {}, ConfigError, "at least two tokens"),
    (3, {}, ConfigTypeError, "data must be"),
    ([np.zeros([1, 3], "int64")], {}, ConfigError, "entry 0 of data"),
    (np.full(9, WORDS), {}, ModelError, f"the token {WORDS}"),
])
def test_wrong_arguments(data, options, error, message):
    model = nn.Embedding(WORDS + 1, WORDS)
    with pytest.raises(error, match=re.escape(message)):
        perplexity(model, data, **options)


def test_wrong_outputs(models, tokens):
    model, _ = models
    with pytest.raises(ModelError, match=r"must return logits \[1, 64, vocabulary\]"):
        perplexity(Wrapped(model, lambda y: y[:, 1:]), tokens, window=64)
    with pytest.raises(NonFiniteError, match="the model has NaN"):
        perplexity(Wrapped(model, lambda y: y * float("nan")), tokens, window=64)
    with pytest.raises(ModelError, match="the same network"):
        perplexity(model, tokens, window=64,
                   float_model=Wrapped(model, lambda y: paddle.concat([y, y], -1)))
