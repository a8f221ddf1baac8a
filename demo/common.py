"""Shared parts of the demos: data, a network, training and runtimes."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import paddle
from paddle import nn
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import paddleq

ROOT = Path(__file__).resolve().parent.parent
THREADS = 2
TIMED_BATCH = 64


def digits():
    """Scikit-learn's 1797 handwritten digits: (train images, labels, test images, labels)."""
    data = load_digits()
    images = (data.images[:, None].astype("float32") - 8.0) / 8.0
    train_x, test_x, train_y, test_y = train_test_split(
        images, data.target.astype("int64"), test_size=0.4, random_state=0, stratify=data.target)
    return train_x, train_y, test_x, test_y


class Separable(nn.Sequential):
    """A depthwise and a pointwise convolution, each with batch norm and ReLU."""

    def __init__(self, inputs, outputs, stride):
        super().__init__(
            nn.Conv2D(inputs, inputs, 3, stride, 1, groups=inputs, bias_attr=False),
            nn.BatchNorm2D(inputs), nn.ReLU(),
            nn.Conv2D(inputs, outputs, 1, bias_attr=False),
            nn.BatchNorm2D(outputs), nn.ReLU())


class DigitsNet(nn.Layer):
    """A MobileNet for 8x8 images."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2D(1, 16, 3, padding=1, bias_attr=False),
                                  nn.BatchNorm2D(16), nn.ReLU())
        self.blocks = nn.Sequential(
            Separable(16, 64, 2), Separable(64, 128, 1), Separable(128, 128, 1),
            Separable(128, 256, 2), Separable(256, 256, 1))
        self.pool = nn.AdaptiveAvgPool2D(1)
        self.head = nn.Linear(256, 10)

    def forward(self, x):
        """Logits [N, 10] of images [N, 1, 8, 8]."""
        return self.head(paddle.flatten(self.pool(self.blocks(self.stem(x))), 1))


def batches(images, labels=None, size=64, order=None):
    """Batches of tensors: of images, or of (images, labels)."""
    order = np.arange(len(images)) if order is None else order
    for start in range(0, len(order), size):
        part = order[start:start + size]
        image = paddle.to_tensor(images[part])
        yield image if labels is None else (image, paddle.to_tensor(labels[part]))


def train(model, images, labels, epochs, learning_rate, batch_size=32, seed=0):
    """Adam with a cosine schedule."""
    shuffle = np.random.default_rng(seed)
    steps = epochs * -(-len(images) // batch_size)
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(learning_rate, steps)
    adam = paddle.optimizer.Adam(schedule, parameters=model.parameters(), weight_decay=1e-4)
    model.train()
    for _ in range(epochs):
        for image, label in batches(images, labels, batch_size,
                                    shuffle.permutation(len(images))):
            loss = nn.functional.cross_entropy(model(image), label)
            loss.backward()
            adam.step()
            adam.clear_grad()
            schedule.step()
    model.eval()


def trained_net(images, labels):
    """A :class:`DigitsNet` that knows digits, in some seconds."""
    paddle.seed(0)
    net = DigitsNet()
    train(net, images, labels, epochs=12, learning_rate=3e-3)
    return net


def predict(model, images):
    """Labels that a model in memory gives."""
    model.eval()
    with paddle.no_grad():
        return np.concatenate([model(image).numpy().argmax(1) for image in batches(images)])


def save_float(model, path, input_spec):
    """``path.pdmodel`` of a float model; Paddle 3 writes PIR ``.json``, which is converted."""
    Path(f"{path}.pdmodel").unlink(missing_ok=True)  # of an earlier run
    paddle.jit.save(model, str(path), input_spec)
    if not Path(f"{path}.pdmodel").exists():
        paddleq.export.to_program_desc(path, path)


@contextlib.contextmanager
def output_to(path):
    """Redirect the output of native libraries to a file."""
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


def paddle_inference(path, images, quantized):
    """(labels, ms for a batch) in Paddle Inference with oneDNN."""
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

    return run(images).argmax(1), median_ms(lambda: run(images[:TIMED_BATCH]))


def openvino(path, images, quantized):
    """(labels, ms for a batch) in OpenVINO."""
    import openvino as ov

    # On some processors OpenVINO computes in bfloat16 if not told otherwise.
    model = ov.Core().compile_model(
        f"{path}.pdmodel", "CPU",
        {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": THREADS,
         "PERFORMANCE_HINT": "LATENCY"})
    return model([images])[0].argmax(1), median_ms(lambda: model([images[:TIMED_BATCH]]))


def lite_python():
    """Return a Python with Paddle-Lite: PADDLEQ_LITE_PYTHON, that of `make lite-env`, or None."""
    given = os.environ.get("PADDLEQ_LITE_PYTHON")
    if given:
        return given
    built = ROOT / ".venv-lite" / "bin" / "python"
    return str(built) if built.exists() else None


def paddle_lite(path, images, quantized):
    """(labels, ms for a batch) in Paddle-Lite on x86, which lives in another Python."""
    python = lite_python()
    libraries = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        check=True, capture_output=True, text=True).stdout.strip() + "/paddlelite/libs"
    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/in.npy", f"{folder}/out.npy"

        def run(value, *repeats):
            np.save(source, value)
            done = subprocess.run(
                [python, str(ROOT / "tests" / "helpers" / "lite" / "run_x86.py"), f"{path}.pdmodel",
                 f"{path}.pdiparams", source, target, *repeats],
                env={**os.environ, "LD_LIBRARY_PATH": libraries}, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"Paddle-Lite failed on {path}:\n{done.stderr[-2000:]}")
            return done.stdout

        run(images)
        labels = np.load(target).argmax(1)
        printed = run(images[:TIMED_BATCH], "100")
    return labels, float(printed.split()[-1])


def ended(console, folder, start, failures=()):
    """Print failures, the folder of the models and the duration. Return the exit code."""
    for failure in failures:
        console.print(f"FAILED: {failure}")
    console.print(f"Models: {folder.relative_to(ROOT)}/. {time.time() - start:.0f} s in all.")
    return 1 if failures else 0
