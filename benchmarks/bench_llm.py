"""Perplexity, divergence, size, memory and speed of SmolLM2-135M-Instruct by quantization scheme.

    python benchmarks/bench_llm.py [--rows 'W4 g64*' 'KV*'] [--tokens 4088] [--list]

Needs requirements-llm.txt. Each row is a separate process: it loads the model, quantizes the
Linears of the decoder layers or the KV caches by ``quantize_layer_by_layer``, and measures

- perplexity and mean KL divergence from the float model, in nats, in windows of 512 tokens of
  Python's language reference (``pydoc_data``), calibrated on scikit-learn's descriptions of data
  sets; the log-probabilities of the float model are computed once;
- seconds to quantize, and the peak resident memory of the process while it does so, in MB;
- size of the checkpoint in MB, without the embedding of 113 MB, which stays float;
- tokens/s of a greedy answer in dygraph, with and without ``paddleq.nn.keep_dequantized``.

The weights of the package lie on a grid of 4 bits in groups of 32, so that 4 bits lose less than on
the original weights. A row is printed when it is measured; all of them take hours.
"""

import argparse
import fnmatch
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# First: it fixes the number of threads that Paddle finds when it is imported.
from side_by_side import child, heading, timed

# isort: split
import paddle
from bench_memory_llm import peak_of, status
from paddle import nn

import paddleq
from demo.text.evaluation import generate
from demo.text.helper import DecoderHelper
from demo.text.process import KEEP_MEMORY
from demo.text.smollm2 import CHAT, calibration_text, encode, held_out_text, smollm2
from paddleq import PerChannel, PerGroup, PerTensor, PerToken, QuantSpec
from paddleq.algorithms import AWQ, GPTQ, SmoothQuant, quantize_layer_by_layer
from paddleq.analysis import perplexity
from paddleq.config import LayerConfig, QuantConfig
from paddleq.nn import KVCache, keep_dequantized

WINDOW = 512
EMBEDDING_MB = 49152 * 576 * 4 / 1e6
METHODS = {"RTN": {}, "AWQ": {"smoother": AWQ()}, "GPTQ": {"rounder": GPTQ()},
           "AWQ+GPTQ": {"smoother": AWQ(), "rounder": GPTQ()}}
COLUMNS = {"perplexity": "{:.3f}", "% of float": "{:.2f}", "KL": "{:.4f}", "quantize s": "{:.0f}",
           "peak MB": "{:.0f}", "file MB": "{:.0f}", "tokens/s": "{:.2f}",
           "tokens/s, not kept": "{:.2f}"}


def rows():
    """Name of a row -> (configuration of the Linears, configuration of the KV caches)."""
    channel = QuantSpec(granularity=PerChannel(1))
    found = {"float": (None, None), "W8": (LayerConfig(channel), None)}
    for name, granularity in (("token", PerToken()), ("tensor", PerTensor())):
        activation = QuantSpec(granularity=granularity)
        found[f"W8A8 {name}"] = LayerConfig(channel, activation), None
        for strength in (0.5, 0.8):
            found[f"W8A8 {name} SmoothQuant {strength}"] = LayerConfig(
                channel, activation, SmoothQuant(strength)), None
    groups = {f"W4 g{size}": QuantSpec(4, granularity=PerGroup(size)) for size in (32, 64, 128)}
    for scheme, spec in {**groups, "W4": QuantSpec(4, granularity=PerChannel(1)),
                         "W3 g64": QuantSpec(3, granularity=PerGroup(64))}.items():
        for method, options in METHODS.items():
            found[f"{scheme} {method}"] = LayerConfig(spec, **options), None
    for kind in ("per_token", "per_channel"):
        found[f"KV int8 {kind}"] = None, LayerConfig(kv_cache=kind)
    return found


def measure(row, options):
    """Return the values of a row by column."""
    linears, caches = rows()[row]
    model, seconds = smollm2(context=1024, layers=options.layers), 0.0
    if row != "float":
        config = QuantConfig()
        config.add_type(nn.Linear, linears)
        config.add_type(KVCache, caches)
        tokens = encode(calibration_text())[:options.calibration * WINDOW]
        batches = list(map(paddle.to_tensor, tokens.reshape([-1, 1, WINDOW])))
        seconds, peak = timed(lambda: peak_of(lambda: quantize_layer_by_layer(
            model, DecoderHelper(), config, batches, progress=False)))
    else:
        peak = status("VmHWM")
    reference = smollm2(context=1024, layers=options.layers) if row == "float" else None
    found = perplexity(model, encode(held_out_text()), window=WINDOW, max_tokens=options.tokens,
                       float_model=reference, cache=options.cache)
    with tempfile.TemporaryDirectory() as folder:
        if row == "float":
            size = sum(each.size for each in model.parameters()) * 4 / 1e6
        else:
            paddleq.save_checkpoint(model, f"{folder}/model")
            size = os.path.getsize(f"{folder}/model.safetensors") / 1e6
    prompt = encode(CHAT.format("What is the capital of France?"))

    def speed():
        generate(model, prompt, 2)
        return generate(model, prompt, options.answer)[1]

    without = speed()
    with keep_dequantized(model):
        kept = speed()
    return {"perplexity": found.value, "% of float": 100.0 * found.value / found.float_value,
            "KL": found.kl_divergence, "quantize s": seconds, "peak MB": peak,
            "file MB": size - EMBEDDING_MB, "tokens/s": kept, "tokens/s, not kept": without}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=["*"], metavar="PATTERN",
                        help="rows to measure beside float, with wildcards (all)")
    parser.add_argument("--tokens", type=int, default=8 * WINDOW, help="to score, about (4096)")
    parser.add_argument("--calibration", type=int, default=16,
                        help=f"windows of {WINDOW} tokens for calibration (16)")
    parser.add_argument("--layers", type=int, default=30, help="use the first layers only (30)")
    parser.add_argument("--answer", type=int, default=16, help="tokens to generate (16)")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(measure(options.row, options)))
        return
    names = ["float", *(name for name in rows() if name != "float" and any(
        fnmatch.fnmatchcase(name, pattern) for pattern in options.rows))]
    if options.list:
        print("\n".join(names))
        return
    heading(f"SmolLM2-135M-Instruct, {options.tokens} tokens, calibration on "
            f"{options.calibration * WINDOW}")
    print_row(["", *COLUMNS])
    print_row(["---", *("---:" for _ in COLUMNS)])
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            found, _ = child(__file__, "--row", name, "--cache", f"{folder}/float.npy", *(
                each for key in ("tokens", "calibration", "layers", "answer")
                for each in (f"--{key}", str(getattr(options, key)))), environment=KEEP_MEMORY)
            print_row([name, *(form.format(found[key]) for key, form in COLUMNS.items())])


def print_row(cells):
    """Print a row of a table of Markdown at once: the next one takes minutes."""
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
