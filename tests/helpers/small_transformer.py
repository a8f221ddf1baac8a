"""A small decoder, trained on digits, and its reference in float64 numpy.

The rows of an image are its tokens. What quantizes a Linear in the numpy version is given to it, so
that a test says in formulas what a quantized decoder computes.
"""

import copy
import functools
import math

import numpy as np
import paddle
from paddle import nn

from paddleq.nn import KVCache

WIDTH, HEADS, INNER = 96, 4, 160


class Attention(nn.Layer):
    """Causal, with a place for a KV cache."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.kv_cache = KVCache()

    def forward(self, x):
        shape = [x.shape[0], x.shape[1], HEADS, WIDTH // HEADS]
        q, k, v = (layer(x).reshape(shape) for layer in (self.q, self.k, self.v))
        k, v, _ = self.kv_cache(k, v)
        q, k, v = (each.transpose([0, 2, 1, 3]) for each in (q, k, v))
        scores = paddle.matmul(q, k, transpose_y=True) / math.sqrt(shape[-1])
        ahead = paddle.triu(paddle.full([shape[1], shape[1]], -1e9), 1)
        mixed = paddle.matmul(nn.functional.softmax(scores + ahead), v)
        return self.out(mixed.transpose([0, 2, 1, 3]).reshape(x.shape))


class Block(nn.Layer):
    """Attention and two Linears, each behind a LayerNorm."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(nn.functional.relu(self.up(self.norm2(x))))


class Decoder(nn.Layer):
    """[batch, 8, 8] -> [batch, 8, 10]: a guess at the digit after each row."""

    def __init__(self, layers=2):
        super().__init__()
        self.stem = nn.Linear(8, WIDTH)
        self.layers = nn.LayerList([Block() for _ in range(layers)])
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def in_numpy(state, x, linear):
    """Compute the output of a :class:`Decoder` with that state_dict in float64.

    Args:
        state: name -> float64 array.
        x: float64 [batch, 8, 8].
        linear: called as ``linear(name, x, weight, bias)`` for each Linear.
    """
    x = _run(state, "stem", x, linear)
    for i in range(len({name.split(".")[1] for name in state if name.startswith("layers.")})):
        x = block_in_numpy(state, f"layers.{i}", x, linear)
    return _run(state, "head", x, linear)


def block_in_numpy(state, name, x, linear, cache=lambda k, v: (k, v)):
    """Compute the output of the :class:`Block` ``name``.

    Args:
        cache: called with keys and values [batch, tokens, heads, features]; what is attended to.
    """
    def heads(value):
        return value.reshape(*value.shape[:2], HEADS, -1)

    def norm(name, value):
        centred = value - value.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    inner = norm(f"{name}.norm1", x)
    q, k, v = (heads(_run(state, f"{name}.attention.{each}", inner, linear)) for each in "qkv")
    q, k, v = (each.transpose(0, 2, 1, 3) for each in (q, *cache(k, v)))
    scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(WIDTH // HEADS)
    scores = scores + np.triu(np.full(scores.shape[-2:], -1e9), 1)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (shares / shares.sum(-1, keepdims=True)) @ v
    mixed = mixed.transpose(0, 2, 1, 3).reshape(x.shape)
    x = x + _run(state, f"{name}.attention.out", mixed, linear)
    inner = np.maximum(_run(state, f"{name}.up", norm(f"{name}.norm2", x), linear), 0.0)
    return x + _run(state, f"{name}.down", inner, linear)


def _run(state, name, x, linear):
    return linear(name, x, state[f"{name}.weight"], state[f"{name}.bias"])


def plain(name, x, weight, bias):
    """A Linear that is not quantized."""
    return x @ weight + bias


def arrays(model):
    """The state_dict of a model in float64."""
    return {name: value.numpy().astype("float64") for name, value in model.state_dict().items()}


@functools.lru_cache(maxsize=None)
def _trained():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    # A little noise: half of the brightest pixel, 8 of 16, would lie in the very middle between two
    # steps of int8, where float32 and float64 round to different sides.
    images = images + np.random.RandomState(0).uniform(0.0, 0.5, images.shape)
    images = (images / 16.0).astype("float32").reshape([-1, 8, 8])
    paddle.seed(7)
    net = Decoder()
    optimizer = paddle.optimizer.Adam(2e-3, parameters=net.parameters())
    for start in range(0, 1280, 32):
        x, y = (paddle.to_tensor(each[start:start + 32]) for each in (images, labels))
        logits = net(x)
        targets = paddle.expand(y.astype("int64").unsqueeze(1), logits.shape[:2])
        nn.functional.cross_entropy(logits, targets).backward()
        optimizer.step()
        optimizer.clear_grad()
    net.eval()
    return net, images


def decoder(layers=2):
    """A trained :class:`Decoder`, the caller's own; with one layer, without the second one."""
    net = copy.deepcopy(_trained()[0])
    del net.layers[layers:]
    return net


def batches(count, size=16, held_out=False):
    """Batches of real images [size, 8, 8], of those held out from training or not."""
    images = _trained()[1][1280:] if held_out else _trained()[1]
    return [paddle.to_tensor(images[i * size:(i + 1) * size]) for i in range(count)]
