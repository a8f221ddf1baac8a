"""Classify the images of a folder: train, quantize before and after training, export, run in int8.

    python demo/images.py photos/            # photos/cat/1.jpg, photos/dog/2.jpg, ...
    python demo/images.py                    # without a folder of yours: handwritten digits

Exits with 1 if int8 answers otherwise than its simulation for more than 2 % of the images.
"""

import argparse
import copy
import sys
import time
import zlib  # noqa: F401  (before paddle: Paddle 2.6 crashes in zlib otherwise)
from pathlib import Path

import numpy as np
import paddle
from common import ROOT, ended, output_to, predict, save_float, size_kb, train
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

import paddleq
from paddleq.deploy import Predictor

OUT = ROOT / "out" / "images"
ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
MIN_AGREEMENT = 0.98


def write_digits(folder):
    """Scikit-learn's digits as image files, in a folder for each."""
    from sklearn.datasets import load_digits

    data = load_digits()
    for number, (image, label) in enumerate(zip(data.images, data.target)):
        target = folder / str(label) / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype("uint8")).resize((32, 32)).save(target)


def load(folder, size):
    """(images [N, 3, size, size], labels, names of the classes) of a folder of folders."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    files = [(path, label) for label, name in enumerate(classes)
             for path in sorted((folder / name).iterdir()) if path.suffix.lower() in ENDINGS]
    if len(classes) < 2 or len(files) < 20:
        raise SystemExit(f"{folder} must hold a folder of images for each class, at least two "
                         f"and 20 images, but has {len(classes)} and {len(files)}")
    images = np.stack([np.asarray(Image.open(path).convert("RGB").resize((size, size)))
                       for path, _ in files])
    images = (images.astype("float32") / 127.5 - 1.0).transpose(0, 3, 1, 2)
    order = np.random.default_rng(0).permutation(len(files))
    return images[order], np.array([label for _, label in files])[order], classes


def main():
    """The demo; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="images, in a folder for each class")
    parser.add_argument("--size", type=int, default=32, help="width and height to resize to (32)")
    parser.add_argument("--epochs", type=int, default=2, help="of training (2)")
    options = parser.parse_args()
    console, start = Console(width=110), time.time()
    folder = options.folder or OUT / "digits"
    if options.folder is None and not folder.exists():
        write_digits(folder)
    images, labels, classes = load(folder, options.size)
    half = len(images) * 3 // 4
    console.print(f"{len(images)} images of {len(classes)} classes; {half} to train on")

    paddle.seed(0)
    net = paddle.vision.models.resnet18(num_classes=len(classes))
    train(net, images[:half], labels[:half], options.epochs, learning_rate=1e-3)
    spec = [paddle.static.InputSpec([None, 3, options.size, options.size], "float32", "image")]
    net.eval()
    save_float(net, OUT / "float", spec)
    models = {"float": net}

    ptq = paddleq.PTQ("HistQuantizer", hist_percent=0.9999)
    models["ptq"] = ptq.quantize(net, fuse=True)
    ptq.calibrate(models["ptq"], [images[i:i + 32] for i in range(0, min(half, 512), 32)])
    ptq.save_quantized_model(models["ptq"], OUT / "ptq", spec)

    qat = paddleq.QAT()
    models["qat"] = qat.quantize(copy.deepcopy(net))
    train(models["qat"], images[:half], labels[:half], 1, learning_rate=1e-4, seed=1)
    qat.save_quantized_model(models["qat"], OUT / "qat", spec)

    table = Table("model", "KB", "top-1", "deployed", "agree", "ms an image", "runtime",
                  box=box.SIMPLE)
    failures = []
    for name, model in models.items():
        model.eval()
        expected = predict(model, images[half:])
        with output_to(OUT / "runtimes.log"), Predictor(OUT / name) as predictor:
            found = np.concatenate([predictor.run(images[i:i + 32])[0].argmax(1)
                                    for i in range(half, len(images), 32)])
            begin = time.perf_counter()
            for image in images[half:half + 100]:
                predictor.run(image[None])
            ms = (time.perf_counter() - begin) / min(100, len(images) - half) * 1e3
            agree = float(np.mean(found == expected))
            if agree < MIN_AGREEMENT:
                failures.append(f"{name}: the runtime agrees on {agree:.1%} of the images")
            table.add_row(name, f"{size_kb(OUT / name):.0f}",
                          f"{np.mean(expected == labels[half:]):.1%}",
                          f"{np.mean(found == labels[half:]):.1%}", f"{agree:.1%}", f"{ms:.2f}",
                          predictor.runtime)
    console.print(table)
    return ended(console, OUT, start, failures)


if __name__ == "__main__":
    sys.exit(main())
