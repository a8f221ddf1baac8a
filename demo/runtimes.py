"""Exporting float models, and running exported ones in the runtimes."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import paddle

import paddleq

ROOT = Path(__file__).resolve().parent.parent
THREADS = 2


def save_float(model, path, input_spec):
    """``path.pdmodel`` of a float model; Paddle 3 writes PIR ``.json``, which is converted."""
    paddle.jit.save(model, str(path), input_spec)
    if not Path(f"{path}.pdmodel").exists():
        paddleq.export.to_program_desc(path, path)


@contextlib.contextmanager
def output_to(path):
    """Append to a file what native libraries print in the meantime."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with open(path, "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            for number, old in enumerate(kept, start=1):
                os.dup2(old, number)
                os.close(old)


def size_kb(path):
    """Kilobytes of an exported model, both files."""
    return sum(Path(f"{path}{end}").stat().st_size for end in (".pdmodel", ".pdiparams")) / 1024


def median_ms(call, repeats=100):
    """Median time of a call in milliseconds, after some to warm up."""
    times = []
    for _ in range(repeats + 20):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times[20:]))


def paddle_inference(path, inputs, quantized, timed=None):
    """(output, median ms) in Paddle Inference with oneDNN.

    Args:
        path: prefix of the exported model's files; it has one input and one output.
        inputs: array.
        quantized: whether it has quantized activations, for which there are int8 kernels.
        timed: how many of ``inputs`` make up the batch that is timed; all by default.
    """
    from paddle import inference

    config = inference.Config(f"{path}.pdmodel", f"{path}.pdiparams")
    config.disable_gpu()
    config.disable_glog_info()
    config.set_cpu_math_library_num_threads(THREADS)
    config.enable_mkldnn()
    if quantized:
        config.enable_mkldnn_int8()  # without it a quantized model is slower than a float one
    with output_to(Path(path).parent / "paddle_inference.log"):  # its list of rewritten operators
        predictor = inference.create_predictor(config)
    source = predictor.get_input_handle(predictor.get_input_names()[0])
    target = predictor.get_output_handle(predictor.get_output_names()[0])

    def run(value):
        source.copy_from_cpu(value)
        predictor.run()
        return target.copy_to_cpu()

    return run(inputs), median_ms(lambda: run(inputs[:timed]))


def openvino(path, inputs, quantized, timed=None):
    """(output, median ms) in OpenVINO; see :func:`paddle_inference`."""
    import openvino as ov

    # On some processors OpenVINO computes in bfloat16 if not told otherwise.
    model = ov.Core().compile_model(
        f"{path}.pdmodel", "CPU",
        {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": THREADS,
         "PERFORMANCE_HINT": "LATENCY"})
    return model([inputs])[0], median_ms(lambda: model([inputs[:timed]]))


def lite_python():
    """A Python with Paddle-Lite: PADDLEQ_LITE_PYTHON, or what `make lite-env` built, or None."""
    given = os.environ.get("PADDLEQ_LITE_PYTHON")
    if given:
        return given
    built = ROOT / ".venv-lite" / "bin" / "python"
    return str(built) if built.exists() else None


def paddle_lite(path, inputs, quantized, timed=None):
    """(output, median ms) in Paddle-Lite on x86, which lives in another Python."""
    python = lite_python()
    libraries = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        check=True, capture_output=True, text=True).stdout.strip() + "/paddlelite/libs"
    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/in.npy", f"{folder}/out.npy"

        def run(value, *repeats):
            np.save(source, value)
            done = subprocess.run(
                [python, str(ROOT / "tests" / "lite" / "run_x86.py"), f"{path}.pdmodel",
                 f"{path}.pdiparams", source, target, *repeats],
                env={**os.environ, "LD_LIBRARY_PATH": libraries}, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"Paddle-Lite failed on {path}:\n{done.stderr[-2000:]}")
            return done.stdout

        run(inputs)
        output = np.load(target)
        printed = run(inputs[:timed], "100")
    return output, float(printed.split()[-1])
