"""Small transformers that call their layers in different ways."""

import collections

import paddle
from paddle import nn
from paddle.nn import functional as F

from paddleq.nn import KVCache

WIDTH, HEADS, WORDS = 32, 4, 23


def causal(tokens):
    """[1, 1, tokens, tokens], True where a token may look."""
    return paddle.tril(paddle.ones([tokens, tokens])).astype("bool").reshape(
        [1, 1, tokens, tokens])


class RMSNorm(nn.Layer):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.weight = self.create_parameter(
            [width], default_initializer=nn.initializer.Uniform(0.5, 1.5))

    def forward(self, x):
        return self.weight * (x * paddle.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class OnePlusNorm(RMSNorm):
    """Multiplies by 1 + weight."""

    def forward(self, x):
        return (1.0 + self.weight) * (x * paddle.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class LlamaAttention(nn.Layer):
    """Fewer heads of keys than of queries, rotary positions; projections in a plain list too."""

    def __init__(self):
        super().__init__()
        self.dim = WIDTH // HEADS
        self.q_proj = nn.Linear(WIDTH, WIDTH, bias_attr=False)
        self.k_proj = nn.Linear(WIDTH, WIDTH // 2, bias_attr=False)
        self.v_proj = nn.Linear(WIDTH, WIDTH // 2, bias_attr=False)
        self.o_proj = nn.Linear(WIDTH, WIDTH, bias_attr=False)
        self.read_by = [self.q_proj, self.k_proj, self.v_proj]
        self.kv_cache = KVCache()

    def forward(self, hidden_states, attention_mask=None, rotary=None, past=None):
        q, k, v = (project(hidden_states) for project in self.read_by)
        q, k, v = (x.reshape([0, 0, -1, self.dim]) for x in (q, k, v))
        q, k = (x * rotary[0] + paddle.concat([-x[..., self.dim // 2:], x[..., :self.dim // 2]],
                                              -1) * rotary[1] for x in (q, k))
        k, v, past = self.kv_cache(k, v, past)
        k, v = (paddle.repeat_interleave(x, 2, axis=2) for x in (k, v))
        q, k, v = (x.transpose([0, 2, 1, 3]) for x in (q, k, v))
        scores = q @ k.transpose([0, 1, 3, 2]) / self.dim ** 0.5 + attention_mask
        y = (F.softmax(scores) @ v).transpose([0, 2, 1, 3]).flatten(2)
        return self.o_proj(input=y), past


class LlamaLayer(nn.Layer):
    """Returns a tuple; takes its mask and its rotary table by keyword; drops out."""

    def __init__(self, norm=RMSNorm):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = norm(), norm()
        self.self_attn = LlamaAttention()
        self.mlp = nn.LayerDict({"gate_proj": nn.Linear(WIDTH, 2 * WIDTH, bias_attr=False),
                                 "up_proj": nn.Linear(WIDTH, 2 * WIDTH, bias_attr=False),
                                 "down_proj": nn.Linear(2 * WIDTH, WIDTH, bias_attr=False)})

    def forward(self, hidden_states, *, attention_mask, rotary, past=None):
        y, past = self.self_attn(self.input_layernorm(hidden_states), attention_mask, rotary, past)
        x = hidden_states + F.dropout(y, 0.5, training=self.training)
        y = self.post_attention_layernorm(x)
        y = F.silu(self.mlp["gate_proj"](y)) * self.mlp["up_proj"](y)
        return x + self.mlp["down_proj"](y), past


class Llama(nn.Layer):
    """Changes in place what a layer gave, and returns a dict."""

    def __init__(self, depth=3, norm=RMSNorm):
        super().__init__()
        self.embed_tokens = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.LayerList([LlamaLayer(norm) for _ in range(depth)])
        self.norm = norm()
        self.lm_head = nn.Linear(WIDTH, WORDS, bias_attr=False)

    def forward(self, input_ids, past=None):
        start, tokens = 0 if past is None else past[0][0].shape[1], input_ids.shape[1]
        angles = paddle.arange(start, start + tokens, dtype="float32").unsqueeze(-1) / (
            10.0 ** (paddle.arange(WIDTH // HEADS // 2, dtype="float32") / 2))
        rotary = [f(paddle.concat([angles, angles], -1)).unsqueeze([0, 2])
                  for f in (paddle.cos, paddle.sin)]
        mask = paddle.triu(paddle.full([tokens, start + tokens], -1e9), start + 1)
        x, kept = self.embed_tokens(input_ids), []
        for i, layer in enumerate(self.layers):
            x, new = layer(x, attention_mask=mask, rotary=rotary,
                           past=None if past is None else past[i])
            x.scale_(0.9)
            kept.append(new)
        return {"logits": self.lm_head(self.norm(x)), "past": kept}


class Bert(nn.Layer):
    """Norms after the sums: what a norm gives is read by the sum too. A pooler and a classifier."""

    def __init__(self, before=False):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, normalize_before=before), 3)
        self.pooler = nn.Linear(WIDTH, WIDTH)
        self.classifier = nn.Linear(WIDTH, 5)

    def forward(self, input_ids):
        y = self.encoder(self.embedding(input_ids), causal(input_ids.shape[1]))
        return self.classifier(paddle.tanh(self.pooler(y[:, 0]))), y


class Translator(nn.Layer):
    """``paddle.nn.Transformer``: two stacks, and the second reads the last of the first."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.transformer = nn.Transformer(WIDTH, HEADS, 2, 2, 2 * WIDTH)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        return self.head(self.transformer(x, x[:, ::2], tgt_mask=causal(x[:, ::2].shape[1])))


class Block(nn.Layer):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x, *others):
        y = x + self.down(F.gelu(self.up(self.norm(x))))
        return sum(others, y)


class Skipping(nn.Layer):
    """Later blocks read what others than the one before gave, as in a U-Net."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.LayerList([Block() for _ in range(4)])
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        first = self.blocks[0](x)
        second = self.blocks[1](first)
        third = self.blocks[2](second, second)
        return self.head(self.blocks[3](third, first))


class Recurring(nn.Layer):
    """The same layers again and again (ALBERT), in another order than they are held."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.LayerList([Block(), Block()])

    def forward(self, input_ids):
        x = self.embedding(input_ids)
        for _ in range(2):
            x = self.blocks[0](self.blocks[1](x))
        return x


class Expert(nn.Layer):
    def __init__(self):
        super().__init__()
        self.gate, self.up = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.down = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class MixtureLayer(nn.Layer):
    """A token goes to the expert of its number; the last expert is for numbers there are few of."""

    def __init__(self, experts=3):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.experts = nn.LayerList([Expert() for _ in range(experts)])

    def forward(self, x, route):
        flat, y = self.norm(x).reshape([-1, WIDTH]), paddle.zeros([x.shape[0] * x.shape[1], WIDTH])
        for number, expert in enumerate(self.experts):
            mine = paddle.nonzero(route.flatten() == number).flatten()
            if mine.shape[0]:
                y = paddle.scatter(y, mine, expert(paddle.gather(flat, mine)))
        return collections.namedtuple("Output", "hidden route")(x + y.reshape(x.shape), route)


class Mixture(nn.Layer):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.LayerList([MixtureLayer() for _ in range(2)])

    def forward(self, input_ids):
        route = (input_ids > 5).astype("int64") + (input_ids > 20).astype("int64")
        x = self.embedding(input_ids)
        for layer in self.layers:
            x, route = layer(x, route)
        return x


NETWORKS = {
    "llama": Llama, "bert": Bert, "pre-norm": lambda: Bert(before=True), "translator": Translator,
    "skipping": Skipping, "recurring": Recurring, "mixture": Mixture,
}


def build(name, seed=0):
    """A network whose features are of different size, as those of trained ones are."""
    paddle.seed(seed)
    network = NETWORKS[name]()
    for layer in network.sublayers():
        if isinstance(layer, (nn.LayerNorm, RMSNorm)):
            factor = paddle.exp(0.5 * paddle.randn(layer.weight.shape))
            layer.weight.set_value(layer.weight * factor)
    network.eval()
    return network


def sentences(count=3, tokens=8, seed=0):
    """Batches of token numbers, [2, tokens]."""
    paddle.seed(1000 + seed)
    return [paddle.randint(0, WORDS, [2, tokens]) for _ in range(count)]
