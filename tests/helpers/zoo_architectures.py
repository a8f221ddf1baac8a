"""Architectures of all tasks, quantized, exported, and compared with their simulation."""

import os
import tempfile
from dataclasses import dataclass, field

import numpy as np
import paddle
from paddle import nn
from runtimes import (
    INT8_WEIGHT_BITS,
    onnxruntime,
    openvino,
    paddle_inference,
    relative_error,
)
from zoo_classification import CLASSIFICATION
from zoo_detection import DETECTION
from zoo_segmentation import SEGMENTATION
from zoo_text import TEXT, WORDS
from zoo_tokens import TOKENS

import paddleq
from paddleq.fake_quant.fake_quantize import FakeQuantize
from paddleq.paddleslim import PerChannelAbsmaxQuantizer

# (function that makes the network, shapes of its inputs; integers below WORDS if two-dimensional)
ARCHITECTURES = {**CLASSIFICATION, **TOKENS, **SEGMENTATION, **DETECTION, **TEXT}
METHODS = ("ptq", "qat")
COMPARED = 4  # samples
# (format, function of the path prefix and the inputs): stock runtimes with their own optimizations.
RUNTIMES = {
    "as it stands": ("pdmodel", paddle_inference),
    "paddle int8": ("pdmodel", lambda path, arrays: paddle_inference(
        path, arrays, ir_optim=True, int8=True)),
    "openvino": ("pdmodel", lambda path, arrays: openvino(path, arrays, as_is=False)),
    "onnxruntime": ("onnx", lambda path, arrays: onnxruntime(path, arrays, as_is=False)),
    "openvino onnx": ("onnx", lambda path, arrays: openvino(
        path, arrays, as_is=False, ending="onnx")),
    "openvino xml": ("openvino", lambda path, arrays: openvino(
        path, arrays, as_is=False, ending="xml")),
}
_NORMS = (nn.BatchNorm1D, nn.BatchNorm2D)


def inputs(name, count, rng):
    """Random arrays for an architecture; pictures have coarse and fine structure."""
    found = []
    for shape in ARCHITECTURES[name][1]:
        shape = [count, *shape[1:]]
        if len(shape) == 2:
            found.append(rng.randint(0, WORDS, shape).astype("int64"))
            continue
        coarse = rng.randn(*shape[:2], shape[2] // 4, shape[3] // 4).repeat(4, 2).repeat(4, 3)
        found.append((coarse + 0.3 * rng.randn(*shape)).astype("float32"))
    return found


def network(name, seed=0):
    """A network with random norms, whose statistics are those of its inputs."""
    paddle.seed(seed)
    rng, net = np.random.RandomState(seed), ARCHITECTURES[name][0]()
    norms = [layer for layer in net.sublayers() if isinstance(layer, _NORMS)]
    for layer in net.sublayers():
        if isinstance(layer, (*_NORMS, nn.LayerNorm, nn.GroupNorm)):
            width = layer.weight.shape
            layer.weight.set_value(rng.uniform(0.6, 1.4, width).astype("float32"))
            layer.bias.set_value((0.3 * rng.randn(*width)).astype("float32"))
    net.train()
    for layer in norms:
        layer._momentum = 0.0
    with paddle.no_grad():
        net(*map(paddle.to_tensor, inputs(name, 8, rng)))
    for layer in norms:
        layer._momentum = 0.9
        # Channels that hardly vary, of pooled features, would amplify rounding.
        layer._variance.set_value(layer._variance.clip(min=0.1))
    net.eval()
    return net


def outputs(result):
    """Arrays of a network's output."""
    return [each.numpy() for each in (result if isinstance(result, (list, tuple)) else [result])]


def run(net, arrays):
    """Outputs of ``net`` without gradients."""
    with paddle.no_grad():
        return outputs(net(*map(paddle.to_tensor, arrays)))


def spec(name):
    """``input_spec`` of an architecture."""
    return [paddle.static.InputSpec(shape, "int64" if len(shape) == 2 else "float32", f"x{number}")
            for number, shape in enumerate(ARCHITECTURES[name][1])]


def quantized(name, method, seed=0):
    """Return (the quantizer, the quantized network, the float network of the same weights)."""
    net, rng = network(name, seed), np.random.RandomState(seed + 1)
    if method == "ptq":
        quanter = paddleq.PTQ("AbsmaxQuantizer", PerChannelAbsmaxQuantizer(INT8_WEIGHT_BITS))
        result = quanter.quantize(net, fuse=True)
        compared = inputs(name, COMPARED, np.random.RandomState(seed + 2))  # nothing is clipped
        quanter.calibrate(result, [[*map(paddle.to_tensor, arrays)]
                                   for arrays in (inputs(name, 4, rng), compared)])
        return quanter, result, net
    quanter = paddleq.QAT({"weight_bits": INT8_WEIGHT_BITS})
    quanter.quantize(net)
    net.train()
    for layer in net.sublayers():
        if isinstance(layer, _NORMS):
            layer.eval()
    optimizer = paddle.optimizer.SGD(1e-3, parameters=net.parameters())
    for step in range(8):
        found = net(*map(paddle.to_tensor, inputs(name, 4, rng)))
        if step == 6:  # a training step with scales that have left their start
            found = found if isinstance(found, (list, tuple)) else [found]
            sum(each.mean() for each in found if each.dtype == paddle.float32).backward()
            optimizer.step()
            optimizer.clear_grad()
    net.eval()
    plain, state = ARCHITECTURES[name][0](), net.state_dict()
    plain.eval()
    plain.set_state_dict({key: state[key] for key in plain.state_dict()})
    return quanter, net, plain


@dataclass
class Result:
    """One architecture, quantized by one method, in every runtime.

    Attributes:
        errors: largest relative L2 distance of an output from the simulation's, by runtime.
        refusals: message of the exception, by runtime.
        loss: distance of the simulation from the float network.
        near, spread: distance of the simulation from itself when the input of each activation
            quantizer moves by up to 0.01 steps, and by up to half a step.
        finer: distance of the simulation from itself with 255 levels behind a ReLU.
    """

    name: str
    method: str
    loss: float
    near: float
    spread: float
    finer: float
    errors: dict = field(default_factory=dict)
    refusals: dict = field(default_factory=dict)

    def bound(self, runtime):
        """Largest error that rounding explains.

        As it stands, the file computes the same operations. OpenVINO and ONNX Runtime round biases
        to integers and add in another order, which moves values over the borders of rounding.
        Paddle Inference rounds outputs of layers too, and to 255 levels behind a ReLU, where the
        simulation has 127 levels in the same range.
        """
        return {"as it stands": 1e-6,
                "paddle int8": 1.25 * self.spread + self.finer + 1e-3}.get(
            runtime, 2 * self.near + 1e-3)

    def wrong(self, runtime):
        """Return True if the runtime computes another function."""
        return runtime in self.errors and not self.errors[runtime] <= self.bound(runtime)


def distance(found, expected):
    """Largest relative L2 distance of an output; infinity if the shapes differ."""
    if len(found) != len(expected) or any(f.shape != e.shape for f, e in zip(found, expected)):
        return float("inf")
    return max(relative_error(f, e) if np.any(e) else float(np.abs(f).max())
               for f, e in zip(found, expected))


def _simulated(net, arrays, pre=None, post=None):
    """Outputs of the simulation with hooks at its activation quantizers."""
    hooks = []
    for name, layer in net.named_sublayers():
        if isinstance(layer, FakeQuantize) and name.rpartition(".")[2].startswith("activation_"):
            hooks += [layer.register_forward_pre_hook(pre)] if pre else []
            hooks += [layer.register_forward_post_hook(post)] if post else []
    found = run(net, arrays)
    for hook in hooks:
        hook.remove()
    return found


def moved(net, arrays, steps, rng):
    """Outputs of the simulation when quantizers' inputs move by up to ``steps`` steps."""
    def move(quantizer, args):
        noise = rng.uniform(-steps, steps, args[0].shape).astype("float32")
        return (args[0] + paddle.to_tensor(noise) * quantizer.scale, *args[1:])
    return _simulated(net, arrays, pre=move)


def unsigned(net, arrays):
    """Outputs of the simulation with 255 levels for tensors without negative values.

    The range remains that of 127 levels, as in the int8 kernels of Paddle Inference.
    """
    def refine(quantizer, args, output):
        if args[0].min().item() < 0:
            return output
        step = quantizer.scale * (127 / 255)
        return (args[0] / step).round().clip(0, 255) * step
    return _simulated(net, arrays, post=refine)


def measure(name, method, seed=0, runtimes=tuple(RUNTIMES)):
    """Quantize, export and run one architecture; return a :class:`Result`."""
    quanter, net, plain = quantized(name, method, seed)
    rng = np.random.RandomState(seed + 2)
    arrays = inputs(name, COMPARED, rng)
    expected = run(net, arrays)
    result = Result(name, method, distance(expected, run(plain, arrays)), *(
        max(distance(moved(net, arrays, steps, rng), expected) for _ in range(3))
        for steps in (0.01, 0.5)), distance(unsigned(net, arrays), expected))
    with tempfile.TemporaryDirectory() as folder:
        path, refused = os.path.join(folder, "model"), {}
        for format in sorted({RUNTIMES[runtime][0] for runtime in runtimes}):
            try:
                quanter.save_quantized_model(net, path, spec(name), format=format)
            except paddleq.PaddleqError as error:
                refused[format] = f"{type(error).__name__}: {error}"
        for runtime in runtimes:
            format, compute = RUNTIMES[runtime]
            if format in refused:
                result.refusals[runtime] = refused[format]
                continue
            try:
                found = compute(path, arrays)
            except Exception as error:  # each runtime has types of its own
                result.refusals[runtime] = f"{type(error).__name__}: {error}"
            else:
                result.errors[runtime] = distance(found, expected)
    return result
