"""Tiny convolutional classifiers of pictures, with the operators of the originals."""

import paddle
import paddle.nn.functional as F
from paddle import nn
from zoo_blocks import SE, Basic, Bottleneck, ConvBN, Head, InvertedResidual, separable


def mobilenet_v1():
    return nn.Sequential(ConvBN(3, 8, stride=2), separable(8, 16), separable(16, 24, 2),
                         separable(24, 32, 2), Head(32))


def mobilenet_v2():
    return nn.Sequential(ConvBN(3, 8, stride=2, act="relu6"), InvertedResidual(8, 8),
                         InvertedResidual(8, 16, 2), InvertedResidual(16, 16),
                         ConvBN(16, 32, 1, act="relu6"), Head(32))


def mobilenet_v3():
    se = ("relu", "hardsigmoid")
    return nn.Sequential(
        ConvBN(3, 8, stride=2, act="hardswish"), InvertedResidual(8, 8, act="relu", se=se),
        InvertedResidual(8, 16, 2, act="hardswish", kernel=5, se=se),
        InvertedResidual(16, 16, act="hardswish", se=se), ConvBN(16, 32, 1, act="hardswish"),
        nn.AdaptiveAvgPool2D(1), nn.Conv2D(32, 32, 1, bias_attr=False), nn.Hardswish(),
        nn.Dropout(0.2), nn.Flatten(), nn.Linear(32, 10))


class ShuffleUnit(nn.Layer):
    """Splits, or strides in both branches; shuffles."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.stride, half = stride, outputs // 2
        start = inputs if stride > 1 else half
        self.main = nn.Sequential(ConvBN(start, half, 1), ConvBN(half, half, 3, stride, half, ""),
                                  ConvBN(half, half, 1))
        if stride > 1:
            self.side = nn.Sequential(ConvBN(start, start, 3, stride, start, ""),
                                      ConvBN(start, half, 1))

    def forward(self, x):
        if self.stride > 1:
            left, right = self.side(x), self.main(x)
        else:
            left, right = paddle.split(x, 2, axis=1)
            right = self.main(right)
        y = paddle.concat([left, right], axis=1)
        channels, height, width = y.shape[1:]
        y = y.reshape([-1, 2, channels // 2, height, width]).transpose([0, 2, 1, 3, 4])
        return y.reshape([-1, channels, height, width])


def shufflenet_v2():
    return nn.Sequential(ConvBN(3, 8, stride=2), nn.MaxPool2D(3, 2, 1), ShuffleUnit(8, 16, 2),
                         ShuffleUnit(16, 16, 1), ShuffleUnit(16, 32, 2), ConvBN(32, 32, 1),
                         Head(32))


class Ghost(nn.Layer):
    """Half of the channels from a depthwise convolution of the other half."""

    def __init__(self, inputs, outputs, act="relu"):
        super().__init__()
        self.primary = ConvBN(inputs, outputs // 2, 1, act=act)
        self.cheap = ConvBN(outputs // 2, outputs // 2, 3, 1, outputs // 2, act)

    def forward(self, x):
        x = self.primary(x)
        return paddle.concat([x, self.cheap(x)], axis=1)


class GhostBottleneck(nn.Layer):
    def __init__(self, inputs, wide, outputs, stride, se):
        super().__init__()
        self.body = nn.Sequential(
            Ghost(inputs, wide), *([ConvBN(wide, wide, 3, stride, wide, "")] if stride > 1 else []),
            *([SE(wide, "relu", "hardsigmoid")] if se else []), Ghost(wide, outputs, act=""))
        self.shortcut = nn.Identity() if stride == 1 and inputs == outputs else nn.Sequential(
            ConvBN(inputs, inputs, 3, stride, inputs, ""), ConvBN(inputs, outputs, 1, act=""))

    def forward(self, x):
        return self.body(x) + self.shortcut(x)


def ghostnet():
    return nn.Sequential(ConvBN(3, 8, stride=2), GhostBottleneck(8, 16, 8, 1, False),
                         GhostBottleneck(8, 24, 16, 2, True), GhostBottleneck(16, 32, 16, 1, True),
                         ConvBN(16, 32, 1), Head(32))


def pp_lcnet():
    wide = ConvBN(24, 24, 5, 2, 24, "hardswish")
    return nn.Sequential(
        ConvBN(3, 8, stride=2, act="hardswish"), separable(8, 16, 1, "hardswish"),
        separable(16, 24, 2, "hardswish"), wide, SE(24, "relu", "hardsigmoid"),
        ConvBN(24, 32, 1, act="hardswish"), nn.AdaptiveAvgPool2D(1),
        nn.Conv2D(32, 32, 1, bias_attr=False), nn.Hardswish(), nn.Dropout(0.2), nn.Flatten(),
        nn.Linear(32, 10))


class LearnableAffine(nn.Layer):
    """One scale and one shift after an activation (PP-HGNetV2)."""

    def __init__(self):
        super().__init__()
        constant = nn.initializer.Constant
        self.scale = self.create_parameter([1], default_initializer=constant(1.2))
        self.shift = self.create_parameter([1], default_initializer=constant(-0.1))

    def forward(self, x):
        return self.scale * x + self.shift


class HGBlock(nn.Layer):
    """Aggregates all layers of a chain, then squeezes and excites by one convolution."""

    def __init__(self, inputs, middle, outputs, affine=False):
        super().__init__()
        after = [LearnableAffine()] if affine else []
        self.chain = nn.LayerList([
            nn.Sequential(ConvBN(inputs if i == 0 else middle, middle), *after) for i in range(3)])
        self.mix = nn.Sequential(ConvBN(inputs + 3 * middle, outputs // 2, 1),
                                 ConvBN(outputs // 2, outputs, 1))
        self.excite = nn.Conv2D(outputs, outputs, 1)
        self.residual = inputs == outputs

    def forward(self, x):
        parts = [x]
        for layer in self.chain:
            parts.append(layer(parts[-1]))
        y = self.mix(paddle.concat(parts, axis=1))
        y = y * F.sigmoid(self.excite(F.adaptive_avg_pool2d(y, 1)))
        return x + y if self.residual else y


class HGStem(nn.Layer):
    """PP-HGNetV2's stem: a padded pool beside two even kernels."""

    def __init__(self, width):
        super().__init__()
        self.first = ConvBN(3, width, 3, 2)
        self.even = nn.Sequential(nn.Conv2D(width, width // 2, 2, padding="SAME"), nn.ReLU(),
                                  nn.Conv2D(width // 2, width, 2, padding="SAME"), nn.ReLU())
        self.pool = nn.MaxPool2D(2, 1, ceil_mode=True, padding="SAME")
        self.last = ConvBN(2 * width, width, 3, 2)

    def forward(self, x):
        x = self.first(x)
        return self.last(paddle.concat([self.pool(x), self.even(x)], axis=1))


def pp_hgnet():
    return nn.Sequential(ConvBN(3, 8, stride=2), ConvBN(8, 16), nn.MaxPool2D(3, 2, 1),
                         HGBlock(16, 8, 24), HGBlock(24, 8, 24), Head(24))


def pp_hgnet_v2():
    return nn.Sequential(HGStem(8), HGBlock(8, 8, 16, True), ConvBN(16, 16, 3, 2, 16, ""),
                         HGBlock(16, 8, 16, True), Head(16))


class RepBlock(nn.Layer):
    """3x3, 1x1 and identity, each with a norm, before they are merged (RepVGG)."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.large = ConvBN(inputs, outputs, 3, stride, act="")
        self.small = ConvBN(inputs, outputs, 1, stride, act="")
        self.same = nn.BatchNorm2D(inputs) if stride == 1 and inputs == outputs else None

    def forward(self, x):
        y = self.large(x) + self.small(x)
        return F.relu(y if self.same is None else y + self.same(x))


def repvgg():
    return nn.Sequential(RepBlock(3, 8, 2), RepBlock(8, 16, 2), RepBlock(16, 16),
                         RepBlock(16, 32, 2), Head(32))


def resnet_vd():
    return nn.Sequential(ConvBN(3, 8, stride=2), ConvBN(8, 8), nn.MaxPool2D(3, 2, 1),
                         Bottleneck(8, 16, vd=True), Bottleneck(16, 32, 2, vd=True),
                         Bottleneck(32, 32), Head(32))


def se_resnext():
    return nn.Sequential(ConvBN(3, 16, 7, 2), nn.MaxPool2D(3, 2, 1),
                         Bottleneck(16, 32, groups=4, se=True),
                         Bottleneck(32, 32, 2, groups=4, se=True), Head(32))


class DenseLayer(nn.Layer):
    """Norm before the convolution; the output joins the input."""

    def __init__(self, inputs, growth=8):
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2D(inputs), nn.ReLU(), nn.Conv2D(inputs, 2 * growth, 1, bias_attr=False),
            nn.BatchNorm2D(2 * growth), nn.ReLU(),
            nn.Conv2D(2 * growth, growth, 3, padding=1, bias_attr=False))

    def forward(self, x):
        return paddle.concat([x, self.body(x)], axis=1)


def densenet():
    transition = [nn.BatchNorm2D(24), nn.ReLU(), nn.Conv2D(24, 16, 1, bias_attr=False),
                  nn.AvgPool2D(2, 2)]
    return nn.Sequential(ConvBN(3, 8, stride=2), nn.MaxPool2D(3, 2, 1), DenseLayer(8),
                         DenseLayer(16), *transition, DenseLayer(16), DenseLayer(24),
                         nn.BatchNorm2D(32), nn.ReLU(), Head(32))


class Inception(nn.Layer):
    def __init__(self, inputs, width):
        super().__init__()
        def conv(before, kernel):
            return nn.Sequential(nn.Conv2D(before, width, kernel, padding=kernel // 2), nn.ReLU())
        self.one, self.three = conv(inputs, 1), nn.Sequential(conv(inputs, 1), conv(width, 3))
        self.five = nn.Sequential(conv(inputs, 1), conv(width, 5))
        self.pool = nn.Sequential(nn.MaxPool2D(3, 1, 1), conv(inputs, 1))

    def forward(self, x):
        return paddle.concat([self.one(x), self.three(x), self.five(x), self.pool(x)], axis=1)


class GoogLeNet(nn.Layer):
    """With an auxiliary classifier in training."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2D(3, 8, 7, 2, 3), nn.ReLU(), nn.MaxPool2D(3, 2, 1))
        self.first, self.second = Inception(8, 6), Inception(24, 8)
        self.head, self.auxiliary = Head(32), nn.Sequential(ConvBN(24, 16, 1), Head(16))

    def forward(self, x):
        x = self.first(self.stem(x))
        y = self.head(self.second(x))
        return (y, self.auxiliary(x)) if self.training else y


def efficientnet():
    def block(inputs, outputs, stride, kernel):
        return InvertedResidual(inputs, outputs, stride, 4, "silu", kernel, ("silu",))
    return nn.Sequential(ConvBN(3, 8, stride=2, act="silu"), block(8, 8, 1, 3), block(8, 16, 2, 5),
                         block(16, 16, 1, 3), ConvBN(16, 32, 1, act="silu"), Head(32))


class CSPStage(nn.Layer):
    """Two branches of half the width, and effective SE (CSPResNet)."""

    def __init__(self, inputs, outputs, act="silu"):
        super().__init__()
        half = outputs // 2
        self.down = ConvBN(inputs, outputs, 3, 2, act=act)
        self.left, self.right = ConvBN(outputs, half, 1, act=act), ConvBN(outputs, half, 1, act=act)
        self.blocks = nn.Sequential(Basic(half, half, act=act), Basic(half, half, act=act))
        self.excite, self.out = nn.Conv2D(outputs, outputs, 1), ConvBN(outputs, outputs, 1, act=act)

    def forward(self, x):
        x = self.down(x)
        y = paddle.concat([self.left(x), self.blocks(self.right(x))], axis=1)
        y = y * F.hardsigmoid(self.excite(y.mean([2, 3], keepdim=True)))
        return self.out(y)


def cspresnet():
    return nn.Sequential(ConvBN(3, 8, stride=2, act="silu"), CSPStage(8, 16), CSPStage(16, 32),
                         Head(32))


class Res2Block(nn.Layer):
    """The groups of a convolution one after the other, each with the sum of the last."""

    def __init__(self, width, scales=4):
        super().__init__()
        part = width // scales
        self.start, self.end = ConvBN(width, width, 1), ConvBN(width, width, 1, act="")
        self.parts = nn.LayerList([ConvBN(part, part) for _ in range(scales - 1)])
        self.scales = scales

    def forward(self, x):
        pieces = paddle.split(self.start(x), self.scales, axis=1)
        found = [self.parts[0](pieces[0])]
        for layer, piece in zip(self.parts[1:], pieces[1:]):
            found.append(layer(piece + found[-1]))
        found.append(pieces[-1])
        return F.relu(self.end(paddle.concat(found, axis=1)) + x)


def res2net():
    return nn.Sequential(ConvBN(3, 16, stride=2), nn.MaxPool2D(3, 2, 1), Res2Block(16),
                         ConvBN(16, 32, stride=2), Res2Block(32), Head(32))


def vgg():
    def block(inputs, outputs):
        return [nn.Conv2D(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2D(2, 2)]
    return nn.Sequential(*block(3, 8), *block(8, 16), *block(16, 32), nn.Flatten(),
                         nn.Linear(512, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 10))


class Fire(nn.Layer):
    def __init__(self, inputs, width):
        super().__init__()
        self.squeeze = nn.Conv2D(inputs, width // 2, 1)
        self.small, self.large = (nn.Conv2D(width // 2, width, 1),
                                  nn.Conv2D(width // 2, width, 3, padding=1))

    def forward(self, x):
        x = F.relu(self.squeeze(x))
        return paddle.concat([F.relu(self.small(x)), F.relu(self.large(x))], axis=1)


def squeezenet():
    return nn.Sequential(nn.Conv2D(3, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2D(3, 2), Fire(8, 8),
                         Fire(16, 16), nn.MaxPool2D(3, 2), nn.Dropout(), nn.Conv2D(32, 10, 1),
                         nn.ReLU(), nn.AdaptiveAvgPool2D(1), nn.Flatten())


def regnet():
    return nn.Sequential(ConvBN(3, 16, stride=2), Bottleneck(16, 32, 2, groups=2, se=True),
                         Bottleneck(32, 32, groups=2, se=True), Head(32))


def xception():
    def block(inputs, outputs):
        return [nn.ReLU(), nn.Conv2D(inputs, inputs, 3, padding=1, groups=inputs, bias_attr=False),
                nn.Conv2D(inputs, outputs, 1, bias_attr=False), nn.BatchNorm2D(outputs)]
    return nn.Sequential(ConvBN(3, 16, stride=2), *block(16, 24), *block(24, 32),
                         nn.MaxPool2D(3, 2, 1), Head(32))


class SplitAttention(nn.Layer):
    """ResNeSt's block: a softmax over two groups of channels."""

    def __init__(self, width):
        super().__init__()
        self.width = width
        self.conv = ConvBN(width, 2 * width, 3, 1, 2)
        self.reduce, self.expand = ConvBN(width, width // 2, 1), nn.Conv2D(width // 2, 2 * width, 1)
        self.out = ConvBN(width, width, 1, act="")

    def forward(self, x):
        y = self.conv(x)
        parts = paddle.split(y, 2, axis=1)
        gate = self.expand(self.reduce(F.adaptive_avg_pool2d(parts[0] + parts[1], 1)))
        gate = F.softmax(gate.reshape([-1, 2, self.width, 1, 1]), axis=1)
        y = parts[0] * gate[:, 0] + parts[1] * gate[:, 1]
        return F.relu(self.out(y) + x)


def resnest():
    return nn.Sequential(ConvBN(3, 16, stride=2), SplitAttention(16), ConvBN(16, 32, stride=2),
                         SplitAttention(32), Head(32))


CLASSIFICATION = {name: (make, [[None, 3, 32, 32]]) for name, make in {
    "MobileNetV1": mobilenet_v1, "MobileNetV2": mobilenet_v2, "MobileNetV3": mobilenet_v3,
    "ShuffleNetV2": shufflenet_v2, "GhostNet": ghostnet, "PP-LCNet": pp_lcnet,
    "PP-HGNet": pp_hgnet, "PP-HGNetV2": pp_hgnet_v2, "RepVGG": repvgg, "ResNet-vd": resnet_vd,
    "SE-ResNeXt": se_resnext, "DenseNet": densenet, "GoogLeNet": GoogLeNet,
    "EfficientNet": efficientnet, "CSPResNet": cspresnet, "Res2Net": res2net, "VGG": vgg,
    "SqueezeNet": squeezenet, "RegNet": regnet, "Xception": xception, "ResNeSt": resnest,
}.items()}
