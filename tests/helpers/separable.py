"""A small MobileNet for digits, and a change of a layer that increases its quantization error."""

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

LAYERS = 12


def _norm_relu(conv, channels):
    return [conv, nn.BatchNorm2D(channels), nn.ReLU()]


def _separable(inputs, outputs, stride):
    return nn.Sequential(
        *_norm_relu(nn.Conv2D(inputs, inputs, 3, stride, 1, groups=inputs, bias_attr=False),
                    inputs),
        *_norm_relu(nn.Conv2D(inputs, outputs, 1, bias_attr=False), outputs))


class SeparableNet(nn.Layer):
    """Logits of images [N, 1, 8, 8]; :data:`LAYERS` layers that are quantized."""

    def __init__(self, channels=32):
        super().__init__()
        self.stem = nn.Sequential(*_norm_relu(
            nn.Conv2D(1, 16, 3, padding=1, bias_attr=False), 16))
        self.blocks = nn.Sequential(
            _separable(16, channels, 2), _separable(channels, channels, 1),
            _separable(channels, channels, 1), _separable(channels, channels, 2),
            _separable(channels, channels, 1))
        self.head = nn.Linear(channels, 10)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean([2, 3]))


def train(net, images, labels, epochs=5, batch=64, rate=1e-2):
    """Adam with a cosine schedule; leaves ``net`` in evaluation mode."""
    order, rng = np.arange(len(images)), np.random.RandomState(0)
    starts = range(0, len(images) - batch + 1, batch)
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(rate, epochs * len(starts))
    adam = paddle.optimizer.Adam(schedule, parameters=net.parameters())
    net.train()
    for _ in range(epochs):
        rng.shuffle(order)
        for start in starts:
            part = order[start:start + batch]
            F.cross_entropy(net(paddle.to_tensor(images[part])),
                            paddle.to_tensor(labels[part])).backward()
            adam.step()
            adam.clear_grad()
            schedule.step()
    net.eval()
    return net


def accuracy(net, images, labels):
    """Return the share of the images that ``net`` classifies correctly."""
    with paddle.no_grad():
        return float((net(paddle.to_tensor(images)).numpy().argmax(1) == labels).mean())


def enlarge_channel(norm, conv, channel, factor=100.0):
    """Multiply one channel of the input of ``conv`` by ``factor``; its output is unchanged.

    ``conv`` follows ``norm`` and a ReLU: relu(factor * x) = factor * relu(x).
    """
    weight = conv.weight.numpy()
    depthwise = weight.shape[1] == 1 and conv._groups > 1
    weight[(channel,) if depthwise else (slice(None), channel)] /= factor
    conv.weight.set_value(weight)
    for parameter in (norm.weight, norm.bias):
        values = parameter.numpy()
        values[channel] *= factor
        parameter.set_value(values)
