"""Tiny segmentation networks for phones and with attention, with the operators of the originals."""

import paddle
import paddle.nn.functional as F
from paddle import nn
from zoo_blocks import Attention, ConvBN, InvertedResidual, Pyramid, resize, separable

CLASSES = 5


class MixFFN(nn.Layer):
    """MLP of a mix transformer: a depthwise convolution between its Linears."""

    def __init__(self, width):
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.depthwise = nn.Conv2D(2 * width, 2 * width, 3, padding=1, groups=2 * width)

    def forward(self, x, height, width):
        y = self.up(x)
        y = y.transpose([0, 2, 1]).reshape([0, y.shape[2], height, width])
        y = self.depthwise(y).flatten(2).transpose([0, 2, 1])
        return self.down(F.gelu(y))


class MixStage(nn.Layer):
    """Overlapping patches and a block with shrunken keys."""

    def __init__(self, inputs, width, kernel, stride, reduction):
        super().__init__()
        self.patches = nn.Conv2D(inputs, width, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(width)
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, 2, reduction)
        self.norm2, self.mlp = nn.LayerNorm(width), MixFFN(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(self, x):
        x = self.patches(x)
        channels, height, width = x.shape[1:]
        x = self.norm(x.flatten(2).transpose([0, 2, 1]))
        x = x + self.attention(self.norm1(x), height, width)
        x = self.norm3(x + self.mlp(self.norm2(x), height, width))
        return x.reshape([0, height, width, channels]).transpose([0, 3, 1, 2])


class SegFormer(nn.Layer):
    """Mix transformer, a Linear for each scale, one convolution."""

    def __init__(self):
        super().__init__()
        self.stages = nn.LayerList([MixStage(3, 8, 7, 4, 4), MixStage(8, 16, 3, 2, 2),
                                    MixStage(16, 32, 3, 2, 1)])
        self.project = nn.LayerList([nn.Linear(width, 16) for width in (8, 16, 32)])
        self.mix, self.head = ConvBN(48, 16, 1), nn.Conv2D(16, CLASSES, 1)

    def forward(self, x):
        found, y = [], x
        for stage, project in zip(self.stages, self.project):
            y = stage(y)
            z = project(y.flatten(2).transpose([0, 2, 1])).transpose([0, 2, 1])
            z = z.reshape([0, 16, y.shape[2], y.shape[3]])
            found.append(resize(z, found[0]) if found else z)
        return resize(self.head(self.mix(paddle.concat(found[::-1], axis=1))), x)


class ConvAttention(nn.Layer):
    """Attention whose projections are 1x1 convolutions with norms (TopFormer)."""

    def __init__(self, width, heads=2, key=8):
        super().__init__()
        self.heads, self.key, self.value = heads, key, 2 * key
        self.to_q, self.to_k = (ConvBN(width, heads * key, 1, act="") for _ in range(2))
        self.to_v = ConvBN(width, heads * 2 * key, 1, act="")
        self.out = nn.Sequential(nn.ReLU6(), ConvBN(heads * 2 * key, width, 1, act=""))
        self.mlp = nn.Sequential(ConvBN(width, 2 * width, 1, act=""), nn.Conv2D(
            2 * width, 2 * width, 3, padding=1, groups=2 * width), nn.ReLU6(), ConvBN(
                2 * width, width, 1, act=""))

    def forward(self, x):
        height, width = x.shape[2:]
        q = self.to_q(x).reshape([0, self.heads, self.key, -1]).transpose([0, 1, 3, 2])
        k = self.to_k(x).reshape([0, self.heads, self.key, -1])
        v = self.to_v(x).reshape([0, self.heads, self.value, -1]).transpose([0, 1, 3, 2])
        y = paddle.matmul(F.softmax(paddle.matmul(q, k), axis=-1), v)
        y = y.transpose([0, 1, 3, 2]).reshape([0, self.heads * self.value, height, width])
        x = x + self.out(y)
        return x + self.mlp(x)


class TopFormer(nn.Layer):
    """Tokens from pooled scales; their semantics injected back into each scale."""

    def __init__(self, squeezed=False):
        super().__init__()
        self.widths = (8, 16, 24, 32)
        self.backbone = Pyramid(self.widths, InvertedResidual, act="hardswish" if squeezed else
                                "relu6", se=("relu", "hardsigmoid") if squeezed else None)
        total = sum(self.widths)
        self.attention = nn.Sequential(ConvAttention(total), ConvAttention(total))
        self.local, self.gate, self.embed = (nn.LayerList(
            [ConvBN(width, 16, 1, act="") for width in self.widths[1:]]) for _ in range(3))
        self.head = nn.Sequential(ConvBN(16, 16, 1), nn.Conv2D(16, CLASSES, 1))
        self.squeezed = squeezed

    def forward(self, x):
        found = self.backbone(x)
        tokens = paddle.concat([F.adaptive_avg_pool2d(each, 2) for each in found], axis=1)
        tokens, start, y = self.attention(tokens), self.widths[0], None
        for number, scale in enumerate(found[1:]):
            width = self.widths[number + 1]
            part = tokens[:, start:start + width]
            start += width
            gate = F.hardsigmoid(self.gate[number](part))
            injected = (self.local[number](scale) * resize(gate, scale)
                        + resize(self.embed[number](part), scale))
            y = injected if y is None else y + resize(injected, y)
        return resize(self.head(y), x)


class FastSCNN(nn.Layer):
    """Learning to downsample, a pyramid pooling, a fusion of two scales."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(ConvBN(3, 8, 3, 2), separable(8, 16, 2), separable(16, 16, 2))
        self.deep = nn.Sequential(InvertedResidual(16, 24, 2, act="relu"),
                                  InvertedResidual(24, 24, act="relu"))
        self.pools = nn.LayerList([nn.Sequential(nn.AdaptiveAvgPool2D(size), ConvBN(24, 6, 1))
                                   for size in (1, 2, 3, 6)])
        self.mix = ConvBN(48, 24, 1)
        self.low, self.high = ConvBN(16, 16, 1, act=""), nn.Sequential(
            ConvBN(24, 24, 3, 1, 24), ConvBN(24, 16, 1, act=""))
        self.head = nn.Sequential(separable(16, 16), nn.Dropout(0.1), nn.Conv2D(16, CLASSES, 1))
        self.auxiliary = nn.Sequential(ConvBN(16, 8), nn.Conv2D(8, CLASSES, 1))

    def forward(self, x):
        low = self.down(x)
        y = self.deep(low)
        raised = [resize(pool(y), y) for pool in self.pools]
        y = self.mix(paddle.concat([y, *raised], axis=1))
        y = F.relu(self.low(low) + self.high(resize(y, low)))
        found = resize(self.head(y), x)
        return (found, resize(self.auxiliary(low), x)) if self.training else found


class HumanSegLite(nn.Layer):
    """Nearest and bilinear raises, channel shuffles, and convolutions that forward never runs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(ConvBN(3, 8, 3, 2), separable(8, 16, 2))
        self.unused = nn.LayerList([nn.Conv2D(8, 8, 1) for _ in range(3)])
        self.blocks = nn.Sequential(ConvBN(16, 16, 3, 1, 4), nn.ChannelShuffle(4),
                                    ConvBN(16, 16, 1, act="prelu"), ConvBN(16, 24, 3, 2))
        self.low, self.high, self.last = (ConvBN(16, 16, 1), ConvBN(24, 16, 1), separable(16, 8))
        self.head = nn.Conv2D(8, 2, 1)

    def forward(self, x):
        low = self.stem(x)
        y = F.interpolate(self.high(self.blocks(low)), scale_factor=2, mode="nearest")
        y = F.interpolate(self.last(y + self.low(low)), scale_factor=2, mode="bilinear")
        return F.softmax(resize(self.head(y), x), axis=1)


class ENetBlock(nn.Layer):
    """Bottleneck with PReLU: pools with indices' channels padded, asymmetric or dilated."""

    def __init__(self, inputs, outputs, kind="plain"):
        super().__init__()
        middle, self.kind, self.extra = outputs // 4, kind, outputs - inputs
        first = ConvBN(inputs, middle, 2, 2, act="prelu") if kind == "down" else ConvBN(
            inputs, middle, 1, act="prelu")
        if kind == "down":
            first[0]._padding = first[0]._updated_padding = [0, 0]
        inner = {"asymmetric": [ConvBN(middle, middle, (5, 1), act=""),
                                ConvBN(middle, middle, (1, 5), act="prelu")],
                 "dilated": [ConvBN(middle, middle, dilation=2, act="prelu")]}
        self.body = nn.Sequential(first, *inner.get(kind, [ConvBN(middle, middle, act="prelu")]),
                                  ConvBN(middle, outputs, 1, act="prelu"))
        self.act = nn.PReLU()

    def forward(self, x):
        y = self.body(x)
        if self.kind == "down":
            x = F.max_pool2d(x, 2, 2)
            zeros = paddle.zeros_like(x[:, :self.extra])
            x = paddle.concat([x, zeros], axis=1)
        return self.act(y + x)


class ENet(nn.Layer):
    """Convolution beside a pool; transposed convolutions at the end."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2D(3, 5, 3, 2, 1), nn.BatchNorm2D(8)
        self.blocks = nn.Sequential(ENetBlock(8, 16, "down"), ENetBlock(16, 16, "asymmetric"),
                                    ENetBlock(16, 16, "dilated"), ENetBlock(16, 16))
        self.up = nn.Conv2DTranspose(16, 8, 3, 2, 1, output_padding=1, bias_attr=False)
        self.norm2 = nn.BatchNorm2D(8)
        self.out = nn.Conv2DTranspose(8, CLASSES, 3, 2, 1, bias_attr=False)

    def forward(self, x):
        y = F.relu(self.norm(paddle.concat([self.conv(x), F.max_pool2d(x, 3, 2, 1)], axis=1)))
        y = F.relu(self.norm2(self.up(self.blocks(y))))
        return self.out(y, output_size=x.shape[2:])


LIGHT_SEGMENTATION = {name: (make, [[None, 3, 64, 64]]) for name, make in {
    "SegFormer": SegFormer, "TopFormer": TopFormer, "PP-MobileSeg": lambda: TopFormer(True),
    "Fast-SCNN": FastSCNN, "PP-HumanSeg-Lite": HumanSegLite, "ENet": ENet}.items()}
