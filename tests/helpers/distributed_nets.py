"""Networks and batches that processes of ``distributed_worker.py`` divide."""

import os
import signal

import numpy as np
import paddle
from paddle import nn

import paddleq
from paddleq import LayerConfig, QuantConfig, QuantSpec
from paddleq.config import QuantizerConfig
from paddleq.observers import OBSERVERS

STEPS, BATCH = 20, 8


class Net(nn.Layer):
    """Convolution and Linear layers, without batch norms, whose statistics are local."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(2, 6, 3, padding=1)
        self.depthwise = nn.Conv2D(6, 6, 3, padding=1, groups=6)
        self.norm = nn.LayerNorm(6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        x = nn.functional.relu(self.conv(x))
        x = nn.functional.relu6(x + self.depthwise(x)).mean([2, 3])
        return self.fc(self.norm(x))


class Twice(Net):
    """A layer without weights that is called twice in a forward pass."""

    def __init__(self):
        super().__init__()
        self.add = paddleq.QuantizableFunction(paddle.add)

    def forward(self, x):
        return super().forward(self.add(self.add(x, x), 3.0 * x))


def batches(count=STEPS, size=BATCH):
    """Global batches, of which each sample has another range."""
    random = np.random.RandomState(5)
    for _ in range(count):
        scale = np.exp(random.randn(size, 1, 1, 1))
        yield (random.randn(size, 2, 6, 6) * scale).astype("float32"), random.randint(0, 3, size)


def shard(array, rank, size):
    each = len(array) // size
    return paddle.to_tensor(array[rank * each:(rank + 1) * each])


def loss(model, x, y, rank, size):
    """The loss on this process' share of a batch."""
    return nn.functional.cross_entropy(model(shard(x, rank, size)), shard(y, rank, size))


def train_steps(model, optimizer, rank, size, steps=5):
    """Train on this process' share of the batches."""
    for x, y in batches(steps):
        loss(model, x, y, rank, size).backward()
        optimizer.step()
        optimizer.clear_grad()


def train(net, rank, size, steps=STEPS):
    model = paddle.DataParallel(net) if size > 1 else net
    train_steps(model, paddle.optimizer.SGD(0.02, parameters=net.parameters()), rank, size, steps)


def arrays(net):
    return {name: value.numpy() for name, value in net.state_dict().items()}


def quantized(**config):
    paddle.seed(3)
    return paddleq.QAT(config).quantize(Net())


def with_observer(name, net=Net):
    """A quantized net; affine if the observer is one of minimum and maximum."""
    paddle.seed(3)
    spec = QuantSpec(signed=False, symmetric=False) if "min_max" in name else QuantSpec()
    config, observed = QuantConfig(), QuantizerConfig(OBSERVERS[name], spec)
    for kind in (nn.Conv2D, nn.Linear):
        config.add_type(kind, LayerConfig(QuantSpec(), observed))
    if net is Twice:
        config.add_type(paddleq.QuantizableFunction, LayerConfig(None, observed))
    return paddleq.quantize(net(), config)


def message(function, *args):
    """The error that a call raises, as an array."""
    try:
        function(*args)
    except paddleq.errors.PaddleqError as error:
        return np.array(f"{type(error).__name__}: {error}")
    return np.array("")


def batches_of(rank, size, count=5):
    """Each ``size``-th batch, as ``DistributedBatchSampler`` divides them."""
    return [paddle.to_tensor(x) for x, _ in batches(count)][rank::size]


def kill(rank):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
