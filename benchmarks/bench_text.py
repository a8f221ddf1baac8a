"""Perplexity of quantized language models, per character of modules that they have not seen.

    python benchmarks/bench_text.py [--models llama gpt] [--seeds 3] [--characters 49152]

For each of ``--seeds`` trained models (trained first where they are not on disk yet, some minutes
each, two at a time) and each row of the table: quantize all Linears of the decoder layers, in the
plain model and in one with outliers planted among its activations, which changes nothing of what
the float model says. Prints the mean perplexity and by how much it is above float's. Then what is
expected of the algorithms, and whether it is so; if not, the exit code is 1.
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

from demo.text import calibration_batches, held_out_tokens, perplexity, plant_outliers, trained
from demo.text.trained import environment
from paddleq import PerChannel, PerGroup, PerTensor, PerToken, QuantSpec
from paddleq.algorithms import (
    AWQ,
    GPTQ,
    LinearPolicy,
    RoundToNearest,
    SmoothQuant,
    quantize_layer_by_layer,
)

PROCESSES = 2
VARIANTS = ("plain", "outliers")
WEIGHTS = {
    "W4 g64": QuantSpec(4, granularity=PerGroup(64)),
    "W4": QuantSpec(4, granularity=PerChannel(1)),
    "W3 g64": QuantSpec(3, granularity=PerGroup(64)),
    "W3": QuantSpec(3, granularity=PerChannel(1)),
}
METHODS = {
    "RTN": {},
    "AWQ": {"smoother": AWQ()},
    "GPTQ": {"rounder": GPTQ()},
    "GPTQ act-order": {"rounder": GPTQ(act_order=True)},
    "AWQ + GPTQ": {"smoother": AWQ(), "rounder": GPTQ()},
}
STATIC, PER_TOKEN = QuantSpec(granularity=PerTensor()), QuantSpec(granularity=PerToken())


def w8a8(activation, strength=None):
    """Int8 weights per channel, int8 activations, SmoothQuant if it has a strength."""
    return LinearPolicy(QuantSpec(granularity=PerChannel(1)), activation,
                        None if strength is None else SmoothQuant(strength))


def rows():
    """(scheme, method) -> (LinearPolicy or None, kind of KV cache or None)."""
    found = {("float", ""): (None, None)}
    for scheme, spec in WEIGHTS.items():
        for method, parts in METHODS.items():
            found[scheme, method] = LinearPolicy(
                spec, smoother=parts.get("smoother"),
                rounder=parts.get("rounder", RoundToNearest())), None
    found["W8A8", "plain"] = w8a8(STATIC), None
    for strength in (0.3, 0.5, 0.7, 0.9):
        found["W8A8", f"SmoothQuant {strength}"] = w8a8(STATIC, strength), None
    found["W8A8 per token", "plain"] = w8a8(PER_TOKEN), None
    for strength in (0.3, 0.5, 0.7, 0.9):
        found["W8A8 per token", f"SmoothQuant {strength}"] = w8a8(PER_TOKEN, strength), None
    for kind in ("per_channel", "per_token"):
        found["KV int8", kind.replace("_", " ")] = None, kind
    return found


def measure(name, seed, characters):
    """Perplexities of one trained model: {variant: {"scheme|method": perplexity}}."""
    tokens, batches = held_out_tokens(characters), [
        paddle.to_tensor(batch) for batch in calibration_batches(8, 16, seed=seed)]
    found = {}
    for variant in VARIANTS:
        found[variant] = {}
        for (scheme, method), (policy, cache) in rows().items():
            model = trained(name, seed)
            if variant == "outliers":
                plant_outliers(model, seed=seed)
            if policy is not None or cache is not None:
                quantize_layer_by_layer(
                    model, None, lambda layer, p=policy: None if layer == "lm_head" else p,
                    lambda _, kind=cache: kind, batches, progress=False)
            found[variant][f"{scheme}|{method}"] = perplexity(model, tokens)
    return found


def measured_apart(name, seeds, characters):
    """What :func:`measure` finds for each seed, two processes at a time."""
    def run(seed):
        return child(__file__, "--measure", name, str(seed), "--characters", str(characters),
                     environment=environment())[0]

    with ThreadPoolExecutor(PROCESSES) as pool:
        return list(tqdm(pool.map(run, range(seeds)), name, total=seeds, disable=None))


def expectations(loss, floats):
    """(what is expected, found, whether it is so).

    Args:
        loss: by how much the mean perplexity is above float's, loss[variant][scheme|method].
        floats: float's mean perplexity by variant.
    """
    plain, hard = loss["plain"], loss["outliers"]
    percent = {variant: 100.0 / value for variant, value in floats.items()}

    def at_most(text, value, limit):
        return text, f"{value:.3f}", value <= limit

    found = [at_most(f"{scheme}: GPTQ loses at most 0.5 of RTN's loss",
                     plain[f"{scheme}|GPTQ"] / plain[f"{scheme}|RTN"], 0.5)
             for scheme in ("W4", "W3", "W3 g64")]
    unsmoothed = hard["W8A8|plain"] * percent["outliers"]
    found.append(("outliers, W8A8 plain: loses more than 10%", f"{unsmoothed:.1f}%",
                  unsmoothed > 10.0))
    found.append(at_most("outliers, W8A8 per token, SmoothQuant 0.5: within 0.5% of float",
                         abs(hard["W8A8 per token|SmoothQuant 0.5"]) * percent["outliers"], 0.5))
    found.append(at_most("outliers, W4 g64: AWQ loses at most 0.5 of RTN's loss",
                         hard["W4 g64|AWQ"] / hard["W4 g64|RTN"], 0.5))
    found += [at_most(f"{variant}, KV int8 {kind}: within 0.2% of float",
                      abs(loss[variant][f"KV int8|{kind}"]) * percent[variant], 0.2)
              for variant in VARIANTS for kind in ("per channel", "per token")]
    return found


def report(name, results):
    """Print the table and the expectations; whether all hold."""
    mean = {variant: {row: float(np.mean([each[variant][row] for each in results]))
                      for row in results[0][variant]} for variant in VARIANTS}
    floats = {variant: mean[variant]["float|"] for variant in VARIANTS}
    loss = {variant: {row: value - floats[variant] for row, value in mean[variant].items()}
            for variant in VARIANTS}
    print(f"\n{name}: perplexity per character, mean of {len(results)} trained models (Paddle "
          f"{paddle.__version__})")
    lines = [("", "", *(cell for variant in VARIANTS for cell in (variant, "+%")))]
    for row in mean["plain"]:
        cells = [cell for variant in VARIANTS for cell in (
            f"{mean[variant][row]:.4f}", f"{100 * loss[variant][row] / floats[variant]:.3f}")]
        lines.append((*row.split("|"), *cells))
    table([(f"{scheme:15}{method}", *cells) for scheme, method, *cells in lines])
    print()
    checks = expectations(loss, floats)
    table([("expected of " + name, "found", ""),
           *((text, found, "ok" if holds else "MISSED") for text, found, holds in checks)])
    return all(holds for _, _, holds in checks)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=("llama", "gpt"), default=["llama", "gpt"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--characters", type=int, default=49152,
                        help="of the modules held out (49152), the same share of each")
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
