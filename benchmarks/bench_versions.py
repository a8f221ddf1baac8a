"""int8 files that this Paddle exported through PIR against those that Paddle 2.6 exported itself.

    python benchmarks/bench_versions.py --old .venv-2.6/bin/python [--models mobilenet_v1]

The same weights and calibration data in both. Four predictors take turns: the new file and the old
one in this Paddle's runtime, the old one in the old runtime, and the float model in this one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

# First: it fixes the number of threads that Paddle finds when it is imported.
from side_by_side import THREADS, heading, median, table

# isort: split
import numpy as np
import paddle
import paddle.inference as inference
from paddle.static import InputSpec

import paddleq

TURN, WARMUP = 100, 20
SHAPE = (3, 224, 224)
HERE = os.path.dirname(os.path.abspath(__file__))


def export(name, folder, kind):
    """Write the int8 model as ``kind``; the old one makes the weights, the new one reads them."""
    paddle.seed(0)
    model, weights = getattr(paddle.vision.models, name)(), f"{folder}/weights.npz"
    images = np.random.RandomState(0).randn(3, 4, *SHAPE).astype("float32")
    if kind == "old":
        model.train()
        with paddle.no_grad():
            for batch in images:  # batch norms of random data are sane after a few batches
                model(paddle.to_tensor(batch))
        np.savez(weights, **{key: value.numpy() for key, value in model.state_dict().items()})
    else:
        model.set_state_dict(dict(np.load(weights)))
    model.eval()
    spec = [InputSpec([None, *SHAPE], "float32", "x")]
    if kind == "new":
        paddle.jit.save(model, f"{folder}/float", input_spec=spec)
        if not os.path.exists(f"{folder}/float.pdmodel"):
            paddleq.export.to_program_desc(f"{folder}/float", f"{folder}/float")
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    quantized = ptq.quantize(model)
    ptq.calibrate(quantized, [paddle.to_tensor(batch) for batch in images[:2]])
    ptq.save_quantized_model(quantized, f"{folder}/{kind}", spec)


def serve(path):
    """For each line that comes in, time a turn and print its median in milliseconds."""
    config = inference.Config(f"{path}.pdmodel", f"{path}.pdiparams")
    config.disable_gpu()
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(THREADS)
    config.enable_mkldnn()
    if not path.endswith("float"):
        config.enable_mkldnn_int8()
    predictor = inference.create_predictor(config)
    image = np.random.RandomState(0).randn(1, *SHAPE).astype("float32")
    predictor.get_input_handle(predictor.get_input_names()[0]).copy_from_cpu(image)
    predictor.run()
    print("ready", flush=True)
    for _ in sys.stdin:
        times = []
        for turn in range(WARMUP + TURN):
            start = time.perf_counter()
            predictor.run()
            if turn >= WARMUP:
                times.append(time.perf_counter() - start)
        print(f"ms {median(times) * 1e3}", flush=True)


def _command(python, *arguments):
    return [python, os.path.join(HERE, "bench_versions.py"), *arguments]


def _answer(process, start):
    for line in process.stdout:
        if line.startswith(start):
            return line[len(start):].strip()
    raise RuntimeError(f"{process.args} ended")


def one_model(name, old, rounds):
    """Milliseconds of each predictor, turn by turn."""
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(HERE)}
    with tempfile.TemporaryDirectory() as folder:
        for python, kind in ((old, "old"), (sys.executable, "new")):
            subprocess.run(_command(python, "--export", kind, "--folder", folder, "--models", name),
                           env=environment, check=True, stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
        servers = {
            kind: subprocess.Popen(_command(python, "--serve", f"{folder}/{file}"),
                                   env=environment, stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            for kind, python, file in (
                ("new file", sys.executable, "new"), ("old file", sys.executable, "old"),
                ("old file, old runtime", old, "old"), ("float", sys.executable, "float"))}
        for process in servers.values():
            _answer(process, "ready")
        times = {kind: [] for kind in servers}
        for _ in range(rounds):
            for kind, process in servers.items():
                process.stdin.write("go\n")
                process.stdin.flush()
                times[kind].append(float(_answer(process, "ms")))
        for process in servers.values():
            process.stdin.close()
            process.wait()
        sizes = {kind: sum(os.path.getsize(f"{folder}/{kind}{end}")
                           for end in (".pdmodel", ".pdiparams")) for kind in ("new", "old")}
    return times, sizes["new"] / sizes["old"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--old", help="the Python that has Paddle 2.6")
    parser.add_argument("--models", default="mobilenet_v1,resnet50,mobilenet_v2")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--export", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.export:
        export(options.models, options.folder, options.export)
        print(json.dumps({}))
        return
    if options.serve:
        serve(options.serve)
        return
    if not options.old:
        parser.error("--old is needed")
    heading(f"int8 in Paddle Inference, batch 1 of 3x224x224, turns of {TURN} calls")
    rows = [("model", "new file ms", "old file ms", "old runtime ms", "float ms",
             "new/old file", "new/old runtime", "float/new", "size new/old")]
    for name in options.models.split(","):
        times, size = one_model(name, options.old, options.rounds)

        def ratio(a, b, times=times):
            return f"{median([x / y for x, y in zip(times[a], times[b])]):.2f}"

        rows.append((name, *(f"{median(each):.2f}" for each in times.values()),
                     ratio("new file", "old file"), ratio("new file", "old file, old runtime"),
                     ratio("float", "new file"), f"{size:.3f}"))
    table(rows)


if __name__ == "__main__":
    main()
