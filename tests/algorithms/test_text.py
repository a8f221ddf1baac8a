"""demo.text: text, models and evaluation."""

import numpy as np
import paddle
import pytest
import text_reference as reference
from hypothesis import given
from hypothesis import strategies as st

from demo.text import (
    GPT,
    Llama,
    calibration_batches,
    decode,
    encode,
    generate,
    held_out_tokens,
    perplexity,
    plant_outliers,
    trained,
    training_tokens,
)
from demo.text.data import CHARACTERS, HELD_OUT, UNKNOWN, VOCABULARY, modules, read_modules
from demo.text.measure import EXPECTED, expectations, measure
from demo.text.training import RECIPES, Recipe, initialize, train

CONTEXT = 24
MODELS = {
    "gpt": lambda: GPT(layers=2, width=32, heads=4, context=CONTEXT),
    "llama": lambda: Llama(layers=2, width=32, hidden=48, heads=4, kv_heads=2, context=CONTEXT),
}
REFERENCES = {"gpt": lambda w, tokens: reference.gpt(w, tokens, heads=4),
              "llama": lambda w, tokens: reference.llama(w, tokens, heads=4, kv_heads=2)}


@pytest.fixture(params=MODELS)
def model(request):
    """Return a small model in which every weight affects the output."""
    made = MODELS[request.param]()
    made.kind, rng = request.param, np.random.default_rng(7)
    for parameter in made.parameters():
        parameter.set_value((0.5 * rng.standard_normal(parameter.shape)).astype("float32"))
    made.eval()
    return made


def some_tokens(*shape, seed=3):
    return np.random.default_rng(seed).integers(0, VOCABULARY, shape)


# The text

def test_training_and_held_out_modules_are_disjoint():
    training = decode(training_tokens())
    for name in HELD_OUT:
        assert modules()[name].strip() not in training
    assert "class NodeVisitor(object):" in training  # of ast
    assert "def heapify(x):" not in training
    assert "def heapify(x):" in decode(held_out_tokens())
    assert len(training_tokens()) > 3e6
    assert len(held_out_tokens()) > 2e5


def test_held_out_excerpt_covers_each_module():
    part = held_out_tokens(30_000)
    assert 29_900 < len(part) <= 30_100
    text = decode(part)
    for name in HELD_OUT:
        assert modules()[name][:200].strip() in text


def test_missing_modules_and_local_files_are_ignored(tmp_path):
    for name in ("heapq", "ast", "_sysconfigdata__linux_", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(name)
    assert read_modules(tmp_path) == {"ast": "ast", "heapq": "heapq"}
    (tmp_path / "heapq.py").unlink()
    with pytest.raises(FileNotFoundError, match="has 1 modules.*heapq"):
        read_modules(tmp_path)
    (tmp_path / "ast.py").rename(tmp_path / "heapq.py")
    with pytest.raises(FileNotFoundError, match="has 1 modules"):
        read_modules(tmp_path)


@given(st.text(alphabet=CHARACTERS))
def test_tokens_decode_to_the_text(text):
    assert decode(encode(text)) == text


@given(st.characters())
def test_every_character_has_a_token(character):
    token = encode(character).item()
    assert (token == UNKNOWN) == (character not in CHARACTERS)
    assert 0 <= token < VOCABULARY


def test_calibration_batches_come_from_training_text():
    batches = calibration_batches(batches=2, batch_size=3, length=50)
    text = decode(training_tokens())
    assert [each.shape for each in batches] == [(3, 50)] * 2
    assert all(decode(row) in text for batch in batches for row in batch)
    again, other = (calibration_batches(2, 3, 50, seed=seed) for seed in (0, 1))
    assert np.array_equal(batches, again)
    assert not np.array_equal(batches, other)


# The models

def test_models_match_float64_reference(model):
    tokens = some_tokens(2, CONTEXT)
    found = model(paddle.to_tensor(tokens)).numpy()
    weights = reference.weights_of(model)
    expected = np.stack([REFERENCES[model.kind](weights, row) for row in tokens])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_default_models_have_the_names_and_shapes_of_their_families():
    llama, gpt = Llama(), GPT()
    shapes = {key: list(value.shape) for key, value in llama.state_dict().items()}
    assert shapes["layers.3.self_attn.q_proj.weight"] == [128, 128]
    assert shapes["layers.3.self_attn.k_proj.weight"] == [128, 64]
    assert shapes["layers.3.self_attn.v_proj.weight"] == [128, 64]
    assert shapes["layers.3.self_attn.o_proj.weight"] == [128, 128]
    assert shapes["layers.0.mlp.gate_proj.weight"] == [128, 320]
    assert shapes["layers.0.mlp.up_proj.weight"] == [128, 320]
    assert shapes["layers.0.mlp.down_proj.weight"] == [320, 128]
    assert shapes["layers.0.input_layernorm.weight"] == [128]
    assert shapes["layers.0.post_attention_layernorm.weight"] == [128]
    assert shapes["norm.weight"] == [128]
    assert shapes["lm_head.weight"] == [128, VOCABULARY]
    assert not any(key.endswith("bias") for key in shapes)
    biased = {key.rpartition(".")[0] for key in gpt.state_dict() if key.endswith("bias")}
    assert {"layers.0.self_attn.q_proj", "layers.0.mlp.fc_in", "layers.0.input_layernorm",
            "lm_head"} <= biased


@pytest.mark.parametrize("pieces", [[CONTEXT], [1] * CONTEXT, [5, 1, 10, 8]])
def test_logits_are_equal_with_and_without_cache(model, pieces):
    tokens = some_tokens(2, CONTEXT)
    expected = model(paddle.to_tensor(tokens)).numpy()
    past, start, found = None, 0, []
    for count in pieces:
        logits, past = model(paddle.to_tensor(tokens[:, start:start + count]), past, use_cache=True)
        found.append(logits.numpy())
        start += count
        assert [cache[0].shape[2] for cache in past] == [start] * 2
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected,
                               rtol=1e-4, atol=1e-5 * np.abs(expected).max())


# Outliers

def test_planted_outliers_preserve_the_output(model):
    tokens = paddle.to_tensor(some_tokens(2, CONTEXT))
    inputs = []
    model.layers[1].mlp.register_forward_pre_hook(lambda _, args: inputs.append(args[0].numpy()))
    before = model(tokens).numpy()
    assert plant_outliers(model, channels=3, factor=64.0) is model
    after = model(tokens).numpy()
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5 * np.abs(before).max())
    ratio = np.abs(inputs[1]).max((0, 1)) / np.abs(inputs[0]).max((0, 1))
    assert np.sum(ratio > 50) == 3
    np.testing.assert_allclose(np.sort(ratio)[:-3], 1.0, rtol=1e-3)


# Evaluation

def test_perplexity_is_exp_of_the_mean_cross_entropy(model):
    tokens = some_tokens(5 * CONTEXT + 7)
    pieces = tokens[:5 * CONTEXT].reshape([5, CONTEXT])
    losses, weights = [], reference.weights_of(model)
    for piece in pieces:
        logits = REFERENCES[model.kind](weights, piece)[:-1]
        logits -= logits.max(-1, keepdims=True)
        shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        losses.append(-np.log(shares[np.arange(CONTEXT - 1), piece[1:]]))
    assert perplexity(model, tokens, batch_size=2) == pytest.approx(
        np.exp(np.mean(losses)), rel=1e-4)
    with pytest.raises(ValueError, match="tokens are 23; one piece has 24"):
        perplexity(model, tokens[:CONTEXT - 1])


def test_greedy_generation_takes_the_most_likely_token(model):
    prompt = some_tokens(5)
    written, speed = generate(model, prompt, CONTEXT - 5)
    text = list(prompt)
    for _ in range(CONTEXT - 5):
        logits = REFERENCES[model.kind](reference.weights_of(model), np.array(text))
        text.append(int(logits[-1].argmax()))
    assert written.tolist() == text[5:]
    assert speed > 0


def test_generation_continues_beyond_the_context(model):
    prompt = some_tokens(CONTEXT + 3)
    written, _ = generate(model, prompt, 2 * CONTEXT)
    assert len(written) == 2 * CONTEXT
    # The first uses the full context, the second a new context of half its length.
    first = model(paddle.to_tensor(prompt[None, -CONTEXT:]))[0, -1].argmax().item()
    text = np.append(prompt, first)
    second = model(paddle.to_tensor(text[None, -(CONTEXT // 2):]))[0, -1].argmax().item()
    assert written[:2].tolist() == [first, second]


def test_sampling_is_reproducible_with_a_seed(model):
    prompt = some_tokens(4)
    draws = [generate(model, prompt, 12, temperature=20.0, seed=seed)[0].tolist()
             for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    cold = generate(model, prompt, 12, temperature=1e-3)[0].tolist()
    assert cold == generate(model, prompt, 12)[0].tolist()
    with pytest.raises(ValueError, match="tokens are empty"):
        generate(model, prompt[:0], 1)


# Training

def test_training_is_reproducible():
    recipe = Recipe("Llama", (("layers", 1), ("width", 16), ("hidden", 16), ("heads", 2),
                              ("kv_heads", 1), ("context", 16)), steps=5, batch=2)
    first, again, other = (reference.weights_of(train(recipe, seed)) for seed in (3, 3, 4))
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert any(not np.array_equal(first[key], other[key]) for key in first)


def test_trained_model_is_stored_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLEQ_TEST_CACHE", str(tmp_path))
    model = trained("tiny")
    files = sorted(tmp_path.glob("*.npz"))
    assert len(files) == 1
    assert files[0].name.startswith("tiny-0-")
    made = files[0].stat().st_mtime_ns
    tokens = held_out_tokens(20_000)
    untrained = RECIPES["tiny"].make()
    initialize(untrained, np.random.default_rng(0))
    assert perplexity(untrained, tokens) > 60
    assert perplexity(model, tokens) < 16
    again = trained("tiny")
    assert sorted(tmp_path.glob("*.npz"))[0].stat().st_mtime_ns == made
    assert all(np.array_equal(value.numpy(), again.state_dict()[key].numpy())
               for key, value in model.state_dict().items())


# Effect of quantization; benchmarks/bench_text.py has the whole table of three seeds

# The part of the loss that GPTQ leaves differs from one trained model to the next, also for the
# same seed on processors that sum in another order (by a quarter). The benchmark bounds the mean of
# three models by 0.5.
RECOVERY = 0.75


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", pytest.param("gpt", marks=pytest.mark.nightly)])
def test_algorithms_reduce_perplexity(name):
    found = measure(name, 0, 32768, EXPECTED)
    assert found["plain"]["float"] < 6
    assert found["outliers"]["float"] == pytest.approx(found["plain"]["float"], rel=1e-5)
    checks = expectations(found, RECOVERY)
    print(checks)
    assert [(text, figure) for text, figure, holds in checks if not holds] == []
