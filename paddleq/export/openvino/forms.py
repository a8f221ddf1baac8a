"""Forms of operators of Paddle that OpenVINO's frontend refuses.

A form is a function of a :class:`~paddleq.export.onnx.splice.PaddleOperator` that returns a
function which writes the operator with an :class:`~.builder.OpenVinoBuilder`, or None for a case
that the frontend reads or that has no form. Many are those of the ONNX export.
"""

import math
import re
from typing import Callable, Dict

import numpy as np
import paddle

from ..onnx.float_graph import FORMS as ONNX_FORMS

# Operators that the frontend reads right, in all cases that have a form of ONNX.
_READ = set(re.findall(r"\w+", """
    deformable_conv deformable_conv_v1 gelu layer_norm matrix_nms meshgrid multiclass_nms3 p_norm
    pool2d pool3d prior_box set_value unique"""))
FORMS: Dict[str, Callable] = {
    name: form for name, form in ONNX_FORMS.items() if name not in _READ}
"""Type of an operator -> form."""

_FLOAT, _INT64 = 1, 7  # onnx.TensorProto.DataType


def openvino_form(*types: str) -> Callable:
    """Function decorator that registers the form of operators."""
    def register(form: Callable) -> Callable:
        FORMS.update(dict.fromkeys(types, form))
        return form

    return register


def _function(*types: str) -> Callable:
    """Function decorator: ``(builder, input, operator)`` that returns the name of the result."""
    def register(write_result):
        def form(operator):
            slot = "X" if operator.input("X") else "Input"
            return lambda to: to.node("Identity", write_result(
                to, operator.input(slot), operator), output=operator.output())

        return openvino_form(*types)(form)

    return register


@_function("acos", "asin", "atan", "cosh", "sinh", "tan", "erf", "sign", "mish", "softsign")
def one_operator(to, x, operator):
    return to.node(operator.type.capitalize(), x)


@_function("square")
def square(to, x, operator):
    return to.node("Mul", x, x)


@_function("reciprocal")
def reciprocal(to, x, operator):
    return to.node("Div", np.float32(1), x)


@_function("log10", "log2")
def logarithm(to, x, operator):
    base = {"log10": 10, "log2": 2}[operator.type]
    return to.node("Mul", to.node("Log", x), np.float32(1 / math.log(base)))


@_function("log1p")
def log1p(to, x, operator):
    """Correct the rounding of ``1 + x``, which small numbers lose their digits in."""
    whole = to.node("Add", x, np.float32(1))
    rest = to.node("Sub", whole, np.float32(1))
    exact = to.node("Equal", rest, np.float32(0))
    divisor = to.node("Where", exact, np.float32(1), rest)
    return to.node("Where", exact, x, to.node(
        "Mul", to.node("Log", whole), to.node("Div", x, divisor)))


@_function("round")
def rounded(to, x, operator):
    """Round as this Paddle does; fused with a convolution, OpenVINO's own operator is wrong."""
    size = to.node("Abs", x)
    below = to.node("Floor", size)
    rest, half = to.node("Sub", size, below), np.float32(0.5)
    if paddle.__version__.startswith("2."):  # away from zero
        up = to.node("GreaterOrEqual", rest, half)
    else:  # to the even number
        odd = to.node("Greater", to.node("Mod", below, np.float32(2)), half)
        up = to.node("Or", to.node("Greater", rest, half),
                     to.node("And", to.node("Equal", rest, half), odd))
    return to.node("Mul", to.node("Sign", x), to.node("Add", below, to.node("Cast", up, to=_FLOAT)))


@_function("selu")
def selu(to, x, operator):
    alpha, scale = (np.float32(operator.attribute(name, default)) for name, default in (
        ("alpha", 1.6732632423543772), ("scale", 1.0507009873554805)))
    return to.node("Selu", x, alpha, scale)


@_function("brelu")
def hard_tanh(to, x, operator):
    return to.node("Clip", x, *(np.float32(operator.attribute(name, default))
                                for name, default in (("t_min", 0.0), ("t_max", 24.0))))


@_function("hard_shrink")
def hard_shrink(to, x, operator):
    above = to.node("Greater", to.node("Abs", x), np.float32(operator.attribute("threshold", 0.5)))
    return to.node("Where", above, x, np.float32(0))


@_function("thresholded_relu")
def thresholded_relu(to, x, operator):
    above = to.node("Greater", x, np.float32(operator.attribute("threshold", 1.0)))
    return to.node("Where", above, x, np.float32(operator.attribute("value", 0.0)))


@openvino_form("prelu")
def prelu(operator):
    x, slopes = operator.input("X"), operator.input("Alpha")
    rank, mode = len(operator.shape(x)), operator.attribute("mode", "all")
    sizes = {"all": [1] * rank, "channel": [1, -1] + [1] * (rank - 2)}.get(
        mode, [1, *operator.shape(x)[1:]])
    if min(sizes[2:], default=1) < 1:
        return None

    def write(to):
        slope = to.node("Reshape", slopes, np.array(sizes))
        least, zero = to.node("Min", x, np.float32(0)), np.float32(0)
        to.node("Add", to.node("Max", x, zero), to.node("Mul", least, slope),
                output=operator.output())

    return write


@_function("log_softmax")
def log_softmax(to, x, operator):
    return to.node("LogSoftmax", x, axis=operator.attribute("axis", -1))


@openvino_form("logsumexp")
def log_sum(operator):
    x = operator.input("X")
    axes = operator.attribute("axis", [0])
    axes = np.arange(len(operator.shape(x))) if operator.attribute("reduce_all", False) else (
        np.array(axes).reshape(-1))
    keep = int(operator.attribute("keepdim", False))

    def write(to):
        largest = to.node("ReduceMax", x, axes, keepdims=1)
        total = to.node("ReduceSum", to.node("Exp", to.node("Sub", x, largest)), axes, keepdims=1)
        found = to.node("Add", to.node("Log", total), largest)
        to.node(*(("Identity", found) if keep else ("Squeeze", found, axes)),
                output=operator.output())

    return write


@openvino_form("bitwise_and", "bitwise_or", "bitwise_xor")
def bitwise(operator):
    return lambda to: to.node(operator.type, operator.input("X"), operator.input("Y"),
                              output=operator.output())


@_function("bitwise_not")
def bitwise_not(to, x, operator):
    return to.node("bitwise_not", x)


@openvino_form("dot", "mv")
def vector_product(operator):
    vector = operator.input("Y" if operator.type == "dot" else "Vec")

    def write(to):
        to.node("ReduceSum", to.node("Mul", operator.input("X"), vector), np.array([-1]),
                keepdims=0, output=operator.output())

    return write


@openvino_form("einsum")
def einsum(operator):
    equation = operator.attribute("equation", "").replace(" ", "")
    if "." in equation or "->" not in equation:
        return None
    return lambda to: to.node("Einsum", *operator.inputs("Operands"), equation=equation,
                              output=operator.output())


@openvino_form("inverse")
def inverse(operator):
    return lambda to: to.node("Inverse", operator.input("Input"), adjoint=False,
                              output=operator.output("Output"))


_LARGEST_DETERMINANT = 6  # rows; the number of products is their factorial


@openvino_form("determinant")
def determinant(operator):
    """Expansion along the first row."""
    x = operator.input("Input")
    size = operator.shape(x)[-1]
    if not 1 <= size <= _LARGEST_DETERMINANT:
        return None

    def write(to):
        def expanded(rows, columns):
            first = to.node("Gather", rows, np.array(0), axis=-2)
            total = None
            for i, column in enumerate(columns):
                value = to.node("Gather", first, np.array(column), axis=-1)
                if len(columns) > 1:
                    rest = to.node("Gather", rows, np.arange(1, len(columns)), axis=-2)
                    value = to.node("Mul", value, expanded(rest, columns[:i] + columns[i + 1:]))
                total = value if total is None else to.node("Sub" if i % 2 else "Add", total, value)
            return total

        to.node("Identity", expanded(x, list(range(size))), output=operator.output())

    return write


@openvino_form("instance_norm")
def instance_norm(operator):
    x = operator.input("X")
    rank = len(operator.shape(x))
    epsilon = np.float32(operator.attribute("epsilon", 1e-5))

    def write(to):
        axes = np.arange(2, rank)
        distance = to.node("Sub", x, to.node("ReduceMean", x, axes))
        variance = to.node("ReduceMean", to.node("Mul", distance, distance), axes)
        name = to.node("Div", distance, to.node("Sqrt", to.node("Add", variance, epsilon)))
        for kind, slot in (("Mul", "Scale"), ("Add", "Bias")):
            if operator.input(slot):
                name = to.node(kind, name, to.node("Reshape", operator.input(slot), np.array(
                    [1, -1] + [1] * (rank - 2))))
        to.node("Identity", name, output=operator.output("Y"))

    return write


@openvino_form("conv3d")
def convolution(operator):
    if operator.attribute("data_format", "NCDHW") == "NDHWC":
        return None
    pads = operator.attribute("paddings") or [0, 0, 0]
    pads = [*pads, *pads] if len(pads) == 3 else [*pads[::2], *pads[1::2]]
    # Of an even number of zeros, SAME puts one more behind.
    auto_pad = {"SAME": "same_upper", "VALID": "valid"}.get(
        operator.attribute("padding_algorithm", "EXPLICIT"), "explicit")
    return lambda to: to.node(
        "Conv", operator.input("Input"), operator.input("Filter"), pads=pads, auto_pad=auto_pad,
        strides=operator.attribute("strides"), dilations=operator.attribute("dilations"),
        group=operator.attribute("groups", 1), output=operator.output("Output"))


@openvino_form("conv2d_transpose", "depthwise_conv2d_transpose")
def transposed_convolution(operator):
    """Transposed convolution with ``output_padding``, which the frontend ignores."""
    paddings = operator.attribute("output_padding") or []
    pads = operator.attribute("paddings") or [0, 0]
    if not any(paddings) or operator.attribute("padding_algorithm", "EXPLICIT") != "EXPLICIT" or (
            operator.attribute("data_format", "NCHW") == "NHWC"):
        return None
    pads = [*pads, *pads] if len(pads) == 2 else [*pads[::2], *pads[1::2]]
    return lambda to: to.node(
        "ConvTranspose", operator.input("Input"), operator.input("Filter"), pads=pads,
        strides=operator.attribute("strides"), dilations=operator.attribute("dilations"),
        group=operator.attribute("groups", 1), output_padding=paddings,
        output=operator.output("Output"))
