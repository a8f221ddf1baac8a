"""Attention of a decoder: grouped queries, rotary or no positions, and a cache."""

import functools

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from paddleq.nn import KVCache


def _constant(array):
    return paddle.to_tensor(array.astype("float32"))


# One tensor for all layers: an export holds it once.
@functools.lru_cache(maxsize=None)
def _later_tokens(context):
    """Return the causal mask [context, context] that is added to attention scores."""
    return _constant(np.triu(np.full([context, context], -1e4), 1))


@functools.lru_cache(maxsize=None)
def _rotary_tables(head_dim, context, base):
    """Cosines and sines [context, head_dim], and the matrix of a quarter turn, which makes
    (-second half, first half) of the channels.
    """
    frequencies = base ** (-np.arange(0, head_dim, 2) / head_dim)
    angles = np.arange(context)[:, None] * np.tile(frequencies, 2)
    quarter = np.roll(np.eye(head_dim), head_dim // 2, axis=1)
    quarter[head_dim // 2:] *= -1.0
    return {"cos": _constant(np.cos(angles)), "sin": _constant(np.sin(angles)),
            "quarter": _constant(quarter)}


class Rotary(nn.Layer):
    """Rotary position embedding (arXiv:2104.09864) that pairs channel i with i + head_dim / 2.

    Args:
        head_dim: channels of a head, an even number.
        context: positions that there are.
        base: of the wavelengths.
    """

    def __init__(self, head_dim, context, base=10000.0):
        super().__init__()
        for name, table in _rotary_tables(head_dim, context, base).items():
            self.register_buffer(name, table, persistable=False)

    def forward(self, x, start):
        """``x`` [batch, heads, tokens, head_dim], the first token of which is at ``start``."""
        stop = start + x.shape[2]
        turned = paddle.matmul(x, self.quarter)
        return x * self.cos[start:stop] + turned * self.sin[start:stop]


class CausalAttention(nn.Layer):
    """Attention of each token to itself and those before it.

    Args:
        width: channels of the tokens.
        heads: of the queries; ``width / heads`` channels each.
        kv_heads: of keys and values, which ``heads / kv_heads`` queries share each
            (arXiv:2305.13245).
        context: tokens that there may be, with those of the cache.
        bias: whether the four projections have one.
        rotary: whether queries and keys are turned by their position.
    """

    def __init__(self, width, heads, kv_heads, context, bias, rotary):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        kv_width, bias = kv_heads * self.head_dim, None if bias else False
        self.q_proj = nn.Linear(width, width, bias_attr=bias)
        self.k_proj = nn.Linear(width, kv_width, bias_attr=bias)
        self.v_proj = nn.Linear(width, kv_width, bias_attr=bias)
        self.o_proj = nn.Linear(width, width, bias_attr=bias)
        self.rotary = Rotary(self.head_dim, context) if rotary else None
        self.kv_cache = KVCache(token_axis=2)
        self.register_buffer("mask", _later_tokens(context), persistable=False)

    def forward(self, x, start=0, past=None):
        """``x`` [batch, tokens, width], ``start`` the position of its first token, ``past`` what
        the call before returned: (output like ``x``, past).
        """
        tokens, stop = x.shape[1], start + x.shape[1]
        q = self._split(self.q_proj(x) * self.head_dim ** -0.5, self.heads)
        k = self._split(self.k_proj(x), self.kv_heads)
        v = self._split(self.v_proj(x), self.kv_heads)
        if self.rotary is not None:
            q, k = self.rotary(q, start), self.rotary(k, start)
        k, v, past = self.kv_cache(k, v, past)
        # The queries that share a head of keys stand one below the other: one product for all.
        together = [0, self.kv_heads, -1, self.head_dim]
        scores = paddle.matmul(q.reshape(together), k, transpose_y=True)
        scores = scores.reshape([0, self.heads, tokens, stop]) + self.mask[start:stop, :stop]
        weights = F.softmax(scores).reshape([0, self.kv_heads, -1, stop])
        mixed = paddle.matmul(weights, v).reshape([0, self.heads, tokens, self.head_dim])
        mixed = paddle.concat([mixed[:, head] for head in range(self.heads)], axis=-1)
        return self.o_proj(mixed), past

    def _split(self, x, heads):
        """[batch, tokens, channels] -> [batch, heads, tokens, head_dim]"""
        # (A transpose, which does the same, takes six times as long on a processor.)
        return paddle.stack(paddle.split(x, heads, axis=-1), axis=1)
