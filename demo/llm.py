"""Quantize SmolLM2-135M-Instruct, and compare perplexity, size, speed and an answer with float.

Run it with ``make demo-llm``, or ``python demo/llm.py`` where paddleq, requirements.txt and
requirements-llm.txt are installed. Exits with 1 if the perplexity of a quantized model is too far
above that of the float model.
"""

import argparse
import copy
import sys
import time
import zlib  # noqa: F401  (before paddle: Paddle 2.6 crashes in zlib otherwise)

import paddle
from common import ROOT, ended
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from text.evaluation import generate
from text.helper import DecoderHelper
from text.smollm2 import (
    CHAT,
    END_OF_TURN,
    calibration_text,
    encode,
    held_out_text,
    smollm2,
    tokenizer,
)

import paddleq
from paddleq.analysis import perplexity
from paddleq.golden_stick import PTQ, PTQConfig
from paddleq.nn import keep_dequantized

OUT = ROOT / "out" / "demo-llm"
WINDOW = 512

W4 = {"weight_quant_dtype": "int4", "weight_quant_granularity": "per_group", "group_size": 64}
W8A8 = {"weight_quant_dtype": "int8", "act_quant_dtype": "int8"}
ALGORITHMS = {
    "W8": {"weight_quant_dtype": "int8"},
    "W8A8-token": {**W8A8, "act_quant_granularity": "per_token"},
    "W8A8-token-smooth": {**W8A8, "act_quant_granularity": "per_token",
                          "outliers_suppression": "smooth"},
    "W4-rtn": W4,
    "W4-gptq": {**W4, "precision_recovery": "gptq"},
    "W4-awq": {**W4, "outliers_suppression": "awq"},
    "W4-awq-gptq": {**W4, "outliers_suppression": "awq", "precision_recovery": "gptq"},
    "KV8": {"weight_quant_dtype": None, "kvcache_quant_dtype": "int8",
            "kvcache_quant_granularity": "per_token"},
}
"""Name of a row -> arguments of Golden Stick's ``PTQConfig``."""

LIMITS = {"W8": 1.02, "KV8": 1.02, "W8A8-token": 1.10, "W8A8-token-smooth": 1.05}
W4_LIMIT = 1.60
"""Largest perplexity relative to float with which the demo passes."""


def quantized(model, name, windows):
    """Return a quantized copy, and the seconds that it took."""
    tokens = encode(calibration_text())[:windows * WINDOW].reshape([-1, 1, WINDOW])
    batches = [paddle.to_tensor(each) for each in tokens]
    model = copy.deepcopy(model)
    started = time.perf_counter()
    ptq = PTQ(PTQConfig(**ALGORITHMS[name]))
    model = ptq.convert(ptq.apply(model, DecoderHelper(), batches))
    return model, time.perf_counter() - started


def float_mb(model):
    """Megabytes of the parameters of a float model."""
    return sum(each.size for each in model.parameters()) * 4 / 1e6


def checkpoint_mb(model, name):
    """Megabytes of the checkpoint of a quantized model, which is written."""
    path = OUT / name
    paddleq.save_checkpoint(model, path)
    return path.with_name(f"{name}.safetensors").stat().st_size / 1e6


def answer(model, prompt, count):
    """Return the text that a model answers, and tokens per second."""
    with keep_dequantized(model):
        tokens, speed = generate(model, prompt, count)
    end = tokenizer().token_to_id(END_OF_TURN)
    found = tokens.tolist()
    return tokenizer().decode(found[:found.index(end)] if end in found else found), speed


def main():
    """The demo; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, metavar="NAME",
                        default=["W8", "W4-rtn", "W4-gptq", "KV8"],
                        help=f"rows of the table: {', '.join(ALGORITHMS)}")
    parser.add_argument("--tokens", type=int, default=2 * WINDOW,
                        help=f"of the text for the perplexity ({2 * WINDOW})")
    parser.add_argument("--calibration", type=int, default=4,
                        help=f"windows of {WINDOW} tokens for calibration (4)")
    parser.add_argument("--layers", type=int, default=30, help="use the first layers only (30)")
    parser.add_argument("--prompt", default="What is the capital of France?")
    parser.add_argument("--answer", type=int, default=24, help="tokens to generate (24)")
    options = parser.parse_args()
    console, started, failures = Console(width=110), time.time(), []
    OUT.mkdir(parents=True, exist_ok=True)
    float_model = smollm2(context=1024, layers=options.layers)
    tokens, prompt = encode(held_out_text()), encode(CHAT.format(options.prompt))
    cache = OUT / "float-logits.npy"
    cache.unlink(missing_ok=True)  # of an earlier run with other options

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("model", "perplexity", "% of float", "KL", "same top-1 %", "MB", "tokens/s",
                    "seconds to\nquantize"):
        table.add_column(heading, justify="left" if heading == "model" else "right", no_wrap=True)
    for name in ("float", *options.algorithms):
        seconds = 0.0
        if name == "float":
            model, size = float_model, float_mb(float_model)
        else:
            model, seconds = quantized(float_model, name, options.calibration)
            size = checkpoint_mb(model, name)
        found = perplexity(model, tokens, window=WINDOW, max_tokens=options.tokens,
                           float_model=float_model, cache=cache)
        text, speed = answer(model, prompt, options.answer)
        console.print(Panel(Text(text), title=name, width=100))
        ratio = found.value / found.float_value
        table.add_row(name, f"{found.value:.3f}", f"{100 * ratio:.2f}",
                      f"{found.kl_divergence:.4f}", f"{100 * found.top1_agreement:.1f}",
                      f"{size:.0f}", f"{speed:.1f}", f"{seconds:.0f}")
        limit = LIMITS.get(name, W4_LIMIT)
        if name != "float" and options.layers == 30 and ratio > limit:
            failures.append(f"{name}: {ratio:.3f} times the perplexity of float; {limit} allowed")
    console.print(f"{options.prompt!r}, greedy. Perplexity of {found.tokens} tokens of the "
                  "language reference in Python's pydoc_data, calibrated on scikit-learn's "
                  "descriptions of data sets.")
    console.print(table)
    cache.unlink()
    return ended(console, OUT, started, failures)


if __name__ == "__main__":
    sys.exit(main())
