"""Weighted layers and small blocks, quantized and computed in every runtime.

Runtimes round activations at other places than the simulation, by the bounds of
:class:`zoo_architectures.Result`.
"""

from dataclasses import replace

import numpy as np
import paddle
import runtimes
from layer_blocks import LAYERS
from operator_conformance import RUNTIMES, Cell, compared, float_file, other_forms, reason_of
from zoo_architectures import Result, distance, moved, run, unsigned

_TYPES = ["Conv1D", "Conv2D", "Conv3D", "Conv1DTranspose", "Conv2DTranspose", "Linear"]
_BOUNDS = {"Paddle int8": "paddle int8", "OpenVINO": "openvino", "OpenVINO .xml": "openvino xml",
           "ONNX Runtime": "onnxruntime"}
EXACT = 1e-6


def measure(name, folder):
    """Return {runtime: :class:`Cell`} of a layer or block."""
    make, shape = LAYERS[name]
    rng, path = np.random.RandomState(3), str(folder / "m")
    paddle.seed(5)
    net = make()
    net.eval()
    _settle(net, rng)
    x = (rng.randint(0, 20, shape).astype("int64") if name == "Embedding"
         else rng.uniform(-1, 1, shape).astype("float32"))
    spec = [paddle.static.InputSpec(shape, x.dtype.name, "x")]
    ptq, quantized = runtimes.quantized(net, x, _TYPES)
    plain, expected = run(net, [x]), run(quantized, [x])
    bounds = Result(name, "ptq", distance(expected, plain), *(
        max(distance(moved(quantized, [x], steps, rng), expected) for _ in range(3))
        for steps in (0.01, 0.5)), distance(unsigned(quantized, [x]), expected))

    def cell(runtime, compute):
        try:
            found = compute()
        except Exception as error:  # of every runtime's class
            prefix = "OpenVINO: " if runtime == "OpenVINO" else ""
            return Cell("refused", reason=prefix + reason_of(error))
        if runtime == "Paddle float":
            return compared(found, plain)
        figure = distance(found, expected)
        bound = bounds.bound(_BOUNDS[runtime]) if runtime in _BOUNDS else EXACT
        return Cell("right" if figure <= bound else "wrong", figure, f"the bound is {bound:.1e}")

    def written(form):
        ptq.save_quantized_model(quantized, path, spec, format=form)

    def computed():
        written("pdmodel")
        return runtimes.paddle_inference(path, [x])

    def in_xml():
        written("openvino")
        return runtimes.openvino(path, [x], as_is=False, ending="xml")

    def in_onnx():
        written("onnx")
        return runtimes.onnxruntime(path, [x], as_is=False)

    computations = (
        computed, lambda: runtimes.paddle_inference(float_file(net, path, spec), [x], ir_optim=True,
                                                    onednn=True),
        lambda: runtimes.paddle_inference(path, [x], ir_optim=True, int8=True),
        lambda: runtimes.openvino(path, [x], as_is=False), in_xml, in_onnx)
    found = {runtime: cell(runtime, compute) for runtime, compute in zip(RUNTIMES, computations)}
    if found["Paddle float"].verdict != "refused":
        rewritten = other_forms(path + "_pir")
        found = {runtime: replace(each, rewritten=each.verdict == "right" and rewritten[runtime])
                 for runtime, each in found.items()}
    return found


def _settle(net, rng):
    """Give norms other statistics and factors than those of a new network."""
    for layer in net.sublayers():
        for each, low, high in ((getattr(layer, "_mean", None), -0.2, 0.2),
                                (getattr(layer, "_variance", None), 0.5, 1.5)):
            if each is not None:
                each.set_value(rng.uniform(low, high, each.shape).astype("float32"))
