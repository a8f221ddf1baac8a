"""Perplexity of a model, and generation of text."""

import math
import time

import numpy as np
import paddle
import paddle.nn.functional as F


def perplexity(model, tokens, batch_size=64):
    """Perplexity per character: ``exp`` of the mean cross entropy.

    The text is cut into pieces of ``model.context`` characters, and each character but the first
    of a piece is predicted from those before it in the piece. The rest of the text is
    not used.

    Args:
        model: maps int64 tokens [batch, tokens] to logits.
        tokens: int64 array [characters], at least ``model.context`` of them.
        batch_size: pieces at a time.
    """
    length = model.context
    count = len(tokens) // length
    if count == 0:
        raise ValueError(f"tokens are {len(tokens)}; one piece has {length}")
    pieces = np.asarray(tokens)[:count * length].reshape([count, length])
    model.eval()
    total = 0.0
    with paddle.no_grad():
        for start in range(0, count, batch_size):
            piece = paddle.to_tensor(pieces[start:start + batch_size])
            loss = F.cross_entropy(model(piece[:, :-1]), piece[:, 1:], reduction="sum")
            total += loss.item()
    return math.exp(total / (count * (length - 1)))


def generate(model, tokens, count, temperature=0.0, seed=0):
    """Tokens that a model writes, one after the other, with a cache.

    When the cache holds ``model.context`` tokens, the model processes the second half of the
    text again.

    Args:
        model: a :class:`~.models.LanguageModel`.
        tokens: int64 array [prompt], at least one.
        count: how many to write.
        temperature: 0 always writes the likeliest; 1 draws as the model believes.
        seed: of the draws.

    Returns:
        (the ``count`` new tokens as an int64 array, tokens per second)
    """
    if len(tokens) == 0:
        raise ValueError("tokens are empty; a text to continue has at least one")
    rng = np.random.default_rng(seed)
    text, unread, past, read = list(tokens), list(tokens)[-model.context:], None, 0
    model.eval()
    started = time.perf_counter()
    with paddle.no_grad():
        for _ in range(count):
            if read + len(unread) > model.context:
                unread, past, read = text[-(model.context // 2):], None, 0
            logits, past = model(paddle.to_tensor([unread], dtype="int64"), past, use_cache=True)
            read += len(unread)
            unread = [_choose(logits[0, -1].numpy().astype("float64"), temperature, rng)]
            text += unread
    seconds = time.perf_counter() - started
    return np.array(text[len(tokens):], dtype="int64"), count / seconds


def _choose(logits, temperature, rng):
    if temperature == 0.0:
        return int(logits.argmax())
    logits = logits / temperature
    shares = np.exp(logits - logits.max())
    return int(rng.choice(len(shares), p=shares / shares.sum()))
