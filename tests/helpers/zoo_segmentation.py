"""Tiny segmentation networks, with the operators of the originals; auxiliary heads in training."""

import paddle
import paddle.nn.functional as F
from paddle import nn
from zoo_blocks import SE, Bottleneck, ConvBN, Pyramid, resize, separable
from zoo_light_segmentation import LIGHT_SEGMENTATION

CLASSES = 5


class UNet(nn.Layer):
    """Skips joined by concat; raised by interpolation or by transposed convolutions."""

    def __init__(self, transposed=False):
        super().__init__()
        def double(inputs, outputs):
            return nn.Sequential(ConvBN(inputs, outputs), ConvBN(outputs, outputs))
        self.down = nn.LayerList([double(3, 8), double(8, 16), double(16, 24)])
        self.pool = nn.MaxPool2D(2, 2)
        self.raise_ = nn.LayerList([nn.Conv2DTranspose(24, 24, 2, 2), nn.Conv2DTranspose(
            16, 16, 2, 2)]) if transposed else None
        self.up = nn.LayerList([double(24 + 16, 16), double(16 + 8, 8)])
        self.head = nn.Conv2D(8, CLASSES, 3, padding=1)

    def forward(self, x):
        skips = []
        for number, layer in enumerate(self.down):
            x = layer(x if number == 0 else self.pool(x))
            skips.append(x)
        for number, layer in enumerate(self.up):
            skip = skips[1 - number]
            x = resize(x, skip) if self.raise_ is None else self.raise_[number](x)
            x = layer(paddle.concat([skip, x], axis=1))
        return self.head(x)


class STDC(nn.Layer):
    """Short-term dense concatenation."""

    def __init__(self, inputs, outputs, stride=2):
        super().__init__()
        half, quarter, eighth = outputs // 2, outputs // 4, outputs // 8
        self.first, self.second = ConvBN(inputs, half, 1), ConvBN(half, quarter, 3, stride)
        self.third, self.fourth = ConvBN(quarter, eighth), ConvBN(eighth, eighth)
        self.pool = nn.AvgPool2D(3, stride, 1)

    def forward(self, x):
        first = self.first(x)
        second = self.second(first)
        third = self.third(second)
        return paddle.concat([self.pool(first), second, third, self.fourth(third)], axis=1)


class UAFM(nn.Layer):
    """Unified attention fusion by means and maxima over the channels."""

    def __init__(self, low, high, outputs):
        super().__init__()
        self.low, self.out = ConvBN(low, high), ConvBN(high, outputs)
        self.attention = nn.Sequential(ConvBN(4, 2, act="leaky"), ConvBN(2, 1, act=""))

    def forward(self, low, high):
        low = self.low(low)
        high = resize(high, low)
        parts = [f(x, axis=1, keepdim=True) for x in (low, high) for f in (paddle.mean, paddle.max)]
        gate = F.sigmoid(self.attention(paddle.concat(parts, axis=1)))
        return self.out(low * gate + high * (1 - gate))


class PPLiteSeg(nn.Layer):
    """STDC, a simple pyramid pooling, attention fusions."""

    def __init__(self):
        super().__init__()
        self.backbone = Pyramid(block=STDC)
        self.pools = nn.LayerList([nn.Sequential(nn.AdaptiveAvgPool2D(size), ConvBN(32, 16, 1))
                                   for size in (1, 2, 4)])
        self.context = ConvBN(16, 16)
        self.fusions = nn.LayerList([UAFM(24, 16, 16), UAFM(16, 16, 8)])
        self.heads = nn.LayerList([nn.Sequential(ConvBN(width, 8), nn.Conv2D(
            8, CLASSES, 1, bias_attr=False)) for width in (8, 16)])

    def forward(self, x):
        _, eighth, sixteenth, last = self.backbone(x)
        raised = [resize(pool(last), last) for pool in self.pools]
        y = self.context(raised[0] + raised[1] + raised[2])
        middle = self.fusions[0](sixteenth, y)
        y = self.fusions[1](eighth, middle)
        found = resize(self.heads[0](y), x)
        return (found, resize(self.heads[1](middle), x)) if self.training else found


class GatherExpansion(nn.Layer):
    """BiSeNetV2's gather-and-expansion layer of stride 2 or 1."""

    def __init__(self, inputs, outputs, stride=2):
        super().__init__()
        wide = inputs * 3
        if stride == 2:
            self.body = nn.Sequential(
                ConvBN(inputs, inputs), ConvBN(inputs, wide, 3, 2, inputs, ""),
                ConvBN(wide, wide, 3, 1, wide, ""), ConvBN(wide, outputs, 1, act=""))
            self.shortcut = nn.Sequential(ConvBN(inputs, inputs, 3, 2, inputs, ""),
                                          ConvBN(inputs, outputs, 1, act=""))
        else:
            self.body = nn.Sequential(
                ConvBN(inputs, inputs), ConvBN(inputs, wide, 3, 1, inputs, ""),
                ConvBN(wide, outputs, 1, act=""))
            self.shortcut = nn.Identity()

    def forward(self, x):
        return F.relu(self.body(x) + self.shortcut(x))


class BiSeNetV2(nn.Layer):
    """A detail branch and a semantic branch, aggregated by guidance of each other."""

    def __init__(self):
        super().__init__()
        self.detail = nn.Sequential(ConvBN(3, 8, 3, 2), ConvBN(8, 8), ConvBN(8, 16, 3, 2),
                                    ConvBN(16, 16, 3, 2))
        self.stem = ConvBN(3, 8, 3, 2)
        self.left = nn.Sequential(ConvBN(8, 4, 1), ConvBN(4, 8, 3, 2))
        self.right, self.merge = nn.MaxPool2D(3, 2, 1), ConvBN(16, 8)
        self.semantic = nn.Sequential(GatherExpansion(8, 16), GatherExpansion(16, 16, 1),
                                      GatherExpansion(16, 16), GatherExpansion(16, 16))
        self.norm, self.context, self.embed = (nn.BatchNorm2D(16), ConvBN(16, 16, 1),
                                               ConvBN(16, 16))
        self.detail_keep, self.semantic_keep = (nn.Sequential(
            ConvBN(16, 16, 3, 1, 16, ""), nn.Conv2D(16, 16, 1, bias_attr=False)) for _ in range(2))
        self.detail_down = nn.Sequential(ConvBN(16, 16, 3, 2, act=""), nn.AvgPool2D(3, 2, 1))
        self.semantic_up, self.out = ConvBN(16, 16, act=""), ConvBN(16, 16, act="")
        self.head = nn.Sequential(ConvBN(16, 16), nn.Dropout(0.1), nn.Conv2D(16, CLASSES, 1))
        self.auxiliary = nn.Sequential(ConvBN(16, 8), nn.Conv2D(8, CLASSES, 1))

    def forward(self, x):
        detail, y = self.detail(x), self.stem(x)
        y = self.semantic(self.merge(paddle.concat([self.left(y), self.right(y)], axis=1)))
        context = self.context(self.norm(F.adaptive_avg_pool2d(y, 1)))
        semantic = self.embed(context + y)
        fine = self.detail_keep(detail) * F.sigmoid(resize(self.semantic_up(semantic), detail))
        coarse = self.detail_down(detail) * F.sigmoid(self.semantic_keep(semantic))
        found = resize(self.head(self.out(fine + resize(coarse, fine))), x)
        return (found, resize(self.auxiliary(y), x)) if self.training else found


class ObjectContext(nn.Layer):
    """OCR: regions weighted by coarse scores, pixels weighted by regions."""

    def __init__(self, width=24, key=16):
        super().__init__()
        self.coarse = nn.Sequential(ConvBN(width, width, 1), nn.Conv2D(width, CLASSES, 1))
        self.query = nn.Sequential(ConvBN(width, key, 1), ConvBN(key, key, 1))
        self.key = nn.Sequential(ConvBN(width, key, 1), ConvBN(key, key, 1))
        self.value, self.up = ConvBN(width, key, 1), ConvBN(key, width, 1)
        self.out = nn.Sequential(ConvBN(2 * width, width, 1), nn.Dropout2D(0.1))

    def forward(self, x):
        coarse = self.coarse(x)
        weights = F.softmax(coarse.flatten(2), axis=2)
        regions = paddle.bmm(weights, x.flatten(2).transpose([0, 2, 1]))
        regions = regions.transpose([0, 2, 1]).unsqueeze(-1)
        query = self.query(x).flatten(2).transpose([0, 2, 1])
        key, value = self.key(regions).flatten(2), self.value(regions).flatten(2)
        mixed = paddle.bmm(F.softmax(paddle.bmm(query, key) * 0.25, axis=-1),
                           value.transpose([0, 2, 1])).transpose([0, 2, 1])
        mixed = self.up(mixed.reshape([0, mixed.shape[1], x.shape[2], x.shape[3]]))
        return self.out(paddle.concat([mixed, x], axis=1)), coarse


class OCRNet(nn.Layer):
    def __init__(self):
        super().__init__()
        self.backbone = Pyramid((8, 16, 24))
        self.mix, self.context = ConvBN(48, 24), ObjectContext()
        self.head = nn.Conv2D(24, CLASSES, 1)

    def forward(self, x):
        found = self.backbone(x)
        y = self.mix(paddle.concat([found[0]] + [resize(each, found[0]) for each in found[1:]], 1))
        y, coarse = self.context(y)
        y = resize(self.head(y), x)
        return (y, resize(coarse, x)) if self.training else y


class ASPP(nn.Layer):
    """Dilated convolutions and a global average side by side."""

    def __init__(self, inputs, width=16):
        super().__init__()
        self.parts = nn.LayerList([ConvBN(inputs, width, 1), separable(
            inputs, width, dilation=2), separable(inputs, width, dilation=4)])
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2D(1), ConvBN(inputs, width, 1))
        self.out = ConvBN(4 * width, width, 1)

    def forward(self, x):
        whole = resize(self.whole(x), x)
        return self.out(paddle.concat([part(x) for part in self.parts] + [whole], axis=1))


class DeepLabV3Plus(nn.Layer):
    def __init__(self):
        super().__init__()
        self.backbone = Pyramid((8, 16, 32), Bottleneck, vd=True)
        self.aspp, self.low = ASPP(32), ConvBN(8, 8, 1)
        self.out = nn.Sequential(separable(24, 16), nn.Conv2D(16, CLASSES, 1))

    def forward(self, x):
        low, _, high = self.backbone(x)
        low = self.low(low)
        return resize(self.out(paddle.concat([resize(self.aspp(high), low), low], axis=1)), x)


class PSPNet(nn.Layer):
    def __init__(self):
        super().__init__()
        self.backbone = Pyramid((8, 16, 24), Bottleneck)
        self.pools = nn.LayerList([nn.Sequential(nn.AdaptiveAvgPool2D(size), ConvBN(24, 8, 1))
                                   for size in (1, 2, 4)])
        self.mix, self.head = ConvBN(48, 16), nn.Conv2D(16, CLASSES, 1)

    def forward(self, x):
        y = self.backbone(x)[-1]
        parts = [resize(pool(y), y, align_corners=True) for pool in self.pools]
        return resize(self.head(self.mix(paddle.concat([y, *parts], axis=1))), x,
                      align_corners=True)


class HardNet(nn.Layer):
    """HarDNet's links to the powers of two before a layer, in a small U-Net."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(ConvBN(3, 8, 3, 2), ConvBN(8, 8, 3, 2))
        self.layers = nn.LayerList([ConvBN(8, 8), ConvBN(16, 8), ConvBN(8, 8), ConvBN(24, 8)])
        self.links = ((0,), (1, 0), (2,), (3, 2, 0))
        self.out = nn.Sequential(ConvBN(24, 16, 1), nn.AvgPool2D(2, 2), SE(16))
        self.head = nn.Conv2D(24, CLASSES, 1)

    def forward(self, x):
        found = [self.stem(x)]
        for layer, links in zip(self.layers, self.links):
            parts = [found[i] for i in links]
            found.append(layer(paddle.concat(parts, axis=1) if len(parts) > 1 else parts[0]))
        y = self.out(paddle.concat([found[1], found[3], found[4]], axis=1))
        y = paddle.concat([resize(y, found[0], align_corners=True), found[0]], axis=1)
        return resize(self.head(y), x, align_corners=True)


SEGMENTATION = {**LIGHT_SEGMENTATION, **{name: (make, [[None, 3, 64, 64]]) for name, make in {
    "U-Net": UNet, "U-Net transposed": lambda: UNet(True), "PP-LiteSeg": PPLiteSeg,
    "BiSeNetV2": BiSeNetV2, "OCRNet": OCRNet, "DeepLabV3+": DeepLabV3Plus, "PSPNet": PSPNet,
    "HarDNet": HardNet}.items()}}
