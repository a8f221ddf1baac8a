"""Nets with multiplications and additions of constants, for tests of their folding.

A case is a net, the shape of its input, and the operators of the folded program that are neither
weighted nor in the list ``EXPECTED_OPERATORS``.
"""

import paddle
import paddle.nn.functional as F
from paddle import nn


class Affine(nn.Layer):
    """``x * scale + shift`` with parameters of a shape, between 0.5 and 1.5 in magnitude."""

    def __init__(self, *shape, negative=False):
        super().__init__()
        shape = list(shape or [1])
        low, high = (-1.5, -0.5) if negative else (0.5, 1.5)
        self.scale = self.create_parameter(
            shape, default_initializer=nn.initializer.Uniform(low, high))
        self.shift = self.create_parameter(
            shape, default_initializer=nn.initializer.Uniform(-1.0, 1.0))

    def forward(self, x):
        return self.scale * x + self.shift


class Net(nn.Layer):
    """Layers by name, and a ``forward`` that takes them as its first argument."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._function = forward

    def forward(self, x):
        return self._function(self, x)


def sequential(*layers):
    return lambda: nn.Sequential(*[make() for make in layers])


def conv(*args, **options):
    return lambda: nn.Conv2D(*args, **options)


def affine(*shape, **options):
    return lambda: Affine(*shape, **options)


def with_statistics(norm):
    """A batch norm with statistics of its own."""
    channels = norm._mean.shape[0]
    norm._mean.set_value(paddle.randn([channels]))
    norm._variance.set_value(paddle.rand([channels]) + 0.5)
    norm.weight.set_value(paddle.rand([channels]) + 0.5)
    norm.bias.set_value(paddle.randn([channels]))
    return norm


class FrozenBatchNorm(nn.Layer):
    """Batch norm written out with buffers, as detectors have it."""

    def __init__(self, channels):
        super().__init__()
        for name in ("weight", "bias", "mean", "variance"):
            self.register_buffer(name, paddle.rand([channels]) + 0.5)

    def forward(self, x):
        scale = self.weight * (self.variance + 1e-5).rsqrt()
        shift = self.bias - self.mean * scale
        return x * scale.reshape([1, -1, 1, 1]) + shift.reshape([1, -1, 1, 1])


class Excited(nn.Layer):
    """Squeeze and excitation behind an affine: it is read by a pooling and by a product."""

    def __init__(self):
        super().__init__()
        self.first, self.affine = nn.Conv2D(3, 4, 3), Affine()
        self.down, self.last = nn.Conv2D(4, 4, 1), nn.Conv2D(4, 5, 1)

    def forward(self, x):
        x = self.affine(F.hardswish(self.first(x)))
        return self.last(x * F.hardsigmoid(self.down(F.adaptive_avg_pool2d(x, 1))))


class Branches(nn.Layer):
    """Affines on one branch of a concatenation, and behind it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = nn.Conv2D(3, 4, 1), nn.Conv2D(3, 2, 1), nn.Conv2D(6, 3, 3)
        self.one, self.both = Affine(4, 1, 1), Affine(1, 6, 1, 1)

    def forward(self, x):
        left = F.hardswish(self.a(x)) * 1.3 + self.one.shift
        return self.last(paddle.concat([left, F.hardswish(self.b(x))], axis=1))


class Joined(Branches):
    """An affine behind the concatenation of two convolutions."""

    def forward(self, x):
        x = self.both(paddle.concat([self.a(x), self.b(x)], axis=1))
        return F.hardswish(x)


class Attention(nn.Layer):
    """Attention whose queries, a part of one product, are scaled."""

    def __init__(self, part):
        super().__init__()
        self.qkv, self.last, self.part = nn.Linear(8, 24), nn.Linear(8, 8), part

    def forward(self, x):
        qkv = self.qkv(x)
        if self.part == "chunk":
            q, k, v = (each.reshape([-1, x.shape[1], 2, 4]).transpose([0, 2, 1, 3])
                       for each in qkv.chunk(3, -1))
        elif self.part == "slice":
            q, k, v = (qkv[:, :, i:i + 8].reshape([-1, x.shape[1], 2, 4]).transpose([0, 2, 1, 3])
                       for i in (0, 8, 16))
        else:
            qkv = qkv.reshape([-1, x.shape[1], 3, 2, 4]).transpose([2, 0, 3, 1, 4])
            q, k, v = (qkv[0], qkv[1], qkv[2]) if self.part == "index" else qkv.unbind(0)
        weights = F.softmax((q * 0.5) @ k.transpose([0, 1, 3, 2]))
        return self.last((weights @ v).transpose([0, 2, 1, 3]).reshape([-1, x.shape[1], 8]))


class Slices(nn.Layer):
    """An affine behind one of two slices of channels."""

    def __init__(self, first, second):
        super().__init__()
        self.a, self.affine = nn.Conv2D(3, 4, 1), Affine(first[1] - first[0], 1, 1)
        self.first, self.second = first, second

    def forward(self, x):
        x = self.a(x)
        left, right = x[:, slice(*self.first)], x[:, slice(*self.second)]
        return paddle.concat([F.gelu(self.affine(left)), F.gelu(right)], axis=1)


class Sum(nn.Layer):
    """An affine behind the sum of two convolutions, as in a block before re-parameterization."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.affine = nn.Conv2D(3, 4, 1), nn.Conv2D(3, 4, 3, padding=1), Affine()

    def forward(self, x):
        return F.hardswish(self.affine(self.a(x) + self.b(x)))


# name -> (function that makes the net, shape of the input): nothing but biases is left.
FOLDED = {
    "scalars": (lambda: Net(lambda self, x: F.hardswish(self.conv(x) * 1.7 - 0.4),
                            conv=nn.Conv2D(3, 5, 3, padding=1)), [2, 3, 7, 7]),
    "numbers minus and divided": (
        lambda: Net(lambda self, x: F.hardswish((0.6 - self.conv(x)) / -1.4),
                    conv=nn.Conv2D(3, 5, 3, bias_attr=False)), [2, 3, 7, 7]),
    "parameters": (sequential(conv(3, 5, 3, padding=1), affine(), nn.Hardswish), [2, 3, 7, 7]),
    "parameters of channels": (sequential(conv(3, 5, 3), affine(5, 1, 1), nn.Hardswish),
                               [2, 3, 7, 7]),
    "without a bias": (sequential(conv(3, 5, 3, bias_attr=False), affine(1, 5, 1, 1)),
                       [2, 3, 7, 7]),
    "groups": (sequential(conv(4, 6, 3, groups=2), affine(6, 1, 1), nn.Hardswish),
               [2, 4, 7, 7]),
    "depthwise": (sequential(conv(4, 4, 3, groups=4, padding=1), affine(4, 1, 1)), [2, 4, 7, 7]),
    "channels last": (sequential(conv(3, 5, 3, data_format="NHWC"), affine(5), nn.Hardswish),
                      [2, 7, 7, 3]),
    "transposed": (sequential(lambda: nn.Conv2DTranspose(4, 6, 3, stride=2, groups=2),
                              affine(6, 1, 1), nn.Hardswish), [2, 4, 5, 5]),
    "Conv1D": (sequential(lambda: nn.Conv1D(4, 6, 3), affine(6, 1), nn.Hardswish), [2, 4, 9]),
    "Conv3D": (sequential(lambda: nn.Conv3D(2, 3, 3), affine(3, 1, 1, 1), nn.Hardswish),
               [2, 2, 5, 5, 5]),
    "Linear": (sequential(lambda: nn.Linear(6, 5), affine(5), nn.Hardswish), [4, 6]),
    "Linear of sequences without a bias": (
        sequential(lambda: nn.Linear(6, 5, bias_attr=False), affine(5), nn.GELU), [2, 4, 6]),
    "batch norm": (sequential(conv(3, 5, 3), lambda: with_statistics(nn.BatchNorm2D(5)), affine(),
                              nn.Hardswish), [2, 3, 7, 7]),
    "layer norm": (sequential(lambda: nn.Linear(6, 8), nn.GELU, lambda: nn.LayerNorm(8),
                              affine(8), lambda: nn.Linear(8, 3)), [4, 6]),
    "batch norm of buffers": (sequential(conv(3, 5, 3), lambda: FrozenBatchNorm(5), nn.ReLU),
                              [2, 3, 7, 7]),
    "before a convolution": (sequential(conv(3, 4, 3), nn.Hardswish, affine(), conv(4, 5, 3)),
                             [2, 3, 9, 9]),
    "channels before grouped convolution": (
        sequential(conv(3, 4, 3), nn.Hardswish, affine(4, 1, 1), conv(4, 6, 3, groups=2)),
        [2, 3, 9, 9]),
    "of the input": (sequential(affine(3, 1, 1), conv(3, 5, 3), nn.ReLU), [2, 3, 9, 9]),
    "before a Linear": (sequential(lambda: nn.Linear(6, 8), nn.GELU, affine(8),
                                   lambda: nn.Linear(8, 3, bias_attr=False)), [2, 4, 6]),
    "factors before a padded convolution": (
        lambda: Net(lambda self, x: self.b(F.hardswish(self.a(x)) * self.s.scale),
                    a=nn.Conv2D(3, 4, 3), b=nn.Conv2D(4, 5, 3, padding=1), s=Affine(4, 1, 1)),
        [2, 3, 9, 9]),
    "factors before a transposed convolution": (
        lambda: Net(lambda self, x: self.b(F.hardswish(self.a(x)) * self.s.scale),
                    a=nn.Conv2D(3, 4, 3), s=Affine(4, 1, 1),
                    b=nn.Conv2DTranspose(4, 6, 3, stride=2, groups=2)), [2, 3, 9, 9]),
    "across poolings and flatten": (
        sequential(conv(3, 4, 3), nn.Hardswish, affine(4, 1, 1), lambda: nn.MaxPool2D(2),
                   lambda: nn.AvgPool2D(2), nn.Flatten, lambda: nn.Linear(16, 3)), [2, 3, 10, 10]),
    "across a padded maximum": (
        sequential(conv(3, 4, 3), nn.Hardswish, affine(4, 1, 1),
                   lambda: nn.MaxPool2D(3, 2, padding=1), conv(4, 3, 1)), [2, 3, 10, 10]),
    "across the mean": (
        lambda: Net(lambda self, x: self.b(self.s(F.hardswish(self.a(x))).mean([2, 3])),
                    a=nn.Conv2D(3, 4, 3), b=nn.Linear(4, 3), s=Affine(4, 1, 1)), [2, 3, 9, 9]),
    "back across shapes": (
        lambda: Net(lambda self, x: F.gelu(self.s(self.a(x).flatten(2).transpose([0, 2, 1]))),
                    a=nn.Conv2D(3, 4, 3, stride=3), s=Affine(4)), [2, 3, 9, 9]),
    "back across relu": (lambda: Net(lambda self, x: self.b(F.relu(self.a(x)) * 0.3),
                                     a=nn.Conv2D(3, 4, 3), b=nn.Conv2DTranspose(4, 3, 2)),
                         [2, 3, 9, 9]),
    "back across heads": (
        lambda: Net(lambda self, x: F.softmax(self.a(x).reshape([2, 4, 2, 4]).transpose(
            [0, 2, 1, 3]) * 0.5), a=nn.Linear(6, 8)), [2, 4, 6]),
    "across concat": (Branches, [2, 3, 7, 7]),
    "back across concat": (Joined, [2, 3, 7, 7]),
    "squeeze and excite, factors": (
        lambda: Net(lambda self, x: self.last(self.inner(x)), inner=NoShift(),
                    last=nn.Conv2D(4, 5, 1)), [2, 3, 7, 7]),
    **{f"queries, {part}": (lambda part=part: Attention(part), [2, 5, 8])
       for part in ("index", "unbind", "chunk", "slice")},
    "back across a slice of channels": (lambda: Slices((1, 3), (0, 1)), [2, 3, 5, 5]),
    "across a slice": (
        lambda: Net(lambda self, x: self.b(self.s(F.gelu(self.a(x)))[:, 1:3, 2:]),
                    a=nn.Conv2D(3, 4, 1), b=nn.Conv2D(2, 3, 3), s=Affine(4, 1, 1)),
        [2, 3, 7, 7]),
    "back across a sum": (Sum, [2, 3, 7, 7]),
    "interpolated": (
        lambda: Net(lambda self, x: self.b(F.interpolate(
            self.s(F.hardswish(self.a(x))), scale_factor=2, mode="nearest")),
            a=nn.Conv2D(3, 4, 3), b=nn.Conv2D(4, 3, 3), s=Affine(4, 1, 1)), [2, 3, 7, 7]),
}


class NoShift(Excited):
    """Squeeze and excitation behind a factor."""

    def forward(self, x):
        x = F.hardswish(self.first(x)) * self.affine.scale
        return x * F.hardsigmoid(self.down(F.adaptive_avg_pool2d(x, 1)))


# name -> (function, shape): one addition is left.
ADDITION_LEFT = {
    "before a padded convolution": (
        sequential(conv(3, 4, 3), nn.Hardswish, affine(), conv(4, 5, 3, padding=1)), [2, 3, 9, 9]),
    "channels before a depthwise convolution": (
        sequential(conv(3, 4, 3), nn.Hardswish, affine(4, 1, 1),
                   conv(4, 4, 3, padding="SAME", groups=4)), [2, 3, 9, 9]),
    "negative factors": (
        sequential(conv(3, 4, 3), nn.Hardswish, affine(4, 1, 1, negative=True),
                   conv(4, 5, 3, padding=1)), [2, 3, 9, 9]),
    "before a transposed convolution": (
        sequential(conv(3, 4, 3), nn.Hardswish, affine(), lambda: nn.Conv2DTranspose(4, 3, 3)),
        [2, 3, 9, 9]),
    "before an average with zeros": (
        sequential(conv(3, 4, 3), nn.Hardswish, affine(),
                   lambda: nn.AvgPool2D(3, 2, padding=1, exclusive=False), conv(4, 3, 1)),
        [2, 3, 9, 9]),
    "squeeze and excite": (Excited, [2, 3, 7, 7]),
    "factors back across relu": (
        sequential(conv(3, 4, 3), nn.ReLU, affine(), nn.Hardswish), [2, 3, 9, 9]),
}


class Read(nn.Layer):
    """An affine behind a convolution, one of whose tensors has a second reader."""

    def __init__(self, reader):
        super().__init__()
        self.conv, self.affine, self.reader = nn.Conv2D(3, 4, 1), Affine(), reader

    def forward(self, x):
        y = self.conv(x)
        z = self.affine(y)
        if self.reader == "output":
            return F.hardswish(z), y
        if self.reader == "maximum":
            return paddle.maximum(F.hardswish(z), y)
        return F.hardswish(z) * paddle.mean(y)


class SharedWeight(nn.Layer):
    """An affine behind one of two convolutions with one weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.affine = nn.Conv2D(4, 4, 1), nn.Conv2D(4, 4, 1), Affine()
        self.b.weight = self.a.weight

    def forward(self, x):
        return F.hardswish(self.affine(self.a(F.hardswish(self.b(x)))))


# name -> (function, shape, part of the reason): the program stays as it is.
KEPT = {
    "the convolution is an output": (lambda: Read("output"), [2, 3, 5, 5], "several readers"),
    "the convolution feeds a maximum": (lambda: Read("maximum"), [2, 3, 5, 5], "several readers"),
    "the convolution feeds a mean": (lambda: Read("mean"), [2, 3, 5, 5], "several readers"),
    "a shared weight": (SharedWeight, [2, 4, 5, 5], "several readers"),
    "between activations": (
        lambda: Net(lambda self, x: self.b(F.gelu(F.hardswish(self.a(x)) * 1.5)),
                    a=nn.Conv2D(3, 4, 1), b=nn.Conv2D(4, 3, 1)), [2, 3, 5, 5], "gelu"),
    "negative before a maximum": (
        lambda: Net(lambda self, x: self.b(F.max_pool2d(F.hardswish(self.a(x)) * -1.5, 2)),
                    a=nn.Conv2D(3, 4, 1), b=nn.Conv2D(4, 3, 1)), [2, 3, 6, 6], "positive"),
    "negative behind relu": (
        lambda: Net(lambda self, x: F.hardswish(F.relu(self.a(x)) * -1.5), a=nn.Conv2D(3, 4, 1)),
        [2, 3, 6, 6], "positive"),
    "an addition before a padded convolution": (
        lambda: Net(lambda self, x: self.b(F.hardswish(self.a(x)) + 1.5),
                    a=nn.Conv2D(3, 4, 1), b=nn.Conv2D(4, 3, 3, padding=1)), [2, 3, 6, 6],
        "padding"),
    "channels of different ranges": (
        lambda: Net(lambda self, x: self.b(F.hardswish(self.a(x)) * paddle.to_tensor(
            [[[1e-3]], [[1.0]], [[0.5]], [[30.0]]])),
            a=nn.Conv2D(3, 4, 1), b=nn.Conv2D(4, 3, 1)), [2, 3, 6, 6], "ranges"),
    "a part that two slices read": (lambda: Slices((1, 3), (2, 4)), [2, 3, 5, 5],
                                    "several readers"),
    "a part that two equal slices read": (lambda: Slices((1, 3), (1, 3)), [2, 3, 5, 5],
                                          "several readers"),
    "an output of the model": (
        lambda: Net(lambda self, x: F.hardswish(self.a(x)) * 1.5, a=nn.Conv2D(3, 4, 1)),
        [2, 3, 6, 6], "fetch"),
}
