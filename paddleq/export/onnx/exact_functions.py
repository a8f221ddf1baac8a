"""ONNX forms of functions of one tensor that paddle2onnx does not have."""

from typing import Callable

import numpy as np

from .splice import exact_form

_FLOAT = 1  # onnx.TensorProto.DataType
_SHIFT_FILL = {"cumprod": 1.0, "logcumsumexp": -np.inf}


def function(*types: str) -> Callable:
    """Function decorator: ``(builder, input, operator)`` that returns the result in float32."""
    def register(write_result):
        @exact_form(*types)
        def form(operator):
            x, out = (operator.input("X") or operator.input("x"),
                      operator.output() or operator.output("out"))
            if operator.dtype(x) != "float32":
                return None
            return lambda to: to.node("Identity", write_result(to, x, operator), output=out)

        return write_result

    return register


@function("logsigmoid")
def log_sigmoid(to, x, operator):
    return to.node("Neg", to.node("Softplus", to.node("Neg", x)))


@function("celu")
def celu(to, x, operator):
    return to.node("Celu", x, alpha=float(operator.attribute("alpha", 1.0)))


@function("stanh")
def stanh(to, x, operator):
    a, b = (np.float32(operator.attribute(name, default))
            for name, default in (("scale_a", 0.67), ("scale_b", 1.7159)))
    return to.node("Mul", to.node("Tanh", to.node("Mul", x, a)), b)


@function("logit")
def logit(to, x, operator):
    eps = np.float32(operator.attribute("eps", 1e-6))
    if eps > 0:
        x = to.node("Clip", x, eps, np.float32(1) - eps)
    return to.node("Log", to.node("Div", x, to.node("Sub", np.float32(1), x)))


@function("asinh", "acosh", "atanh")
def inverse_hyperbolic(to, x, operator):
    return to.node(operator.type.capitalize(), x)


@function("expm1")
def expm1(to, x, operator):
    return to.node("Sub", to.node("Exp", x), np.float32(1))


@function("trunc")
def trunc(to, x, operator):
    return to.node("Mul", to.node("Sign", x), to.node("Floor", to.node("Abs", x)))


@function("isnan_v2", "isinf_v2", "isfinite_v2")
def is_finite(to, x, operator):
    nan = to.node("IsNaN", x) if operator.type != "isinf_v2" else None
    infinite = to.node("IsInf", x) if operator.type != "isnan_v2" else None
    if operator.type == "isfinite_v2":
        return to.node("Not", to.node("Or", nan, infinite))
    return nan or infinite


@function("maxout")
def maxout(to, x, operator):
    groups, axis = operator.attribute("groups"), operator.attribute("axis", 1)
    return to.node("Max", *[
        to.node("Slice", x, np.array([group]), np.array([np.iinfo(np.int64).max]),
                np.array([axis]), np.array([groups])) for group in range(groups)])


@exact_form("cumprod", "logcumsumexp")
def cumulative(operator):
    """Combine with the values 1, 2, 4, ... places before, as often as the axis is long."""
    x = operator.input("X")
    shape = operator.shape(x)
    axis = operator.attribute("dim" if operator.type == "cumprod" else "axis", -1) % len(shape)
    if (operator.dtype(x) != "float32" or shape[axis] < 1
            or any(map(operator.attribute, ("flatten", "exclusive", "reverse")))):
        return None

    def write(to):
        name, step = x, 1
        fill = np.float32(_SHIFT_FILL[operator.type])
        pads = np.zeros(2 * len(shape), np.int64)
        while step < shape[axis]:
            pads[axis] = step
            before = to.node("Slice", name, np.array([0]), np.array([-step]), np.array([axis]))
            name = _combined(to, operator.type, name, to.node("Pad", before, pads.copy(), fill))
            step *= 2
        to.node("Identity", name, output=operator.output())

    return write


def _combined(to, kind, a, b):
    if kind == "cumprod":
        return to.node("Mul", a, b)
    distance = to.node("Abs", to.node("Sub", a, b))
    return to.node("Add", to.node("Max", a, b), to.node("Log", to.node(
        "Add", np.float32(1), to.node("Exp", to.node("Neg", distance)))))


@exact_form("label_smooth")
def label_smooth(operator):
    """Mixture with equal shares; another prior distribution is left to paddle2onnx."""
    x = operator.input("X")
    classes = operator.shape(x)[-1]
    if operator.input("PriorDist") or classes < 1:
        return None
    epsilon = np.float32(operator.attribute("epsilon", 0.0))
    return lambda to: to.node("Add", to.node("Mul", x, np.float32(1) - epsilon),
                              epsilon / np.float32(classes), output=operator.output())


@exact_form("elementwise_fmax", "elementwise_fmin", "elementwise_heaviside")
def ignoring_nan(operator):
    """Maximum and minimum that ignore NaN, and the step function."""
    x, y = operator.input("X"), operator.input("Y")
    if operator.dtype(x) != "float32" or operator.attribute("axis", -1) != -1:
        return None

    def write(to):
        if operator.type == "elementwise_heaviside":
            zero = np.float32(0)
            step = to.node("Cast", to.node("Greater", x, zero), to=_FLOAT)
            to.node("Where", to.node("Equal", x, zero), y, step, output=operator.output())
            return
        best = to.node("Max" if operator.type.endswith("fmax") else "Min", x, y)
        rest = to.node("Where", to.node("IsNaN", y), x, best)
        to.node("Where", to.node("IsNaN", x), y, rest, output=operator.output())

    return write
