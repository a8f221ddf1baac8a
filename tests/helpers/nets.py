"""Small models that tests share."""

import paddle
import paddle.nn.functional as F
from paddle import nn

import paddleq


class SmallNet(nn.Layer):
    """Conv-BN-ReLU, depthwise, a residual and a classifier."""

    def __init__(self, classes=10, channels=1):
        super().__init__()
        self.conv1 = nn.Conv2D(channels, 8, 3, padding=1, bias_attr=False)
        self.bn1 = nn.BatchNorm2D(8)
        self.conv2 = nn.Conv2D(8, 8, 3, padding=1, groups=8)
        self.bn2 = nn.BatchNorm2D(8)
        self.conv3 = nn.Conv2D(8, 16, 1)
        self.fc = nn.Linear(16, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = x + F.relu(self.bn2(self.conv2(x)))
        return self.fc(F.relu6(self.conv3(x)).mean([2, 3]))


class OcrPACT(nn.Layer):
    """PACT as PaddleOCR's slim scripts define it for themselves: alpha with its own name,
    regularizer and learning rate, clipping written with two relus."""

    def __init__(self):
        super().__init__()
        attr = paddle.ParamAttr(
            name=self.full_name() + ".pact", initializer=nn.initializer.Constant(20.0),
            learning_rate=1.0, regularizer=paddle.regularizer.L2Decay(2e-5))
        self.alpha = self.create_parameter(shape=[1], attr=attr, dtype="float32")

    def forward(self, x):
        left = F.relu(x - self.alpha)
        right = F.relu(-self.alpha - x)
        return x - left + right


class Chain(nn.Layer):
    """Linear layers of several widths, each with a relu."""

    def __init__(self, widths):
        super().__init__()
        self.layers = nn.LayerList([nn.Linear(a, b) for a, b in zip(widths, widths[1:])])

    def forward(self, x):
        for layer in self.layers:
            x = F.relu(layer(x))
        return x


def warmed(net, x):
    """Give batch norms statistics of ``x``."""
    net.train()
    for _ in range(3):
        net(x)
    net.eval()
    return net


def calibrated(net, x, fuse=False):
    """(the PTQ, a quantized copy of ``net`` that has seen ``x``)."""
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    net = ptq.quantize(net, fuse=fuse)
    ptq.calibrate(net, [x])
    return ptq, net


def train_steps(net, x, steps=3, lr=1e-3, optimizer=None):
    """A few training steps; returns the optimizer."""
    net.train()
    optimizer = optimizer or paddle.optimizer.Momentum(lr, parameters=net.parameters())
    for _ in range(steps):
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.clear_grad()
    net.eval()
    return optimizer


def save_float(net, path, shape):
    """Save in the format of the installed Paddle: ``.json`` on Paddle 3, ``.pdmodel`` on 2.6."""
    net.eval()
    paddle.jit.save(net, path, [paddle.static.InputSpec([None, *shape], "float32")])
