"""Tiny vision transformers and relatives of them, with the operators of the originals."""

import paddle
import paddle.nn.functional as F
from paddle import nn
from zoo import Swin
from zoo_blocks import Attention, ConvBN, Head, InvertedResidual


class ConvNeXtBlock(nn.Layer):
    def __init__(self, width):
        super().__init__()
        self.depthwise = nn.Conv2D(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, epsilon=1e-6)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = self.create_parameter([width],
                                           default_initializer=nn.initializer.Constant(0.5))

    def forward(self, x):
        y = self.norm(self.depthwise(x).transpose([0, 2, 3, 1]))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        return x + y.transpose([0, 3, 1, 2])


class ChannelNorm(nn.Layer):
    """LayerNorm over the channels of NCHW, written out (ConvNeXt)."""

    def __init__(self, width):
        super().__init__()
        self.weight = self.create_parameter([width, 1, 1],
                                            default_initializer=nn.initializer.Constant(1.0))
        self.bias = self.create_parameter([width, 1, 1], is_bias=True)

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        deviation = (x - mean).pow(2).mean(1, keepdim=True)
        return self.weight * ((x - mean) / paddle.sqrt(deviation + 1e-6)) + self.bias


def convnext():
    return nn.Sequential(nn.Conv2D(3, 16, 4, 4), ChannelNorm(16), ConvNeXtBlock(16),
                         ChannelNorm(16), nn.Conv2D(16, 32, 2, 2), ConvNeXtBlock(32),
                         nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.LayerNorm(32), nn.Linear(32, 10))


class MobileViTBlock(nn.Layer):
    """Attention between the pixels of the same place in patches of 2 x 2."""

    def __init__(self, width, inner, size):
        super().__init__()
        self.size, self.inner = size, inner
        self.before = nn.Sequential(ConvBN(width, width, act="silu"), ConvBN(width, inner, 1,
                                                                            act="silu"))
        self.norm1, self.norm2 = nn.LayerNorm(inner), nn.LayerNorm(inner)
        self.attention = Attention(inner)
        self.mlp = nn.Sequential(nn.Linear(inner, 2 * inner), nn.Silu(),
                                 nn.Linear(2 * inner, inner))
        self.after, self.mix = (ConvBN(inner, width, 1, act="silu"),
                                ConvBN(2 * width, width, act="silu"))

    def forward(self, x):
        y = self.before(x)
        new = -(-self.size // 2)
        if 2 * new != self.size:
            y = F.interpolate(y, size=[2 * new, 2 * new], mode="bilinear")
        y = y.reshape([-1, self.inner, new, 2, new, 2]).transpose([0, 3, 5, 2, 4, 1])
        y = y.reshape([-1, new * new, self.inner])
        y = y + self.attention(self.norm1(y))
        y = y + self.mlp(self.norm2(y))
        y = y.reshape([-1, 2, 2, new, new, self.inner]).transpose([0, 5, 3, 1, 4, 2])
        y = y.reshape([-1, self.inner, 2 * new, 2 * new])
        if 2 * new != self.size:
            y = F.interpolate(y, size=[self.size, self.size], mode="bilinear")
        return self.mix(paddle.concat([x, self.after(y)], axis=1))


def mobilevit(size=36):
    def down(inputs, outputs, stride=2):
        return InvertedResidual(inputs, outputs, stride, 2, "silu")
    return nn.Sequential(ConvBN(3, 8, stride=2, act="silu"), down(8, 16), MobileViTBlock(
        16, 24, size // 4), ConvBN(16, 32, 1, act="silu"), Head(32))


class DeiT(nn.Layer):
    """Class token and distillation token, whose heads are averaged in evaluation."""

    def __init__(self, width=32, depth=2):
        super().__init__()
        self.patches = nn.Conv2D(3, width, 8, 8)
        normal = nn.initializer.TruncatedNormal(std=0.5)
        self.tokens = self.create_parameter([1, 2, width], default_initializer=normal)
        self.position = self.create_parameter([1, 18, width], default_initializer=normal)
        self.blocks = nn.LayerList([nn.LayerList([
            nn.LayerNorm(width), Attention(width), nn.LayerNorm(width),
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))])
            for _ in range(depth)])
        self.norm, self.head, self.head2 = (nn.LayerNorm(width), nn.Linear(width, 10),
                                            nn.Linear(width, 10))

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose([0, 2, 1])
        x = paddle.concat([self.tokens.expand([x.shape[0], -1, -1]), x], axis=1) + self.position
        for norm1, attention, norm2, mlp in self.blocks:
            x = x + attention(norm1(x))
            x = x + mlp(norm2(x))
        x = self.norm(x)
        found = self.head(x[:, 0]), self.head2(x[:, 1])
        return found if self.training else (found[0] + found[1]) / 2


class MixerBlock(nn.Layer):
    def __init__(self, tokens, width):
        super().__init__()
        def mlp(size):
            return nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens, self.channels = mlp(tokens), mlp(width)

    def forward(self, x):
        x = x + self.tokens(self.norm1(x).transpose([0, 2, 1])).transpose([0, 2, 1])
        return x + self.channels(self.norm2(x))


class Mixer(nn.Layer):
    def __init__(self, width=32):
        super().__init__()
        self.patches = nn.Conv2D(3, width, 8, 8)
        self.blocks = nn.Sequential(MixerBlock(16, width), MixerBlock(16, width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x):
        x = self.blocks(self.patches(x).flatten(2).transpose([0, 2, 1]))
        return self.head(self.norm(x).mean(1))


class LeViT(nn.Layer):
    """Convolutional stem, attention with norms after the projections, and biases of positions."""

    def __init__(self, width=32, tokens=16, heads=2):
        super().__init__()
        self.stem = nn.Sequential(*(ConvBN(a, b, 3, 2, act="hardswish") for a, b in
                                    ((3, 8), (8, 16), (16, width))))
        self.heads, self.width = heads, width
        self.qkv = nn.Linear(width, 3 * width, bias_attr=False)
        self.norm = nn.BatchNorm1D(3 * width)
        self.bias = self.create_parameter([heads, tokens, tokens])
        self.out, self.norm2 = nn.Linear(width, width, bias_attr=False), nn.BatchNorm1D(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose([0, 2, 1])
        tokens = x.shape[1]
        y = self.norm(self.qkv(x).flatten(0, 1))
        y = y.reshape([-1, tokens, self.heads, 3 * self.width // self.heads])
        q, k, v = paddle.split(y.transpose([0, 2, 1, 3]), 3, axis=-1)
        weights = F.softmax(q.matmul(k.transpose([0, 1, 3, 2])) / 4 + self.bias)
        y = F.hardswish(weights.matmul(v).transpose([0, 2, 1, 3]).reshape([-1, tokens, self.width]))
        y = self.norm2(self.out(y).flatten(0, 1)).reshape([-1, tokens, self.width])
        return self.head((x + y).mean(1))


class PoolFormerBlock(nn.Layer):
    """An average pool less its input mixes the tokens; norms of one group."""

    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.pool = nn.AvgPool2D(3, 1, 1, exclusive=True)
        self.mlp = nn.Sequential(nn.Conv2D(width, 2 * width, 1), nn.GELU(),
                                 nn.Conv2D(2 * width, width, 1))

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.pool(y) - y
        return x + self.mlp(self.norm2(x))


def poolformer():
    return nn.Sequential(nn.Conv2D(3, 16, 7, 4, 2), PoolFormerBlock(16), nn.Conv2D(
        16, 32, 3, 2, 1), PoolFormerBlock(32), Head(32))


class VANBlock(nn.Layer):
    """Large-kernel attention: a gate from dilated depthwise convolutions."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.project = nn.BatchNorm2D(width), nn.Conv2D(width, width, 1)
        self.near = nn.Conv2D(width, width, 5, padding=2, groups=width)
        self.far = nn.Conv2D(width, width, 7, padding=9, dilation=3, groups=width)
        self.mix, self.out = nn.Conv2D(width, width, 1), nn.Conv2D(width, width, 1)

    def forward(self, x):
        y = F.gelu(self.project(self.norm(x)))
        return x + self.out(y * self.mix(self.far(self.near(y))))


def van():
    return nn.Sequential(nn.Conv2D(3, 16, 7, 4, 3), nn.BatchNorm2D(16), VANBlock(16), Head(16))


TOKENS = {name: (make, [[None, 3, 32, 32]]) for name, make in {
    "ConvNeXt": convnext, "DeiT": DeiT, "Mixer": Mixer, "LeViT": LeViT, "PoolFormer": poolformer,
    "VAN": van, "Swin": lambda: nn.Sequential(nn.Conv2D(3, 1, 2, 2), Swin()),
}.items()}
TOKENS["MobileViT"] = (mobilevit, [[None, 3, 36, 36]])
