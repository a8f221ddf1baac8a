"""Train, quantize, export and deploy a small network, and compare the outputs of all runtimes.

Run it with ``make demo``, or ``python demo/digits.py`` where paddleq and requirements.txt are
installed. Exits with 1 if a runtime disagrees with the simulation.
"""

import argparse
import copy
import sys
import time
import zlib  # noqa: F401  (before paddle: Paddle 2.6 crashes in zlib otherwise)

import numpy as np
import paddle
from common import (
    ROOT,
    TIMED_BATCH,
    batches,
    digits,
    ended,
    lite_python,
    openvino,
    paddle_inference,
    paddle_lite,
    predict,
    save_float,
    size_kb,
    train,
    trained_net,
)
from rich import box
from rich.console import Console
from rich.table import Table

import paddleq

OUT = ROOT / "out" / "demo"
SPEC = [paddle.static.InputSpec([None, 1, 8, 8], "float32")]
MAX_TOP1_POINTS = 0.5
MIN_AGREEMENT = 99.0
MIN_TOP1 = 95.0  # a trained network; 96.9 or more than 97, depending on the processor

PTQ_VARIANTS = {  # name: (activation quantizer, fold batch norms)
    "ptq-kl": ("KLQuantizer", True),
    "ptq-hist": ("HistQuantizer", False),
    "ptq-absmax": ("AbsmaxQuantizer", False),
}
LITE_NOTE = """\
Paddle-Lite on x86 gets models of its own, and is compared with their simulation: the Linear stays
float, for its quantized kernel is broken there, and weights have {bits} bits, for with 8 its sums
of products saturate. It runs with its own default number of threads."""


def quantize_ptq(net, name, images, weight_bits, skip):
    """Post-training quantization: observe some batches, no training."""
    kind, fuse = PTQ_VARIANTS[name]
    ptq = paddleq.PTQ(kind, paddleq.paddleslim.PerChannelAbsmaxQuantizer(weight_bits))
    quantized = ptq.quantize(net, fuse=fuse, skip=skip)
    ptq.calibrate(quantized, batches(images[:512]))
    return ptq, quantized


def quantize_qat(net, images, labels, weight_bits, skip):
    """Quantization-aware training: three more epochs, at a small rate, while simulating."""
    qat = paddleq.QAT({"weight_bits": weight_bits})
    quantized = qat.quantize(copy.deepcopy(net), skip=skip)
    train(quantized, images, labels, epochs=3, learning_rate=1e-4, seed=1)
    return qat, quantized


def export_all(net, data, suffix="", weight_bits=8, skip=None):
    """Quantize in every way and export: name -> labels that the simulation gives."""
    train_x, train_y, test_x, _ = data
    save_float(net, OUT / f"float{suffix}", SPEC)
    simulated = {"float": predict(net, test_x)}
    for name in [*PTQ_VARIANTS, "qat"]:
        if name == "qat":
            quantizer, model = quantize_qat(net, train_x, train_y, weight_bits, skip)
        else:
            quantizer, model = quantize_ptq(net, name, train_x, weight_bits, skip)
        simulated[name] = predict(model, test_x)
        # Paddle-Lite on x86 reads weights of fewer than 8 bits in the older form alone.
        quantizer.save_quantized_model(model, OUT / f"{name}{suffix}", SPEC,
                                       onnx_format=weight_bits == 8)
    return simulated


def top1(found, labels):
    """Percent of labels that are right."""
    return 100.0 * float(np.mean(found == labels))


def compare(groups, images, labels):
    """(table, failures) of every model in every runtime.

    Args:
        groups: list of (suffix of the exported files, simulated labels by model, runtimes by
            name): runtimes that share the files stand side by side.
        images, labels: the test set.
    """
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("\n\nmodel", no_wrap=True)
    for _, _, runtimes in groups:
        for heading in ("\n\nKB", "\nsimu-\nlated"):
            table.add_column(heading, justify="right", no_wrap=True)
        for runtime in runtimes:  # its name in two lines above the first of its three columns
            first, _, second = runtime.partition(" ")
            for heading in (f"{first}\n{second}\ntop-1", "\n\nagree", "\n\nms"):
                table.add_column(heading, justify="right", no_wrap=True)
    failures = []
    for name in groups[0][1]:
        cells = [name]
        for suffix, simulated, runtimes in groups:
            path, expected = OUT / f"{name}{suffix}", simulated[name]
            cells += [f"{size_kb(path):.0f}", f"{top1(expected, labels):.2f}"]
            for runtime, run in runtimes.items():
                found, ms = run(path, images, quantized=name != "float")
                agreement = top1(found, expected)
                off = abs(top1(found, labels) - top1(expected, labels))
                if off > MAX_TOP1_POINTS or agreement < MIN_AGREEMENT:
                    failures.append(f"{name} in {runtime}: top-1 {off:.2f} points from the "
                                    f"simulation, {agreement:.2f}% of the labels agree")
                cells += [f"{top1(found, labels):.2f}", f"{agreement:.2f}", f"{ms:.2f}"]
        table.add_row(*cells)
    return table, failures


def main():
    """The demo; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lite-weight-bits", type=int, default=7,
                        help="bits of weights for Paddle-Lite on x86 (7); 8 shows the overflow")
    options = parser.parse_args()
    console = Console(width=124)
    start = time.time()
    data = train_x, train_y, test_x, test_y = digits()
    net = trained_net(train_x, train_y)
    console.print(f"trained on {len(train_x)} images in {time.time() - start:.0f} s, "
                  f"tested on {len(test_x)}")

    OUT.mkdir(parents=True, exist_ok=True)
    groups = [("", export_all(net, data),
               {"Paddle Inference": paddle_inference, "OpenVINO": openvino})]
    if lite_python():
        bits = options.lite_weight_bits
        groups.append(("-lite", export_all(net, data, "-lite", bits, skip="head"),
                       {"Paddle-Lite x86": paddle_lite}))
    table, failures = compare(groups, test_x, test_y)
    console.print(f"top-1 %, labels that agree with the simulation %, median ms for {TIMED_BATCH} "
                  "images:")
    console.print(table)
    if lite_python():
        console.print(LITE_NOTE.format(bits=bits))
    else:
        console.print("Paddle-Lite was left out: no Python with paddlelite here. "
                      "`make lite-env` builds one where a Python 3.7 is found.")
    if top1(groups[0][1]["float"], test_y) < MIN_TOP1:
        failures.append(f"the float model is below {MIN_TOP1}% top-1")
    return ended(console, OUT, start, failures)


if __name__ == "__main__":
    sys.exit(main())
