"""Small models of every common kind, with data that trains them: scikit-learn's digits."""

import functools
from dataclasses import dataclass
from typing import Callable, Tuple

import numpy as np
import paddle
import paddle.nn.functional as F
import vision
from paddle import nn
from paddle.vision import ops
from sklearn.datasets import load_digits
from trained import TRAINING, labels


@functools.lru_cache(maxsize=None)
def digits():
    """(images [n, 8, 8] float32 in [0, 1], labels [n] int64)."""
    data = load_digits()
    return (data.images / 16).astype("float32"), data.target.astype("int64")


@dataclass(frozen=True)
class Model:
    """One model of the zoo.

    Attributes:
        make: makes the network.
        inputs: (name, shape with None where it is open, dtype) of each input.
        draw: ``draw(indices, other=False)`` makes (inputs, targets), lists of arrays, of these
            digits; with ``other`` in other sizes where those are open.
        loss: ``loss(net, inputs, targets)``, tensors.
        steps, batch, rate: the training.
        settling: batches that moving averages of a quantized network are given.
        family: models of one family have the same parameters.
    """

    make: Callable
    inputs: Tuple[tuple, ...]
    draw: Callable
    loss: Callable
    steps: int
    batch: int = 16
    rate: float = 2e-3
    settling: int = 25
    family: str = ""

    def spec(self):
        """``input_spec`` of ``paddle.jit.save``."""
        return [paddle.static.InputSpec(list(shape), dtype, name)
                for name, shape, dtype in self.inputs]

    def loss_of(self, net, indices):
        """The loss of ``net`` on these digits."""
        return self.loss(net, *([paddle.to_tensor(value) for value in values]
                                for values in self.draw(indices)))

    def open_sizes(self):
        """Return True if a dimension other than the batch is open."""
        return any(None in shape[1:] for _, shape, _ in self.inputs)

    def tensors(self, indices, other=False):
        """Return the inputs of :attr:`draw` as tensors."""
        return [paddle.to_tensor(value) for value in self.draw(indices, other)[0]]


def unseen(count):
    """Return indices of digits that are not in the training set."""
    return np.arange(TRAINING, TRAINING + count)


@functools.lru_cache(maxsize=1)
def _trained(family):
    model = next(each for name, each in ZOO.items() if (each.family or name) == family)
    paddle.seed(0)
    rng, net = np.random.RandomState(0), model.make()
    net.train()
    optimizer = paddle.optimizer.Adam(model.rate, parameters=net.parameters())
    for _ in range(model.steps):
        model.loss_of(net, rng.choice(TRAINING, model.batch)).backward()
        optimizer.step()
        optimizer.clear_grad()
    _settle_batch_norms(net, model, rng)
    return {key: value.numpy() for key, value in net.state_dict().items()}


def _settle_batch_norms(net, model, rng):
    """Set the statistics of norms to those of one larger batch: the running ones lag behind."""
    norms = [layer for layer in net.sublayers() if isinstance(layer, nn.BatchNorm2D)]
    if not norms:
        return
    momenta = [layer._momentum for layer in norms]
    for layer in norms:
        layer._momentum = 0.0
    with paddle.no_grad():
        net(*model.tensors(rng.choice(TRAINING, 4 * model.batch)))
    for layer, momentum in zip(norms, momenta):
        layer._momentum = momentum


def network(name, trained=True):
    """A new network in evaluation mode. ``trained=False`` leaves a vision model untrained."""
    if name in vision.MODELS:
        net = vision.network(name) if trained else vision.untrained(name)
    else:
        net = ZOO[name].make()
        net.set_state_dict(_trained(ZOO[name].family or name))
    net.eval()
    return net


def outputs(result):
    """Return the output of a model as a list."""
    return list(result) if isinstance(result, (list, tuple)) else [result]


# Classifiers of pictures

def _enlarged(images, size):
    """Bilinear; [n, 8, 8] becomes [n, 1, size, size] in [-1, 1]."""
    large = F.interpolate(paddle.to_tensor(images[:, None] * 2 - 1), size=[size, size],
                          mode="bilinear")
    return large.numpy()


def _pictures(channels, size):
    def draw(indices, other=False):
        images, labels = digits()
        pictures = np.repeat(_enlarged(images[indices], size), channels, axis=1)
        return [pictures], [labels[indices]]
    return draw


def _classified(net, inputs, targets):
    return F.cross_entropy(outputs(net(*inputs))[0], targets[0])


def _classifier(make, channels, size, steps, **kwargs):
    return Model(make, (("x", [None, channels, size, size], "float32"),),
                 _pictures(channels, size), _classified, steps, **kwargs)


def _vision(name):
    recipe = vision.MODELS[name]

    def draw(indices, other=False):
        return [recipe.pictures(indices).numpy()], [labels(indices)]

    shape = [None, recipe.channels, recipe.size, recipe.size]
    return Model(recipe.make, (("x", shape, "float32"),), draw, _classified, recipe.steps,
                 recipe.batch)


class Attention(nn.Layer):
    """Self-attention with one projection for queries, keys and values, as in vision transformers.
    """

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x, bias=None, mask=None):
        tokens, width = x.shape[1:]
        qkv = self.qkv(x).reshape([-1, tokens, 3, self.heads, width // self.heads])
        qkv = qkv.transpose([2, 0, 3, 1, 4])
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = paddle.matmul(q * self.scale, k, transpose_y=True)
        if bias is not None:
            weights = weights + bias
        if mask is not None:  # [windows, tokens, tokens]
            windows = mask.shape[0]
            weights = weights.reshape([-1, windows, self.heads, tokens, tokens])
            weights = weights + mask.unsqueeze(1).unsqueeze(0)
            weights = weights.reshape([-1, self.heads, tokens, tokens])
        mixed = paddle.matmul(F.softmax(weights), v)
        return self.out(mixed.transpose([0, 2, 1, 3]).reshape([-1, tokens, width]))


class MLP(nn.Layer):
    """Linear, GELU, Linear."""

    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class EncoderBlock(nn.Layer):
    """A block of ViT: both parts behind a LayerNorm."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = Attention(width, heads), MLP(width, 2 * width)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Layer):
    """Vision transformer for pictures of 1 x 16 x 16."""

    def __init__(self, width=48, heads=3, depth=3, patch=4, size=16, classes=10):
        super().__init__()
        self.patches = nn.Conv2D(1, width, patch, stride=patch)
        normal = nn.initializer.TruncatedNormal(std=0.02)
        self.token = self.create_parameter([1, 1, width], default_initializer=normal)
        self.position = self.create_parameter([1, (size // patch) ** 2 + 1, width],
                                              default_initializer=normal)
        self.blocks = nn.LayerList([EncoderBlock(width, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose([0, 2, 1])
        token = self.token.expand([x.shape[0], -1, -1])
        x = paddle.concat([token, x], axis=1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def _into_windows(x, size, window, width):
    """[n, size, size, width] -> [n * windows, window * window, width]."""
    count = size // window
    x = x.reshape([-1, count, window, count, window, width])
    return x.transpose([0, 1, 3, 2, 4, 5]).reshape([-1, window * window, width])


def _from_windows(x, size, window, width):
    count = size // window
    x = x.reshape([-1, count, count, window, window, width])
    return x.transpose([0, 1, 3, 2, 4, 5]).reshape([-1, size, size, width])


def _relative_index(window):
    """[window ** 4]: where in the table the bias of each pair of tokens stands."""
    where = np.stack(np.meshgrid(*[np.arange(window)] * 2, indexing="ij")).reshape(2, -1)
    apart = where[:, :, None] - where[:, None, :] + window - 1
    return (apart[0] * (2 * window - 1) + apart[1]).reshape(-1).astype("int64")


def _shift_mask(size, window, shift):
    """[windows, tokens, tokens]: -100 between tokens that are neighbours by the shift only."""
    region, part = np.zeros([size, size], np.float32), 0
    slices = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for rows in slices:
        for columns in slices:
            region[rows, columns] = part
            part += 1
    count = size // window
    region = region.reshape(count, window, count, window).transpose(0, 2, 1, 3)
    region = region.reshape(count * count, -1)
    return np.where(region[:, :, None] == region[:, None, :], 0.0, -100.0).astype("float32")


class SwinBlock(nn.Layer):
    """Attention within windows, which every other block shifts by half a window."""

    def __init__(self, width, heads, size, window, shift):
        super().__init__()
        self.size, self.window, self.shift, self.width = size, window, shift, width
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = Attention(width, heads), MLP(width, 2 * width)
        self.table = self.create_parameter(
            [(2 * window - 1) ** 2, heads],
            default_initializer=nn.initializer.TruncatedNormal(std=0.02))
        self.register_buffer("index", paddle.to_tensor(_relative_index(window)))
        mask = paddle.to_tensor(_shift_mask(size, window, shift)) if shift else None
        self.register_buffer("mask", mask)

    def forward(self, x):
        tokens = self.window ** 2
        bias = self.table[self.index].reshape([tokens, tokens, self.heads])
        bias = bias.transpose([2, 0, 1]).unsqueeze(0)
        y = self.norm1(x)
        if self.shift:
            y = paddle.roll(y, shifts=(-self.shift, -self.shift), axis=(1, 2))
        y = _into_windows(y, self.size, self.window, self.width)
        y = self.attention(y, bias, self.mask)
        y = _from_windows(y, self.size, self.window, self.width)
        if self.shift:
            y = paddle.roll(y, shifts=(self.shift, self.shift), axis=(1, 2))
        x = x + y
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Layer):
    """Half the size, twice the width."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias_attr=False)

    def forward(self, x):
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(paddle.concat(parts, axis=-1)))


class Swin(nn.Layer):
    """Two stages of shifted-window blocks, for pictures of 1 x 16 x 16."""

    def __init__(self, width=24, window=4, classes=10):
        super().__init__()
        self.patches, self.norm0 = nn.Conv2D(1, width, 2, stride=2), nn.LayerNorm(width)
        self.stage1 = nn.Sequential(*(SwinBlock(width, 2, 8, window, shift)
                                      for shift in (0, window // 2)))
        self.merging = PatchMerging(width)
        self.stage2 = nn.Sequential(*(SwinBlock(2 * width, 4, 4, window // 2, shift)
                                      for shift in (0, window // 4)))
        self.norm, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, classes)

    def forward(self, x):
        x = self.norm0(self.patches(x).transpose([0, 2, 3, 1]))
        x = self.stage2(self.merging(self.stage1(x)))
        return self.head(self.norm(x).mean([1, 2]))


# Sequences

class Translator(nn.Layer):
    """Encoder and decoder between sequences of integers."""

    def __init__(self, words=28, width=48, heads=4, longest=32):
        super().__init__()
        self.width = width
        self.source, self.target = nn.Embedding(words, width), nn.Embedding(words, width)
        angles = np.arange(longest)[:, None] / 100 ** (np.arange(0, width, 2) / width)
        waves = np.stack([np.sin(angles), np.cos(angles)], axis=2).reshape(longest, width)
        self.register_buffer("position", paddle.to_tensor(waves.astype("float32")))
        self.core = nn.Transformer(width, heads, 2, 2, 2 * width, dropout=0.1,
                                   normalize_before=True)
        self.out = nn.Linear(width, words)

    def _embedded(self, table, tokens):
        return table(tokens) * self.width ** 0.5 + self.position[:tokens.shape[1]]

    def forward(self, source, target):
        length = target.shape[1]
        mask = paddle.triu(paddle.full([length, length], float("-inf")), diagonal=1)
        decoded = self.core(self._embedded(self.source, source),
                            self._embedded(self.target, target), tgt_mask=mask)
        return self.out(decoded)


_START = 27  # 0 to 16 are the shades of a pixel, 17 to 26 the digits


def _sentences(indices, other=False):
    """From every second row and column of a digit to its name and its first pixels backwards."""
    images, labels = digits()
    shades = np.rint(images[indices] * 16).astype("int64")[:, ::2, ::2].reshape(-1, 16)
    count = 3 if other else 7
    shades = shades[:, :10] if other else shades
    reply = np.concatenate([labels[indices, None] + 17, shades[:, count - 1::-1]], axis=1)
    asked = np.concatenate([np.full_like(reply[:, :1], _START), reply[:, :-1]], axis=1)
    return [shades, asked], [reply]


def _translated(net, inputs, targets):
    logits = net(*inputs)
    return F.cross_entropy(logits.reshape([-1, logits.shape[-1]]), targets[0].reshape([-1]))


class CRNN(nn.Layer):
    """Reads a line: convolutions, a bidirectional LSTM, (log) probabilities for CTC."""

    def __init__(self, head=F.log_softmax, classes=11, hidden=24):
        super().__init__()
        self.last = head
        layers, channels = [], 1
        for wider, pool in ((8, 2), (16, 2), (32, (4, 1))):
            layers += [nn.Conv2D(channels, wider, 3, padding=1, bias_attr=False),
                       nn.BatchNorm2D(wider), nn.ReLU(), nn.MaxPool2D(pool, pool)]
            channels = wider
        self.features = nn.Sequential(*layers)
        self.lstm = nn.LSTM(channels, hidden, direction="bidirect")
        self.head = nn.Linear(2 * hidden, classes)

    def logits(self, x):
        """[n, steps, classes]"""
        x = self.features(x).squeeze(2).transpose([0, 2, 1])
        return self.head(self.lstm(x)[0])

    def forward(self, x):
        return self.last(self.logits(x), axis=-1)


def _lines(indices, other=False):
    """Lines of four digits, 16 x 64; of five digits with ``other``."""
    images, labels = digits()
    length = 5 if other else 4
    chosen = (np.asarray(indices)[:, None] + np.arange(length) * 7) % len(labels)
    lines = _enlarged(images[chosen.reshape(-1)], 16).reshape(len(indices), length, 16, 16)
    lines = lines.transpose(0, 2, 1, 3).reshape(len(indices), 1, 16, 16 * length)
    return [lines], [labels[chosen].astype("int32") + 1]


def _read(net, inputs, targets):
    steps = net.logits(*inputs).transpose([1, 0, 2])
    count, (labels,) = steps.shape[1], targets
    return F.ctc_loss(steps, labels, paddle.full([count], steps.shape[0], "int64"),
                      paddle.full([count], labels.shape[1], "int64"))


# Pictures out

def _conv_bn_relu(inputs, outputs, stride=1):
    return nn.Sequential(nn.Conv2D(inputs, outputs, 3, stride, padding=1, bias_attr=False),
                         nn.BatchNorm2D(outputs), nn.ReLU())


class UNet(nn.Layer):
    """Two scales down; up again by a transposed convolution and by interpolation."""

    def __init__(self):
        super().__init__()
        self.down1 = nn.Sequential(_conv_bn_relu(1, 8), _conv_bn_relu(8, 8))
        self.down2, self.bottom = _conv_bn_relu(8, 16), _conv_bn_relu(16, 32)
        self.pool = nn.MaxPool2D(2, 2)
        self.up = nn.Conv2DTranspose(32, 16, 2, stride=2)
        self.up2, self.up1 = _conv_bn_relu(32, 16), _conv_bn_relu(24, 8)
        self.head = nn.Conv2D(8, 1, 1)

    def forward(self, x):
        large = self.down1(x)
        middle = self.down2(self.pool(large))
        small = self.bottom(self.pool(middle))
        middle = self.up2(paddle.concat([self.up(small), middle], axis=1))
        raised = F.interpolate(middle, size=large.shape[2:], mode="bilinear")
        return self.head(self.up1(paddle.concat([raised, large], axis=1)))


def _noisy(indices, other=False):
    """Find the strokes of digits under noise, 16 x 16; 24 x 20 with ``other``."""
    images, _ = digits()
    clean = _enlarged(images[indices], 24)[:, :, :, 2:22] if other else _enlarged(
        images[indices], 16)
    noise = np.random.RandomState(int(indices[0])).randn(*clean.shape)
    return [(clean + 0.5 * noise).astype("float32")], [(clean > 0).astype("float32")]


def _segmented(net, inputs, targets):
    return F.binary_cross_entropy_with_logits(net(*inputs), targets[0])


class SSD(nn.Layer):
    """Finds digits in pictures of 1 x 32 x 32, on two scales.

    Args:
        suppression: None: returns the boxes [n, m, 4] and the scores [n, 11, m] of all priors.
            "multiclass" and "matrix": what these operators return. "plain": the boxes of all
            pictures that a non-maximum suppression over the best class leaves, and their scores.
    """

    variances = [0.1, 0.1, 0.2, 0.2]

    def __init__(self, suppression=None, classes=11):
        super().__init__()
        self.suppression, self.classes = suppression, classes
        self.stem = nn.Sequential(_conv_bn_relu(1, 16, 2), _conv_bn_relu(16, 32, 2),
                                  _conv_bn_relu(32, 32))
        self.deeper = _conv_bn_relu(32, 48, 2)
        self.boxes = nn.LayerList([nn.Conv2D(width, 2 * 4, 3, padding=1) for width in (32, 48)])
        self.kinds = nn.LayerList([nn.Conv2D(width, 2 * classes, 3, padding=1)
                                   for width in (32, 48)])

    def heads(self, x):
        """(offsets [n, m, 4], logits [n, m, classes], priors [m, 4], their variances)."""
        scales, offsets, logits, priors, variances = [self.stem(x)], [], [], [], []
        scales.append(self.deeper(scales[0]))
        for i, scale in enumerate(scales):
            offsets.append(self.boxes[i](scale).transpose([0, 2, 3, 1]).reshape(
                [0, -1, 4]))
            logits.append(self.kinds[i](scale).transpose([0, 2, 3, 1]).reshape(
                [0, -1, self.classes]))
            smallest = (10.0, 14.0)[i]
            found = ops.prior_box(scale, x, min_sizes=[smallest], max_sizes=[smallest + 8],
                                  variance=self.variances, clip=True)
            priors.append(found[0].reshape([-1, 4]))
            variances.append(found[1].reshape([-1, 4]))
        return tuple(paddle.concat(parts, axis=axis) for parts, axis in
                     ((offsets, 1), (logits, 1), (priors, 0), (variances, 0)))

    def forward(self, x):
        offsets, logits, priors, variances = self.heads(x)
        boxes = ops.box_coder(priors, variances, offsets, "decode_center_size")
        scores = F.softmax(logits, axis=-1).transpose([0, 2, 1])
        if self.suppression == "multiclass":
            # (score_threshold, nms_top_k, keep_top_k, nms_threshold, normalized, nms_eta,
            # background_label)
            return paddle._C_ops.multiclass_nms3(boxes, scores, None, 0.2, 50, 10, 0.45, True, 1.0,
                                                 0)
        if self.suppression == "matrix":
            return ops.matrix_nms(boxes, scores, 0.2, 0.1, 50, 10, return_index=True)
        if self.suppression == "plain":
            return self._plain(boxes, scores)
        return boxes, scores

    def _plain(self, boxes, scores):
        best = scores[:, 1:].max(axis=1)  # [n, m]
        pictures = paddle.arange(boxes.shape[0], dtype="float32").reshape([-1, 1, 1])
        apart = (boxes + 4 * pictures).reshape([-1, 4])  # of other pictures: elsewhere
        kept = ops.nms(apart, 0.45, best.reshape([-1]))[:10]
        return paddle.gather(boxes.reshape([-1, 4]), kept), best.reshape([-1])[kept]


def _scenes(indices, other=False):
    """Each digit, 12 to 20 pixels large, somewhere in a picture: where it is, and which it is."""
    images, labels = digits()
    pictures = np.full([len(indices), 1, 32, 32], -1, "float32")
    boxes = np.zeros([len(indices), 4], "float32")
    rng = np.random.RandomState(int(indices[0]))
    for i, index in enumerate(indices):
        size = rng.randint(12, 21)
        top, left = rng.randint(0, 33 - size, 2)
        pictures[i, 0, top:top + size, left:left + size] = _enlarged(
            images[index:index + 1], size)[0, 0]
        boxes[i] = np.array([left, top, left + size, top + size]) / 32
    return [pictures], [boxes, labels[indices] + 1]


def _overlap(boxes, priors):
    """Intersection over union, [n, m]."""
    low = np.maximum(boxes[:, None, :2], priors[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], priors[None, :, 2:])
    common = (high - low).clip(0).prod(2)
    areas = [(each[:, 2:] - each[:, :2]).prod(1) for each in (boxes, priors)]
    return common / (areas[0][:, None] + areas[1][None] - common)


def _detected(net, inputs, targets):
    offsets, logits, priors, _ = net.heads(*inputs)
    boxes, labels, priors = targets[0].numpy(), targets[1].numpy(), priors.numpy()
    overlap = _overlap(boxes, priors)
    found = (overlap > 0.5) | (overlap == overlap.max(1, keepdims=True))
    sizes = priors[:, 2:] - priors[:, :2]
    away = (boxes[:, None, :2] + boxes[:, None, 2:] - priors[None, :, :2] - priors[None, :, 2:])
    wanted = np.concatenate([away / 2 / sizes / 0.1,
                             np.log((boxes[:, None, 2:] - boxes[:, None, :2]) / sizes) / 0.2], 2)
    kinds = paddle.to_tensor(np.where(found, labels[:, None], 0))
    shares = np.where(found, 0.5 / found.sum(), 0.5 / (~found).sum()).astype("float32")
    losses = F.cross_entropy(logits, kinds, reduction="none").squeeze(-1)
    return ((losses * paddle.to_tensor(shares)).sum()
            + F.smooth_l1_loss(offsets[paddle.to_tensor(found)],
                               paddle.to_tensor(wanted[found].astype("float32"))))


def _reader(head):
    return Model(lambda: CRNN(head), (("line", [None, 1, 16, None], "float32"),), _lines, _read,
                 steps=150, family="CRNN")


def _detector(suppression):
    return Model(lambda: SSD(suppression), (("image", [None, 1, 32, 32], "float32"),),
                 _scenes, _detected, steps=200, batch=24, family="SSD")


ZOO = {
    "ViT": _classifier(ViT, 1, 16, steps=150),
    "Swin": _classifier(Swin, 1, 16, steps=120),
    "Transformer": Model(Translator, (("source", [None, None], "int64"),
                                      ("target", [None, None], "int64")),
                         _sentences, _translated, steps=200),
    "CRNN": _reader(F.softmax),
    "CRNN, log_softmax": _reader(F.log_softmax),
    "U-Net": Model(UNet, (("x", [None, 1, None, None], "float32"),), _noisy, _segmented,
                   steps=60),
    "SSD": _detector(None),
    "SSD, multiclass NMS": _detector("multiclass"),
    "SSD, matrix NMS": _detector("matrix"),
    "SSD, NMS": _detector("plain"),
    **{name: _vision(name) for name in vision.MODELS},
}
