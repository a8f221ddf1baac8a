"""Quantize a language model, and compare the text that float and quantized models generate.

Run it with ``make demo-text``, or ``python demo/transformer.py`` where paddleq and requirements.txt
are installed. The model reads Python's own standard library, character by character; the first run
trains it, for some minutes. Exits with 1 if a quantized model differs too much from the float one.
"""

import argparse
import sys
import time
import zlib  # noqa: F401  (before paddle: Paddle 2.6 crashes in zlib otherwise)
from functools import partial
from pathlib import Path

import numpy as np
import paddle
from common import ROOT, ended, median_ms, output_to, save_float, size_kb
from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from text import (
    DecoderHelper,
    calibration_batches,
    decode,
    encode,
    generate,
    held_out_tokens,
    perplexity,
    trained,
)
from text.training import RECIPES

import paddleq
from paddleq.deploy import Predictor
from paddleq.golden_stick import PTQ, PTQConfig, PTQMode

OUT = ROOT / "out" / "demo-text"
MIN_AGREEMENT = 98.0
MAX_PERPLEXITY_PERCENT = 3.0
RUNTIMES = {"Paddle Inference": "paddle", "OpenVINO": "openvino"}

W4 = {"weight_quant_dtype": "int4", "weight_quant_granularity": "per_group", "group_size": 64,
      "outliers_suppression": "awq", "precision_recovery": "gptq"}
CONFIGS = {"W4": W4, "W4, KV int8": {**W4, "kvcache_quant_dtype": "int8",
                                     "kvcache_quant_granularity": "per_token"}}


def quantized(model, config):
    """The model with packed 4-bit weights, in place."""
    batches = [paddle.to_tensor(batch) for batch in calibration_batches(8)]
    ptq = PTQ(PTQConfig(**config))
    return ptq.convert(ptq.apply(model, DecoderHelper(), batches))


def deployed(name, config, path):
    """The quantized model in a process that has no data: an untrained model, and a checkpoint."""
    ptq = PTQ(PTQConfig(mode=PTQMode.DEPLOY, **config))
    return ptq.convert(ptq.apply(RECIPES[name].make(), DecoderHelper()), str(path))


def logits(model, tokens):
    """Return the logits of a model in memory."""
    with paddle.no_grad():
        return model(paddle.to_tensor(tokens)).numpy()


def parameter_kb(model):
    """Kilobytes of a float model's weights."""
    return sum(each.size for each in model.parameters()) * 4 / 1024


def cache_kb(model):
    """Kilobytes of keys and values of a whole context."""
    tokens = paddle.to_tensor(held_out_tokens()[None, :model.context])
    with paddle.no_grad():
        _, past = model(tokens, use_cache=True)
    return sum(each.numpy().nbytes for cache in past for each in cache) / 1024


def prepare(name, failures):
    """Models by name: (model, prefix of its exported files, kilobytes of its weights)."""
    float_model = trained(name)
    spec = [paddle.static.InputSpec([None, None], "int64", "tokens")]
    save_float(float_model, OUT / "float", spec)
    found = {"float": (float_model, OUT / "float", parameter_kb(float_model))}
    tokens = held_out_tokens()[None, :float_model.context]
    for title, config in CONFIGS.items():
        path = OUT / title.lower().replace(", ", "-").replace(" ", "-")
        model = quantized(trained(name), config)
        paddleq.save_checkpoint(model, path)
        if not np.array_equal(logits(deployed(name, config, path), tokens), logits(model, tokens)):
            failures.append(f"{title}: the loaded checkpoint gives other logits")
        paddleq.save_quantized_model(model, path, spec)
        found[title] = model, path, Path(f"{path}.safetensors").stat().st_size / 1024
    return found


def compare(models, tokens, texts, failures):
    """The table of all models."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("model", "weights\nKB", "cache\nKB", "perplexity", "tokens/s", "exported\nKB"):
        table.add_column(heading, justify="left" if heading == "model" else "right", no_wrap=True)
    for runtime in RUNTIMES:
        table.add_column(f"{runtime}\nagree %", justify="right", no_wrap=True)
        table.add_column("\nms", justify="right", no_wrap=True)
    best = None
    for title, (model, path, kb) in models.items():
        found = perplexity(model, tokens)
        best = found if best is None else best
        if found > best * (1 + MAX_PERPLEXITY_PERCENT / 100):
            failures.append(f"{title}: perplexity {found:.3f}, float has {best:.3f}")
        cells = [title, f"{kb:.0f}", f"{cache_kb(model):.0f}", f"{found:.3f}",
                 f"{texts[title][1]:.0f}", f"{size_kb(path):.0f}"]
        windows = tokens[:8 * model.context].reshape([8, model.context])
        expected = logits(model, windows).argmax(-1)
        for runtime, short in RUNTIMES.items():
            with output_to(OUT / "runtimes.log"), Predictor(path, short) as predictor:
                output, = predictor.run(windows)
                ms = median_ms(partial(predictor.run, windows[:1]), repeats=30)
            agreement = 100.0 * float(np.mean(output.argmax(-1) == expected))
            if agreement < MIN_AGREEMENT:
                failures.append(f"{title} in {runtime}: {agreement:.2f}% of the characters agree")
            cells += [f"{agreement:.2f}", f"{ms:.2f}"]
        table.add_row(*cells)
    return table


def main():
    """The demo; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["llama", "gpt"], default="llama")
    parser.add_argument("--prompt", default="class Queue:\n    def __init__(self, ",
                        help="text that the models go on with")
    parser.add_argument("--characters", type=int, default=400, help="to write (400)")
    parser.add_argument("--temperature", type=float, default=0.4,
                        help="0 is the likeliest character always (0.4)")
    parser.add_argument("--seed", type=int, default=0, help="of the characters drawn (0)")
    options = parser.parse_args()
    console, started, failures = Console(width=124), time.time(), []
    OUT.mkdir(parents=True, exist_ok=True)
    models = prepare(options.model, failures)
    prompt = encode(options.prompt)
    texts = {title: generate(model, prompt, options.characters, options.temperature, options.seed)
             for title, (model, _, _) in models.items()}
    console.print(Columns([
        Panel(Text(options.prompt, "bold", no_wrap=True, overflow="crop") + decode(text),
              title=title, width=40) for title, (text, _) in texts.items()]))
    console.print(f"{options.model}: perplexity per character of modules that it has not seen; "
                  "characters whose likeliest successor the runtime agrees on, median ms for "
                  f"{models['float'][0].context} tokens")
    console.print(compare(models, held_out_tokens(32768), texts, failures))
    return ended(console, OUT, started, failures)


if __name__ == "__main__":
    sys.exit(main())
