"""Slices with negative steps, in files of every format and in files of other versions of Paddle."""

import itertools

import numpy as np
import paddle
import pytest
import runtimes
from paddle import nn

import paddleq
from paddleq import SavedModel
from paddleq.export.pir_to_program import load_program
from paddleq.export.program.op_desc import make_op
from paddleq.export.program.program import Program

PARTS = {
    "unbounded": lambda y: y[:, :, ::-2],
    "step -1": lambda y: y[:, :, :, ::-1],
    "from the front": lambda y: y[:, :, 5::-2],
    "from the end": lambda y: y[:, -3::-2, :, -2::-1],
    "bounded": lambda y: y[:, :, 7:1:-2],
    "bounded from the end": lambda y: y[:, :, -2:-8:-3],
    "down to a bound": lambda y: y[:, :, :2:-1],
    "beyond the size": lambda y: y[:, :, 20::-3],
    "first dimension": lambda y: y[::-1],
    "several axes": lambda y: y[::-1, 9::-4, 1:7:3, ::-2],
    "with a removed axis": lambda y: y[:, ::-2, 3, ::-1],
    "with an added axis": lambda y: y[:, None, ::-5, ::-4],
}
SHAPES = {"known sizes": [2, 3, 9, 7], "dynamic sizes": [None, 3, None, None]}
INDICES = {"flip": np.s_[:, ::-1, :, ::-1], "bool": np.s_[:, :, ::-2], "int": np.s_[:, :, 4::-1]}


class Net(nn.Layer):
    """A convolution, its result as integers, and parts of both."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, 12, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        integers = (y * 8).astype("int32")
        return [y, integers, *[part(y) for part in PARTS.values()], paddle.flip(y, [1, 3]),
                (y > 0)[INDICES["bool"]].astype("int32"), integers[INDICES["int"]]]


@pytest.fixture(scope="module", params=SHAPES)
def files(request, tmp_path_factory):
    """Prefix of the files of a quantized model in the three formats, and an input."""
    path = str(tmp_path_factory.mktemp("slices") / "m")
    x = np.random.RandomState(0).uniform(-1, 1, [2, 3, 9, 7]).astype("float32")
    paddle.seed(1)
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    quantized = ptq.quantize(Net(), quantizable_layer_type=["Conv2D"])
    ptq.calibrate(quantized, [paddle.to_tensor(x)])
    spec = [paddle.static.InputSpec(SHAPES[request.param], "float32", "x")]
    for form in ("pdmodel", "openvino", "onnx"):
        ptq.save_quantized_model(quantized, path, spec, format=form)
    return path, x


@pytest.mark.parametrize("run", [
    pytest.param(lambda path, x: runtimes.paddle_inference(path, [x]), id="as it stands"),
    pytest.param(lambda path, x: runtimes.paddle_inference(path, [x], ir_optim=True, onednn=True),
                 id="Paddle float"),
    pytest.param(lambda path, x: runtimes.paddle_inference(path, [x], ir_optim=True, int8=True),
                 id="Paddle int8"),
    pytest.param(lambda path, x: runtimes.openvino(path, [x]), id="OpenVINO"),
    pytest.param(lambda path, x: runtimes.openvino(path, [x], ending="xml"), id="OpenVINO .xml"),
    pytest.param(lambda path, x: runtimes.onnxruntime(path, [x]), id="ONNX Runtime")])
def test_slices_equal_those_of_numpy(run, files):
    y, integers, *found = run(*files)
    wanted = [*[part(y) for part in PARTS.values()], y[INDICES["flip"]],
              (y > 0)[INDICES["bool"]], integers[INDICES["int"]]]
    for name, a, b in zip([*PARTS, *INDICES], found, wanted):
        np.testing.assert_array_equal(a, b, err_msg=name)


def program_of(version, bounds, shape, declared):
    """Program of a version with a slice along axis 1 for each (start, end, step)."""
    program = Program.empty()
    program.desc.version.version = version
    block = program.desc.blocks[0]
    program.add_variable(block, "x", "float32", declared)
    program.add_variable(block, "y", "float32", declared)
    zero = program.add_parameter("zero", np.zeros(1, "float32"))
    block.ops.append(make_op("feed", {"X": "feed"}, {"Out": "x"}, col=0))
    block.ops.append(make_op("elementwise_add", {"X": "x", "Y": zero}, {"Out": "y"}, axis=-1))
    for i, (start, end, step) in enumerate(bounds):
        name = program.add_variable(block, f"part_{i}", "float32", [shape[0], -1])
        block.ops.append(make_op(
            "strided_slice", {"Input": "y"}, {"Out": name}, axes=[1], starts=[start], ends=[end],
            strides=[step], infer_flags=[1], decrease_axis=[]))
        block.ops.append(make_op("fetch", {"X": name}, {"Out": "fetch"}, col=i))
    return program


@pytest.mark.parametrize("version", [2006002, 3001001])
@pytest.mark.parametrize("size", [5, -1])
def test_bounds_have_the_meaning_of_the_version_that_wrote_them(version, size, tmp_path):
    x = np.arange(10, dtype="float32").reshape(2, 5)
    no_end = -1 if version == 2006002 else -2 ** 31
    bounds = [(start, end, -step) for start, end, step in itertools.product(
        (2 ** 31 - 1, 0, 3, 4, -1, -4), (no_end, 0, 2, -3, -5), (1, 2, 3))]
    wanted = [x[:, start:None if end == no_end else end:step] for start, end, step in bounds]
    bounds, wanted = zip(*[each for each in zip(bounds, wanted) if each[1].size])
    assert len(bounds) > 50
    if version > 3000000 and size > 0:
        bounds += ((4, -20, -3),)  # Paddle 2.6 leaves out the first element
        wanted += (x[:, 4:-20:-3],)
    path = str(tmp_path / "m")
    written = program_of(version, bounds, x.shape, [2, size])
    written.save(path + ".pdmodel", path + ".pdiparams", workarounds=False)
    with paddle.no_grad():
        simulated = SavedModel(path)(paddle.to_tensor(x))
    load_program(path + ".pdmodel", path + ".pdiparams").save(
        path + "_new.pdmodel", path + "_new.pdiparams")
    for found in ([each.numpy() for each in simulated],
                  runtimes.paddle_inference(path + "_new", [x]),
                  runtimes.openvino(path + "_new", [x])):
        for bound, a, b in zip(bounds, found, wanted):
            np.testing.assert_array_equal(a, b, err_msg=str(bound))
