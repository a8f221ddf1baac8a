"""Quantized MobileNetV1 through ``paddleq.deploy.Predictor`` against float, in each runtime.

    python benchmarks/bench_predictor.py [--model mobilenet_v1] [--rounds 3]

Nothing is asked of the predictor: that a quantized model needs a switch of Paddle Inference is its
business. The two models take turns of 100 calls, batches of one image of 224 x 224. Weights are
random. Exits with 1 if Paddle Inference computes MobileNetV1 in int8 less than 2.4 times as fast.
"""

import argparse
import sys
import tempfile

# First: it fixes the number of threads that Paddle finds when it is imported.
from side_by_side import THREADS, heading, interleaved, median, table

# isort: split
import numpy as np
from bench_deploy import TURN, WARMUP, export

from paddleq.deploy import Predictor
from paddleq.export import to_onnx

RUNTIMES = {"paddle": ".pdmodel", "openvino": ".onnx", "onnxruntime": ".onnx"}
WANTED = 2.4


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mobilenet_v1", help="of paddle.vision.models")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    image = np.random.default_rng(0).standard_normal([1, 3, 224, 224]).astype("float32")
    rows, faster = [("runtime", "float ms", "int8 ms", "faster")], {}
    with tempfile.TemporaryDirectory() as folder:
        export(options.model, folder, "AbsmaxQuantizer")
        for name in ("float", "int8"):
            to_onnx(f"{folder}/{name}", f"{folder}/{name}")
        for runtime, ending in RUNTIMES.items():
            with Predictor(f"{folder}/float{ending}", runtime, threads=THREADS) as plain, \
                    Predictor(f"{folder}/int8{ending}", runtime, threads=THREADS) as quantized:
                times = interleaved({"float": lambda p=plain: p.run(image),
                                     "int8": lambda p=quantized: p.run(image)},
                                    options.rounds, runs=TURN, warmup=WARMUP)
            found = {name: 1e3 * median(values) for name, values in times.items()}
            faster[runtime] = found["float"] / found["int8"]
            rows.append((runtime, f"{found['float']:.2f}", f"{found['int8']:.2f}",
                         f"{faster[runtime]:.2f}"))
    heading(f"{options.model} through Predictor")
    table(rows)
    return 1 if options.model == "mobilenet_v1" and faster["paddle"] < WANTED else 0


if __name__ == "__main__":
    sys.exit(main())
