"""Blocks that the architectures of ``zoo_*.py`` share."""

import paddle
import paddle.nn.functional as F
from paddle import nn

ACTIVATIONS = {
    "": nn.Identity, "relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish,
    "silu": nn.Silu, "gelu": nn.GELU, "leaky": lambda: nn.LeakyReLU(0.1), "prelu": nn.PReLU,
    "sigmoid": nn.Sigmoid, "hardsigmoid": nn.Hardsigmoid,
}


class ConvBN(nn.Sequential):
    """Convolution without bias, norm, activation."""

    def __init__(self, inputs, outputs, kernel=3, stride=1, groups=1, act="relu", dilation=1):
        pad = [dilation * (k // 2) for k in ((kernel,) * 2 if isinstance(kernel, int) else kernel)]
        super().__init__(
            nn.Conv2D(inputs, outputs, kernel, stride, pad, dilation, groups, bias_attr=False),
            nn.BatchNorm2D(outputs), *([ACTIVATIONS[act]()] if act else []))


def separable(inputs, outputs, stride=1, act="relu", kernel=3, dilation=1):
    """Depthwise convolution, pointwise convolution."""
    return nn.Sequential(ConvBN(inputs, inputs, kernel, stride, inputs, act, dilation),
                         ConvBN(inputs, outputs, 1, act=act))


class SE(nn.Layer):
    """Squeeze and excitation."""

    def __init__(self, width, act="relu", gate="sigmoid", reduction=4):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2D(1)
        self.reduce, self.expand = (nn.Conv2D(width, width // reduction, 1),
                                    nn.Conv2D(width // reduction, width, 1))
        self.act, self.gate = ACTIVATIONS[act](), ACTIVATIONS[gate]()

    def forward(self, x):
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))


class Bottleneck(nn.Layer):
    """Residual block of ResNet; ``vd``: an average pool before the shortcut's convolution."""

    def __init__(self, inputs, outputs, stride=1, groups=1, vd=False, se=False, act="relu"):
        super().__init__()
        middle = outputs // 2
        self.body = nn.Sequential(
            ConvBN(inputs, middle, 1, act=act), ConvBN(middle, middle, 3, stride, groups, act),
            ConvBN(middle, outputs, 1, act=""), *([SE(outputs)] if se else []))
        self.shortcut = nn.Identity()
        if vd and stride > 1:
            self.shortcut = nn.Sequential(nn.AvgPool2D(2, 2, 0, ceil_mode=True),
                                          ConvBN(inputs, outputs, 1, act=""))
        elif stride > 1 or inputs != outputs:
            self.shortcut = ConvBN(inputs, outputs, 1, stride, act="")
        self.act = ACTIVATIONS[act]()

    def forward(self, x):
        return self.act(self.body(x) + self.shortcut(x))


class Basic(nn.Layer):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs, outputs, stride=1, act="relu"):
        super().__init__()
        self.body = nn.Sequential(ConvBN(inputs, outputs, 3, stride, act=act),
                                  ConvBN(outputs, outputs, 3, act=""))
        self.shortcut = (nn.Identity() if stride == 1 and inputs == outputs
                         else ConvBN(inputs, outputs, 1, stride, act=""))
        self.act = ACTIVATIONS[act]()

    def forward(self, x):
        return self.act(self.body(x) + self.shortcut(x))


class InvertedResidual(nn.Layer):
    """Expand, depthwise, project; the sum of MobileNetV2 and its successors."""

    def __init__(self, inputs, outputs, stride=1, expansion=3, act="relu6", kernel=3, se=None):
        super().__init__()
        wide = inputs * expansion
        self.body = nn.Sequential(
            ConvBN(inputs, wide, 1, act=act), ConvBN(wide, wide, kernel, stride, wide, act),
            *([SE(wide, *se)] if se else []), ConvBN(wide, outputs, 1, act=""))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.body(x) if self.residual else self.body(x)


class Head(nn.Layer):
    """Global average pool and classifier."""

    def __init__(self, width, classes=10):
        super().__init__()
        self.pool, self.fc = nn.AdaptiveAvgPool2D(1), nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(paddle.flatten(self.pool(x), 1))


class Pyramid(nn.Layer):
    """Backbone that returns its features at strides 4, 8, 16 (and 32)."""

    def __init__(self, widths=(8, 16, 24, 32), block=Basic, stem="relu", channels=3, **kwargs):
        super().__init__()
        self.stem = nn.Sequential(ConvBN(channels, 8, 3, 2, act=stem),
                                  ConvBN(8, widths[0], 3, 2, act=stem))
        self.stages = nn.LayerList(
            [block(before, after, 2, **kwargs) for before, after in zip(widths, widths[1:])])

    def forward(self, x):
        found = [self.stem(x)]
        for stage in self.stages:
            found.append(stage(found[-1]))
        return found


def resize(x, like, mode="bilinear", align_corners=False):
    """``x`` in the height and width of ``like``."""
    return F.interpolate(x, size=like.shape[2:], mode=mode, align_corners=align_corners)


class Attention(nn.Layer):
    """Self-attention with separate projections, optionally over keys that a convolution shrinks."""

    def __init__(self, width, heads=2, reduction=1):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.q, self.kv, self.out = (nn.Linear(width, width), nn.Linear(width, 2 * width),
                                     nn.Linear(width, width))
        self.shrink = None
        if reduction > 1:
            self.shrink = nn.Conv2D(width, width, reduction, reduction)
            self.norm = nn.LayerNorm(width)

    def forward(self, x, height=0, width=0, mask=None):
        channels = x.shape[2]
        q = self.q(x).reshape([0, 0, self.heads, channels // self.heads]).transpose([0, 2, 1, 3])
        if self.shrink is not None:
            x = x.transpose([0, 2, 1]).reshape([0, channels, height, width])
            x = self.norm(self.shrink(x).reshape([0, channels, -1]).transpose([0, 2, 1]))
        kv = self.kv(x).reshape([0, -1, 2, self.heads, channels // self.heads])
        kv = kv.transpose([2, 0, 3, 1, 4])
        k, v = kv[0], kv[1]
        weights = paddle.matmul(q, k.transpose([0, 1, 3, 2])) * self.scale
        if mask is not None:
            weights = weights + mask
        y = paddle.matmul(F.softmax(weights, axis=-1), v)
        return self.out(y.transpose([0, 2, 1, 3]).reshape([0, -1, channels]))
