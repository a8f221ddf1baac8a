"""Compare GPTQ of a Linear layer with its matrix products and Cholesky decomposition alone.

    python benchmarks/bench_gptq.py [--size 4096] [--rounds 3]

The remaining time is spent on rounding row by row. Exits with 1 if a ratio is above 2.5.
"""

import argparse
import sys
from functools import partial

# First: it fixes the number of threads that Paddle finds when it is imported.
from side_by_side import heading, interleaved, median, table

# isort: split
import paddle

from paddleq import PerChannel, PerGroup, QuantSpec
from paddleq.algorithms import GPTQ, RoundToNearest
from paddleq.observers import ChannelStats

LIMIT = 2.5
ROWS = 16  # that GPTQ rounds one by one; among so few it uses no matrix product
SYMMETRIC = {"bits": 4}
ASYMMETRIC = {"bits": 4, "signed": False, "symmetric": False}
VARIANTS = {
    "W4 per channel": (GPTQ(), {**SYMMETRIC, "granularity": PerChannel(1)}),
    "W4 g128": (GPTQ(), {**SYMMETRIC, "granularity": PerGroup(128)}),
    "W4 g64, asymmetric": (GPTQ(), {**ASYMMETRIC, "granularity": PerGroup(64)}),
    "W4 g64, act_order": (GPTQ(act_order=True), {**SYMMETRIC, "granularity": PerGroup(64)}),
    "W4 g64, act_order, static_groups": (GPTQ(act_order=True, static_groups=True),
                                         {**SYMMETRIC, "granularity": PerGroup(64)}),
}


def layer(size):
    """(weight, statistics) of a Linear whose inputs are correlated."""
    paddle.seed(0)
    statistics = ChannelStats(GPTQ.needs)
    mix = paddle.randn([size // 16, size])
    for _ in range(4):
        x = paddle.matmul(paddle.randn([size // 2, size // 16]), mix)
        statistics.update(x + paddle.randn(x.shape))
    return 0.05 * paddle.randn([size, size]), statistics


def decomposition(hessian):
    """The Cholesky decomposition alone."""
    return paddle.linalg.cholesky(hessian, upper=True)


def products(feedback, errors, start, stop, smallest):
    """The matrix products alone: halves within halves, as GPTQ goes through the rows."""
    if stop - start <= smallest:
        return
    half = start + -(-(stop - start) // smallest) // 2 * smallest
    products(feedback, errors, start, half, smallest)
    paddle.matmul(feedback[half:stop, start:half], errors[start:half])
    products(feedback, errors, half, stop, smallest)


def main():
    """Time everything side by side and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    heading(f"GPTQ of a Linear layer, {options.size} x {options.size}")
    weight, statistics = layer(options.size)
    positive = statistics.hessian + paddle.eye(options.size)
    runs = {
        "products": lambda: products(positive, weight, 0, options.size, ROWS),
        "Cholesky": lambda: decomposition(positive),
        "round to nearest": lambda: RoundToNearest().quantize(
            weight, QuantSpec(4, granularity=PerChannel(1))),
    }
    for name, (gptq, spec) in VARIANTS.items():
        runs[name] = partial(gptq.quantize, weight, QuantSpec(**spec), statistics)
    with paddle.no_grad():
        times = interleaved(runs, options.rounds, warmup=0)
    rows = [("", "seconds", "over products + Cholesky")]
    alone = [sum(pair) for pair in zip(times["products"], times["Cholesky"])]
    ratios = []
    for name, seconds in times.items():
        ratio = median(own / base for own, base in zip(seconds, alone))
        ratios += [ratio] if name in VARIANTS else []
        rows.append((name, f"{median(seconds):.2f}", f"{ratio:.2f}"))
    table(rows)
    sys.exit(max(ratios) > LIMIT)


if __name__ == "__main__":
    main()
