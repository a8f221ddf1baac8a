"""SmolLM2 of demo.text: its layers in float64 numpy, and its real weights where installed."""

import numpy as np
import paddle
import pytest
import text_reference as reference

from demo.text import smollm2
from paddleq.analysis import perplexity

REASON = "needs the packages of requirements-llm.txt, which make test-nightly installs"


def relative_difference(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def test_layers_match_float64_reference():
    paddle.seed(0)
    model = smollm2.SmolLM2(context=32, layers=2, vocabulary=67, width=48, hidden=64, heads=6,
                            kv_heads=2)
    model.eval()
    tokens = np.random.default_rng(0).integers(0, 67, 32)
    found = model(paddle.to_tensor(tokens[None])).numpy()[0]
    expected = reference.llama(reference.weights_of(model), tokens, 6, 2, base=100000.0)
    assert relative_difference(found, expected) < 1e-5
    other = reference.llama(reference.weights_of(model), tokens, 6, 2)
    assert relative_difference(found, other) > 1e-3  # the base of the wavelengths matters


@pytest.mark.nightly
def test_weights_match_float64_reference():
    """On the first layers; numpy reads the blocks of the GGUF file by their published layout."""
    gguf = pytest.importorskip("gguf", reason=REASON)
    model = smollm2.smollm2(context=64, layers=2)
    tensors = {each.name: each for each in gguf.GGUFReader(smollm2.gguf_file()).tensors}

    def matrix(name):
        """Q4_1 [out, in]: for 32 values a scale, a minimum and 16 bytes; byte i has i and i + 16.
        """
        blocks = tensors[name].data.reshape([-1, 20])
        scale, low = (blocks[:, each:each + 2].copy().view("float16").astype("float64")
                      for each in (0, 2))
        halves = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
        return (halves * scale + low).reshape(tensors[name].shape[::-1])

    def permuted(array):
        """Rows 0, 2, ..., 62, 1, 3, ..., 63 of each head: pairs of neighbours become halves."""
        order = np.concatenate([np.arange(0, 64, 2), np.arange(1, 64, 2)])
        return np.concatenate([head[order] for head in array.reshape([-1, 64, array.shape[1]])])

    bytes_of = tensors["token_embd.weight"].data.reshape([-1, 34])  # Q8_0: a scale and 32 integers
    embedding = (bytes_of[:, :2].copy().view("float16").astype("float64")
                 * bytes_of[:, 2:].view("int8")).reshape([49152, 576])
    w = {"embed_tokens.weight": embedding, "norm.weight": tensors["output_norm.weight"].data}
    for i in range(2):
        for theirs, ours in smollm2.LINEARS.items():
            array = matrix(f"blk.{i}.{theirs}.weight")
            w[f"layers.{i}.{ours}.weight"] = (
                permuted(array) if theirs in ("attn_q", "attn_k") else array).T
        for theirs, ours in smollm2.NORMS.items():
            w[f"layers.{i}.{ours}.weight"] = tensors[f"blk.{i}.{theirs}.weight"].data
    tokens = smollm2.encode("The quick brown fox jumps over 13 lazy dogs.")
    with paddle.no_grad():
        found = model(paddle.to_tensor(tokens[None])).numpy()[0]
    assert relative_difference(found, reference.llama(w, tokens, 9, 3, base=100000.0)) < 1e-5


@pytest.mark.nightly
def test_tokenizer():
    pytest.importorskip("gguf", reason=REASON)
    text = "Digits are single: 2024. Caf\u00e9, \u4f60\u597d\n\n  indented"
    tokens = smollm2.encode(text)
    assert smollm2.tokenizer().decode(tokens.tolist()) == text
    pieces = [smollm2.tokenizer().id_to_token(each) for each in tokens]
    assert pieces[:8] == ["D", "igits", "\u0120are", "\u0120single", ":", "\u0120", "2", "0"]
    turn = smollm2.encode(smollm2.CHAT.format("Hi"))
    assert (turn == 1).sum() == 3 and (turn == 2).sum() == 2  # <|im_start|>, <|im_end|>


@pytest.mark.nightly
def test_perplexity_and_answer():
    pytest.importorskip("gguf", reason=REASON)
    from demo.text.evaluation import generate

    model = smollm2.smollm2(context=512)
    found = perplexity(model, smollm2.encode(smollm2.calibration_text()), max_tokens=512)
    assert 5.0 < found.value < 20.0
    prompt = smollm2.encode(smollm2.CHAT.format("What is the capital of France?"))
    answer, _ = generate(model, prompt, 12)
    assert "Paris" in smollm2.tokenizer().decode(answer.tolist())
