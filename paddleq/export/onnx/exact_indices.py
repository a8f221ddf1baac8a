"""ONNX forms of operators with indices, and of rare products, that paddle2onnx does not convert."""

import numpy as np

from .splice import exact_form

_CODES = {0: 9, 2: 6, 3: 7, 5: 1}  # VarType of Paddle -> onnx.TensorProto.DataType


@exact_form("index_put")
def index_put(operator):
    x, value, indices = operator.input("x"), operator.input("value"), operator.inputs("indices")
    shape, sizes = operator.shape(x), [operator.shape(each) for each in indices]
    if any(operator.dtype(each) not in ("int64", "int32") for each in indices) or any(
            each != sizes[0] or min(each, default=1) < 1 for each in sizes) or (
            min(shape[len(indices):], default=1) < 1):
        return None

    def write(to):
        kinds = {}
        if operator.attribute("accumulate", False):
            to.require_opset(16, "index_put with accumulate=True")
            kinds = {"reduction": "add"}
        places = [to.node("Unsqueeze", to.node("Cast", each, to=7), np.array([-1]))
                  for each in indices]
        index = to.node("Concat", *places, axis=-1)
        values = to.node("Expand", value, np.array(sizes[0] + shape[len(indices):], np.int64))
        to.node("ScatterND", x, index, values, output=operator.output("out"), **kinds)

    return write


@exact_form("sequence_mask")
def sequence_mask(operator):
    size, dtype = operator.attribute("maxlen", -1), operator.attribute("out_dtype", 3)
    if operator.input("MaxLenTensor") or size < 1 or dtype not in _CODES:
        return None

    def write(to):
        lengths = to.node("Unsqueeze", to.node("Cast", operator.input("X"), to=7), np.array([-1]))
        to.node("Cast", to.node("Less", np.arange(size), lengths), to=_CODES[dtype],
                output=operator.output("Y"))

    return write


@exact_form("bilinear_tensor_product")
def bilinear(operator):
    def write(to):
        x, y = (to.node("Unsqueeze", operator.input(slot), np.array([1, 2]))
                for slot in ("X", "Y"))
        product = to.node("Mul", to.node("MatMul", x, operator.input("Weight")), y)
        bias = operator.input("Bias")
        total = to.node("ReduceSum", product, np.array([2, 3]), keepdims=0,
                        output=operator.output() if bias is None else None)
        if bias is not None:
            to.node("Add", total, bias, output=operator.output())

    return write


@exact_form("unpool")
def max_unpool(operator):
    x, shape = operator.input("X"), operator.shape(operator.output())
    if min(shape) < 1 or len(shape) != 4 or operator.attribute("data_format") == "NHWC":
        return None

    def write(to):
        flat = np.array([0, 0, -1])
        index = to.node("Reshape", to.node("Cast", operator.input("Indices"), to=7), flat)
        zeros = to.node("Expand", np.float32(0), np.array([*shape[:2], shape[2] * shape[3]]))
        filled = to.node("ScatterElements", zeros, index, to.node("Reshape", x, flat), axis=2)
        to.node("Reshape", filled, np.array(shape), output=operator.output())

    return write


@exact_form("conv3d_transpose")
def transposed_convolution(operator):
    pads = operator.attribute("paddings") or [0, 0, 0]
    if (operator.attribute("padding_algorithm", "EXPLICIT") != "EXPLICIT"
            or operator.attribute("output_size") or operator.inputs("OutputSizeTensor")):
        return None
    pads = [*pads, *pads] if len(pads) == 3 else [*pads[::2], *pads[1::2]]

    def write(to):
        to.node("ConvTranspose", operator.input("Input"), operator.input("Filter"),
                output=operator.output("Output"), pads=pads,
                strides=operator.attribute("strides"), dilations=operator.attribute("dilations"),
                group=operator.attribute("groups", 1),
                output_padding=operator.attribute("output_padding") or [0, 0, 0])

    return write
