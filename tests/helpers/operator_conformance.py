"""One operator behind a quantized convolution, computed in every runtime.

The outputs must be those of the simulation. A runtime that refuses the model raises an error.
"""

import inspect
import os
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import operator_cases
import operator_cases_spatial
import operator_cases_tensors
import paddle
import runtimes
from paddle import nn

from paddleq.export.onnx.splice import cut
from paddleq.export.openvino.export import apply_frontend_workarounds
from paddleq.export.openvino.reader import has_forms
from paddleq.export.pir_to_program import load_program
from paddleq.export.program.passes.channels_first import to_channels_first
from paddleq.export.program.passes.layout_rules import has_channels_last
from paddleq.export.program.passes.runtime_workarounds import apply_runtime_workarounds

OPERATORS = {}
for _module in (operator_cases, operator_cases_tensors, operator_cases_spatial):
    for _table in _module.TABLES:
        assert not OPERATORS.keys() & _table.keys()
        OPERATORS.update(_table)

RUNTIMES = ("as it stands", "Paddle float", "Paddle int8", "OpenVINO", "OpenVINO .xml",
            "ONNX Runtime")
_TOLERANCE = 1e-4  # of the largest value
_MOST_STEPS = 0.01  # share of values at which a step function may select the other side
_SHAPE = [2, 8, 9, 7]
# Operators with steps: a change in the last digit of a convolution may change an element wholly.
STEPS = set(re.findall(r"\w+", """
    ceil floor round sign trunc frac cast sgn signbit remainder floor_divide argmax argmin argsort
    topk mode kthvalue searchsorted bucketize histogram bincount less_than less_equal greater_than
    greater_equal equal not_equal isclose logical_and logical_or logical_xor logical_not
    bitwise_and bitwise_or bitwise_xor bitwise_not heaviside count_nonzero all any one_hot
    embedding sequence_mask shard_index ldexp where masked_fill masked_scatter unique
    max_pool2d max_unpool1d max_unpool2d max_unpool3d grid_sample frexp hardshrink roi_pool
    psroi_pool"""))


@dataclass
class Cell:
    """Result of an operator in a runtime.

    Attributes:
        verdict: "right", "refused" or "wrong".
        figure: largest difference, as a share of the largest value.
        reason: message of a refusal.
        rewritten: True if the file has the operator in another form.
    """

    verdict: str
    figure: float = 0.0
    reason: str = ""
    rewritten: bool = False


class Behind(nn.Layer):
    """A function of the outputs of one convolution or of two."""

    def __init__(self, function):
        super().__init__()
        needed = [each for each in inspect.signature(function).parameters.values()
                  if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD]
        self.function, self.convolutions = function, nn.LayerList(
            [_convolution(number) for number in range(len(needed))])

    def forward(self, x):
        found = self.function(*[each(x) for each in self.convolutions])
        found = found if isinstance(found, (list, tuple)) else [found]
        return [each if each.dtype == paddle.float32 else each.astype("float32") for each in found]


def _convolution(seed):
    conv, random = nn.Conv2D(8, 12, 3, padding=1), np.random.RandomState(seed)
    conv.weight.set_value((random.randn(12, 8, 3, 3) / 5).astype("float32"))
    conv.bias.set_value((random.randn(12) / 5).astype("float32"))
    return conv


def measure(name, folder):
    """Return {runtime: :class:`Cell`} of an operator; None if this Paddle does not have it."""
    x = np.random.RandomState(5).uniform(-1, 1, _SHAPE).astype("float32")
    net, tensor = Behind(OPERATORS[name]), paddle.to_tensor(x)
    net.eval()
    try:
        plain = _outputs(net, tensor)
    except (AttributeError, ModuleNotFoundError):
        return None
    path, spec = str(folder / "m"), [paddle.static.InputSpec(_SHAPE, "float32", "x")]
    ptq, quantized = runtimes.quantized(net, x, ["Conv2D"])
    expected, steps = _outputs(quantized, tensor), name.partition(" ")[0] in STEPS

    def cell(run, wanted=expected, runtime=""):
        try:
            return compared(run(), wanted, steps)
        except Exception as error:  # of every runtime's class
            return Cell("refused", reason=runtime + reason_of(error))

    def written():
        ptq.save_quantized_model(quantized, path, spec)
        return runtimes.paddle_inference(path, [x])

    def float_outputs():
        return runtimes.paddle_inference(float_file(net, path, spec), [x], ir_optim=True,
                                         onednn=True)

    def onnx_file():
        ptq.save_quantized_model(quantized, path, spec, format="onnx")
        return runtimes.onnxruntime(path, [x], as_is=False)

    def xml_file():
        ptq.save_quantized_model(quantized, path, spec, format="openvino")
        return runtimes.openvino(path, [x], as_is=False, ending="xml")

    stands = cell(written)
    found = {"as it stands": stands, "Paddle float": cell(float_outputs, plain)}
    if stands.verdict == "refused":
        found.update({"Paddle int8": stands, "OpenVINO": stands})
    else:
        found["Paddle int8"] = cell(lambda: runtimes.paddle_inference(
            path, [x], ir_optim=True, int8=True))
        found["OpenVINO"] = cell(lambda: runtimes.openvino(path, [x], as_is=False),
                                 runtime="OpenVINO: ")
    found["OpenVINO .xml"] = cell(xml_file)
    found["ONNX Runtime"] = cell(onnx_file)
    if found["Paddle float"].verdict != "refused":
        rewritten = other_forms(path + "_pir")
        for runtime, each in found.items():
            each.rewritten = each.verdict == "right" and rewritten[runtime]
    return found


def _outputs(net, tensor):
    with paddle.no_grad():
        return [each.numpy() for each in net(tensor)]


def float_file(net, path, spec):
    """Write a float model as ``path_float.pdmodel``; return its prefix."""
    paddle.jit.save(net, path + "_pir", input_spec=spec)
    _load(path + "_pir").save(path + "_float.pdmodel", path + "_float.pdiparams")
    return path + "_float"


def _load(prefix):
    model = next(each for each in (f"{prefix}.json", f"{prefix}.pdmodel") if os.path.exists(each))
    params = f"{prefix}.pdiparams"
    return load_program(model, params if os.path.exists(params) else None)


def other_forms(prefix):
    """Return {runtime: True if operators of a float model are rewritten in its file}."""
    program = _load(prefix)
    last = any(has_channels_last(op) for block in program.desc.blocks for op in block.ops)
    in_program = last or _is_changed(program, apply_runtime_workarounds)
    in_xml = last or _is_changed(program, apply_frontend_workarounds) or has_forms(program)
    to_channels_first(program)
    return {**dict.fromkeys(RUNTIMES, in_program), "OpenVINO .xml": in_xml,
            "ONNX Runtime": cut(program) is not None or last}


def _is_changed(program, apply):
    """Return True if a function of programs adds operators."""
    changed = program.copy()
    apply(changed)
    before, after = (Counter(op.type for block in each.desc.blocks for op in block.ops
                             if op.type != "assign") for each in (program, changed))
    return bool(after - before)


def compared(found, wanted, steps=False):
    """Return the :class:`Cell` of outputs."""
    figure = 0.0
    if len(found) != len(wanted):
        return Cell("wrong", float("inf"))
    for a, b in zip(found, wanted):
        a, b = (np.asarray(each, np.float64) for each in (a, b))
        if a.shape != b.shape and not a.size == b.size == 1:
            return Cell("wrong", float("inf"), f"shape {a.shape}, not {b.shape}")
        distance = np.abs(a - b).reshape(-1)
        distance[(a == b).reshape(-1) | np.isnan(a).reshape(-1) & np.isnan(b).reshape(-1)] = 0
        largest = np.abs(b[np.isfinite(b)]).max(initial=1e-30)
        if steps and (distance > _TOLERANCE * largest).mean() <= _MOST_STEPS:
            continue
        figure = max(figure, distance.max(initial=0) / largest)
    return Cell("right" if figure <= _TOLERANCE else "wrong", float(figure))


def reason_of(error):
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if re.search(
        r"Error:|operator|Hint|No translator|doesn't support|not support", line)]
    return (named or lines or [type(error).__name__])[-1][:200]
