"""Accuracy of quantization-aware training with few bits, on scikit-learn's digits.

    python benchmarks/bench_low_bits.py [--net plain|separable] [--seeds 5] [--epochs 10]
                                        [--only NAME ...]

A small CNN is trained once in float. Each cell trains that same float model on, quantized, with
one recipe for all; a seed decides the order of the images. All layers are quantized, the first and
the last too. Prints mean and standard deviation over the seeds, in points of top-1, and how much
the float model trained on in the same way has.
"""

import argparse
import copy
import os
import time
import zlib  # noqa: F401  (Paddle 2.6 crashes in zlib unless it was loaded first)

# Tensors of this size gain nothing from a second thread. Paddle looks when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"

# isort: split
import numpy as np
import paddle
from paddle import nn
from side_by_side import table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import paddleq

BITS = ((8, 8), (4, 4), (3, 3), (2, 4))
BATCH, LEARNING_RATE = 64, 3e-3


def convolution(inputs, outputs, size, stride=1, groups=1):
    """A convolution, a batch norm and a ReLU."""
    return nn.Sequential(
        nn.Conv2D(inputs, outputs, size, stride, size // 2, groups=groups, bias_attr=False),
        nn.BatchNorm2D(outputs), nn.ReLU())


def separable(inputs, outputs, stride):
    """A depthwise and a pointwise convolution."""
    return nn.Sequential(convolution(inputs, inputs, 3, stride, groups=inputs),
                         convolution(inputs, outputs, 1))


class Classifier(nn.Layer):
    """Blocks, an average over the image, and a Linear."""

    def __init__(self, *blocks):
        super().__init__()
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.blocks(x).mean([2, 3]))


NETS = {
    "plain": lambda: Classifier(convolution(1, 16, 3), convolution(16, 32, 3, 2),
                                convolution(32, 64, 3, 2)),
    # Depthwise convolutions are what few bits hurt most.
    "separable": lambda: Classifier(convolution(1, 16, 3), separable(16, 32, 2),
                                    separable(32, 32, 1), separable(32, 64, 2)),
}


def qat(*, bits, **arguments):
    """A function that quantizes a model with paddleq's QAT."""
    weight, activation = bits
    config = {**arguments.pop("config", {}), "weight_bits": weight, "activation_bits": activation}
    return paddleq.QAT(config, **arguments).quantize


def learned(name):
    """The QAT configuration of a learned quantizer."""
    return {"weight_quantize_type": f"channel_wise_{name}", "activation_quantize_type": name}


def paddles_own(*, bits):
    """A function that quantizes a model with paddle.quantization."""
    from paddle.quantization import ImperativeQuantAware

    weight, activation = bits
    quanter = ImperativeQuantAware(
        weight_quantize_type="channel_wise_abs_max", weight_bits=weight,
        activation_quantize_type="moving_average_abs_max", activation_bits=activation)

    def quantize(model):
        quanter.quantize(model)
        return model
    return quantize


def simulated(**config):
    """A function that quantizes a model with simulated QAT, in its default (affine) ranges."""
    algorithm = paddleq.SimulatedQuantizationAwareTraining(
        {"per_channel": (False, True), **config})
    return lambda model: algorithm.apply(model, paddle.rand([BATCH, 1, 8, 8]))


def pact():
    """PACT under L2, as in its paper. PaddleSlim's 100 stays above all activations here."""
    return paddleq.PACT(init=8.0, learning_rate=30.0, l2=5e-4)


# Name -> a function that takes the keyword ``bits`` and returns one that quantizes a model; weights
# are per channel everywhere. A new way to train is a new line.
ROWS = {
    "float": lambda bits: lambda model: model,
    "abs_max, moving average": lambda bits: qat(bits=bits),
    "PACT": lambda bits: qat(bits=bits, act_preprocess=pact),
    "LSQ": lambda bits: qat(bits=bits, config=learned("lsq")),
    "LSQ+": lambda bits: qat(bits=bits, config=learned("lsq_plus")),
    "simulated QAT": lambda bits: simulated(),
    "simulated QAT, folded, one conv": lambda bits: simulated(enable_fusion=True, bn_fold=True),
    "simulated QAT, folded, two convs": lambda bits: simulated(
        enable_fusion=True, bn_fold=True, one_conv_fold=False),
    "paddle.quantization": lambda bits: paddles_own(bits=bits),
}
# Rows that are measured at some widths only: simulated QAT knows int8.
ONLY = {"paddle.quantization": ((8, 8), (4, 4)),
        **{name: ((8, 8),) for name in ROWS if name.startswith("simulated")}}


def digits():
    """(train images, labels, test images, labels)"""
    data = load_digits()
    images = data.images[:, None].astype("float32") / 16.0
    train_x, test_x, train_y, test_y = train_test_split(
        images, data.target.astype("int64"), test_size=0.4, random_state=0, stratify=data.target)
    return train_x, train_y, test_x, test_y


def train(model, images, labels, epochs, seed, learning_rate):
    """Adam with a cosine schedule."""
    shuffle, steps = np.random.default_rng(seed), epochs * -(-len(images) // BATCH)
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(learning_rate, steps)
    optimizer = paddle.optimizer.Adam(schedule, parameters=model.parameters())
    model.train()
    for _ in range(epochs):
        order = shuffle.permutation(len(images))
        for start in range(0, len(order), BATCH):
            part = order[start:start + BATCH]
            output = model(paddle.to_tensor(images[part]))
            nn.functional.cross_entropy(output, paddle.to_tensor(labels[part])).backward()
            optimizer.step()
            optimizer.clear_grad()
            schedule.step()
    model.eval()


def accuracy(model, images, labels):
    """Top-1 in percent."""
    model.eval()
    with paddle.no_grad():
        return 100.0 * float((model(paddle.to_tensor(images)).numpy().argmax(1) == labels).mean())


def measure(net, quantize, data, epochs, seeds):
    """Accuracy of each seed."""
    train_x, train_y, test_x, test_y = data
    found = []
    for seed in range(seeds):
        paddle.seed(seed)
        model = quantize(copy.deepcopy(net))
        train(model, train_x, train_y, epochs, seed, LEARNING_RATE)
        found.append(accuracy(model, test_x, test_y))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", choices=list(NETS), default="plain")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    options = parser.parse_args()
    data, started = digits(), time.time()
    paddle.seed(0)
    net = NETS[options.net]()
    train(net, *data[:2], epochs=30, seed=0, learning_rate=1e-2)
    print(f"\nPaddle {paddle.__version__}, {options.net} net: top-1 on {len(data[3])} digits, "
          f"{options.epochs} epochs from one float model of {accuracy(net, *data[2:]):.2f}; mean "
          f"and deviation of {options.seeds} seeds")
    rows = [("", *(f"W{weight}A{activation}" for weight, activation in BITS))]
    for name in options.only:
        cells, float_cell = [], None
        for bits in BITS:
            if bits not in ONLY.get(name, BITS):
                cells.append("")
                continue
            if name == "float" and float_cell:
                cells.append(float_cell)
                continue
            found = measure(net, ROWS[name](bits=bits), data, options.epochs, options.seeds)
            float_cell = f"{np.mean(found):.2f} +- {np.std(found):.2f}"
            cells.append(float_cell)
        rows.append((name, *cells))
    table(rows)
    print(f"{time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
