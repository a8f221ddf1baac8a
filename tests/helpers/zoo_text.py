"""Tiny networks of OCR, pose and language, with the operators of the originals."""

import paddle
import paddle.nn.functional as F
from paddle import nn
from zoo_blocks import (
    SE,
    Attention,
    Basic,
    ConvBN,
    Head,
    InvertedResidual,
    Pyramid,
    resize,
    separable,
)

WORDS = 20


class DBNet(nn.Layer):
    """Feature pyramid, a head of two transposed convolutions; thresholds in training only."""

    def __init__(self):
        super().__init__()
        se = ("relu", "hardsigmoid")
        self.backbone = Pyramid((8, 16, 24, 32), InvertedResidual, "hardswish", act="hardswish",
                                se=se)
        self.lateral = nn.LayerList([nn.Conv2D(width, 16, 1, bias_attr=False)
                                     for width in (8, 16, 24, 32)])
        self.smooth = nn.LayerList([nn.Conv2D(16, 4, 3, padding=1, bias_attr=False)
                                    for _ in range(4)])
        self.binary, self.threshold = self._head(), self._head()

    @staticmethod
    def _head():
        return nn.Sequential(
            nn.Conv2D(16, 8, 3, padding=1, bias_attr=False), nn.BatchNorm2D(8), nn.ReLU(),
            nn.Conv2DTranspose(8, 8, 2, 2), nn.BatchNorm2D(8), nn.ReLU(),
            nn.Conv2DTranspose(8, 1, 2, 2), nn.Sigmoid())

    def forward(self, x):
        found = [layer(each) for layer, each in zip(self.lateral, self.backbone(x))]
        for i in (2, 1, 0):
            found[i] = found[i] + F.upsample(found[i + 1], scale_factor=2, mode="nearest")
        parts = [layer(each) for layer, each in zip(self.smooth, found)]
        parts = [F.upsample(part, scale_factor=2 ** i, mode="nearest") if i else part
                 for i, part in enumerate(parts)]
        y = paddle.concat(parts[::-1], axis=1)
        maps = self.binary(y)
        if not self.training:
            return maps
        threshold = self.threshold(y)
        return maps, threshold, 1 / (1 + paddle.exp(-50 * (maps - threshold)))


class ResidualSE(nn.Layer):
    """RSEFPN's layer: convolution, its SE added."""

    def __init__(self, inputs, outputs, kernel):
        super().__init__()
        self.conv = nn.Conv2D(inputs, outputs, kernel, padding=kernel // 2, bias_attr=False)
        self.se = SE(outputs, "relu", "hardsigmoid")

    def forward(self, x):
        x = self.conv(x)
        return x + self.se(x)


class PPOcrDet(nn.Layer):
    """PP-OCRv4's mobile detector: LCNetV3's learnable affine blocks, RSEFPN, DB head."""

    def __init__(self):
        super().__init__()
        self.backbone = Pyramid((8, 16, 24, 32), lambda a, b, s: separable(a, b, s, "hardswish"),
                                "hardswish")
        self.inputs = nn.LayerList([ResidualSE(width, 16, 1) for width in (8, 16, 24, 32)])
        self.smooth = nn.LayerList([ResidualSE(16, 4, 3) for _ in range(4)])
        self.head = DBNet._head()

    def forward(self, x):
        found = [layer(each) for layer, each in zip(self.inputs, self.backbone(x))]
        for i in (2, 1, 0):
            found[i] = found[i] + F.upsample(found[i + 1], scale_factor=2, mode="nearest")
        parts = [layer(each) for layer, each in zip(self.smooth, found)]
        parts = [F.upsample(part, scale_factor=2 ** i, mode="nearest") if i else part
                 for i, part in enumerate(parts)]
        return self.head(paddle.concat(parts[::-1], axis=1))


class CRNN(nn.Layer):
    """Convolutions that keep the width, a bidirectional LSTM, softmax for CTC."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            ConvBN(3, 8, 3, (2, 1)), ConvBN(8, 16, 3, (2, 1)), nn.MaxPool2D(2, 2),
            ConvBN(16, 24, 3, (2, 1)), nn.MaxPool2D((2, 1), (2, 1)))
        self.rnn = nn.LSTM(24, 16, direction="bidirectional")
        self.fc = nn.Linear(32, WORDS)

    def forward(self, x):
        y = self.features(x).squeeze(2).transpose([0, 2, 1])
        return F.softmax(self.fc(self.rnn(y)[0]), axis=2)


class SVTR(nn.Layer):
    """SVTR-LCNet: mixing blocks between two convolutions, a guide of concat, softmax for CTC."""

    def __init__(self, width=24):
        super().__init__()
        self.backbone = nn.Sequential(
            ConvBN(3, 8, 3, 2, act="hardswish"), separable(8, 16, (2, 1), "hardswish"),
            ConvBN(16, 16, 5, 1, 16, "hardswish"), SE(16, "relu", "hardsigmoid"),
            separable(16, width, (2, 1), "hardswish"), nn.AvgPool2D((4, 2), (4, 2)))
        self.first, self.second = ConvBN(width, width // 2, act="silu"), ConvBN(
            width // 2, width, 1, act="silu")
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width, epsilon=1e-6) for _ in range(3))
        self.attention = Attention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.Silu(),
                                 nn.Linear(2 * width, width))
        self.third, self.fourth = ConvBN(width, width, 1, act="silu"), ConvBN(
            2 * width, width // 2, act="silu")
        self.fifth, self.fc = ConvBN(width // 2, width, 1, act="silu"), nn.Linear(width, WORDS)

    def forward(self, x):
        x = self.backbone(x)
        y = self.second(self.first(x))
        channels, height, width = y.shape[1:]
        y = y.flatten(2).transpose([0, 2, 1])
        y = y + self.attention(self.norm1(y))
        y = self.norm3(y + self.mlp(self.norm2(y)))
        y = y.reshape([0, height, width, channels]).transpose([0, 3, 1, 2])
        y = self.fifth(self.fourth(paddle.concat([x, self.third(y)], axis=1)))
        return F.softmax(self.fc(y.squeeze(2).transpose([0, 2, 1])), axis=2)


class SVTRNet(nn.Layer):
    """SVTR: overlapping patches, local attention by a mask, merging along the height."""

    def __init__(self, width=16):
        super().__init__()
        self.patches = nn.Sequential(ConvBN(3, 8, 3, 2, act="gelu"), ConvBN(8, width, 3, 2,
                                                                           act="gelu"))
        self.position = self.create_parameter([1, 128, width])
        self.blocks = nn.LayerList([nn.LayerList([
            nn.LayerNorm(width), Attention(width), nn.LayerNorm(width), nn.Sequential(
                nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))])
            for _ in range(2)])
        place = paddle.arange(128).reshape([1, -1])
        row, column = place // 16, place % 16
        far = ((row - row.T).abs() > 3).logical_or((column - column.T).abs() > 5)
        self.register_buffer("mask", far.astype("float32") * -1e4)
        self.merge, self.norm = nn.Conv2D(width, 24, 3, (2, 1), 1), nn.LayerNorm(24)
        self.last, self.fc = nn.Conv2D(24, 24, 1, bias_attr=False), nn.Linear(24, WORDS)

    def forward(self, x):
        y = self.patches(x)
        height, width = y.shape[2:]
        y = y.flatten(2).transpose([0, 2, 1]) + self.position
        for i, (norm1, attention, norm2, mlp) in enumerate(self.blocks):
            y = norm1(y + attention(y, mask=self.mask if i == 0 else None))
            y = norm2(y + mlp(y))
        y = self.merge(y.transpose([0, 2, 1]).reshape([0, -1, height, width]))
        y = self.norm(y.transpose([0, 2, 3, 1])).transpose([0, 3, 1, 2])
        y = F.hardswish(self.last(F.adaptive_avg_pool2d(y, [1, width])))
        return F.softmax(self.fc(y.squeeze(2).transpose([0, 2, 1])), axis=2)


def direction():
    """PP-OCR's classifier of directions."""
    se = ("relu", "hardsigmoid")
    return nn.Sequential(
        ConvBN(3, 8, 3, 2, act="hardswish"), InvertedResidual(8, 8, (2, 1), act="relu", se=se),
        InvertedResidual(8, 16, (2, 1), act="hardswish", kernel=5, se=se),
        ConvBN(16, 32, 1, act="hardswish"), nn.MaxPool2D(2, 2), Head(32, 2), nn.Softmax())


class HRModule(nn.Layer):
    """Two resolutions that exchange their features."""

    def __init__(self, widths=(8, 16), block=Basic):
        super().__init__()
        low, high = widths
        self.large, self.small = block(low, low), block(high, high)
        self.up, self.down = ConvBN(high, low, 1, act=""), ConvBN(low, high, 3, 2, act="")

    def forward(self, large, small):
        large, small = self.large(large), self.small(small)
        raised = F.interpolate(self.up(small), scale_factor=2, mode="nearest")
        return F.relu(large + raised), F.relu(self.down(large) + small)


class ConditionalWeighting(nn.Layer):
    """Lite-HRNet's block: half of the channels, weighted across resolutions, shuffled."""

    def __init__(self, width):
        super().__init__()
        half = width // 2
        self.cross = nn.Sequential(ConvBN(half, half // 2, 1), ConvBN(half // 2, half, 1,
                                                                     act="sigmoid"))
        self.depthwise, self.spatial = ConvBN(half, half, 3, 1, half, ""), SE(half)

    def forward(self, x, pooled=4):
        left, right = paddle.chunk(x, 2, axis=1)
        gate = self.cross(F.adaptive_avg_pool2d(right, pooled))
        right = right * resize(gate, right, "nearest")
        y = paddle.concat([left, self.spatial(self.depthwise(right))], axis=1)
        return F.channel_shuffle(y, 2)


class HRNet(nn.Layer):
    """``kind``: "classes", "pose" (heat maps), "peaks" (their places) or "masks"."""

    def __init__(self, kind, block=Basic):
        super().__init__()
        self.stem = nn.Sequential(ConvBN(3, 8, 3, 2), ConvBN(8, 8, 3, 2))
        self.down, self.kind = ConvBN(8, 16, 3, 2), kind
        self.modules = nn.LayerList([HRModule(block=block), HRModule(block=block)])
        self.head = (Head(24) if kind == "classes" else nn.Conv2D(8, 6, 1) if kind != "masks" else
                     nn.Sequential(ConvBN(24, 16, 1), nn.Conv2D(16, 5, 1)))

    def forward(self, x):
        y = self.stem(x)
        large, small = y, self.down(y)
        for layer in self.modules:
            large, small = layer(large, small)
        if self.kind == "pose":
            return self.head(large)
        if self.kind == "peaks":
            heat = self.head(large).flatten(2)
            return heat.max(-1), heat.argmax(-1)
        y = paddle.concat([large, resize(small, large)], axis=1)
        return self.head(y) if self.kind == "classes" else resize(self.head(y), x)


class EncoderBlock(nn.Layer):
    """Attention and MLP; norms behind the sums (BERT), or before (GPT)."""

    def __init__(self, width, before, act):
        super().__init__()
        self.attention, self.before = Attention(width), before
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), act, nn.Linear(2 * width, width))

    def forward(self, x, mask=None):
        if self.before:
            x = x + self.attention(self.norm1(x), mask=mask)
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.attention(x, mask=mask))
        return self.norm2(x + self.mlp(x))


class Bert(nn.Layer):
    """Words, places and segments; a mask from the padding; a pooler."""

    def __init__(self, width=24):
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, width), nn.Embedding(16, width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.LayerList([EncoderBlock(width, False, nn.GELU()) for _ in range(2)])
        self.pooler, self.classifier = nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, tokens):
        mask = (tokens == 0).astype("float32").unsqueeze([1, 2]) * -1e4
        x = self.norm(self.words(tokens) + self.places(paddle.arange(tokens.shape[1])))
        for block in self.blocks:
            x = block(x, mask)
        return self.classifier(F.tanh(self.pooler(x[:, 0]))), x


class GPT(nn.Layer):
    """Causal mask, gelu by tanh, logits by the embedding's own weight."""

    def __init__(self, width=24):
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, width), nn.Embedding(16, width)
        self.blocks = nn.LayerList([EncoderBlock(width, True, nn.GELU(True)) for _ in range(2)])
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens):
        length = tokens.shape[1]
        mask = paddle.triu(paddle.full([length, length], -1e4), 1)
        x = self.words(tokens) + self.places(paddle.arange(length))
        for block in self.blocks:
            x = block(x, mask)
        return paddle.matmul(self.norm(x), self.words.weight, transpose_y=True)


class Conformer(nn.Layer):
    """Half MLPs around attention and a gated convolution over time."""

    def __init__(self, width=24):
        super().__init__()
        self.subsample = nn.Sequential(nn.Conv2D(1, 8, 3, 2), nn.ReLU(), nn.Conv2D(8, 8, 3, 2),
                                       nn.ReLU())
        self.start = nn.Linear(8 * 4, width)
        self.norms = nn.LayerList([nn.LayerNorm(width) for _ in range(5)])
        def mlp():
            return nn.Sequential(nn.Linear(width, 2 * width), nn.Silu(),
                                 nn.Linear(2 * width, width))
        self.first, self.last, self.attention = mlp(), mlp(), Attention(width)
        self.up, self.down = nn.Conv1D(width, 2 * width, 1), nn.Conv1D(width, width, 1)
        self.depthwise = nn.Conv1D(width, width, 7, padding=3, groups=width)
        self.norm, self.head = nn.BatchNorm1D(width), nn.Linear(width, WORDS)

    def forward(self, x):
        y = self.subsample(x)
        y = self.start(y.transpose([0, 2, 1, 3]).flatten(2))
        y = y + 0.5 * self.first(self.norms[0](y))
        y = y + self.attention(self.norms[1](y))
        z = F.glu(self.up(self.norms[2](y).transpose([0, 2, 1])), axis=1)
        y = y + self.down(F.silu(self.norm(self.depthwise(z)))).transpose([0, 2, 1])
        y = y + 0.5 * self.last(self.norms[3](y))
        return F.log_softmax(self.head(self.norms[4](y)), axis=-1)


LINE, PICTURE = [[None, 3, 32, 64]], [[None, 3, 64, 64]]
TOKENS = [[None, 12]]  # of two dimensions: integers
TEXT = {
    "DBNet": (DBNet, PICTURE), "PP-OCRv4 det": (PPOcrDet, PICTURE), "CRNN": (CRNN, LINE),
    "SVTR-LCNet": (SVTR, LINE), "SVTR": (SVTRNet, LINE), "direction": (direction, LINE),
    "HRNet": (lambda: HRNet("classes"), PICTURE), "HRNet pose": (lambda: HRNet("pose"), PICTURE),
    "HRNet peaks": (lambda: HRNet("peaks"), PICTURE),
    "TinyPose": (lambda: HRNet("pose", _weighted), PICTURE),
    "LiteHRNet": (lambda: HRNet("masks", _weighted), PICTURE),
    "BERT": (Bert, TOKENS), "GPT": (GPT, TOKENS), "Conformer": (Conformer, [[None, 1, 40, 20]]),
}


def _weighted(inputs, outputs):
    return ConditionalWeighting(inputs)
