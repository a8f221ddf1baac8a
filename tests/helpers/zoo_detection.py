"""Tiny detectors up to non-maximum suppression, with the operators of the originals."""

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from zoo_blocks import SE, Basic, Bottleneck, ConvBN, Pyramid, separable
from zoo_classification import CSPStage, RepBlock

KINDS = 4


def _grid(height, width, stride, offset=0.5):
    """[height * width, 2]: centres of cells in pixels."""
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return ((np.stack([x, y], -1).reshape(-1, 2) + offset) * stride).astype("float32")


def _flat(x):
    """[n, c, h, w] to [n, h * w, c]."""
    return x.flatten(2).transpose([0, 2, 1])


class CSPLayer(nn.Layer):
    """One layer of a CSP pyramid."""

    def __init__(self, inputs, outputs, act="hardswish"):
        super().__init__()
        half = outputs // 2
        self.left, self.right = ConvBN(inputs, half, 1, act=act), ConvBN(inputs, half, 1, act=act)
        self.block = separable(half, half, act=act, kernel=5)
        self.out = ConvBN(outputs, outputs, 1, act=act)

    def forward(self, x):
        return self.out(paddle.concat([self.block(self.right(x)), self.left(x)], axis=1))


class PathAggregation(nn.Layer):
    """Top-down and bottom-up fusions by concat (PAN)."""

    def __init__(self, inputs, width, act="hardswish"):
        super().__init__()
        self.same = nn.LayerList([ConvBN(each, width, 1, act=act) for each in inputs])
        count = len(inputs) - 1
        self.top = nn.LayerList([CSPLayer(2 * width, width, act) for _ in range(count)])
        self.down = nn.LayerList([separable(width, width, 2, act) for _ in range(count)])
        self.bottom = nn.LayerList([CSPLayer(2 * width, width, act) for _ in range(count)])

    def forward(self, found):
        found = [layer(x) for layer, x in zip(self.same, found)]
        for i in reversed(range(len(self.top))):
            raised = F.interpolate(found[i + 1], scale_factor=2, mode="nearest")
            found[i] = self.top[i](paddle.concat([raised, found[i]], axis=1))
        for i, layer in enumerate(self.bottom):
            found[i + 1] = layer(paddle.concat([self.down[i](found[i]), found[i + 1]], axis=1))
        return found


def _expected(distribution, bins, project):
    """Boxes' distances as means of distributions (generalized focal loss)."""
    y = F.softmax(distribution.reshape([-1, bins]), axis=1)
    return F.linear(y, project)


class PicoDet(nn.Layer):
    """LCNet-like backbone, CSP-PAN, separable heads, quality focal loss."""

    def __init__(self, bins=8):
        super().__init__()
        self.backbone = Pyramid(block=lambda a, b, s: nn.Sequential(
            separable(a, b, s, "hardswish"), SE(b, "relu", "hardsigmoid")), stem="hardswish")
        self.neck, self.bins = PathAggregation((16, 24, 32), 16), bins
        self.heads = nn.LayerList([nn.LayerList([separable(16, 16, act="hardswish", kernel=5),
                                                 nn.Conv2D(16, KINDS + 4 * bins, 1)])
                                   for _ in range(3)])
        self.register_buffer("project", paddle.arange(bins, dtype="float32").reshape([-1, 1]))

    def forward(self, x):
        boxes, scores = [], []
        for y, (tower, head), stride in zip(self.neck(self.backbone(x)[1:]), self.heads,
                                            (8, 16, 32)):
            y = _flat(head(tower(y)))
            kinds, distances = paddle.split(y, [KINDS, 4 * self.bins], axis=-1)
            size = 64 // stride
            distances = _expected(distances, self.bins, self.project).reshape(
                [-1, size * size, 4]) * stride
            grid = paddle.to_tensor(_grid(size, size, stride))
            low, high = paddle.split(distances, 2, axis=-1)
            boxes.append(paddle.concat([grid - low, grid + high], axis=-1))
            scores.append(F.sigmoid(kinds).transpose([0, 2, 1]))
        return paddle.concat(boxes, axis=1), paddle.concat(scores, axis=-1)


class EffectiveSE(nn.Layer):
    def __init__(self, width):
        super().__init__()
        self.fc, self.conv = nn.Conv2D(width, width, 1), ConvBN(width, width, 1, act="silu")

    def forward(self, x, pooled):
        return self.conv(x * F.sigmoid(self.fc(pooled)))


class PPYoloE(nn.Layer):
    """CSPResNet with RepVGG blocks, PAN, an efficient task-aligned head."""

    def __init__(self, bins=9):
        super().__init__()
        self.stem = ConvBN(3, 8, 3, 2, act="silu")
        self.stages = nn.LayerList([CSPStage(8, 16), CSPStage(16, 24), CSPStage(24, 32)])
        self.rep, self.bins = RepBlock(32, 32), bins
        self.neck = PathAggregation((24, 32), 16, "silu")
        self.excite = nn.LayerList([nn.LayerList([EffectiveSE(16), EffectiveSE(16)])
                                    for _ in range(2)])
        self.heads = nn.LayerList([nn.LayerList([nn.Conv2D(16, KINDS, 3, padding=1), nn.Conv2D(
            16, 4 * bins, 3, padding=1)]) for _ in range(2)])
        self.project = nn.Conv2D(bins, 1, 1, bias_attr=False)
        self.project.weight.set_value(paddle.arange(bins, dtype="float32").reshape([1, -1, 1, 1]))
        self.project.weight.stop_gradient = True

    def forward(self, x):
        y, found = self.stem(x), []
        for stage in self.stages:
            y = stage(y)
            found.append(y)
        found[-1] = self.rep(found[-1])
        scores, distances, grids = [], [], []
        for y, excite, head, stride in zip(self.neck(found[1:]), self.excite, self.heads, (8, 16)):
            size = 64 // stride
            pooled = F.adaptive_avg_pool2d(y, (1, 1))
            kinds = head[0](excite[0](y, pooled) + y)
            spread = head[1](excite[1](y, pooled)).reshape([-1, 4, self.bins, size * size])
            spread = self.project(F.softmax(spread.transpose([0, 2, 3, 1]), axis=1)).squeeze(1)
            scores.append(F.sigmoid(kinds).reshape([-1, KINDS, size * size]))
            distances.append(spread * stride)
            grids.append(_grid(size, size, stride))
        grid = paddle.to_tensor(np.concatenate(grids))
        low, high = paddle.split(paddle.concat(distances, axis=1), 2, axis=-1)
        return paddle.concat([grid - low, grid + high], -1), paddle.concat(scores, axis=-1)


class YoloV3(nn.Layer):
    """Leaky DarkNet, raised concats, raw anchors' outputs."""

    def __init__(self):
        super().__init__()
        self.backbone = Pyramid((8, 16, 24, 32), Basic, "leaky", act="leaky")
        self.mix = nn.LayerList([ConvBN(width, 16, act="leaky") for width in (32, 40, 32)])
        self.heads = nn.LayerList([nn.Conv2D(16, 3 * (KINDS + 5), 1) for _ in range(3)])

    def forward(self, x):
        found, outputs, y = self.backbone(x)[1:][::-1], [], None
        for i, scale in enumerate(found):
            if y is None:
                y = self.mix[0](scale)
            else:
                raised = F.interpolate(y, scale_factor=2, mode="nearest")
                y = self.mix[i](paddle.concat([raised, scale], axis=1))
            outputs.append(self.heads[i](y))
        return outputs


class FCOS(nn.Layer):
    """Feature pyramid by sums, shared towers with group norms, exponential of scaled boxes."""

    def __init__(self):
        super().__init__()
        self.backbone = Pyramid((8, 16, 24, 32), Bottleneck)
        self.lateral = nn.LayerList([nn.Conv2D(width, 16, 1) for width in (16, 24, 32)])
        self.smooth = nn.LayerList([nn.Conv2D(16, 16, 3, padding=1) for _ in range(3)])
        def tower():
            return nn.Sequential(nn.Conv2D(16, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU())
        self.kinds, self.boxes = tower(), tower()
        self.kind_head, self.box_head, self.center = (nn.Conv2D(16, width, 3, padding=1)
                                                      for width in (KINDS, 4, 1))
        one = nn.initializer.Constant(1.0)
        self.scales = nn.ParameterList([self.create_parameter([1], default_initializer=one)
                                        for _ in range(3)])

    def forward(self, x):
        found = [layer(each) for layer, each in zip(self.lateral, self.backbone(x)[1:])]
        for i in (1, 0):
            found[i] = found[i] + F.interpolate(found[i + 1], scale_factor=2, mode="nearest")
        outputs = []
        for layer, scale, y in zip(self.smooth, self.scales, found):
            y = layer(y)
            kinds, boxes = self.kinds(y), self.boxes(y)
            outputs.append(paddle.concat([
                _flat(F.sigmoid(self.kind_head(kinds))), _flat(F.sigmoid(self.center(kinds))),
                _flat(paddle.exp(0.2 * self.box_head(boxes) * scale))], axis=-1))
        return paddle.concat(outputs, axis=1)


class RTDETR(nn.Layer):
    """Encoder of the smallest scale, a fusion, decoder with queries of the best tokens."""

    def __init__(self, width=16, queries=8):
        super().__init__()
        self.backbone = Pyramid((8, 16, 24, 32), Basic)
        self.project = nn.LayerList([ConvBN(each, width, 1, act="") for each in (24, 32)])
        self.encoder = nn.TransformerEncoderLayer(width, 2, 32, 0.0, "gelu")
        self.fuse = CSPLayer(2 * width, width, "silu")
        self.memory = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.kind, self.box = nn.Linear(width, KINDS), nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))
        self.decoder = nn.TransformerDecoderLayer(width, 2, 32, 0.0)
        self.place = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, width))
        self.kind2, self.box2, self.queries = (nn.Linear(width, KINDS), nn.Linear(width, 4),
                                               queries)
        self.denoising = nn.Linear(width, KINDS)  # in training only

    def forward(self, x):
        large, small = (layer(each) for layer, each in zip(self.project, self.backbone(x)[2:]))
        height, width = small.shape[2:]
        y = self.encoder(_flat(small)).transpose([0, 2, 1]).reshape([0, -1, height, width])
        raised = F.interpolate(y, scale_factor=2.0, mode="nearest")
        large = self.fuse(paddle.concat([raised, large], axis=1))
        memory = self.memory(paddle.concat([_flat(large), _flat(y)], axis=1))
        kinds = self.kind(memory)
        if self.training:
            chosen, boxes = memory[:, :self.queries], self.box(memory[:, :self.queries])
        else:
            _, best = paddle.topk(kinds.max(-1), self.queries, axis=1)
            best = best.unsqueeze(-1)
            chosen = paddle.take_along_axis(memory, best.expand([-1, -1, memory.shape[2]]), 1)
            boxes = paddle.take_along_axis(self.box(memory), best.expand([-1, -1, 4]), 1)
        y = self.decoder(chosen + self.place(F.sigmoid(boxes)), memory)
        found = F.sigmoid(self.box2(y) + boxes), self.kind2(y)
        return (*found, self.denoising(y)) if self.training else found


class YoloX(nn.Layer):
    """Focus, CSP, a pyramid of pools, decoupled heads."""

    def __init__(self):
        super().__init__()
        self.stem = ConvBN(12, 8, act="silu")
        self.stages = nn.LayerList([CSPStage(8, 16), CSPStage(16, 24)])
        self.before, self.after = ConvBN(24, 16, 1, act="silu"), ConvBN(64, 24, 1, act="silu")
        self.neck = PathAggregation((16, 24), 16, "silu")
        self.towers = nn.LayerList([nn.LayerList([ConvBN(16, 16, act="silu") for _ in range(2)])
                                    for _ in range(2)])
        self.kinds = nn.LayerList([nn.Conv2D(16, KINDS, 1) for _ in range(2)])
        self.boxes = nn.LayerList([nn.Conv2D(16, 5, 1) for _ in range(2)])

    def forward(self, x):
        parts = [x[:, :, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        first = self.stages[0](self.stem(paddle.concat(parts, axis=1)))
        y = self.before(self.stages[1](first))
        y = self.after(paddle.concat(
            [y] + [F.max_pool2d(y, size, 1, size // 2) for size in (3, 5, 7)], axis=1))
        outputs = []
        for scale, tower, kinds, boxes in zip(self.neck([first, y]), self.towers, self.kinds,
                                              self.boxes):
            left, right = tower[0](scale), boxes(tower[1](scale))
            outputs.append(_flat(paddle.concat(
                [right[:, :2], (0.2 * right[:, 2:4]).exp(), F.sigmoid(right[:, 4:]),
                 F.sigmoid(kinds(left))], axis=1)))
        return paddle.concat(outputs, axis=1)


class CenterNet(nn.Layer):
    """Transposed convolutions, a heat map and sizes."""

    def __init__(self):
        super().__init__()
        self.backbone = Pyramid((8, 16, 24), Basic)
        self.up = nn.Sequential(*(nn.Sequential(nn.Conv2DTranspose(a, b, 4, 2, 1, bias_attr=False),
                                                nn.BatchNorm2D(b), nn.ReLU())
                                  for a, b in ((24, 16), (16, 8))))
        self.heat, self.size = (nn.Sequential(ConvBN(8, 8), nn.Conv2D(8, width, 1))
                                for width in (KINDS, 2))

    def forward(self, x):
        y = self.up(self.backbone(x)[-1])
        return F.sigmoid(self.heat(y)), self.size(y)


class BlazeFace(nn.Layer):
    """5x5 depthwise convolutions, shortcuts padded in their channels, two anchors' heads."""

    def __init__(self):
        super().__init__()
        self.stem = ConvBN(3, 8, 3, 2)
        self.first, self.second = (nn.Sequential(ConvBN(a, a, 5, 2, a, ""), ConvBN(a, b, 1, act=""))
                                   for a, b in ((8, 16), (16, 24)))
        self.heads = nn.LayerList([nn.Conv2D(width, 2 * 5, 3, padding=1) for width in (16, 24)])

    @staticmethod
    def _padded(x, count):
        x = F.max_pool2d(x, 2, 2)
        return paddle.concat([x, paddle.zeros_like(x[:, :count])], axis=1)

    def forward(self, x):
        x = self.stem(x)
        first = F.relu(self.first(x) + self._padded(x, 8))
        second = F.relu(self.second(first) + self._padded(first, 8))
        return paddle.concat([head(each).transpose([0, 2, 3, 1]).reshape([0, -1, 5])
                              for head, each in zip(self.heads, (first, second))], axis=1)


class HeadOfSSD(nn.Layer):
    """SSDLite: L2-normalized features, softmax over kinds."""

    def __init__(self):
        super().__init__()
        self.backbone = Pyramid((8, 16, 24), separable)
        self.gamma = self.create_parameter([1, 16, 1, 1],
                                           default_initializer=nn.initializer.Constant(5.0))
        self.kinds, self.boxes = (nn.LayerList([
            nn.Sequential(ConvBN(a, a, 3, 1, a, "relu6"), nn.Conv2D(a, 2 * width, 1))
            for a in (16, 24)]) for width in (KINDS + 1, 4))

    def forward(self, x):
        _, low, high = self.backbone(x)
        low = self.gamma * F.normalize(low, axis=1)
        def joined(heads, width):
            return paddle.concat([head(y).transpose([0, 2, 3, 1]).reshape([0, -1, width])
                                  for head, y in zip(heads, (low, high))], axis=1)
        return joined(self.boxes, 4), F.softmax(joined(self.kinds, KINDS + 1), axis=-1)


SIZE = [[None, 3, 64, 64]]
DETECTION = {name: (make, SIZE) for name, make in {
    "PicoDet": PicoDet, "PP-YOLOE": PPYoloE, "YOLOv3": YoloV3, "FCOS": FCOS, "RT-DETR": RTDETR,
    "YOLOX": YoloX, "CenterNet": CenterNet, "BlazeFace": BlazeFace, "SSDLite": HeadOfSSD}.items()}
