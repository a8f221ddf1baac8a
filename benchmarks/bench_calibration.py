"""Calibration of MobileNetV1 by paddleq's PTQ and by Paddle's own, over a plain forward pass.

    python benchmarks/bench_calibration.py [--rounds 3]

Prints time (forward with observers, then thresholds), the save, and peak memory.
"""

import argparse
import json
import os
import tempfile

# First: it fixes the number of threads that Paddle finds when it is imported.
from side_by_side import child, heading, median, table, timed

# isort: split
import paddle
from paddle.quantization import ImperativePTQ, PTQConfig
from paddle.quantization.imperative import ptq_quantizer
from paddle.static import InputSpec
from paddle.vision.models import mobilenet_v1

import paddleq

ALGORITHMS = ("KL", "Hist", "Absmax")
BATCHES, BATCH = 4, 8


def model_and_data():
    """A MobileNetV1 with sane batch norms and the calibration batches."""
    paddle.seed(0)
    model = mobilenet_v1()
    model.train()
    with paddle.no_grad():
        for _ in range(2):
            model(paddle.randn([4, 3, 224, 224]))
    model.eval()
    return model, [paddle.randn([BATCH, 3, 224, 224]) for _ in range(BATCHES)]


def forward(model, batches):
    """Run the model on all batches."""
    with paddle.no_grad():
        for batch in batches:
            model(batch)


def ours(model, batches, algorithm):
    """(seconds of the forward passes, of the thresholds, save function)."""
    ptq = paddleq.PTQ(f"{algorithm}Quantizer")
    quantized = ptq.quantize(model)
    observing, _ = timed(lambda: forward(quantized, batches))
    thresholds, _ = timed(lambda: ptq.convert(quantized))
    return observing, thresholds, lambda path, spec: ptq.save_quantized_model(
        quantized, path, spec)


def reference(model, batches, algorithm, with_thresholds=True):
    """The same with paddle.quantization."""
    ptq = ImperativePTQ(PTQConfig(getattr(ptq_quantizer, f"{algorithm}Quantizer")(),
                                  ptq_quantizer.PerChannelAbsmaxQuantizer()))
    quantized = ptq.quantize(model)
    observing, _ = timed(lambda: forward(quantized, batches))
    thresholds = None
    if with_thresholds:
        # First step of its save, which fails on Paddle 3 with numpy 2.4.
        thresholds, _ = timed(lambda: ptq._cal_thresholds(quantized))
    return observing, thresholds, lambda path, spec: ptq.save_quantized_model(
        quantized, path, spec)


def time_all(rounds):
    """Print the table of times."""
    model, batches = model_and_data()
    forward(model, batches[:1])
    plain, found, saves = [], {}, {}
    spec = [InputSpec([None, 3, 224, 224], "float32")]
    for number in range(rounds):
        for algorithm in ALGORITHMS:
            # The reference's KL search takes half a minute; once is enough.
            slow = algorithm == "KL" and number > 0
            for name in ("paddleq", "Paddle"):
                # The reference of the ratio is a plain forward pass in the same turn.
                base, _ = timed(lambda: forward(model, batches))
                plain.append(base)
                observing, thresholds, save = (
                    ours(model, batches, algorithm) if name == "paddleq"
                    else reference(model, batches, algorithm, not slow))
                entry = found.setdefault((algorithm, name), ([], [], []))
                entry[0].append(observing)
                entry[2].append(observing / base)
                if thresholds is not None:
                    entry[1].append(thresholds)
                if number == 0 and (name == "paddleq" or algorithm == "Absmax"):
                    saves[algorithm, name] = _saved(save, spec)
    base = median(plain)
    print(f"plain forward of {BATCHES} batches of {BATCH}x3x224x224: {base:.2f} s")
    rows = [("calibration", "forward s", "thresholds s", "both over plain forward", "save s")]
    for (algorithm, name), (observing, thresholds, ratios) in found.items():
        total = median(ratios) + median(thresholds) / base
        rows.append((f"{algorithm}, {name}", f"{median(observing):.2f}",
                     f"{median(thresholds):.2f}", f"{total:.2f}",
                     saves.get((algorithm, name), "with the thresholds again")))
    table(rows)


def _saved(save, spec):
    with tempfile.TemporaryDirectory() as folder:
        try:
            seconds, _ = timed(lambda: save(os.path.join(folder, "model"), spec))
        except Exception as error:  # the reference's own failure is a result
            return f"fails: {type(error).__name__}"
    return f"{seconds:.2f}"


def peak(variant):
    """Run one variant and print this process's peak memory."""
    model, batches = model_and_data()
    forward(model, batches)
    if variant != "plain":
        algorithm, name = variant.split(",")
        run = {"paddleq": ours, "Paddle": reference}[name]
        # The reference's KL search works on 1024 numbers at a time: slow, but not large.
        arguments = {"with_thresholds": False} if (algorithm, name) == ("KL", "Paddle") else {}
        run(model, batches, algorithm, **arguments)
    print(json.dumps({"MB": _peak_kilobytes() / 1024}), flush=True)


def _peak_kilobytes():
    # ru_maxrss of getrusage includes the parent process; VmHWM does not.
    with open("/proc/self/status", encoding="utf-8") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


def memory():
    """Print the table of peak memory; each variant in a separate process."""
    base = child(__file__, "--peak", "plain")[0]["MB"]
    print(f"\npeak memory of a process that does the plain forward only: {base:.0f} MB")
    rows = [("MB more with", *ALGORITHMS)]
    for name in ("paddleq", "Paddle"):
        peaks = [child(__file__, "--peak", f"{algorithm},{name}")[0]["MB"]
                 for algorithm in ALGORITHMS]
        rows.append((name, *(f"{found - base:.0f}" for found in peaks)))
    table(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("time", "memory"))
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        peak(options.peak)
        return
    heading("Post-training calibration of MobileNetV1")
    if options.only != "memory":
        time_all(options.rounds)
    if options.only != "time":
        memory()


if __name__ == "__main__":
    main()
