"""Forms of operators that sort, select and move elements."""

import numpy as np

from ...errors import UnsupportedOperatorError
from ..onnx.exact_operators import adaptive_pool
from ..onnx.exact_operators import recurrent as recurrent_layers
from .forms import openvino_form


@openvino_form("max_pool2d_with_index", "max_pool3d_with_index")
def max_pool_with_places(operator):
    """Pool whose places another operator reads; the frontend reads the others."""
    return adaptive_pool(operator) if operator.used(operator.output("Mask")) else None


@openvino_form("rnn")
def recurrent(operator):
    """Layers of other cells than LSTM, which the frontend reads."""
    if operator.input("SequenceLength"):
        raise UnsupportedOperatorError(
            "OpenVINO ignores the lengths of the sequences of a recurrent layer; export a model "
            "without sequence_length, or write format='onnx' for ONNX Runtime", operator.type)
    return None if operator.attribute("mode") == "LSTM" else recurrent_layers(operator)


@openvino_form("norm")
def norm(operator):
    """Quotient by the length along an axis."""
    x, axis = operator.input("X"), np.array([operator.attribute("axis", -1)])
    epsilon = np.float32(operator.attribute("epsilon", 1e-10))

    def write(to):
        squares = to.node("ReduceSum", to.node("Mul", x, x), axis, keepdims=1)
        length = to.node("Sqrt", to.node("Add", squares, epsilon), output=operator.output("Norm"))
        to.node("Div", x, length, output=operator.output())

    return write


@openvino_form("dist")
def distance(operator):
    """Norm of a difference; that of power 0 counts the elements that differ."""
    power = np.float32(operator.attribute("p", 2.0))

    def write(to):
        size = to.node("Abs", to.node("Sub", operator.input("X"), operator.input("Y")))
        if np.isinf(power):
            to.node("ReduceMax" if power > 0 else "ReduceMin", size, keepdims=0,
                    output=operator.output())
            return
        if power == 0:
            to.node("ReduceSum", to.node("Sign", size), keepdims=0, output=operator.output())
            return
        total = to.node("ReduceSum", to.node("Pow", size, power), keepdims=0)
        to.node("Pow", total, np.float32(1) / power, output=operator.output())

    return write


@openvino_form("argsort")
def argsort(operator):
    x, axis = operator.input("X"), operator.attribute("axis", -1)

    def write(to):
        count = _size(to, x, axis)
        to.several("TopK", x, count, outputs=[operator.output(), operator.output("Indices")],
                   axis=axis, largest=int(operator.attribute("descending", False)))

    return write


def _size(to, x, axis):
    """Size of an axis as a vector of one element."""
    return to.node("Gather", to.node("Shape", x), np.array([axis]))


@openvino_form("repeat_interleave")
def repeat_interleave(operator):
    x, times = operator.input("X"), operator.attribute("Repeats", 0)
    axis = operator.attribute("dim", 0)
    if operator.input("RepeatsTensor") or times < 1:
        return None

    def write(to):
        end = to.node("Squeeze", to.node("Mul", _size(to, x, axis), np.array([times])))
        places = to.node("Range", np.array(0), end, np.array(1))
        to.node("Gather", x, to.node("Div", places, np.array(times)), axis=axis,
                output=operator.output())

    return write


@openvino_form("index_sample")
def index_sample(operator):
    return lambda to: to.node("GatherElements", operator.input("X"), operator.input("Index"),
                              axis=1, output=operator.output())


@openvino_form("size")
def size_of(operator):
    return lambda to: to.node("ReduceProd", to.node("Shape", operator.input("Input")),
                              np.array([0]), keepdims=0, output=operator.output())


@openvino_form("empty")
def empty(operator):
    """Tensor of any values: zeros."""
    shape, dtype = operator.attribute("shape") or [], operator.dtype(operator.output())
    if operator.input("ShapeTensor") or operator.inputs("ShapeTensorList") or (
            min(shape, default=1) < 0 or dtype not in ("float32", "int32", "int64", "bool")):
        return None
    return lambda to: to.node("Identity", np.zeros(shape, dtype), output=operator.output())


@openvino_form("tril_triu")
def triangle(operator):
    return lambda to: to.node("Trilu", operator.input("X"), np.array(operator.attribute(
        "diagonal", 0)), upper=int(not operator.attribute("lower", True)),
        output=operator.output())


@openvino_form("pixel_shuffle")
def pixel_shuffle(operator):
    if operator.attribute("data_format", "NCHW") == "NHWC":
        return None
    return lambda to: to.node("DepthToSpace", operator.input("X"), mode="CRD",
                              blocksize=operator.attribute("upscale_factor", 1),
                              output=operator.output())


@openvino_form("temporal_shift")
def temporal_shift(operator):
    x, count = operator.input("X"), operator.attribute("seg_num")
    last = operator.attribute("data_format", "NCHW") == "NHWC"
    shape = operator.shape(x)
    channels = shape[3 if last else 1]
    if channels < 1 or not last and min(shape[2:]) < 1 or last and min(shape[1:3]) < 1:
        return None
    part = int(channels * operator.attribute("shift_ratio", 0.25))
    axis = 4 if last else 2

    def write(to):
        frames = to.node("Reshape", x, np.array([-1, count, *shape[1:]]))

        def channels_of(first, end):
            return to.node("Slice", frames, np.array([first]), np.array([end]), np.array([axis]))

        def shifted(name, before, after):
            pads = np.zeros(10, np.int64)
            pads[[1, 6]] = before, after
            wide = to.node("Pad", name, pads)
            return to.node("Slice", wide, np.array([after]), np.array([count + after]),
                           np.array([1]))

        parts = [shifted(channels_of(0, part), 1, 0), shifted(channels_of(part, 2 * part), 0, 1),
                 channels_of(2 * part, channels)]
        kept = [each for each, size in zip(parts, (part, part, channels - 2 * part)) if size]
        to.node("Reshape", to.node("Concat", *kept, axis=axis), np.array([-1, *shape[1:]]),
                output=operator.output())

    return write
