"""Conversion of files that quantize by ``fake_*`` operators: PIR, and ``onnx_format=False``."""

import numpy as np
import openvino as ov
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from runtimes import INT8_WEIGHT_BITS, onnxruntime, openvino, paddle_inference, relative_error

import paddleq
from paddleq.deploy import Predictor
from paddleq.export.markers import ActivationMark, WeightMark, simulated_weight
from paddleq.export.paddle.markers_from_program import raise_to_markers
from paddleq.export.pir_to_program import load_program
from paddleq.export.program.op_desc import attribute, inputs, set_attribute
from paddleq.export.program.passes.fake_operators import _grid

SPEC = [paddle.static.InputSpec([None, 4, 9, 9], "float32", "x0")]


class Net(nn.Layer):
    """Weights of each layout: channels at the first, second and last axis."""

    def __init__(self):
        super().__init__()
        self.conv, self.depthwise = nn.Conv2D(4, 8, 3), nn.Conv2D(8, 8, 3, groups=8)
        self.transposed, self.linear = nn.Conv2DTranspose(8, 6, 2, 2), nn.Linear(6, 5)

    def forward(self, x):
        x = self.transposed(F.relu(self.depthwise(F.relu(self.conv(x)))))
        return self.linear(x.mean([2, 3]))


def saved(folder, form, bits=INT8_WEIGHT_BITS):
    """Save a quantized network by ``fake_*`` operators; return (prefix, file, inputs, outputs)."""
    paddle.seed(4)
    net, x = Net(), np.random.RandomState(3).randn(3, 4, 9, 9).astype("float32")
    net.eval()
    ptq = paddleq.PTQ("AbsmaxQuantizer", paddleq.paddleslim.PerChannelAbsmaxQuantizer(bits))
    net = ptq.quantize(net, quantizable_layer_type=["Conv2D", "Conv2DTranspose", "Linear"])
    ptq.calibrate(net, [paddle.to_tensor(x)])
    options = {"onnx_format": False} if form == "onnx_format=False" else {"format": form}
    ptq.save_quantized_model(net, str(folder / "m"), SPEC, **options)
    with paddle.no_grad():
        return str(folder / "m"), x, net(paddle.to_tensor(x)).numpy()


def weights(path, ending):
    """Marks of the weights of a file."""
    marks = raise_to_markers(load_program(path + ending, path + ".pdiparams"))
    found = [each for each in marks if isinstance(each, WeightMark)]
    assert len(found) == 4 and sum(isinstance(each, ActivationMark) for each in marks) == 4
    return found


FORMS = [pytest.param("pir", marks=pytest.mark.needs_pir), "onnx_format=False"]


@pytest.mark.parametrize("form", FORMS)
def test_every_format_is_made_of_fake_operators(form, tmp_path):
    path, x, expected = saved(tmp_path, form)
    out = str(tmp_path / "out")
    paddleq.export.to_openvino(path, out)
    paddleq.export.to_onnx(path, out)
    for found in (onnxruntime(out, [x])[0], openvino(out, [x], ending="xml")[0]):
        assert relative_error(found, expected) < 2e-3
    constants = [node for node in ov.Core().read_model(out + ".xml").get_ops()
                 if node.get_type_name() == "Constant"]
    assert sum(node.get_element_type().get_type_name() == "i8" for node in constants) == 4


@pytest.mark.parametrize("form", FORMS)
def test_predictor_runs_int8_kernels_of_openvino(form, tmp_path):
    path, x, expected = saved(tmp_path, form)
    with Predictor(path, "openvino", threads=1) as predictor:
        info = [node.get_rt_info()
                for node in predictor._original._compiled.get_runtime_model().get_ops()]
        assert relative_error(predictor.run(x)[0], expected) < 1e-2
    kinds = {each["layerType"].astype(str) for each in info
             if each["runtimePrecision"].astype(str) in ("u8", "i8")}
    assert {"Convolution", "FullyConnected"} <= kinds


@pytest.mark.parametrize("bits", [8, 7, 4, 2])
@pytest.mark.parametrize("form", FORMS)
def test_weights_are_those_of_integer_files(form, bits, tmp_path):
    path, _, _ = saved(tmp_path, form, bits)
    found = weights(path, ".json" if form == "pir" else ".pdmodel")
    saved(tmp_path, "pdmodel", bits)
    for mark, other in zip(found, weights(path, ".pdmodel")):
        np.testing.assert_array_equal(simulated_weight(mark), simulated_weight(other))
        if form != "pir":
            np.testing.assert_array_equal(mark.integers, other.integers)


@pytest.mark.parametrize("round_type", [0, 1, None])
def test_ties_of_weights_are_rounded_as_the_operator_does(round_type, tmp_path):
    """round_type 0 rounds to even, 1, the default of Paddle's operators, away from zero."""
    path, x, _ = saved(tmp_path, "onnx_format=False", 8)
    program = load_program(path + ".pdmodel", path + ".pdiparams")
    expected = {}
    for op in program.desc.blocks[0].ops:
        if "quantize_dequantize_abs_max" in op.type:
            name = inputs(op, "X")[0]
            value = np.random.RandomState(len(expected)).randint(
                -127, 127, program.arrays[name].shape) + 0.5
            channels = value.swapaxes(0, attribute(op, "quant_axis"))
            channels[(slice(None), *[0] * (value.ndim - 1))] = 127  # the step of each is 1
            program.set_parameter(name, value.astype("float32"))
            expected[name] = (np.rint(value) if round_type == 0 else
                              np.sign(value) * np.floor(np.abs(value) + 0.5))
            kept = [each for each in op.attrs if each.name != "round_type"]
            del op.attrs[:]
            op.attrs.extend(kept)
            if round_type is not None:
                set_attribute(op, "round_type", round_type)
    simulated = paddle_of(program, tmp_path, x)
    found = [each for each in raise_to_markers(program) if isinstance(each, WeightMark)]
    assert len(found) == len(expected) == 4
    for mark, value in zip(found, expected.values()):
        np.testing.assert_array_equal(mark.integers, value)
    paddleq.export.to_onnx(str(tmp_path / "other"), str(tmp_path / "out"))
    assert relative_error(onnxruntime(str(tmp_path / "out"), [x])[0], simulated) < 2e-3


def test_weights_on_a_grid_are_recovered_to_the_last_digit():
    rng = np.random.RandomState(0)
    integers = rng.randint(-127, 128, [40, 30])
    integers[3] = 0
    integers[4] = 1
    integers[5] = rng.randint(-90, 91, 30)  # clipped channels, of another largest integer
    integers[6] = rng.randint(-7, 8, 30)
    abs_max = rng.uniform(1e-3, 10, [40, 1]).astype("float32")
    rows = integers.astype("float32") * abs_max / np.float32(127)
    found, scales, bits = _grid(rows)
    assert bits == 8
    np.testing.assert_array_equal(found.astype("float32") * scales[:, None] / np.float32(127),
                                  rows)


@pytest.mark.parametrize("width", [3, 30, 1000])
def test_other_weights_have_no_grid(width):
    rows = np.random.RandomState(1).randn(20, width).astype("float32")
    assert _grid(rows) is None
    integers = np.round(rows * 30).clip(-127, 127)
    assert _grid(integers.astype("float32")) is not None
    integers[2, 1] += 0.01
    assert _grid(integers.astype("float32")) is None


@pytest.mark.needs_pir
def test_float_weights_behind_quantized_activations_stay_float(tmp_path):
    path, x, _ = saved(tmp_path, "pir")
    program = load_program(path + ".json", path + ".pdiparams")
    names = [name for name, value in program.arrays.items() if value.ndim == 4]
    for name in names:
        value = program.arrays[name]
        program.set_parameter(name, value * np.random.RandomState(5).uniform(
            0.5, 1, value.shape).astype("float32"))
    expected = paddle_of(program, tmp_path, x)
    marks = raise_to_markers(program)
    assert [each.integers.ndim for each in marks if isinstance(each, WeightMark)] == [2]
    assert sum(isinstance(each, ActivationMark) for each in marks) == 4
    paddleq.export.to_openvino(str(tmp_path / "other"), str(tmp_path / "out"))
    assert relative_error(openvino(str(tmp_path / "out"), [x], ending="xml")[0], expected) < 2e-3


def paddle_of(program, folder, x):
    """Outputs of a program as it stands, which is saved as ``other``."""
    program.copy().save(str(folder / "other.pdmodel"), str(folder / "other.pdiparams"))
    return paddle_inference(str(folder / "other"), [x])[0]
