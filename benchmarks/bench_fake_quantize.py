"""Fake quantization of one tensor of 25 MB, forward and backward, against a relu and Paddle's own.

    python benchmarks/bench_fake_quantize.py [--rounds 9]
"""

import argparse

# First: it fixes the number of threads that Paddle finds when it is imported.
from side_by_side import heading, interleaved, median, table

# isort: split
import paddle
from paddle.nn.quant.quant_layers import FakeQuantMovingAverageAbsMax

from paddleq import FakeQuantize
from paddleq.observers import MovingAverageAbsMaxObserver

SHAPE = [25, 250, 1000]  # of float32: 25 MB
RELU = "relu"
PADDLE = "Paddle's moving average abs_max"

OPERATORS = {
    RELU: paddle.nn.functional.relu,
    PADDLE: FakeQuantMovingAverageAbsMax(quant_bits=8),
    "paddleq, moving average abs_max": FakeQuantize(MovingAverageAbsMaxObserver(),
                                                    saturate=False),
    "FakeQuantize(saturate=False)": FakeQuantize(saturate=False),
    "FakeQuantize()": FakeQuantize(),
    "FakeQuantize(compat_mask=False)": FakeQuantize(compat_mask=False),
    "FakeQuantize(affine)": FakeQuantize(dtype="quint8", qscheme="per_tensor_affine"),
}


def passes(operator, x, upstream):
    """A function that does one forward and one backward pass."""
    def run():
        operator(x).backward(upstream)
        x.clear_grad()
    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    heading("Forward and backward of 25 MB of float32")
    paddle.seed(1)
    x = paddle.randn(SHAPE)
    x.stop_gradient = False
    upstream = paddle.randn(SHAPE)
    runs = {name: passes(operator, x, upstream) for name, operator in OPERATORS.items()}
    times = interleaved(runs, options.rounds, warmup=2)
    rows = [("operator", "ms", "over relu", "over Paddle's")]
    for name, found in times.items():
        # Pairs of one round saw the same machine; their ratios are steadier than the times.
        ratios = [f"{median([t / o for t, o in zip(found, times[other])]):.2f}"
                  for other in (RELU, PADDLE)]
        rows.append((name, f"{median(found) * 1e3:.1f}", *ratios))
    table(rows)


if __name__ == "__main__":
    main()
