"""Perplexity of quantized language models, per character of held-out modules.

    python benchmarks/bench_text.py [--models llama gpt] [--seeds 3] [--characters 65536]

For each of ``--seeds`` trained models (trained first where they are not on disk yet, some minutes
each, two at a time) and each row of the table: quantize all Linears of the decoder layers, in the
plain model and in one with outlier channels in its activations, which do not change the float
function. Prints the mean perplexity, its difference from float, and the expectations of the
algorithms. The exit code is 1 if an expectation fails.
"""

import argparse
import json
import os
import sys
import time
import zlib  # noqa: F401  (Paddle 2.6 crashes in zlib unless it was loaded first)
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# One thread each: the children run two at a time. Paddle looks when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# isort: split
import numpy as np
import paddle
from side_by_side import child, table
from tqdm import tqdm

from demo.text.measure import FLOAT, VARIANTS, expectations, measure
from demo.text.process import environment

PROCESSES = 2


def measured_apart(name, seeds, characters):
    """Return the results of ``measure`` for each seed, with two processes at a time."""
    def run(seed):
        return child(__file__, "--measure", name, str(seed), "--characters", str(characters),
                     environment=environment())[0]

    with ThreadPoolExecutor(PROCESSES) as pool:
        return list(tqdm(pool.map(run, range(seeds)), name, total=seeds, disable=None))


def report(name, results):
    """Print the table and the expectations. Return True if all of them hold."""
    mean = {variant: {row: float(np.mean([each[variant][row] for each in results]))
                      for row in results[0][variant]} for variant in VARIANTS}
    print(f"\n{name}: perplexity per character, mean of {len(results)} trained models (Paddle "
          f"{paddle.__version__})")
    lines = [("", *(cell for variant in VARIANTS for cell in (variant, "+%")))]
    for row in mean["plain"]:
        cells = [row]
        for found in mean.values():
            cells += [f"{found[row]:.4f}", f"{100 * (found[row] / found[FLOAT] - 1):.3f}"]
        lines.append(cells)
    table(lines)
    print()
    checks = expectations(mean)
    table([(f"expected of {name}", "found", ""),
           *((text, found, "ok" if holds else "MISSED") for text, found, holds in checks)])
    return all(holds for _, _, holds in checks)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=("llama", "gpt"), default=["llama", "gpt"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--characters", type=int, default=65536,
                        help="of the modules held out (65536), the same share of each")
    parser.add_argument("--measure", nargs=2, metavar=("MODEL", "SEED"),
                        help="one trained model; prints JSON")
    options = parser.parse_args()
    if options.measure:
        name, seed = options.measure
        print(json.dumps(measure(name, int(seed), options.characters)))
        return 0
    started = time.time()
    held = [report(name, measured_apart(name, options.seeds, options.characters))
            for name in options.models]
    print(f"\n{time.time() - started:.0f} s")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
