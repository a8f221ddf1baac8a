"""ONNX forms of losses and of functions of two tensors, element by element."""

import math

import numpy as np

from .exact_tensors import reduced
from .splice import exact_form

_FLOAT = 1  # onnx.TensorProto.DataType


def _floats(operator, *slots):
    return all(operator.dtype(operator.input(slot)) == "float32" for slot in slots)


@exact_form("huber_loss")
def huber_loss(operator):
    """Parabola for small differences, straight line for others."""
    if not _floats(operator, "X", "Y") or operator.used(operator.output("Residual")):
        return None
    delta = np.float32(operator.attribute("delta"))

    def write(to):
        distance = to.node("Abs", to.node("Sub", operator.input("Y"), operator.input("X")))
        near = to.node("Mul", to.node("Mul", distance, distance), np.float32(0.5))
        far = to.node("Mul", delta, to.node("Sub", distance, delta * np.float32(0.5)))
        to.node("Where", to.node("LessOrEqual", distance, delta), near, far,
                output=operator.output())

    return write


@exact_form("kldiv_loss")
def kullback_leibler(operator):
    x, target = operator.input("X"), operator.input("Target")
    how, rank = operator.attribute("reduction", "mean"), len(operator.shape(x))
    if not _floats(operator, "X", "Target") or how not in ("none", "sum", "mean", "batchmean"):
        return None

    def write(to):
        if operator.attribute("log_target", False):
            terms = to.node("Mul", to.node("Exp", target), to.node("Sub", target, x))
        else:
            positive = to.node("Greater", target, np.float32(0))
            logarithm = to.node("Log", to.node("Where", positive, target, np.float32(1)))
            terms = to.node("Where", positive, to.node("Mul", target, to.node(
                "Sub", logarithm, x)), np.float32(0))
        if how == "none":
            to.node("Identity", terms, output=operator.output("Loss"))
            return
        axes = list(range(rank))
        total = (reduced(to, "ReduceMean", terms, axes, False) if how == "mean" else
                 to.node("ReduceSum", terms, np.array(axes), keepdims=0))
        if how == "batchmean":
            count = to.node("Cast", to.node("Gather", to.node("Shape", x), np.array(0)), to=_FLOAT)
            total = to.node("Div", total, count)
        to.node("Identity", total, output=operator.output("Loss"))

    return write


@exact_form("log_loss")
def log_loss(operator):
    if not _floats(operator, "Predicted", "Labels"):
        return None
    epsilon = np.float32(operator.attribute("epsilon", 1e-4))

    def write(to):
        x, label = operator.input("Predicted"), operator.input("Labels")
        first = to.node("Mul", label, to.node("Log", to.node("Add", x, epsilon)))
        rest = to.node("Log", to.node("Add", to.node("Sub", np.float32(1), x), epsilon))
        second = to.node("Mul", to.node("Sub", np.float32(1), label), rest)
        to.node("Sub", to.node("Neg", first), second, output=operator.output("Loss"))

    return write


@exact_form("bce_loss")
def binary_cross_entropy(operator):
    if not _floats(operator, "X", "Label"):
        return None

    def write(to):
        x, label = operator.input("X"), operator.input("Label")
        one, least = np.float32(1), np.float32(1e-12)
        first = to.node("Log", to.node("Max", x, least))
        second = to.node("Log", to.node("Max", to.node("Sub", one, x), least))
        to.node("Sub", to.node("Mul", to.node("Sub", label, one), second),
                to.node("Mul", label, first), output=operator.output())

    return write


@exact_form("sigmoid_cross_entropy_with_logits")
def binary_cross_entropy_with_logits(operator):
    """Without normalization; labels of the ignored value give 0.

    Versions of Paddle give pos_weight different meanings: it is left to paddle2onnx, which refuses.
    """
    if (not _floats(operator, "X", "Label") or operator.attribute("normalize", False)
            or operator.inputs("pos_weight")):
        return None

    def write(to):
        x, label = operator.input("X"), operator.input("Label")
        low = to.node("Log", to.node("Add", np.float32(1), to.node(
            "Exp", to.node("Neg", to.node("Abs", x)))))
        loss = to.node("Add", to.node("Sub", to.node("Max", x, np.float32(0)), to.node(
            "Mul", x, label)), low)
        ignored = np.float32(operator.attribute("ignore_index", -100))
        to.node("Where", to.node("Equal", label, ignored), np.float32(0), loss,
                output=operator.output())

    return write


@exact_form("angle")
def angle(operator):
    """0 for positive real numbers, pi for negative ones."""
    if not _floats(operator, "X"):
        return None
    return lambda to: to.node(
        "Where", to.node("Less", operator.input("X"), np.float32(0)), np.float32(math.pi),
        np.float32(0), output=operator.output())


@exact_form("conj")
def conjugate(operator):
    """Real numbers are their own."""
    x = operator.input("X")
    return None if operator.dtype(x) not in ("float32", "int32", "int64") else (
        lambda to: to.node("Identity", x, output=operator.output()))


@exact_form("copysign")
def copy_sign(operator):
    """The inverse of a negative zero is negative."""
    if not _floats(operator, "x", "y"):
        return None

    def write(to):
        size, y = to.node("Abs", operator.input("x")), operator.input("y")
        zero = to.node("Equal", y, np.float32(0))
        negative = to.node("Less", to.node("Where", zero, to.node(
            "Reciprocal", y), y), np.float32(0))
        to.node("Where", negative, to.node("Neg", size), size, output=operator.output("out"))

    return write


@exact_form("rrelu")
def random_relu(operator):
    """Slope of inference: the mean of both limits."""
    x = operator.input("X")
    if not (_floats(operator, "X") and operator.attribute("is_test", False)):
        return None
    slope = np.float32((np.float64(np.float32(operator.attribute("lower"))) + np.float32(
        operator.attribute("upper"))) / 2)
    return lambda to: to.node("LeakyRelu", x, alpha=float(slope), output=operator.output())
