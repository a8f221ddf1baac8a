"""Two small decoders that read characters: one as GPT-2 has it, one as Llama has it."""

import paddle
import paddle.nn.functional as F
from paddle import nn

from .attention import CausalAttention
from .data import VOCABULARY


class RMSNorm(nn.Layer):
    """``x / rms(x) * weight`` over the last axis (arXiv:1910.07467)."""

    def __init__(self, width, epsilon=1e-5):
        super().__init__()
        self.epsilon = epsilon
        self.weight = self.create_parameter(
            [width], default_initializer=nn.initializer.Constant(1.0))

    def forward(self, x):
        return x * paddle.rsqrt((x * x).mean(-1, keepdim=True) + self.epsilon) * self.weight


class DecoderLayer(nn.Layer):
    """Attention and a feed-forward network, with a norm before each.

    Subclasses make ``input_layernorm``, ``self_attn``, ``post_attention_layernorm`` and ``mlp``.
    """

    def forward(self, x, start=0, past=None, use_cache=False):
        """``x`` [batch, tokens, width]: the output like it, and with ``use_cache`` the cache."""
        mixed, past = self.self_attn(self.input_layernorm(x), start, past)
        x = x + mixed
        x = x + self.mlp(self.post_attention_layernorm(x))
        return (x, past) if use_cache else x


class LanguageModel(nn.Layer):
    """A decoder over characters.

    Attributes:
        context: tokens that it can look at.
        embed_tokens, layers, norm, lm_head: its parts, in the order in which they run.
    """

    def forward(self, tokens, past=None, use_cache=False):
        """Logits [batch, tokens, vocabulary] of what follows each token.

        Args:
            tokens: int64 [batch, tokens].
            past: what the call before returned, whose tokens these follow.
            use_cache: return (logits, past): the cache of each layer.
        """
        start = 0 if past is None else past[0][0].shape[2]
        x, caches = self.embed(tokens, start), []
        for number, layer in enumerate(self.layers):
            if use_cache:
                x, cache = layer(x, start, None if past is None else past[number], use_cache=True)
                caches.append(cache)
            else:
                x = layer(x)
        logits = self.lm_head(self.norm(x))
        return (logits, caches) if use_cache else logits

    def embed(self, tokens, start):
        """Return the input of the first layer, [batch, tokens, width]."""
        return self.embed_tokens(tokens)


class GPTLayer(DecoderLayer):
    """LayerNorm, attention with biases, GELU."""

    def __init__(self, width, heads, context):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(width)
        self.self_attn = CausalAttention(width, heads, heads, context, bias=True, rotary=False)
        self.post_attention_layernorm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(("fc_in", nn.Linear(width, 4 * width)), ("act", nn.GELU()),
                                 ("fc_out", nn.Linear(4 * width, width)))


class GPT(LanguageModel):
    """Learned positions, LayerNorm, GELU, biases everywhere."""

    def __init__(self, layers=4, width=128, heads=4, context=128):
        super().__init__()
        self.context = context
        self.embed_tokens = nn.Embedding(VOCABULARY, width)
        self.embed_positions = nn.Embedding(context, width)
        self.layers = nn.LayerList([GPTLayer(width, heads, context) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, VOCABULARY)

    def embed(self, tokens, start):
        positions = paddle.arange(start, start + tokens.shape[1], dtype="int64")
        return self.embed_tokens(tokens) + self.embed_positions(positions)


class SwiGLU(nn.Layer):
    """``down(silu(gate(x)) * up(x))`` (arXiv:2002.05202)."""

    def __init__(self, width, hidden):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias_attr=False)
        self.up_proj = nn.Linear(width, hidden, bias_attr=False)
        self.down_proj = nn.Linear(hidden, width, bias_attr=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaLayer(DecoderLayer):
    """RMSNorm, rotary positions, grouped queries, SwiGLU, no biases."""

    def __init__(self, width, hidden, heads, kv_heads, context):
        super().__init__()
        self.input_layernorm = RMSNorm(width)
        self.self_attn = CausalAttention(width, heads, kv_heads, context, bias=False, rotary=True)
        self.post_attention_layernorm = RMSNorm(width)
        self.mlp = SwiGLU(width, hidden)


class Llama(LanguageModel):
    """RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases."""

    def __init__(self, layers=4, width=128, hidden=320, heads=4, kv_heads=2, context=128):
        super().__init__()
        self.context = context
        self.embed_tokens = nn.Embedding(VOCABULARY, width)
        self.layers = nn.LayerList(
            [LlamaLayer(width, hidden, heads, kv_heads, context) for _ in range(layers)])
        self.norm = RMSNorm(width)
        self.lm_head = nn.Linear(width, VOCABULARY, bias_attr=False)
