"""Generator on an exported decoder with caches, against decoding in dygraph and numpy."""

import functools
import itertools

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.static import InputSpec

import paddleq
from demo.text.evaluation import generate
from demo.text.helper import DecoderHelper
from demo.text.smollm2 import SmolLM2
from paddleq.deploy import Generator
from paddleq.deploy.generator import ENDED, probabilities
from paddleq.errors import ConfigError, ConfigTypeError, ModelError
from paddleq.golden_stick import PTQ, PTQConfig

CONTEXT, WORDS, LAYERS = 96, 97, 2
W4 = {"weight_quant_dtype": "int4", "weight_quant_granularity": "per_group", "group_size": 64}
SCHEMES = {
    "float": None,
    "W8": {"weight_quant_dtype": "int8"},
    "W4": W4,
    "W4, KV int8": {**W4, "kvcache_quant_dtype": "int8", "kvcache_quant_granularity": "per_token"},
}
PROMPT = np.array([5, 90, 17, 3, 3, 42, 61])


class WithCaches(nn.Layer):
    """A decoder that takes and returns its caches as a flat list."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens, past):
        logits, new = self.model(tokens, past, use_cache=True)
        return [logits] + [each for cache in new for each in cache]


def input_spec(int8):
    """Of tokens, and of keys and values with their scales in each layer."""
    kinds = [("k", "int8", 16), ("v", "int8", 16), ("k_scale", "float32", 1),
             ("v_scale", "float32", 1)] if int8 else [("k", "float32", 16), ("v", "float32", 16)]
    return [InputSpec([None, None], "int64", "tokens"),
            [tuple(InputSpec([None, 2, None, size], dtype, f"{name}{layer}")
                   for name, dtype, size in kinds) for layer in range(LAYERS)]]


def float_decoder():
    paddle.seed(2)
    model = SmolLM2(CONTEXT, LAYERS, WORDS, width=64, hidden=96, heads=4, kv_heads=2)
    for layer in model.sublayers():
        if isinstance(layer, nn.Linear):
            layer.weight.set_value(layer.weight * 3.0)  # the text depends on all tokens before
    model.embed_tokens.weight.set_value(paddle.randn([WORDS, 64]))
    model.eval()
    return model


@pytest.fixture(scope="module")
def decoders(tmp_path_factory):
    """Function from a scheme to (model in dygraph, its text, exported file)."""
    @functools.lru_cache(maxsize=None)
    def made(scheme):
        model, path = float_decoder(), str(tmp_path_factory.mktemp("decoder") / "model")
        if SCHEMES[scheme] is not None:
            ptq = PTQ(PTQConfig(**SCHEMES[scheme]))
            model = ptq.convert(ptq.apply(model, DecoderHelper(), [paddle.arange(32)[None]]))
        text, _ = generate(model, PROMPT, 64)
        wrapped = WithCaches(model)
        wrapped.eval()
        # Not verified operator by operator, which takes longer than all tests of this module.
        paddleq.export.to_onnx(wrapped, path, input_spec("KV" in scheme), verify=False)
        return model, text.tolist(), path + ".onnx"

    return made


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("scheme", [
    "float", "W4", pytest.param("W8", marks=pytest.mark.nightly),
    # Paddle 2.6 cannot trace the shape of an int8 tensor.
    pytest.param("W4, KV int8", marks=pytest.mark.needs_pir)])
def test_greedy_text_is_that_of_dygraph(decoders, scheme, runtime):
    _, expected, path = decoders(scheme)
    assert len(set(expected)) > 8  # not a repetition that any model would give
    assert scheme == "float" or expected != decoders("float")[1]
    with Generator(path, runtime, threads=1) as generator:
        found = generator.generate(PROMPT, 64)
    assert found.tokens[0].tolist() == expected
    assert found.first_token_seconds > 0 and found.tokens_per_second > 0


@pytest.fixture(scope="module")
def generator(decoders):
    with Generator(decoders("float")[2], threads=1, context=CONTEXT) as made:
        yield made


def test_batches_stop_tokens_and_streams(generator):
    prompts = np.stack([PROMPT, PROMPT[::-1], PROMPT + 1])
    alone = [generator.generate(each, 20).tokens[0] for each in prompts]
    together = generator.generate(prompts, 20).tokens
    assert [each.tolist() for each in together] == [each.tolist() for each in alone]
    stop = alone[1][6]
    cut = [row[:list(row).index(stop)] if stop in row else row for row in alone]
    found = generator.generate(prompts, 20, stop=[stop, 1000]).tokens
    assert [each.tolist() for each in found] == [each.tolist() for each in cut]
    steps = list(generator.stream(prompts[1], 20, stop=[int(stop)]))
    assert np.concatenate(steps).tolist() == [*cut[1].tolist(), ENDED]  # ends there


def test_stream_is_lazy(generator):
    steps = generator.stream(PROMPT, 80)
    first = list(itertools.islice(steps, 3))
    assert np.concatenate(first).tolist() == generator.generate(PROMPT, 3).tokens[0].tolist()


def sampled_by_definition(logits, temperature, top_k, top_p):
    """Probabilities of one row, by a loop over its tokens from the likeliest on."""
    weights = np.exp(logits / temperature - (logits / temperature).max())
    order = sorted(range(len(logits)), key=lambda token: (-weights[token], token))
    if top_k is not None:
        order = order[:top_k]
    total, kept, mass = sum(weights[token] for token in order), [], 0.0
    for token in order:
        kept.append(token)
        mass += weights[token] / total
        if top_p is not None and mass >= top_p:
            break
    result = np.zeros(len(logits))
    for token in kept:
        result[token] = weights[token] / sum(weights[each] for each in kept)
    return result


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [
    (1.0, None, None), (0.5, 5, None), (2.0, None, 0.7), (1.0, 8, 0.5), (0.7, 1, None),
    (1.0, 200, 1.0), (1.0, None, 1e-9)])
def test_probabilities_follow_the_definition(temperature, top_k, top_p):
    logits = np.random.default_rng(0).normal(size=(4, 30)) * 3.0
    logits[0, 3:9] = logits[0, 2]  # equal ones
    found = probabilities(logits, temperature, top_k, top_p)
    for row, expected in zip(found, logits):
        np.testing.assert_allclose(
            row, sampled_by_definition(expected, temperature, top_k, top_p), atol=1e-12)


def test_sampling_draws_with_these_probabilities(generator, decoders):
    """The first token of many sequences of one prompt, against its probabilities in dygraph."""
    count, options = 2000, {"temperature": 1.5, "top_k": 6, "top_p": 0.95}
    with paddle.no_grad():
        logits = decoders("float")[0](paddle.to_tensor(PROMPT[None])).numpy()[0, -1]
    shares = sampled_by_definition(logits.astype("float64"), 1.5, 6, 0.95)
    found = generator.generate(np.tile(PROMPT, [count, 1]), 1, seed=7, **options)
    counts = np.bincount(np.concatenate(found.tokens), minlength=WORDS)
    assert (counts[shares == 0] == 0).all()
    deviation = np.sqrt(count * shares * (1 - shares))
    assert (np.abs(counts - count * shares) <= 4 * deviation + 1e-9).all()
    again, other = (generator.generate(PROMPT, 20, seed=seed, **options).tokens[0].tolist()
                    for seed in (3, 4))
    assert again == generator.generate(PROMPT, 20, seed=3, **options).tokens[0].tolist()
    assert again != other


@pytest.mark.parametrize(("arguments", "options", "error", "message"), [
    (([], 3), {}, ConfigTypeError, "tokens must be integers"),
    (([[1, 2], [3]], 3), {}, ConfigTypeError, "one after the other"),
    (([1.5], 3), {}, ConfigTypeError, "tokens must be integers"),
    (([1], 0), {}, ConfigError, "max_tokens must be"),
    (([1], CONTEXT), {}, ConfigError, f"at most {CONTEXT} tokens"),
    (([1], 3), {"temperature": -1.0}, ConfigError, "temperature must be"),
    (([1], 3), {"top_k": 5}, ConfigError, "above 0 with top_k"),
    (([1], 3), {"temperature": 1.0, "top_k": 0}, ConfigError, "top_k must be"),
    (([1], 3), {"temperature": 1.0, "top_p": 0.0}, ConfigError, "top_p must be"),
    (([1], 3), {"stop": ["</s>"]}, ConfigTypeError, "stop must be integers"),
])
def test_wrong_arguments(generator, arguments, options, error, message):
    with pytest.raises(error, match=message):
        generator.stream(*arguments, **options)


def test_files_of_other_models_are_refused(tmp_path):
    spec = [InputSpec([None, 4], "float32", "x")]
    paddleq.export.to_onnx(nn.Linear(4, 4), tmp_path / "net", spec)
    with pytest.raises(ModelError, match="must be tokens"):
        Generator(tmp_path / "net.onnx", threads=1)
    paddleq.export.to_onnx(nn.Embedding(5, 4), tmp_path / "net",
                           [InputSpec([None, None], "int64", "tokens")])
    with pytest.raises(ModelError, match="1 inputs and 1 outputs"):
        Generator(tmp_path / "net.onnx", threads=1)
