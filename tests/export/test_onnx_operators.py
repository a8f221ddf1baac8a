"""Exact forms of operators in ONNX, and the comparison that finds wrong conversions."""

import logging

import numpy as np
import paddle
import pytest
from onnx_exports import Net, normal, written_equals_model
from paddle import nn
from runtimes import int8_ptq, onnxruntime, openvino, relative_error

import paddleq
from paddleq.errors import ExportError
from paddleq.export.onnx import splice
from paddleq.export.onnx.concatenations import correct_concatenations

F, ops, SPEC = nn.functional, paddle.vision.ops, paddle.static.InputSpec


def boxes(*shape):
    corners = np.random.rand(*shape, 4).astype(np.float32) * 5
    corners[..., 2:] += corners[..., :2] + 0.5
    return corners


@pytest.fixture(autouse=True)
def _seeded():
    np.random.seed(3)
    paddle.seed(3)


def states(x, rnn):
    output, last = rnn(x)
    return [output, *(last if isinstance(last, tuple) else [last])]


RECURRENT = {
    "LSTM": (nn.LSTM, {}), "GRU": (nn.GRU, {}), "tanh": (nn.SimpleRNN, {}),
    "relu": (nn.SimpleRNN, {"activation": "relu"}),
    "LSTM 2 bidirectional": (nn.LSTM, {"num_layers": 2, "direction": "bidirect"}),
    "GRU 2 bidirectional": (nn.GRU, {"num_layers": 2, "direction": "bidirect"}),
    "GRU time": (nn.GRU, {"time_major": True}),
}


@pytest.mark.parametrize("case", RECURRENT)
def test_recurrent_layers_return_all_states(case, tmp_path):
    make, options = RECURRENT[case]
    written_equals_model(states, [normal(3, 5, 8)], tmp_path, rnn=make(8, 6, **options))


class Reader(nn.Layer):
    def __init__(self, case):
        super().__init__()
        make, options = RECURRENT[case]
        self.first, self.last = nn.Conv2D(3, 8, 3), nn.Conv2D(8, 8, 3)
        self.rnn, self.major = make(8, 6, **options), options.get("time_major", False)

    def forward(self, x):
        y = self.last(F.relu(self.first(x))).mean(axis=2)
        return self.rnn(y.transpose([2, 0, 1] if self.major else [0, 2, 1]))[0]


@pytest.mark.parametrize("case", RECURRENT)
def test_recurrent_layers_behind_convolutions_in_openvino(case, tmp_path):
    """Of an open number of samples, whose initial states are zeros."""
    ptq, x = int8_ptq(), paddle.randn([4, 3, 9, 12])
    net = ptq.quantize(Reader(case), quantizable_layer_type=["Conv2D"])
    net.eval()
    ptq.calibrate(net, [x])
    ptq.save_quantized_model(net, str(tmp_path / "m"), [SPEC([None, 3, 9, 12], "float32", "x")],
                             format="onnx")
    found = openvino(tmp_path / "m", [x.numpy()], as_is=False, ending="onnx")[0]
    assert relative_error(found, net(x).numpy()) <= 5e-3


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU])
def test_recurrent_layers_respect_lengths(make, tmp_path):
    written_equals_model(
        lambda x, lengths, rnn: rnn(x, sequence_length=lengths)[0],
        [normal(3, 5, 8), np.array([2, 5, 1])], tmp_path, rnn=make(8, 6, direction="bidirect"))


def test_initial_states(tmp_path):
    written_equals_model(lambda x, first, rnn: rnn(x, first)[0],
                         [normal(3, 5, 8), normal(2, 3, 6)], tmp_path, dynamic=(),
                         rnn=nn.GRU(8, 6, 2))


ACTIVATIONS = {
    "gelu by tanh": lambda x: F.gelu(x, approximate=True), "gelu": F.gelu,
    "softplus": F.softplus, "softplus beta": lambda x: F.softplus(x, 2.5),
    "softplus threshold": lambda x: F.softplus(x, 1.0, 2.0),
    "softplus both": lambda x: F.softplus(x, 0.5, 1.5),
}


@pytest.mark.parametrize("case", ACTIVATIONS)
def test_attributes_of_activations(case, tmp_path):
    written_equals_model(lambda x: ACTIVATIONS[case](x + 0.1), [4 * normal(4, 50)], tmp_path)


POOLS = {
    "1d": (F.adaptive_avg_pool1d, (9,), 4), "2d": (F.adaptive_avg_pool2d, (7, 10), [3, 4]),
    "3d": (F.adaptive_avg_pool3d, (5, 6, 7), [3, 4, 2]),
    "enlarged": (F.adaptive_avg_pool2d, (3, 4), [7, 5]),
    "one axis": (F.adaptive_avg_pool2d, (6, 8), [4, 8]),
    "max 1d": (F.adaptive_max_pool1d, (9,), 4), "max 2d": (F.adaptive_max_pool2d, (7, 10), [3, 4]),
    "max 3d": (F.adaptive_max_pool3d, (5, 6, 7), [3, 4, 2]),
    "max enlarged": (F.adaptive_max_pool2d, (3, 4), [7, 5]),
    "area": (lambda x, size: F.interpolate(x, size, mode="area"), (7, 10), [5, 6]),
    "area enlarged": (lambda x, size: F.interpolate(x, size, mode="area"), (4, 4), [6, 9]),
}


@pytest.mark.parametrize("case", POOLS)
def test_adaptive_pools_of_any_size(case, tmp_path):
    pool, shape, size = POOLS[case]
    written_equals_model(lambda x: pool(x, size), [normal(2, 3, *shape)], tmp_path)


@pytest.mark.parametrize("size", [[3, 4], [1, 6], 9])
def test_adaptive_average_of_dynamic_size(size, tmp_path):
    written_equals_model(lambda x: F.adaptive_avg_pool2d(x, size), [normal(2, 3, 7, 11)], tmp_path,
                         dynamic=(0, 2, 3))


@pytest.mark.parametrize("options", [
    {}, {"aligned": False}, {"sampling_ratio": 2, "spatial_scale": 0.5},
    {"aligned": False, "sampling_ratio": 3}], ids=str)
def test_roi_align(options, tmp_path):
    written_equals_model(lambda x, corners, counts: ops.roi_align(x, corners, counts, (2, 3),
                                                                 **options),
                         [normal(3, 2, 9, 8), boxes(6), np.array([2, 0, 4], np.int32)], tmp_path,
                         dynamic=(), tolerance=1e-5)


def test_roi_align_needs_an_opset(tmp_path):
    net = Net(lambda x, corners, counts: ops.roi_align(x, corners, counts, 2))
    spec = [SPEC([1, 2, 9, 8]), SPEC([4, 4]), SPEC([1], "int32")]
    with pytest.raises(ExportError, match="roi_align with aligned=True.*opset 16.*opset 13"):
        paddleq.export.to_onnx(net, tmp_path / "m", spec, opset=13)


def assigned(key, value):
    def function(x):
        y = x * 2
        y[key] = value(x) if callable(value) else value
        return y
    return function


SLICES = {
    "row": ((slice(None), 1), lambda x: x[:, 0]),
    "number": ((slice(None), slice(None, None, 2), slice(1, 3)), 3.0),
    "steps": ((slice(None), slice(-3, -1), slice(1, None, 2)), lambda x: x[:, :2, :3]),
    "corner": ((0, 1, -1), 5.0),
    "inner axis": ((slice(None), 2, slice(1, 3)), lambda x: x[:, 0, :2]),
    "repeated": ((slice(None), slice(1, 3)), lambda x: x[:, :1]),
}


@pytest.mark.parametrize("case", SLICES)
def test_assignment_to_slices(case, tmp_path):
    written_equals_model(assigned(*SLICES[case]), [normal(2, 4, 6)], tmp_path)


def test_input_that_only_forms_read_or_none(tmp_path):
    written_equals_model(lambda x, y, z: F.gelu(z, approximate=True) + F.relu(x),
                         [normal(2, 4), normal(2, 3), normal(2, 4)], tmp_path)


def test_yolo_box(tmp_path):
    def decode(x, size):
        return list(ops.yolo_box(x, size, [10, 13, 16, 30, 33, 23], 2, 0.1, 32, scale_x_y=1.1))

    sizes = np.array([[128, 96], [64, 128]], np.int32)
    written_equals_model(decode, [normal(2, 21, 4, 4), sizes], tmp_path)


def detected(boxes, scores, **options):
    """Call multiclass_nms3 as detection models do: as a function or as a static operator."""
    options = {"score_threshold": 0.1, "nms_top_k": 100, "keep_top_k": 20, "nms_threshold": 0.5,
               "normalized": True, "nms_eta": 1.0, "background_label": -1, **options}
    framework = paddle.base.framework
    if getattr(framework, "in_dynamic_or_pir_mode", framework.in_dygraph_mode)():
        return list(paddle._C_ops.multiclass_nms3(boxes, scores, None, *options.values()))
    helper = paddle.base.layer_helper.LayerHelper("multiclass_nms3")
    out, index, count = (helper.create_variable_for_type_inference(dtype)
                         for dtype in ("float32", "int32", "int32"))
    helper.append_op(type="multiclass_nms3", inputs={"BBoxes": boxes, "Scores": scores},
                     attrs=options, outputs={"Out": out, "Index": index, "NmsRoisNum": count})
    return [out, index, count]


NMS = {
    "all": {}, "background": {"background_label": 0, "score_threshold": 0.4},
    "few kept": {"keep_top_k": 5}, "few candidates": {"nms_top_k": 7},
    "pixels": {"normalized": False, "nms_threshold": 0.3},
    "no limit": {"keep_top_k": -1, "nms_top_k": -1},
}


@pytest.mark.parametrize("case", NMS)
def test_multiclass_nms(case, tmp_path):
    written_equals_model(lambda corners, scores: detected(corners, scores, **NMS[case]),
                         [30 * boxes(2, 40), np.random.rand(2, 3, 40).astype(np.float32)],
                         tmp_path)


@pytest.mark.parametrize("options", [
    {}, {"background_label": 0, "keep_top_k": 5}, {"nms_top_k": 7, "normalized": False},
    {"use_gaussian": True, "keep_top_k": -1}], ids=str)
def test_matrix_nms(options, tmp_path):
    given = {"nms_top_k": 30, "keep_top_k": 20, "background_label": -1, **options}
    written_equals_model(
        lambda corners, scores: list(ops.matrix_nms(corners, scores, 0.1, 0.05, **given,
                                                    return_index=True)),
        [30 * boxes(2, 40), np.random.rand(2, 3, 40).astype(np.float32)], tmp_path)


@pytest.mark.parametrize("threshold", [0.2, 0.6])
def test_nms_of_one_class(threshold, tmp_path):
    written_equals_model(lambda corners, scores: ops.nms(corners, threshold, scores),
                         [boxes(30), np.random.rand(30).astype(np.float32)], tmp_path)


def test_forms_beside_quantized_layers(tmp_path):
    """A form between two quantized layers, one whose output is an output, and one after another."""
    class Chain(nn.Layer):
        def __init__(self):
            super().__init__()
            self.a, self.rnn, self.b = nn.Linear(6, 6), nn.GRU(6, 6), nn.Linear(6, 4)

        def forward(self, x):
            y = F.gelu(F.softplus(self.a(x), 2.0), approximate=True)
            z = self.rnn(y)[0]
            return F.gelu(self.b(z), approximate=True), y

    x = paddle.randn([3, 5, 6])
    ptq = int8_ptq()
    net = ptq.quantize(Chain())
    ptq.calibrate(net, [x])
    paddleq.save_quantized_model(net, str(tmp_path / "m"), [SPEC([None, 5, 6], "float32", "x")],
                                 format="onnx")
    for found, wanted in zip(onnxruntime(tmp_path / "m", [x.numpy()]), net(x)):
        assert np.abs(found - wanted.numpy()).max() <= 1e-5


WRONG = {
    "gelu": lambda x: F.gelu(x, approximate=True),
    "softplus": lambda x: F.softplus(x, 2.0, 1.0),
    "pool2d": lambda x: F.adaptive_avg_pool2d(x, 3),
    "max_pool2d_with_index": lambda x: F.adaptive_max_pool2d(x, 3, return_mask=True)[1],
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_conversion_is_refused_by_name(name, tmp_path, monkeypatch, caplog):
    """paddle2onnx without the exact forms: the comparison finds the operator among others."""
    monkeypatch.setattr(splice, "FORMS", {})
    net = Net(lambda x, first, last: last(WRONG[name](first(x)).astype("float32")).mean(axis=1),
              first=nn.Conv2D(3, 4, 3, padding=1), last=nn.Softmax())
    net.eval()
    paddle.seed(7)
    before = [paddle.rand([1]).item(), np.random.get_state()[1].tolist()]
    paddle.seed(7)
    spec = [SPEC([None, 3, 8, 7], "float32", "x")]
    with pytest.raises(ExportError, match=f"operator {name} .*wrong.*pdmodel.*verify=False"):
        paddleq.export.to_onnx(net, tmp_path / "m", spec)
    assert not (tmp_path / "m.onnx").exists()
    assert [paddle.rand([1]).item(), np.random.get_state()[1].tolist()] == before


def test_verify_can_be_switched_off(tmp_path, monkeypatch):
    monkeypatch.setattr(splice, "FORMS", {})
    paddleq.export.to_onnx(Net(WRONG["gelu"]), tmp_path / "m", [SPEC([None, 3])], verify=False)
    assert (tmp_path / "m.onnx").exists()


ROUNDING = {
    "argmax": lambda x: paddle.argmax(x - x.mean(axis=1, keepdim=True), axis=1),
    "floor": lambda x: paddle.floor(x.sum(axis=1) / x.sum(axis=1) * 3.0),
    "cancellation": lambda x: (x + 1000.0).sum(axis=1) - 1000.0 * x.shape[1] - x.sum(axis=1),
    "norm of a constant": lambda x: F.layer_norm(x * 0.0 + 3.3, [40]),
    "sort": lambda x: paddle.topk(paddle.tanh(30 * x), 5, axis=1)[1],
}


@pytest.mark.parametrize("case", ROUNDING)
def test_rounding_is_not_taken_for_an_error(case, tmp_path):
    net = Net(lambda x, fc: ROUNDING[case](fc(x)), fc=nn.Linear(300, 40))
    assert paddleq.export.to_onnx(net, tmp_path / "m", [SPEC([4, 300])])


@pytest.mark.parametrize("function, reason", [
    (lambda x: x + paddle.randn([4]), "random"),
    (lambda x: x.reshape([3, 7, -1]) * 2, "does not run")])
def test_model_that_cannot_be_compared_is_written_with_a_warning(function, reason, tmp_path,
                                                                 caplog):
    with caplog.at_level(logging.WARNING, "paddleq"):
        paddleq.export.to_onnx(Net(function), tmp_path / "m", [
            SPEC([None if reason == "does not run" else 2, 4])], opset=17)
    assert "was not compared" in caplog.text and reason in caplog.text
    assert (tmp_path / "m.onnx").exists()


def sizes_graph(nodes, constants=()):
    """Model that reshapes ``x`` to the concatenated tensors "a" and "b"."""
    from onnx import TensorProto, helper, numpy_helper

    constants = {"zero": [0], "one": [1], "first": 0, "b": [-1], **dict(constants)}
    parts = [helper.make_node("Shape", ["x"], ["shape"]), *nodes,
             helper.make_node("Concat", ["a", "b"], ["sizes"], axis=0),
             helper.make_node("Reshape", ["x", "sizes"], ["y"])]
    graph = helper.make_graph(
        parts, "sizes", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(value, np.int64), name)
         for name, value in constants.items() if name not in {
             out for node in parts for out in node.output}])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def scalar_cases():
    from onnx import helper

    node = helper.make_node
    squeezed = [node("Slice", ["shape", "zero", "one", "zero"], ["part"]),
                node("Squeeze", ["part", "zero"], ["scalar"])]
    return {
        "squeezed": [*squeezed, node("Cast", ["scalar"], ["a"], to=7)],
        "gathered": [node("Gather", ["shape", "first"], ["scalar"]),
                     node("Identity", ["scalar"], ["a"])],
        "computed": [*squeezed, node("Add", ["scalar", "first"], ["a"])],
        "constant": [node("Gather", ["shape", "first"], ["b"]), node("Constant", [], ["a"],
                                                                      value_int=-1)],
        "vector": [node("Slice", ["shape", "zero", "one", "zero"], ["a"])],
    }


@pytest.mark.parametrize("case", ["squeezed", "gathered", "computed", "constant", "vector"])
def test_scalars_among_concatenated_sizes(case, tmp_path):
    """paddle2onnx 2.x concatenates sizes without a dimension, which ONNX Runtime refuses."""
    import onnx

    model = sizes_graph(scalar_cases()[case])
    count = len(model.graph.node)
    correct_concatenations(model.graph)
    assert (len(model.graph.node) == count) == (case == "vector")
    onnx.save(model, str(tmp_path / "m.onnx"))
    x = normal(4, 3, 2)
    (found,) = onnxruntime(tmp_path / "m", [x])
    assert np.array_equal(found.reshape(x.shape), x) and found.ndim == 2
