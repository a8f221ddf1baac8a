"""Llama with the arithmetic and the names of Hugging Face's LlamaForCausalLM."""

import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional as F

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
          "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
          "num_key_value_heads": 2, "vocab_size": 96, "rms_norm_eps": 1e-6,
          "rope_theta": 10000.0, "max_position_embeddings": 64, "hidden_act": "silu",
          "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
          "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WIDTH, HEADS, KEYS = CONFIG["hidden_size"], 4, 2
IDS = np.arange(3, 35).reshape(2, 16) * 7 % CONFIG["vocab_size"]


class Norm(nn.Layer):
    def __init__(self):
        super().__init__()
        self.weight = self.create_parameter(
            [WIDTH], default_initializer=nn.initializer.Uniform(0.5, 1.5))

    def forward(self, x):
        return self.weight * (x * paddle.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Attention(nn.Layer):
    def __init__(self):
        super().__init__()
        self.size = WIDTH // HEADS
        self.q_proj = nn.Linear(WIDTH, WIDTH, bias_attr=False)
        self.k_proj = nn.Linear(WIDTH, KEYS * self.size, bias_attr=False)
        self.v_proj = nn.Linear(WIDTH, KEYS * self.size, bias_attr=False)
        self.o_proj = nn.Linear(WIDTH, WIDTH, bias_attr=False)

    def forward(self, x):
        batch, tokens, half = x.shape[0], x.shape[1], self.size // 2
        powers = 10000.0 ** (-np.arange(half) / half)
        angles = np.concatenate([np.arange(tokens)[:, None] * powers] * 2, 1).astype("float32")
        cos, sin = (paddle.to_tensor(f(angles)).unsqueeze([0, 2]) for f in (np.cos, np.sin))
        q, k, v = (layer(x).reshape([batch, tokens, -1, self.size])
                   for layer in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (y * cos + paddle.concat([-y[..., half:], y[..., :half]], -1) * sin
                for y in (q, k))
        k, v = (paddle.repeat_interleave(y, HEADS // KEYS, axis=2) for y in (k, v))
        q, k, v = (y.transpose([0, 2, 1, 3]) for y in (q, k, v))
        scores = q @ k.transpose([0, 1, 3, 2]) / self.size ** 0.5
        scores = scores + paddle.triu(paddle.full([tokens, tokens], -1e9), 1)
        return self.o_proj((F.softmax(scores) @ v).transpose([0, 2, 1, 3]).flatten(2))


class MLP(nn.Layer):
    def __init__(self):
        super().__init__()
        inner = CONFIG["intermediate_size"]
        self.gate_proj = nn.Linear(WIDTH, inner, bias_attr=False)
        self.up_proj = nn.Linear(WIDTH, inner, bias_attr=False)
        self.down_proj = nn.Linear(inner, WIDTH, bias_attr=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Layer):
    def __init__(self):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(), Norm()
        self.self_attn, self.mlp = Attention(), MLP()

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Layer):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(CONFIG["vocab_size"], WIDTH)
        self.layers = nn.LayerList([Layer() for _ in range(CONFIG["num_hidden_layers"])])
        self.norm = Norm()

    def forward(self, ids):
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class LlamaForCausalLM(nn.Layer):
    """Returns logits [batch, tokens, words]. ``prefix`` is "model" in Hugging Face's names."""

    def __init__(self, prefix="model"):
        super().__init__()
        self.prefix = prefix
        self.add_sublayer(prefix, Decoder())
        self.lm_head = nn.Linear(WIDTH, CONFIG["vocab_size"], bias_attr=False)

    def forward(self, ids):
        return self.lm_head(getattr(self, self.prefix)(ids))
