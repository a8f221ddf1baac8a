"""Calls of models as inputs of files: keywords, dicts, unused inputs, and forms of input_spec."""

import collections
import contextlib

import numpy as np
import paddle
import pytest
from paddle import nn
from runtimes import onnxruntime, openvino, paddle_inference

import paddleq
from paddleq.deploy.model_file import ModelFile
from paddleq.errors import ConfigError, ConfigTypeError, TraceError

Spec = paddle.static.InputSpec
PIR = paddle.__version__ >= "3"
State = collections.namedtuple("State", "mask")
x, mask, bias = paddle.rand([2, 8]), paddle.full([2, 1], 3.0), paddle.rand([2, 4])


class Net(nn.Layer):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 4)


class Optional(Net):
    def forward(self, x, bias=None, doubled=False, mask=None, scale=1.0):
        y = self.fc(x) * scale
        y = y * 2 if doubled else y
        y = y if bias is None else y + bias
        return y if mask is None else y * mask


class KeywordOnly(Net):
    def forward(self, x, *, mask):
        return self.fc(x) * mask


class KeywordDefault(Net):
    def forward(self, x, *, bias=None, scale=2.0):
        y = self.fc(x) * scale
        return y if bias is None else y + bias


class AnyKeyword(Net):
    def forward(self, **tensors):
        return self.fc(tensors["x"]) * tensors["mask"]


class AnyNumber(Net):
    def forward(self, *tensors):
        return self.fc(tensors[0]) * tensors[1]


class OneDict(Net):
    def forward(self, inputs):
        return {"out": self.fc(inputs["image"]) * inputs["mask"]}


class Nested(Net):
    def forward(self, x, states):
        return self.fc(x) * states[0][0], states[1]["bias"] * 2


class Named(Net):
    def forward(self, x, state):
        return self.fc(x) * state.mask


class Unused(Net):
    def forward(self, shape, image, factor=None):
        return self.fc(image)


# class -> (arguments, keyword arguments, names and values in the file)
CALLS = {
    "one keyword": (Optional, (x,), {"mask": mask}, {"x": x, "mask": mask}),
    "a constant": (Optional, (x,), {"doubled": True, "bias": bias}, {"x": x, "bias": bias}),
    "only keywords": (Optional, (), {"scale": 0.5, "mask": mask, "x": x}, {"x": x, "mask": mask}),
    "a number as tensor": (Optional, (x, None, True), {"scale": paddle.to_tensor(2.0)},
                           {"x": x, "scale": paddle.to_tensor(2.0)}),
    "keyword only": (KeywordOnly, (x,), {"mask": mask}, {"x": x, "mask": mask}),
    "keyword-only defaults": (KeywordDefault, (x,), {}, {"x": x}),
    "a keyword-only default": (KeywordDefault, (x,), {"bias": bias}, {"x": x, "bias": bias}),
    "**kwargs": (AnyKeyword, (), {"x": x, "mask": mask}, {"x": x, "mask": mask}),
    "*args": (AnyNumber, (x, mask), {}, {"tensors_0": x, "tensors_1": mask}),
    "a dict": (OneDict, ({"image": x, "mask": mask},), {}, {"image": x, "mask": mask}),
    "nested": (Nested, (x, [(mask,), {"bias": bias}]), {},
               {"x": x, "states_0_0": mask, "bias": bias}),
    "a named tuple": (Named, (x, State(mask)), {}, {"x": x, "state_0": mask}),
    "unused": (Unused, (paddle.rand([2, 3]), x), {}, {"shape": paddle.rand([2, 3]), "image": x}),
    "unused keyword": (Unused, (bias, x), {"factor": mask},
                       {"shape": bias, "image": x, "factor": mask}),
}


def quantized(net, *args, **kwargs):
    paddleq.QAT().quantize(net)
    net(*args, **kwargs)
    net.eval()
    return net, paddleq.graph.calls.tensors_in(net(*args, **kwargs))


def close(found, expected, tolerance=0.0):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other.numpy(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", CALLS)
def test_tensors_of_the_last_call_are_the_inputs_of_the_file(name, tmp_path):
    cls, args, kwargs, inputs = CALLS[name]
    net, expected = quantized(cls(), *args, **kwargs)
    paddleq.save_quantized_model(net, tmp_path / "net")
    info = paddleq.SavedModel(tmp_path / "net")
    assert info.input_names == list(inputs)
    assert [list(spec.shape) for spec in info.input_spec] == [
        [-1, *value.shape[1:]] if value.shape else [] for value in inputs.values()]
    arrays = {key: value.numpy() for key, value in inputs.items()}
    close(paddle_inference(tmp_path / "net", arrays), expected)
    more = {key: np.repeat(value, 3, 0) if value.ndim else value for key, value in arrays.items()}
    assert len(paddle_inference(tmp_path / "net", more)[0]) == 6  # the batch is dynamic


@pytest.mark.parametrize("name", ["unused", "unused keyword"])
def test_unused_inputs_keep_their_place_in_every_runtime(name, tmp_path):
    cls, args, kwargs, inputs = CALLS[name]
    net, expected = quantized(cls(), *args, **kwargs)
    spec = [Spec([None, *value.shape[1:]], "float32", f"{key}_in") for key, value in inputs.items()]
    path = tmp_path / "net"
    paddleq.save_quantized_model(net, path, spec)
    paddleq.export.to_onnx(net, path, spec)
    assert paddleq.SavedModel(path).input_names == [each.name for each in spec]
    arrays = [value.numpy() for value in inputs.values()]
    close(paddle_inference(path, arrays, ir_optim=True), expected, 1e-5)
    for found in (onnxruntime(path, arrays), openvino(path, arrays)):
        close(found, expected, 1e-5)
    for runtime in ("paddle", "onnxruntime", "openvino"):
        with paddleq.deploy.Predictor(path, runtime, threads=1) as made:
            close(made.run({f"{key}_in": value for key, value in inputs.items()}), expected, 0.05)
    if PIR:
        paddleq.save_quantized_model(net, tmp_path / "pir", spec, format="pir")
        loaded = paddle.jit.load(str(tmp_path / "pir"))
        close([loaded(*inputs.values()).numpy()], expected)


@pytest.mark.parametrize("name", ["unused", "unused keyword"])
def test_unused_inputs_keep_their_place_in_a_program_of_the_legacy_format(name, tmp_path):
    cls, args, kwargs, inputs = CALLS[name]
    net, expected = quantized(cls(), *args, **kwargs)
    spec = [Spec([None, *value.shape[1:]], "float32", f"{key}_in") for key, value in inputs.items()]
    with paddle.pir_utils.DygraphOldIrGuard() if PIR else contextlib.nullcontext():
        paddleq.save_quantized_model(net, tmp_path / "net", spec)
    saved = paddleq.SavedModel(tmp_path / "net")
    assert saved.input_names == [each.name for each in spec]
    ops = ModelFile(f"{tmp_path}/net.pdmodel").program.desc.blocks[0].ops
    read = {name for op in ops for entry in op.inputs for name in entry.arguments}
    assert read.intersection(saved.input_names) == {"image_in"}
    close(paddle_inference(tmp_path / "net", {f"{key}_in": value.numpy() for key, value
                                              in inputs.items()}), expected)


def test_an_unused_input_that_to_static_specified_is_kept(tmp_path):
    net, expected = quantized(Unused(), bias, x)
    spec = [Spec([None, 4], "float32", "shape_in"), Spec([None, 8], "float32", "image_in")]
    net = paddle.jit.to_static(net, input_spec=spec, full_graph=True)
    paddleq.save_quantized_model(net, tmp_path / "net")
    inputs = {"shape_in": bias.numpy(), "image_in": x.numpy()}
    assert paddleq.SavedModel(tmp_path / "net").input_names == list(inputs)
    close(paddle_inference(tmp_path / "net", inputs), expected)


class Sums(Net):
    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x, y):
        return [self.fc(x), *self.outputs(x, y)]


@pytest.mark.parametrize("outputs", [
    lambda x, y: [y + 1], lambda x, y: [y - 0.5, x + 2], lambda x, y: [x + 1, y * 2 + 1],
    lambda x, y: [y * 1.0], lambda x, y: [x, y + 1]])
def test_outputs_that_are_an_input_plus_a_number(outputs, tmp_path):
    """Paddle 3 saves the input in their place."""
    net, expected = quantized(Sums(outputs), x, bias)
    paddleq.save_quantized_model(net, tmp_path / "net", [
        Spec([None, 8], "float32", "x"), Spec([None, 4], "float32", "y")])
    close(paddle_inference(tmp_path / "net", [x.numpy(), bias.numpy()]), expected)


class SumInBranch(Net):
    """The sum of an input and a number is read by a branch only."""

    def forward(self, x):
        y = x + 1.0
        if x.mean() > 0:
            out = self.fc(y)
        else:
            y = y * 2.0
            out = self.fc(y)
        return out, x


def test_a_sum_that_a_branch_reads_is_no_lost_output(tmp_path):
    net, expected = quantized(SumInBranch(), x)
    paddleq.save_quantized_model(net, tmp_path / "net", [Spec([None, 8], "float32", "x")])
    close(paddle_inference(tmp_path / "net", [x.numpy()]), expected)


@pytest.mark.skipif(not PIR, reason="Paddle 2.6 saves them")
@pytest.mark.parametrize("outputs", [lambda x, y: [y + 1, y + 2], lambda x, y: [y, y + 1]])
def test_several_sums_of_one_input_are_refused(outputs, tmp_path):
    net, _ = quantized(Sums(outputs), x, bias)
    with pytest.raises(TraceError, match="the same input, or it plus a number.* by 1.0"):
        paddleq.save_quantized_model(net, tmp_path / "net")


@pytest.mark.parametrize("spec, names", [
    (Spec([None, 8], "float32", "image"), ["image"]),
    (Spec([None, 8], "float32"), ["x"]),
    ((Spec([None, 8], "float32", "image"),), ["image"]),
    (paddle.rand([2, 8]), None),
    (np.zeros([2, 8], "float32"), ["x"]),
    ([np.zeros([2, 8], "float32"), Spec([None, 4], "float32")], ["x", "bias"]),
    ({"x": Spec([None, 8], "float32"), "mask": Spec([None, 1], "float32", "m")}, ["x", "m"]),
], ids=["spec", "spec without name", "tuple", "tensor", "array", "list with array", "dict"])
@pytest.mark.parametrize("save", [paddleq.save_quantized_model, paddleq.export.to_onnx],
                         ids=["pdmodel", "onnx"])
def test_forms_of_input_spec(save, spec, names, tmp_path):
    net, _ = quantized(Optional(), x)
    save(net, tmp_path / "net", spec)
    with paddleq.deploy.Predictor(tmp_path / "net", threads=1) as made:
        assert names in (None, [each.name for each in made.inputs])


def test_input_spec_of_the_user_is_not_changed(tmp_path):
    net, _ = quantized(Optional(), x)
    spec = [Spec([None, 8], "float32"), Spec([None, 4], "float32")]
    paddleq.save_quantized_model(net, tmp_path / "net", spec)
    assert [each.name for each in spec] == [None, None]


@pytest.mark.parametrize("cls, spec, error, words", [
    (OneDict, [{}], ConfigError, "names no input"),
    (OneDict, {}, ConfigError, "names no input"),
    (Optional, [], ConfigError, "names no input"),
    (Optional, [None], ConfigError, "names no input"),
    (Nested, [[], {}], ConfigError, "names no input"),
    (Optional, "x", ConfigTypeError, "must be a list of paddle.static.InputSpec"),
    (Optional, 3, ConfigTypeError, "must be a list of paddle.static.InputSpec"),
    (Unused, [Spec([None, 8], "float32")], ConfigError,
     r"forward\(shape, image, factor=None\): missing a required argument: 'image'"),
    (KeywordOnly, [Spec([None, 8], "float32")] * 2, ConfigError, "too many positional"),
    (Optional, {"x": Spec([None, 8], "float32"), "musk": Spec([None, 1], "float32")}, ConfigError,
     "takes no 'musk'"),
    (Unused, [Spec([None, 8], "float32", "x")] * 2, ConfigError, "several are called 'x'"),
], ids=range(11))
@pytest.mark.parametrize("save", [
    paddleq.save_quantized_model, paddleq.export.to_onnx,
    lambda net, path, spec: paddleq.quant_post_dynamic(Optional(), path, input_spec=spec)],
    ids=["pdmodel", "onnx", "dynamic"])
def test_input_spec_that_does_not_fit_is_refused_by_name(save, cls, spec, error, words, tmp_path):
    if "lambda" in getattr(save, "__name__", "") and cls is not Optional:
        pytest.skip("for the class Optional")
    net = paddleq.quant_post_dynamic(cls())
    with pytest.raises(error, match=words):
        save(net, tmp_path / "net", spec)
    assert list(tmp_path.iterdir()) == []


def test_argument_of_the_last_call_that_no_file_can_have_is_named(tmp_path):
    net, _ = quantized(Optional(), x)
    net(x, doubled=object())
    with pytest.raises(ConfigTypeError, match="argument 'doubled' of the last call holds a object"):
        paddleq.save_quantized_model(net, tmp_path / "net")


@pytest.mark.parametrize("batch", [
    {"image": x, "mask": mask}, ({"image": x, "mask": mask}, paddle.zeros([2])),
    [{"image": x.numpy(), "mask": mask.numpy()}],
], ids=["dict", "(dict, label)", "[dict of arrays]"])
@pytest.mark.parametrize("fuse", [False, True])
def test_loader_of_dicts_for_a_model_with_one_argument(fuse, batch, tmp_path):
    class Normalized(OneDict):
        def __init__(self):
            super().__init__()
            self.fc = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1D(4))

    net = paddleq.PTQ("AbsmaxQuantizer").quantize(Normalized(), fuse=fuse)
    assert paddleq.calibrate(net, [batch, batch]) == 2
    assert net.fc[0].activation_quantizer.abs_max.item() == x.abs().max().item()
    assert isinstance(net.fc[1], nn.BatchNorm1D) is not fuse
    paddleq.save_quantized_model(net, tmp_path / "net")
    close(paddle_inference(tmp_path / "net", {"image": x.numpy(), "mask": mask.numpy()}),
          [net({"image": x, "mask": mask})["out"]])


@pytest.mark.parametrize("batch", [{"x": x, "mask": mask}, ({"x": x, "mask": mask}, 1)])
@pytest.mark.parametrize("cls", [Optional, KeywordOnly, AnyKeyword])
def test_loader_of_dicts_of_arguments(cls, batch):
    net = paddleq.PTQ("AbsmaxQuantizer").quantize(cls())
    assert paddleq.calibrate(net, [batch]) == 1
    assert net.fc.activation_quantizer.abs_max.item() == x.abs().max().item()


def test_dict_of_other_keys_is_refused_with_those_of_forward():
    net = paddleq.PTQ("AbsmaxQuantizer").quantize(OneDict())
    with pytest.raises(ConfigError, match="forward takes 'inputs', .* dict of 'img'"):
        paddleq.calibrate(net, [{"img": x}])
    net = paddleq.PTQ("AbsmaxQuantizer").quantize(nn.Sequential(nn.Linear(8, 4)))
    with pytest.raises(ConfigError, match="forward takes 'input', .* dict of 'X'"):
        paddleq.calibrate(net, [{"X": x}])
