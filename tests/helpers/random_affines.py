"""Random nets of weighted layers, activations, shape operators and affines, for fuzz tests."""

import numpy as np
import paddle
import paddle.nn.functional as F
from affine_cases import Affine, with_statistics
from paddle import nn


def random_net(seed):
    """The net of a seed, in evaluation mode; None if its operators do not fit each other."""
    paddle.seed(seed)
    try:
        net = RandomNet(seed)
    except ValueError:  # of Paddle: an image became too small
        return None
    net.eval()
    return net


class RandomNet(nn.Layer):
    """Steps on images ``[n, c, h, w]``; a last one makes vectors of them."""

    def __init__(self, seed, channels=4, size=9):
        super().__init__()
        self.parts, self.steps = nn.LayerList(), []
        self.random = np.random.RandomState(seed)
        self.channels = channels
        for _ in range(self.random.randint(4, 10)):
            self.choose(self.image_steps())
            if self.random.rand() < 0.6:
                self.choose(self.affine_steps())
        self.steps.append(self.random.choice([
            lambda x: x.flatten(1), lambda x: x.mean([2, 3]), lambda x: x.flatten(2).max(-1),
            lambda x: x.transpose([0, 2, 3, 1]).flatten(1, 2).sum(1)]))
        width = self.forward(paddle.zeros([1, channels, size, size])).shape[-1]
        if self.random.rand() < 0.5:
            self.add(Affine(width))
        self.add(nn.Linear(width, 3))

    def choose(self, steps):
        steps[self.random.randint(len(steps))]()

    def add(self, layer):
        self.parts.append(layer)
        self.steps.append(layer)

    def function(self, function):
        self.steps.append(function)

    def image_steps(self):
        c = self.channels
        padding = int(self.random.randint(2))
        groups = int(self.random.choice([1, c]))

        def convolution():
            self.channels = int(self.random.choice([c, 2 * c])) if c < 9 else c
            self.add(nn.Conv2D(c, self.channels, 3, padding=padding, groups=groups,
                               bias_attr=bool(self.random.randint(2)) and None))

        def pointwise():
            self.channels = 4
            self.add(nn.Conv2D(c, 4, 1, stride=1 + int(self.random.randint(2)), padding=padding))

        def transposed():
            self.channels = 4
            self.add(nn.Conv2DTranspose(c, 4, 2 + padding, padding=padding, bias_attr=False))

        def concat():
            conv = nn.Conv2D(c, 2, 1)
            affine = Affine()
            self.parts.extend([conv, affine])
            self.channels = c + 2
            self.function(lambda x: paddle.concat([x, affine(F.hardswish(conv(x)))], axis=1))

        def excite():
            conv = nn.Conv2D(c, c, 1)
            self.parts.append(conv)
            self.function(lambda x: x * F.hardsigmoid(conv(F.adaptive_avg_pool2d(x, 1))))

        def residual():
            conv, other = nn.Conv2D(c, c, 1), nn.Conv2D(c, c, 3, padding=1)
            self.parts.extend([conv, other])
            self.function(lambda x: conv(x) + other(x))

        def parts():
            affine, shared = Affine(), self.random.rand() < 0.2
            self.parts.append(affine)
            first = c // 2

            def split(x):
                left, right = paddle.split(x, [first, c - first], axis=1)
                return paddle.concat([affine(left), right * 2.0], axis=1)

            def slices(x):
                left, right = x[:, :first], x[:, first - shared:]
                return paddle.concat([affine(left), F.hardswish(right[:, -(c - first):])], axis=1)
            self.function([split, slices][self.random.randint(2)])

        def grouped():
            affine = Affine()
            self.parts.append(affine)
            self.function(lambda x: affine(
                x.reshape([x.shape[0], 2, c // 2, *x.shape[2:]])).flatten(1, 2))

        mode = ["constant", "reflect", "replicate"][self.random.randint(3)]
        return [
            convolution, convolution, pointwise, transposed, concat, excite, residual, parts,
            grouped if c % 2 == 0 else parts,
            lambda: self.add(with_statistics(nn.BatchNorm2D(c))),
            lambda: self.function(F.hardswish), lambda: self.function(F.relu),
            lambda: self.function(lambda x: F.leaky_relu(x, 0.3)),
            lambda: self.function(lambda x: F.max_pool2d(x, 2, 1, padding)),
            lambda: self.function(lambda x: F.avg_pool2d(x, 2, 1, padding,
                                                         exclusive=bool(groups == 1))),
            lambda: self.function(lambda x: F.pad(x, [1, 1, 1, 1], mode=mode)),
            lambda: self.function(lambda x: F.interpolate(x, size=[8, 8], mode="bilinear")),
            lambda: self.function(lambda x: x.transpose([0, 1, 3, 2])),
            lambda: self.function(lambda x: F.channel_shuffle(x, 2) if c % 2 == 0 else x)]

    def affine_steps(self):
        c, negative = self.channels, bool(self.random.rand() < 0.3)
        number = float(self.random.uniform(0.5, 1.5))
        vector = nn.ParameterList([self.create_parameter(
            [c, 1, 1], default_initializer=nn.initializer.Uniform(0.5, 1.5))])

        def divide():
            self.parts.append(vector)
            self.function(lambda x: x / vector[0] - number)

        return [lambda: self.add(Affine(negative=negative)),
                lambda: self.add(Affine(c, 1, 1, negative=negative)),
                lambda: self.function(lambda x: x * number), divide,
                lambda: self.function(lambda x: number - x),
                lambda: self.function(lambda x: x + number)]

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x
