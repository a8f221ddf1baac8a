"""Accuracy of quantization-aware training with few bits, on scikit-learn's digits.

    python benchmarks/bench_low_bits.py [--net plain|separable] [--seeds 10] [--epochs 10]
                                        [--only NAME ...]

A small CNN is trained in float. Each cell trains that same float model on, quantized, with one
recipe for all. All layers are quantized, the first and the last too.

How it is measured was settled before the figures were seen: replicated 2-fold cross-validation
(Dietterich, "Approximate statistical tests for comparing supervised classification learning
algorithms", 1998). A seed splits the 1797 digits into two halves, trains on each and tests on the
other, so that its figure is over all images, in which one image is 0.06 points; it also decides
the first weights and the order of the images. All rows get the same halves, float models and
orders, so that they can be compared by seed, without the variance between seeds. Halves,
not fifths, because a test image costs nothing and a training image costs time.

Prints mean and standard deviation over the seeds, in points of top-1; then each row less
paddle.quantization's at the same bits, the mean over the seeds with its standard error, and the
worst of these differences. Two standard errors are the noise of one difference; the worst of
several has more.
"""

import argparse
import copy
import os
import sys
import time
import zlib  # noqa: F401  (Paddle 2.6 crashes in zlib unless it was loaded first)

# Tensors of this size gain nothing from a second thread: it makes a step five times slower.
os.environ["OMP_NUM_THREADS"] = "1"

# isort: split
import numpy as np
import paddle
from paddle import nn
from paddles_own import ReferencePACT, reference
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedKFold
from tables import table

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
    # Depthwise convolutions are the most sensitive to few bits.
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


def simulated(**config):
    """A function that quantizes a model with simulated QAT, in its default (affine) ranges."""
    algorithm = paddleq.golden_stick.SimulatedQuantizationAwareTraining(
        {"per_channel": (False, True), **config})
    return lambda model: algorithm.apply(model, paddle.rand([BATCH, 1, 8, 8]))


class SlimPACT(ReferencePACT):
    """PaddleSlim's PACT under L2, as in the paper. Its own alpha, 100, stays above all activations
    here."""

    init, learning_rate, l2 = 8.0, 30.0, 5e-4


def pact():
    """paddleq's, alike."""
    return paddleq.PACT(SlimPACT.init, SlimPACT.learning_rate, SlimPACT.l2)


REFERENCE = "paddle.quantization"

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
    REFERENCE: lambda bits: reference(bits=bits),
    f"{REFERENCE}, PACT": lambda bits: reference(SlimPACT, bits=bits),
}
# Rows that are measured at some widths only: float has none, simulated QAT knows int8.
ONLY = {"float": ((8, 8),),
        **{name: ((8, 8),) for name in ROWS if name.startswith("simulated")},
        **{name: ((8, 8), (4, 4)) for name in ROWS if name.startswith(REFERENCE)}}


def digits():
    """(images, labels)"""
    data = load_digits()
    return data.images[:, None].astype("float32") / 16.0, data.target.astype("int64")


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


def hits(model, images, labels):
    """Return the number of correct predictions."""
    model.eval()
    with paddle.no_grad():
        return int((model(paddle.to_tensor(images)).numpy().argmax(1) == labels).sum())


def measure(make_net, cells, epochs, seed):
    """Percent of all images that are right, of the float models and of each cell.

    Args:
        cells: (row, bits), in any order.
    """
    images, labels = digits()
    right = dict.fromkeys([None, *cells], 0)
    for here, there in StratifiedKFold(2, shuffle=True, random_state=seed).split(images, labels):
        paddle.seed(seed)
        net = make_net()
        train(net, images[here], labels[here], epochs=30, seed=seed, learning_rate=1e-2)
        right[None] += hits(net, images[there], labels[there])
        for name, bits in cells:
            paddle.seed(seed)
            model = ROWS[name](bits=bits)(copy.deepcopy(net))
            train(model, images[here], labels[here], epochs, seed, LEARNING_RATE)
            right[name, bits] += hits(model, images[there], labels[there])
    return {cell: 100.0 * count / len(labels) for cell, count in right.items()}


def print_table(names, text_of):
    """A row for each name and a column for each width."""
    head = [f"W{weight}A{activation}" for weight, activation in BITS]
    print()
    table([("", *head)] + [(name, *(text_of(name, bits) for bits in BITS)) for name in names])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", choices=list(NETS), default="plain")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    options = parser.parse_args()
    cells = [(name, bits) for name in options.only for bits in ONLY.get(name, BITS)]
    found = {cell: [] for cell in [None, *cells]}
    for seed in range(options.seeds):
        started = time.time()
        for cell, percent in measure(NETS[options.net], cells, options.epochs, seed).items():
            found[cell].append(percent)
        print(f"seed {seed}: {time.time() - started:.0f} s", file=sys.stderr)

    def percent(name, bits):
        seen = found.get((name, bits))
        return "" if seen is None else f"{np.mean(seen):.2f} +- {np.std(seen, ddof=1):.2f}"

    def compared(name, bits):
        less = np.subtract(found[name, bits], found[REFERENCE, bits])
        return less.mean(), less.std(ddof=1) / len(less) ** 0.5

    def difference(name, bits):
        if (name, bits) not in found or (REFERENCE, bits) not in found:
            return ""
        return "{:+.2f} +- {:.2f}".format(*compared(name, bits))

    print(f"\nPaddle {paddle.__version__}, {options.net} net, {options.epochs} epochs from float "
          f"models of {np.mean(found[None]):.2f}: top-1, mean and deviation of {options.seeds} "
          "seeds")
    print_table(options.only, percent)
    if REFERENCE in options.only:
        print(f"\nThe same less {REFERENCE}, seed by seed: mean and standard error")
        ours = [name for name in options.only if name not in ("float", REFERENCE)]
        print_table(ours, difference)
        cells = [(name, bits) for name in ours for bits in BITS
                 if difference(name, bits) and not name.startswith(REFERENCE)]
        worst = min(cells, key=lambda cell: np.divide(*compared(*cell)))
        print("\nWorst of these {}: {} W{}A{}, {:.1f} standard errors".format(
            len(cells), worst[0], *worst[1], np.divide(*compared(*worst))))


if __name__ == "__main__":
    main()
