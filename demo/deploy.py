"""Deploy a quantized network: export it, check it in every runtime, serve it from eight threads.

Run it with ``make demo-deploy``. Exits with 1 if a runtime gives other labels than the simulation
for more than 1 % of the images, or a thread other answers than the others.
"""

import sys
import time
import zlib  # noqa: F401  (before paddle: Paddle 2.6 crashes in zlib otherwise)
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import paddle
from common import ROOT, batches, digits, output_to, trained_net
from rich.console import Console

import paddleq
from paddleq.deploy import Predictor, verify

OUT = ROOT / "out" / "deploy"
PATH = OUT / "net"
MIN_AGREEMENT = 0.99
THREADS = 8
ROUNDS = 20


def export(net, images):
    """Quantize, calibrate and write ``net`` in three formats; returns the simulation."""
    ptq = paddleq.PTQ()
    quantized = ptq.quantize(net, fuse=True)
    ptq.calibrate(quantized, batches(images[:512]))
    spec = [paddle.static.InputSpec([None, 1, 8, 8], "float32", "image")]
    for format in ("pdmodel", "onnx", "openvino"):
        ptq.save_quantized_model(quantized, PATH, spec, format=format)
    return quantized


def serve(predictor, requests, threads):
    """Return (images per second, outputs of each thread) with concurrent threads."""
    def ask(rounds):
        for _ in range(rounds):
            answers = [predictor.run(images)[0] for images in requests]
        return np.concatenate(answers)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(ask, [2] * threads))  # each thread gets a clone, and that is warm
        start = time.perf_counter()
        answers = list(pool.map(ask, [ROUNDS] * threads))
        seconds = time.perf_counter() - start
    return threads * ROUNDS * sum(map(len, requests)) / seconds, answers


def main():
    """The demo; returns the exit code."""
    console, start = Console(width=110), time.time()
    train_x, train_y, test_x, _ = digits()
    simulation = export(trained_net(train_x, train_y), train_x)
    requests = [images.numpy() for images in batches(test_x)]
    with output_to(OUT / "runtimes.log"):
        report = verify(PATH, simulation, requests, top1=MIN_AGREEMENT)
    console.print(str(report), highlight=False, soft_wrap=True)

    with output_to(OUT / "runtimes.log"):
        predictor = Predictor(PATH, threads=1)
    with predictor:
        alone, (expected,) = serve(predictor, requests, 1)
        together, answers = serve(predictor, requests, THREADS)
    same = all(np.array_equal(each, expected) for each in answers)
    console.print(f"{predictor.runtime} ({predictor.reason}): {alone:,.0f} images a second from 1 "
                  f"thread, {together:,.0f} from {THREADS} with a clone each; their answers are "
                  f"{'the same' if same else 'NOT THE SAME'}")
    console.print(f"Models: {OUT.relative_to(ROOT)}/; {PATH.name}.paddleq.yaml says how they were "
                  f"made. {time.time() - start:.0f} s in all.")
    return 0 if report.ok and same else 1


if __name__ == "__main__":
    sys.exit(main())
