"""Attention of a decoder: grouped queries, rotary or no positions, and a cache."""

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn


class KVCache(nn.Layer):
    """Keys and values of the past, in float."""

    def forward(self, k, v, past=None):
        if past is not None:
            k, v = (paddle.concat(pair, axis=1) for pair in zip(past, (k, v)))
        return k, v, (k, v)


def constant(array):
    """A tensor for ``register_buffer(..., persistable=False)``."""
    return paddle.to_tensor(array.astype("float32"))


class Rotary(nn.Layer):
    """Rotary position embedding (arXiv:2104.09864) that pairs channel i with i + head_dim / 2.

    Args:
        heads: at most how many an input has.
        head_dim: channels of a head, an even number.
        context: positions that there are.
        base: of the wavelengths.
    """

    def __init__(self, heads, head_dim, context, base=10000.0):
        super().__init__()
        frequencies = base ** (-np.arange(0, head_dim, 2) / head_dim)
        angles = np.arange(context)[:, None] * np.tile(frequencies, 2)
        for name, table in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
            # Once for each head: Paddle is slow where the axis that repeats is not the first.
            table = np.repeat(table[:, None], heads, axis=1)
            self.register_buffer(name, constant(table), persistable=False)

    def forward(self, x, start):
        """``x`` [batch, tokens, heads, head_dim], the first token of which is at ``start``."""
        at = slice(start, start + x.shape[1]), slice(x.shape[2])
        first, second = paddle.chunk(x, 2, axis=-1)
        turned = paddle.concat([-second, first], axis=-1)
        return x * self.cos[at] + turned * self.sin[at]


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
        self.rotary = Rotary(heads, self.head_dim, context) if rotary else None
        self.kv_cache = KVCache()
        later = np.triu(np.full([context, context], -1e4), 1)
        self.register_buffer("mask", constant(later), persistable=False)

    def forward(self, x, start=0, past=None):
        """``x`` [batch, tokens, width], ``start`` the position of its first token, ``past`` what
        the call before returned: (output like ``x``, past).
        """
        batch, tokens = x.shape[0], x.shape[1]
        q = self.q_proj(x).reshape([batch, tokens, self.heads, self.head_dim])
        k = self.k_proj(x).reshape([batch, tokens, self.kv_heads, self.head_dim])
        v = self.v_proj(x).reshape([batch, tokens, self.kv_heads, self.head_dim])
        if self.rotary is not None:
            q, k = self.rotary(q, start), self.rotary(k, start)
        k, v, past = self.kv_cache(k, v, past)
        q, k, v = (each.transpose([0, 2, 1, 3]) for each in (q, self._shared(k), self._shared(v)))
        stop = start + tokens
        scores = paddle.matmul(q * self.head_dim ** -0.5, k, transpose_y=True)
        weights = F.softmax(scores + self.mask[start:stop, :stop])
        mixed = paddle.matmul(weights, v).transpose([0, 2, 1, 3])
        return self.o_proj(mixed.reshape([batch, tokens, self.heads * self.head_dim])), past

    def _shared(self, x):
        """A copy of each head of keys or values for each query that reads it."""
        copies = self.heads // self.kv_heads
        return x if copies == 1 else paddle.repeat_interleave(x, copies, axis=2)
