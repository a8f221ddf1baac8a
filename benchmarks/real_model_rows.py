"""Quantizers of ``bench_real_models.py``: paddleq's methods, ONNX Runtime's and NNCF's.

Each yields a :class:`Row` with the files that it wrote. Peers are imported where they are used.
"""

import contextlib
import logging
import os
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Dict

import numpy as np
import paddle
from ocr_models import depthwise, onnx_run, openvino_run, paddle_run

import paddleq
from paddleq.paddleslim import (
    AbsmaxQuantizer,
    ObserverQuantizer,
    PerChannelAbsmaxQuantizer,
)

RUNTIMES = ("Paddle Inference", "OpenVINO", "ONNX Runtime")
OBSERVERS = ("abs_max", "min_max", "avg", "hist", "KL", "mse", "emd", "ptf")


@dataclass
class Row:
    """Files of a quantized model.

    Attributes:
        files: runtime -> file, or the folder of ``inference.pdmodel``.
        seconds: duration of the quantization; without the export for paddleq, which writes for
            three runtimes.
        note: what else is to say, e.g. the number of layers left in float.
    """

    name: str
    files: Dict[str, Path] = field(default_factory=dict)
    seconds: float = 0.0
    note: str = ""

    def run(self, runtime, log, threads=2):
        """Return a function from an input to the first output in a runtime."""
        file = self.files[runtime]
        if runtime == "Paddle Inference":
            return paddle_run(file, self.name != "float", log, threads=threads)
        return (onnx_run if runtime == "ONNX Runtime" else openvino_run)(file, threads=threads)

    def size(self):
        """Return the size in KB of the smallest of the files."""
        def of(path):
            if path.is_dir():
                return sum(path.joinpath(f"inference{end}").stat().st_size
                           for end in (".pdmodel", ".pdiparams"))
            both = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
            return sum(each.stat().st_size for each in both)

        return min(map(of, self.files.values())) / 1024


def float_row(task, folder):
    """Write the float model as it is for each runtime."""
    folder.mkdir(parents=True, exist_ok=True)
    return Row("float", {"Paddle Inference": task.prefix.parent,
                         "OpenVINO": Path(paddleq.export.to_onnx(task.prefix, folder / "float")),
                         "ONNX Runtime": folder / "float.onnx"})


def folded_onnx(task, folder):
    """Write the float model with paddleq's folded affine operators as ONNX."""
    model = paddleq.SavedModel(task.prefix)
    model.fold_affines()
    model.save(folder / "folded")
    return Path(paddleq.export.to_onnx(folder / "folded", folder / "folded"))


def _paddleq(name, task, folder, observer="mse", bits=8, per_tensor=False, fallback=None,
             float_depthwise=False, **options):
    start = time.perf_counter()
    weight = (AbsmaxQuantizer if per_tensor else PerChannelAbsmaxQuantizer)(bits)
    ptq = paddleq.PTQ(ObserverQuantizer(observer), weight, **options)
    source = paddleq.SavedModel(task.prefix)
    model = ptq.quantize(source, fuse=True, skip=depthwise(source) if float_depthwise else None)
    ptq.calibrate(model, task.calibration)
    note = ""
    if fallback is not None:
        report = paddleq.analysis.keep_accuracy(model, task.calibration, _metric(task), fallback)
        note = f"{len(report.left_float)} of {report.layers} layers float"
    row = Row(name, seconds=time.perf_counter() - start, note=note)
    target, runtimes = folder / file_name(name), ("Paddle Inference", "OpenVINO", "ONNX Runtime")
    paddleq.save_quantized_model(model, target / "inference", target="paddle_int8")
    paddleq.save_quantized_model(model, target / "openvino", format="openvino")
    paddleq.save_quantized_model(model, target / "onnx", format="onnx")
    row.files = dict(zip(runtimes, (target, target / "openvino.xml", target / "onnx.onnx")))
    return row


def _metric(task):
    def metric(model):
        def run(images):
            with paddle.no_grad():
                output = model(paddle.to_tensor(images))
            return (output[0] if isinstance(output, (list, tuple)) else output).numpy()

        return task.validate(run)

    return metric


def file_name(name):
    return "".join(letter if letter.isalnum() else "_" for letter in name)


PADDLEQ = {
    **{observer: partial(_paddleq, observer=observer) for observer in OBSERVERS},
    "mse, weights per tensor": partial(_paddleq, per_tensor=True),
    "mse, fast bias correction": partial(_paddleq, bias_correction="fast"),
    "mse, depthwise float": partial(_paddleq, float_depthwise=True),
    "mse, depthwise float, fast bias correction": partial(
        _paddleq, float_depthwise=True, bias_correction="fast"),
    "abs_max, depthwise float, fast bias correction": partial(
        _paddleq, observer="abs_max", float_depthwise=True, bias_correction="fast"),
    "mse, full bias correction": partial(_paddleq, bias_correction="full"),
    "mse, AdaRound": partial(_paddleq, round_type="adaround"),
    "mse, fallback": partial(_paddleq, fallback=0.01),
    "mse, W4": partial(_paddleq, bits=4),
    "mse, W4, AdaRound": partial(_paddleq, bits=4, round_type="adaround"),
}


def _samples(task):
    """Return the calibration data as batches of one, the form that peers recommend."""
    return [batch[row:row + 1] for batch in task.calibration for row in range(len(batch))]


class _Reader:
    """Samples in the form of ONNX Runtime's calibrators."""

    def __init__(self, data, name):
        self._data, self._name = data, name
        self.set_range(0, len(data))

    def __len__(self):
        return len(self._data)

    def set_range(self, start_index, end_index):
        self._part = iter(self._data[start_index:end_index])

    def get_next(self):
        sample = next(self._part, None)
        return None if sample is None else {self._name: sample}


def _onnx_runtime(name, task, folder, method="MinMax", per_channel=True, activation="QInt8",
                  op_types=None, symmetric=False):
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, target = folder / "float.onnx", folder / f"{file_name(name)}.onnx"
    prepared = folder / "prepared.onnx"
    (value, *_) = onnx.load(source, load_external_data=False).graph.input
    start = time.perf_counter()
    with _quiet():
        # The symbolic one ends with "incomplete" for the detector.
        quant_pre_process(source, prepared, skip_symbolic_shape=task.name == "det")
        quantization.quantize_static(
            prepared, target, _Reader(_samples(task), value.name), per_channel=per_channel,
            activation_type=quantization.QuantType[activation],
            calibrate_method=quantization.CalibrationMethod[method], op_types_to_quantize=op_types,
            # Part by part: the calibrators of histograms keep all activations in memory.
            extra_options={"CalibStridedMinMax": 1, "ActivationSymmetric": symmetric})
    return Row(name, {"ONNX Runtime": target, "OpenVINO": target}, time.perf_counter() - start)


_PRODUCTS = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
ONNX_RUNTIME = {
    "MinMax": _onnx_runtime,
    "MinMax, per tensor": partial(_onnx_runtime, per_channel=False),
    "MinMax, uint8": partial(_onnx_runtime, activation="QUInt8"),
    "Percentile": partial(_onnx_runtime, method="Percentile"),
    "Entropy": partial(_onnx_runtime, method="Entropy"),
    "MinMax, products": partial(_onnx_runtime, op_types=_PRODUCTS),
    "Percentile, products": partial(_onnx_runtime, method="Percentile", op_types=_PRODUCTS),
    "Percentile, products, symmetric": partial(_onnx_runtime, method="Percentile",
                                               op_types=_PRODUCTS, symmetric=True),
}


def _nncf(name, task, folder, source="float.onnx", control=False, advanced=None, ignored=None,
          **options):
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    start = time.perf_counter()
    if source == "folded.onnx":
        folded_onnx(task, folder)
    model = core.read_model(folder / source)
    if "preset" in options:
        options["preset"] = nncf.QuantizationPreset[options["preset"]]
    if "model_type" in options:
        options["model_type"] = nncf.ModelType[options["model_type"]]
    if ignored is not None:
        options["ignored_scope"] = nncf.IgnoredScope(types=ignored, validate=False)
    if advanced is not None:
        options["advanced_parameters"] = nncf.AdvancedQuantizationParameters(**advanced)
    samples = _samples(task)
    data, options["subset_size"] = nncf.Dataset(samples), len(samples)
    with _quiet():
        if control:
            quantized = nncf.quantize_with_accuracy_control(
                model, data, nncf.Dataset([None]), max_drop=0.01, **options,
                validation_fn=lambda compiled, _: task.validate(
                    lambda images: compiled([images])[0]))
        else:
            quantized = nncf.quantize(model, data, **options)
        target = folder / f"NNCF_{file_name(name)}.xml"
        openvino.save_model(quantized, target, compress_to_fp16=False)
    return Row(name, {"OpenVINO": target}, time.perf_counter() - start)


@contextlib.contextmanager
def _quiet():
    """Hide the progress of the peers, which have no argument for it."""
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        yield


# Operators that NNCF quantizes besides convolutions and matrix products.
_NO_PRODUCTS = ["Add", "AvgPool", "Divide", "Interpolate", "MaxPool", "Multiply", "MVN",
                "ReduceMean", "ReduceSum", "Subtract"]
NNCF = {
    "default": _nncf,
    "full bias correction": partial(_nncf, fast_bias_correction=False),
    "no bias correction": partial(_nncf, advanced={"disable_bias_correction": True}),
    "mixed": partial(_nncf, preset="MIXED"),
    "mixed, full bias correction": partial(_nncf, preset="MIXED", fast_bias_correction=False),
    "default, products": partial(_nncf, ignored=_NO_PRODUCTS),
    "mixed, folded affines": partial(_nncf, preset="MIXED", source="folded.onnx"),
    "mixed, transformer": partial(_nncf, preset="MIXED", model_type="TRANSFORMER"),
    "accuracy control": partial(_nncf, preset="MIXED", control=True),
}
GROUPS = {"paddleq": PADDLEQ, "ort": ONNX_RUNTIME, "nncf": NNCF}
TITLES = {"paddleq": "paddleq", "ort": "ONNX Runtime", "nncf": "NNCF"}


def random_input(shape):
    """Return an input for the latency."""
    return np.random.default_rng(0).normal(size=shape).astype("float32")
