"""ONNX export: contents of the file, and ONNX Runtime equals the simulation."""

import subprocess
import sys
from collections import Counter

import numpy as np
import onnx
import paddle
import pytest
from deployed import ACTIVATIONS, WEIGHTS, deploy
from layer_cases import LAYER_TYPES, LAYERS
from nets import SmallNet, train_steps, warmed
from paddle import nn
from paddle.nn import functional as F
from runtimes import (
    INT8_WEIGHT_BITS,
    int8_ptq,
    onnx_graph,
    onnxruntime,
    openvino,
    paddle_inference,
    relative_error,
)

import paddleq
from paddleq import PerChannel, PerGroup, QuantSpec
from paddleq.errors import (
    ConfigError,
    ConfigTypeError,
    DependencyError,
    ExportError,
    FormatError,
    UnsupportedOperatorError,
)
from paddleq.frontends.golden_stick import SimulatedQuantizationAwareTraining as SimQAT
from paddleq.nn import IntegerLinear
from paddleq.observers import PerChannelMinMaxObserver
from paddleq.paddleslim import PerChannelAbsmaxQuantizer

SPEC = paddle.static.InputSpec


def specs(inputs):
    return [SPEC([None, *x.shape[1:]], str(x.dtype).replace("paddle.", ""), f"x{i}")
            for i, x in enumerate(inputs)]


def simulated(net, inputs):
    net.eval()
    with paddle.no_grad():
        output = net(*inputs)
    return [value.numpy() for value in (output if isinstance(output, (list, tuple)) else [output])]


def calibrated(net, inputs, **kwargs):
    kwargs.setdefault("weight_quantizer", PerChannelAbsmaxQuantizer(INT8_WEIGHT_BITS))
    ptq = paddleq.PTQ("AbsmaxQuantizer", **kwargs)
    net = ptq.quantize(net, quantizable_layer_type=LAYER_TYPES)
    ptq.calibrate(net, [inputs])
    return net


# Integer convolutions round biases to 32-bit integers: one value in a thousand may cross a rounding
# border, which is an error of one step.
BORDERS = 5e-3


def written_equals_simulated(net, inputs, path, target="onnxruntime", tolerance=1e-5,
                             optimized=None, **options):
    """Export, compare with the simulation and return the result of :func:`onnx_graph`.

    ``optimized``: the tolerance where ONNX Runtime optimizes; None: the same.
    """
    expected = simulated(net, inputs)
    paddleq.export.to_onnx(net, f"{path}.onnx", specs(inputs), target=target, **options)
    for as_is, bound in ((True, tolerance), (False, optimized or tolerance)):
        found = onnxruntime(path, [x.numpy() for x in inputs], as_is)
        assert len(found) == len(expected)
        for a, b in zip(found, expected):
            assert np.abs(b).max() > 0
            assert relative_error(a, b) <= bound, f"as is: {as_is}"
    return onnx_graph(f"{path}.onnx")


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name, tmp_path):
    make, shape = LAYERS[name]
    x = paddle.randn(shape)
    net = calibrated(nn.Sequential(make()), [x])
    written_equals_simulated(net, [x], tmp_path / "m")


def trained_qat(config=None, net=None, x=None, **hooks):
    net, x = net or SmallNet(), paddle.rand([4, 1, 8, 8]) if x is None else x
    warmed(net, x)
    quanter = paddleq.QAT(config or {}, **hooks)
    quanter.quantize(net)
    train_steps(net, x, steps=4, lr=1e-4)
    return net, x


@pytest.mark.parametrize("bits", [*range(1, 9), 12, 16])
def test_bits(bits, tmp_path):
    net, x = trained_qat({"weight_bits": bits, "activation_bits": bits})
    path = tmp_path / "m"
    _, constants, opset = written_equals_simulated(net, [x], path)
    stored = constants[net.conv1.weight.name]
    assert stored.dtype == ("int8" if bits <= 8 else "int16")
    assert abs(stored.astype(int)).max() == max(2 ** (bits - 1) - 1, 1)
    assert opset == (17 if bits <= 8 else 21)


@pytest.mark.parametrize("config", [
    {"activation_preprocess_type": "PACT"},
    {"weight_preprocess_type": "PACT"},
    {"weight_quantize_type": "abs_max"},
    {"weight_quantize_type": "lsq_plus", "activation_quantize_type": "lsq_plus"},
    {"weight_quantize_type": "channel_wise_lsq_plus", "activation_quantize_type": "lsq_plus",
     "activation_bits": 4, "weight_bits": 4},
], ids=lambda config: "-".join(map(str, config.values())))
def test_qat(config, tmp_path):
    net, x = trained_qat(config)
    written_equals_simulated(net, [x], tmp_path / "m")


AFFINE = [
    {"dtype": "quint8", "qscheme": "per_tensor_affine"},
    {"dtype": "quint4", "qscheme": "per_tensor_affine"},
    {"dtype": "qint8", "qscheme": "per_tensor_affine"},
    {"dtype": "qint8", "quant_min": -100, "quant_max": 50, "qscheme": "per_tensor_affine"},
    {"dtype": "qint8", "quant_min": -127},
    {"dtype": "quint8"},
    {"dtype": "qint16"},
    {"dtype": "quint12", "qscheme": "per_tensor_affine"},
]


@pytest.mark.parametrize("words", AFFINE, ids=str)
@pytest.mark.parametrize("side", ["act_quantize", "weight_quantize"])
def test_zero_points_and_ranges(words, side, tmp_path):
    """Settings that a .pdmodel cannot represent: zero points, unsigned integers, partial ranges."""
    quantizer = paddleq.FakeQuantize.with_args(rounding="half_even", **words)
    net, x = trained_qat(**{side: quantizer})
    x = x - 0.3
    written_equals_simulated(net, [x], tmp_path / "m")


@pytest.mark.parametrize("words", [
    {"qscheme": "per_channel_affine", "dtype": "quint8"},
    {"qscheme": "per_channel_affine", "dtype": "qint8"},
    {"qscheme": "per_channel_symmetric", "dtype": "qint4"},
], ids=str)
def test_weight_with_zero_point_per_channel(words, tmp_path):
    net, x = nn.Sequential(nn.Conv2D(3, 8, 3), nn.BatchNorm2D(8), nn.ReLU()), paddle.randn(
        [4, 3, 8, 8])
    quantizer = paddleq.FakeQuantize.with_args(
        observer=PerChannelMinMaxObserver, channel_len=8, rounding="half_even", **words)
    net, x = trained_qat(net=net, x=x, weight_quantize=quantizer)
    with paddle.no_grad():
        net[1].weight.set_value(paddle.randn([8]))
    written_equals_simulated(net, [x], tmp_path / "m")


@pytest.mark.parametrize("mode", ["asymmetric", "symmetric", "narrow"])
def test_simulated_qat(mode, tmp_path):
    config = {"asymmetric": {}, "symmetric": {"symmetric": (True, True)},
              "narrow": {"narrow_range": (True, True), "per_channel": (False, True)}}[mode]
    x = paddle.rand([8, 1, 8, 8]) - 0.4
    net = SimQAT(config).apply(SmallNet(), x)
    train_steps(net, x, steps=4, lr=1e-4)
    written_equals_simulated(SimQAT().convert(net), [x], tmp_path / "m")


def kinds(nodes):
    return Counter(node.op_type for node in nodes)


def test_plain_target_has_signed_integers_before_the_layers(tmp_path):
    """The form for TensorRT: no zero points, float biases, quantizers not moved."""
    net, x = trained_qat()
    nodes, constants, _ = written_equals_simulated(net, [x], tmp_path / "m", target="plain")
    assert kinds(nodes)["QuantizeLinear"] == kinds(nodes)["Conv"] + kinds(nodes)["MatMul"] == 4
    assert kinds(nodes)["DequantizeLinear"] == 8
    points = [constants[node.input[2]] for node in nodes if node.op_type == "QuantizeLinear"]
    assert all(point.dtype == np.int8 and not point.any() for point in points)
    assert "Sub" not in kinds(nodes)


class Stack(nn.Layer):
    """Operators between quantized layers in vision models."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2D(3, 8, 3), nn.BatchNorm2D(8), nn.ReLU())
        self.pooled = nn.Sequential(nn.Conv2D(8, 8, 3), nn.ReLU6(), nn.MaxPool2D(2))
        self.wide = nn.Sequential(nn.Conv2D(8, 12, 3, bias_attr=False), nn.Hardtanh(-0.5, 0.7))
        self.last = nn.Sequential(nn.Conv2D(12, 8, 1), nn.ReLU())
        self.head = nn.Linear(8 * 4, 10)

    def forward(self, x):
        x = self.last(self.wide(self.pooled(self.stem(x))))
        return self.head(x.flatten(1))


@pytest.fixture
def stack():
    """Return (quantized Stack, batch); the norm has negative, tiny and zero factors."""
    x = paddle.randn([16, 3, 12, 12])
    net = warmed(Stack(), x)
    with paddle.no_grad():
        net.stem[1].weight.set_value(
            paddle.to_tensor([1.0, -1.0, 0.5, -2.0, 1e-6, 0.0, 1.5, -0.1]))
        net.stem[1].bias.set_value(paddle.randn([8]))
    return calibrated(net, [x]), x


def test_onnx_runtime_computes_inner_convolutions_in_integers(stack, tmp_path):
    net, x = stack
    nodes, _, _ = written_equals_simulated(net, [x], tmp_path / "m", tolerance=BORDERS)
    assert "Relu" not in kinds(nodes) and "BatchNormalization" not in kinds(nodes)
    optimized = tmp_path / "optimized.onnx"
    onnxruntime(tmp_path / "m", [x.numpy()], as_is=False, saved_as=optimized)
    import onnx

    made = kinds(onnx.load(str(optimized)).graph.node)
    assert made["QLinearConv"] == 4
    assert made["MatMulIntegerToFloat"] == 1
    assert sum(made[kind] for kind in ("Conv", "FusedConv", "Gemm", "MatMul", "Relu")) == 0


def test_folded_batch_norm_equals_the_simulation(stack, tmp_path):
    """Channels with a negative, a tiny and a zero factor; the bias is float."""
    net, x = stack
    paddleq.export.to_onnx(net, tmp_path / "m.onnx", specs([x]), target="plain")
    found = onnxruntime(tmp_path / "m", [x.numpy()])[0]
    assert relative_error(found, simulated(net, [x])[0]) <= 1e-5
    # ONNX Runtime rounds the biases itself; a channel whose count overflows is lost there.
    found = onnxruntime(tmp_path / "m", [x.numpy()], as_is=False)[0]
    assert relative_error(found, simulated(net, [x])[0]) <= BORDERS


def test_openvino_runs_both_targets(stack, tmp_path):
    net, x = stack
    for target, tolerance in (("plain", 1e-5), ("onnxruntime", BORDERS)):
        paddleq.export.to_onnx(net, tmp_path / "m.onnx", specs([x]), target=target)
        found = openvino(tmp_path / "m", [x.numpy()], ending="onnx")[0]
        assert relative_error(found, simulated(net, [x])[0]) <= tolerance


class Branching(nn.Layer):
    """A convolution without a norm, with or without a bias of zeros, and ``join`` behind it."""

    def __init__(self, join, bias):
        super().__init__()
        self.first = nn.Conv2D(3, 8, 3, padding=1, bias_attr=None if bias else False)
        self.layers = nn.LayerDict({"dense": nn.Conv2D(8, 8, 3, padding=1, bias_attr=False)}
                                   if join is BRANCHES["convolution"] else {})
        self.join = join

    def forward(self, x):
        return self.join(self.layers, self.first(x))


BRANCHES = {
    "relu": lambda layers, y: y + F.relu(y), "two outputs": lambda layers, y: (y, F.tanh(y)),
    "pool": lambda layers, y: y - F.avg_pool2d(y, 3, 1, 1),
    "concat": lambda layers, y: paddle.concat([y, F.sigmoid(y)], axis=1),
    "gate": lambda layers, y: y * F.sigmoid(y) + y,
    "convolution": lambda layers, y: y + layers["dense"](y),
}
RESHAPED = {  # the scales of the channels have to be applied before
    "channels and height": lambda layers, y: y.reshape([-1, 8]),
    "channels and batch": lambda layers, y: F.softmax(y.reshape([-1, 64]), axis=-1),
    "maximum of pixels": lambda layers, y: y.flatten(2).max(axis=-1),
    "mean of pixels": lambda layers, y: F.relu(y).flatten(2).mean(axis=-1),
    "behind a pool": lambda layers, y: F.max_pool2d(y, 2).reshape([-1, 16]),
    "behind a pad": lambda layers, y: F.pad(F.relu(y), [1, 0, 0, 0]).reshape([-1, 9]),
    "columns": lambda layers, y: y.reshape([0, 64, 8]).max(axis=-1),
}


class Tokens(nn.Layer):
    """A Linear of the concatenated pixels of two maps."""

    def __init__(self, axis, relu):
        super().__init__()
        self.axis, self.relu = axis, relu
        self.first, self.second = nn.Conv2D(3, 8, 3), nn.Conv2D(8, 8, 3, 2)
        self.linear = nn.Linear(16 if axis == 2 else 8, 5)

    def forward(self, x):
        a = self.first(x)
        maps = (a, F.relu(a)) if self.axis == 2 else (a, self.second(a))
        y = paddle.concat([each.flatten(2).transpose([0, 2, 1]) for each in maps], self.axis)
        return self.linear(F.relu(y) if self.relu else y)


@pytest.mark.parametrize("axis, relu", [(1, False), (1, True), (2, False), (-2, False)])
def test_openvino_reads_products_of_concatenations(axis, relu, tmp_path):
    x = paddle.randn([2, 3, 8, 8])
    net = calibrated(Tokens(axis, relu), [x])
    paddleq.export.to_onnx(net, tmp_path / "m.onnx", specs([x]))
    for as_is in (True, False):
        (found,) = openvino(tmp_path / "m", [x.numpy()], as_is, ending="onnx")
        assert relative_error(found, simulated(net, [x])[0]) <= 5e-3


@pytest.mark.parametrize("case", RESHAPED)
def test_openvino_scales_channels_before_they_are_joined(case, tmp_path):
    x = paddle.randn([2, 3, 8, 8])
    net = calibrated(Branching(RESHAPED[case], False), [x])
    paddleq.export.to_onnx(net, tmp_path / "m.onnx", specs([x]))
    for as_is in (True, False):
        (found,) = openvino(tmp_path / "m", [x.numpy()], as_is, ending="onnx")
        assert relative_error(found, simulated(net, [x])[0]) <= 1e-5


@pytest.mark.parametrize("branches, bias, target", [
    *((name, False, "onnxruntime") for name in BRANCHES),
    ("relu", True, "onnxruntime"), ("relu", False, "plain"), ("concat", True, "plain")])
def test_openvino_scales_each_branch_behind_a_convolution(branches, bias, target, tmp_path):
    x = paddle.randn([2, 3, 8, 8])
    net = calibrated(Branching(BRANCHES[branches], bias), [x])
    paddleq.export.to_onnx(net, tmp_path / "m.onnx", specs([x]), target=target)
    for as_is in (True, False):
        found = openvino(tmp_path / "m", [x.numpy()], as_is, ending="onnx")
        for output, expected in zip(found, simulated(net, [x])):
            assert relative_error(output, expected) <= 1e-5


@pytest.mark.parametrize("limits", [(0.0, 6.0), (-1.0, 1.0), (0.31, 0.33), (2.0, 9.0),
                                    (-9.0, -2.0)], ids=str)
@pytest.mark.parametrize("qscheme", ["per_tensor_symmetric", "per_tensor_affine"])
def test_clip_of_integers_equals_clip_of_values(limits, qscheme, tmp_path):
    """Clip, then quantize = quantize, then clip; also with limits between two integers, or outside
    of all that is represented."""
    conv, after = nn.Conv2D(1, 1, 1, bias_attr=False), nn.Conv2D(1, 1, 1)
    net = nn.Sequential(conv, nn.Hardtanh(*limits), after)
    quantizer = paddleq.FakeQuantize.with_args(qscheme=qscheme, dtype="qint8")
    paddleq.QAT(act_quantize=quantizer).quantize(net)
    x = paddle.linspace(-3, 3, 2003).reshape([1, 1, 1, 2003])
    train_steps(net, x, lr=0.0)
    for layer, zero in ((conv, 10), (after, -90)):
        with paddle.no_grad():
            layer.activation_quantizer.set_qparams(
                0.03, zero if qscheme.endswith("affine") else None)
    nodes, _, _ = written_equals_simulated(net, [x], tmp_path / "m")
    assert [node.op_type for node in nodes if node.op_type in ("QuantizeLinear", "Clip")] == [
        "QuantizeLinear", "QuantizeLinear", "Clip"]


def stored_integers(constants, name, spec, rows):
    """Integers of a weight [K, N], unpacked if they are those of a MatMulNBits."""
    packed = constants.get(f"{name}.packed")  # [N, groups, bytes]
    if packed is None:
        return constants[name].astype(np.int64)
    assert packed.dtype == np.uint8
    pairs = packed.reshape([len(packed), -1]).T.astype(np.int64)
    values = np.stack([pairs % 16, pairs // 16], 1).reshape([-1, len(packed)])
    return values[:rows] - (8 if spec.signed else 0)


def test_4_bit_weights_are_packed_from_opset_21(tmp_path):
    net = nn.Sequential(nn.Conv2D(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(45, 9))
    x = paddle.randn([4, 3, 5, 5])
    ptq = paddleq.PTQ("AbsmaxQuantizer", paddleq.paddleslim.PerChannelAbsmaxQuantizer(4))
    net = ptq.quantize(net)
    ptq.calibrate(net, [x])
    _, wide, _ = written_equals_simulated(net, [x], tmp_path / "wide")
    _, packed, opset = written_equals_simulated(net, [x], tmp_path / "packed", opset=21)
    assert opset == 21
    assert packed[net[0].weight.name].dtype == "int4"
    for name in (net[0].weight.name, net[3].weight.name):
        assert wide[name].dtype == np.int8
        assert np.array_equal(stored_integers(packed, name, QuantSpec(4), 45), wide[name])
        assert wide[name].min() >= -8 and wide[name].max() == 7


@pytest.mark.parametrize("opset", [13, 15, 17, 19, 21])
def test_opsets(opset, tmp_path):
    net, x = trained_qat()
    found = written_equals_simulated(net, [x], tmp_path / "m", opset=opset)[2]
    assert found == opset


class Words(nn.Layer):
    """Embedding, attention and norms of a transformer."""

    def __init__(self):
        super().__init__()
        self.table, self.block = nn.Embedding(500, 16), nn.TransformerEncoderLayer(16, 2, 32)
        self.norm = nn.LayerNorm(16)

    def forward(self, tokens):
        x = self.norm(self.block(self.table(tokens)))
        return paddle.matmul(x, self.table.weight, transpose_y=True)


def test_transformer_with_shared_weight(tmp_path):
    tokens = paddle.randint(0, 50, [3, 7])
    net = Words()
    net.eval()
    ptq = int8_ptq()
    quantized = ptq.quantize(net, quantizable_layer_type=["Linear", "Embedding"])
    ptq.calibrate(quantized, [tokens])
    nodes, constants, _ = written_equals_simulated(quantized, [tokens], tmp_path / "m")
    table = net.table.weight.name
    assert constants[table].dtype == np.float32  # the product reads it as it is
    assert constants[f"{table}.integers"].dtype == np.int8


class Repeated(nn.Layer):
    """Identities in a row, behind a tensor that other operators or an output read too."""

    def __init__(self, identity, count=2, returned=False):
        super().__init__()
        self.fc, self.identity, self.count = nn.Linear(6, 6), identity, count
        self.returned = returned

    def forward(self, x):
        y = z = self.fc(x)
        for _ in range(self.count):
            z = self.identity(z)
        first = nn.functional.relu(z) + y
        return (first, z, y) if self.returned else (first + z,)


@pytest.mark.parametrize("count, returned", [(2, False), (3, True), (1, True)])
@pytest.mark.parametrize("identity", [
    paddle.assign, lambda x: nn.functional.dropout(x, 0.3, training=False),
    lambda x: paddle.assign(x * 1.0)], ids=["assign", "dropout", "scale"])
def test_identities_in_a_row(identity, count, returned, tmp_path):
    x = paddle.randn([3, 6])
    written_equals_simulated(calibrated(Repeated(identity, count, returned), [x]), [x],
                             tmp_path / "m")


class Branches(nn.Layer):
    """Branches that read outer tensors and weights, with quantized layers in them."""

    def __init__(self, case):
        super().__init__()
        self.case, self.a = case, nn.Linear(4, 4)
        if case != "one weight":
            self.b = nn.Linear(4, 4)

    def forward(self, x):
        y = self.a(x)
        if x.mean() > 0:
            z = self.b(y) + x if self.case != "one weight" else self.a(y) + self.a(x)
            if self.case == "nested":
                z = z - y if x.max() > 100 else self.a(z)
        else:
            z = y - 1
        return z + y


class Repetition(nn.Layer):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        y, i = x * 0.5, paddle.zeros([1], "int64")
        while i < 3:
            y = self.fc(y) + x
            i += 1
        return y


@pytest.mark.parametrize("case", ["branch", "nested", "one weight", "loop"])
def test_quantized_layers_in_branches_and_loops(case, tmp_path):
    x = paddle.rand([3, 4])
    net = Repetition() if case == "loop" else Branches(case)
    ptq = int8_ptq()
    net = ptq.quantize(net)
    ptq.calibrate(net, [x, -x])
    for batch in (x, -x):
        nodes, _, _ = written_equals_simulated(net, [batch], tmp_path / "m")
    inner = [node for outer in nodes for each in outer.attribute for node in each.g.node]
    assert case == "one weight" or {"QuantizeLinear", "DequantizeLinear"} <= {
        node.op_type for node in inner}


def test_invalid_graph_is_a_typed_error(tmp_path, monkeypatch):
    from paddleq.export.onnx import export

    monkeypatch.setattr(export, "simplify", lambda graph: graph.nodes.reverse())
    with pytest.raises(ExportError, match="ONNX form.*invalid.*format='pdmodel'"):
        paddleq.export.to_onnx(SmallNet(), tmp_path / "m", [SPEC([None, 1, 8, 8])], verify=False)
    assert not (tmp_path / "m.onnx").exists()


def test_names_dynamic_dimensions_and_size(tmp_path):
    import onnx

    net = warmed(nn.Sequential(nn.Conv2D(3, 64, 3, padding=1), nn.ReLU(),
                               nn.Conv2D(64, 64, 3, padding=1), nn.AdaptiveAvgPool2D(1),
                               nn.Flatten(), nn.Linear(64, 10)), paddle.randn([4, 3, 8, 8]))
    x = paddle.randn([4, 3, 8, 8])
    quantized = calibrated(net, [x])
    spec = [SPEC([None, 3, 8, None], "float32", "picture")]
    paddleq.PTQ().save_quantized_model(quantized, str(tmp_path / "int8"), spec, format="onnx")
    paddleq.PTQ().save_quantized_model(quantized, str(tmp_path / "int8"), spec)
    paddleq.export.to_onnx(net, tmp_path / "float", spec)
    graph = onnx.load(str(tmp_path / "int8.onnx")).graph
    from paddleq.export.program.program import Program

    program = Program.load(f"{tmp_path}/int8.pdmodel", f"{tmp_path}/int8.pdiparams")
    fetched = [op.inputs[0].arguments[0] for op in program.desc.blocks[0].ops
               if op.type == "fetch"]
    assert [each.name for each in graph.input] == ["picture"]
    # Paddle 2.6 renumbers outputs in each trace.
    assert [each.name.rpartition("_")[0] for each in graph.output] == [
        name.rpartition("_")[0] for name in fetched]
    assert {parameter.name for parameter in net.parameters() if len(parameter.shape) > 1} <= {
        each.name for each in graph.initializer}
    dims = graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [0, 3, 8, 0] and dims[0].dim_param
    sizes = [(tmp_path / name).stat().st_size for name in ("int8.onnx", "float.onnx")]
    assert sizes[0] < 0.3 * sizes[1]
    for batch, width in ((1, 8), (5, 11)):
        y = paddle.randn([batch, 3, 8, width])
        found = onnxruntime(tmp_path / "int8", [y.numpy()])[0]
        assert relative_error(found, simulated(quantized, [y])[0]) <= 1e-5


@pytest.mark.parametrize("write", ["dynamic-8", "dynamic-16", "static", "ptq", "float"])
def test_saved_model(write, tmp_path):
    """A model that another function saved gives the same numbers as ONNX."""
    net, x = warmed(SmallNet(), paddle.rand([8, 1, 8, 8])), paddle.rand([8, 1, 8, 8])
    spec = specs([x])
    paddle.jit.save(net, f"{tmp_path}/float/model", spec)
    folder = tmp_path / "float"
    expected = simulated(net, [x])[0]
    if write.startswith("dynamic"):
        bits = int(write.split("-")[1])
        live = paddleq.quant_post_dynamic(net, str(tmp_path / "out"), weight_bits=bits,
                                          input_spec=spec)
        folder, expected = tmp_path / "out" / "quantized_model", simulated(live, [x])[0]
    elif write == "static":
        folder = tmp_path / "static"
        paddleq.quant_post_static(str(tmp_path / "float"), str(folder), [x])
        expected = paddle_inference(folder / "model", [x.numpy()])[0]
    elif write == "ptq":
        folder = tmp_path / "ptq"
        quantized = calibrated(net, [x])
        paddleq.PTQ().save_quantized_model(quantized, str(folder / "model"), spec)
        expected = simulated(quantized, [x])[0]
    path = paddleq.export.to_onnx(folder / "model", tmp_path / "m")
    assert path == str(tmp_path / "m.onnx")
    assert relative_error(onnxruntime(tmp_path / "m", [x.numpy()])[0], expected) <= 1e-5
    quantized = any(array.dtype in (np.int8, np.int16) for array in onnx_graph(path)[1].values())
    assert quantized == (write != "float")


def test_saved_models_that_are_refused(tmp_path):
    net, x = trained_qat()
    paddleq.QAT().save_quantized_model(net, str(tmp_path / "fake"), specs([x]), onnx_format=False)
    with pytest.raises(FormatError, match="neither.*nothing.pdmodel"):
        paddleq.export.to_onnx(tmp_path / "nothing", tmp_path / "m")
    (tmp_path / "fake.pdiparams").write_bytes(b"short")
    with pytest.raises(FormatError, match="fake.pdiparams"):
        paddleq.export.to_onnx(tmp_path / "fake", tmp_path / "m")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("arguments, error, words", [
    ({"opset": 12}, ConfigError, ["opset", "[13, 21]", "12"]),
    ({"opset": "17"}, ConfigTypeError, ["opset", "an int"]),
    ({"target": "onnx"}, ConfigError, ["target", "'onnxruntime', 'plain'", "did you mean"]),
    ({"path": 3}, ConfigTypeError, ["path", "out/model"]),
    ({"path": ""}, ConfigTypeError, ["path"]),
    ({"model": 3}, ConfigTypeError, ["model", "Layer", "saved model"]),
    ({"opset": 17, "bits": 12}, ExportError, ["conv1", "12 bits", "opset 21", "at most 8"]),
])
def test_invalid_arguments(arguments, error, words, tmp_path):
    net, x = trained_qat({"weight_bits": arguments.pop("bits", 8)})
    given = {"model": net, "path": tmp_path / "m", "input_spec": specs([x]), **arguments}
    with pytest.raises(error) as caught:
        paddleq.export.to_onnx(**given)
    assert all(word in str(caught.value) for word in words), caught.value
    assert list(tmp_path.iterdir()) == []


def test_model_without_scales_is_refused(tmp_path):
    net = SmallNet()
    paddleq.QAT().quantize(net)
    with pytest.raises(ExportError, match="conv1.activation_quantizer"):
        paddleq.export.to_onnx(net, tmp_path / "m", [SPEC([None, 1, 8, 8])])


class Sorted(nn.Layer):
    def forward(self, x):
        return paddle.nn.functional.gumbel_softmax(x, hard=True)


class Indices(nn.Layer):
    def forward(self, x):
        return nn.functional.adaptive_max_pool2d(x, 2, return_mask=True)[1]


@pytest.mark.parametrize("net, shape, error, words", [
    (Sorted(), [None, 4], UnsupportedOperatorError, ["gumbel_softmax", "pdmodel"]),
    (Indices(), [1, 3, 5, 5], ExportError, ["max_pool2d_with_index"]),
])
def test_failed_conversion_keeps_the_old_file(net, shape, error, words, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"old")
    with pytest.raises(error) as caught:
        paddleq.export.to_onnx(net, tmp_path / "m", [SPEC(shape, "float32")])
    assert all(word in str(caught.value) for word in words), caught.value
    assert (tmp_path / "m.onnx").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_target_that_cannot_be_written(tmp_path):
    net, x = trained_qat()
    (tmp_path / "taken.onnx").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for path, error, words in ((tmp_path / "taken.onnx", ConfigError, "not a folder"),
                               (tmp_path / "file" / "m.onnx", ExportError, "cannot write")):
        with pytest.raises(error, match=words):
            paddleq.export.to_onnx(net, path, specs([x]))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "taken.onnx"]


@pytest.mark.parametrize("missing", ["onnx", "paddle2onnx"])
def test_missing_package_is_named_with_the_remedy(missing, tmp_path):
    """Export in a subprocess that cannot import the package."""
    script = f"""
import sys, zlib
sys.modules[{missing!r}] = None
import paddle, paddleq
try:
    paddleq.export.to_onnx(paddle.nn.Linear(4, 3), {str(tmp_path / "m")!r},
                           [paddle.static.InputSpec([None, 4])])
except paddleq.errors.DependencyError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE,
                          universal_newlines=True)
    assert f"needs {'the package ' * (missing == 'onnx')}{missing}" in done.stdout
    assert "pip install 'paddleq[onnx]'" in done.stdout


def test_another_interpreter_runs_paddle2onnx(tmp_path, monkeypatch):
    net = paddle.nn.Linear(4, 3)
    with paddle.utils.unique_name.guard():  # Paddle 2.6 counts the names of all traces
        paddleq.export.to_onnx(net, tmp_path / "own", [SPEC([None, 4])])
    monkeypatch.setenv("PADDLEQ_PADDLE2ONNX_PYTHON", sys.executable)
    with paddle.utils.unique_name.guard():
        paddleq.export.to_onnx(net, tmp_path / "other", [SPEC([None, 4])])
    assert (tmp_path / "own.onnx").read_bytes() == (tmp_path / "other.onnx").read_bytes()
    monkeypatch.setenv("PADDLEQ_PADDLE2ONNX_PYTHON", str(tmp_path / "python"))
    with pytest.raises(DependencyError, match="PADDLEQ_PADDLE2ONNX_PYTHON.*python is not a Python"):
        paddleq.export.to_onnx(net, tmp_path / "none", [SPEC([None, 4])])


SCHEMES = [*((weight, "A16") for weight in WEIGHTS),
           *((weight, activation) for weight in ("W8 channel affine", "W4 g32 affine")
             for activation in ACTIVATIONS if activation != "A16")]


@pytest.mark.parametrize("weight, activation", SCHEMES)
def test_integer_linear(weight, activation, tmp_path):
    """Every scheme equals the layer; the file has the integers of the layer."""
    tokens, net = paddle.randint(0, 500, [3, 7]), Words()
    deploy(net, WEIGHTS[weight], ACTIVATIONS[activation], [(tokens,)], smoothed=True,
           permuted=True)
    _, constants, opset = written_equals_simulated(net, [tokens], tmp_path / "m")
    spec, layer = WEIGHTS[weight], net.block.linear1
    expected = layer.integers().numpy().astype(np.int64)
    assert opset == (21 if isinstance(spec.granularity, paddleq.PerGroup) else 17)
    assert ("block.linear1.weight.packed" in constants) == (opset == 21 and spec.bits <= 4)
    stored = stored_integers(constants, "block.linear1.weight", spec, len(expected))
    assert np.array_equal(stored, expected)
    assert not any(array.dtype == np.float32 and array.size >= expected.size
                   for name, array in constants.items() if name != net.table.weight.name)


GROUPS = {
    "4 bits": QuantSpec(4, granularity=PerGroup(32)),
    "4 bits, small groups": QuantSpec(4, granularity=PerGroup(16)),
    "4 bits, last group smaller": QuantSpec(4, granularity=PerGroup(128)),
    "4 bits, size not a power of 2": QuantSpec(4, granularity=PerGroup(24)),
    "4 bits affine": QuantSpec(4, granularity=PerGroup(64), signed=False, symmetric=False),
    "3 bits affine": QuantSpec(3, granularity=PerGroup(32), signed=False, symmetric=False),
    "2 bits": QuantSpec(2, granularity=PerGroup(64)),
    "6 bits": QuantSpec(6, granularity=PerGroup(32)),
    "8 bits": QuantSpec(8, granularity=PerGroup(64)),
    "8 bits affine, last group smaller": QuantSpec(8, granularity=PerGroup(128), signed=False,
                                                   symmetric=False),
    "4 bits, a step per column": QuantSpec(4, granularity=PerChannel(1)),
    "4 bits affine, one step": QuantSpec(4, signed=False, symmetric=False),
}


def with_outliers(spec, shape):
    """A quantized network and an input with two large features, as in language models."""
    paddle.seed(3)
    net = nn.Sequential(nn.Linear(200, 48), nn.Tanh(), nn.Linear(48, 200, bias_attr=False))
    x = paddle.randn([*shape, 200])
    x[..., 3::97] *= 40.0
    return deploy(net, spec, inputs=[(x,)]), x


@pytest.mark.parametrize("shape", [[5], [2, 7]])
@pytest.mark.parametrize("name", GROUPS)
def test_plain_session_does_not_round_activations_of_grouped_weights(name, shape, tmp_path):
    """ONNX Runtime fuses a blocked DequantizeLinear into a product with int8 activations."""
    net, x = with_outliers(GROUPS[name], shape)
    y = x.numpy().astype(np.float64)
    for layer in net:
        if isinstance(layer, IntegerLinear):
            y = y @ layer.dequantized_weight().numpy().astype(np.float64)
            y = y if layer.bias is None else y + layer.bias.numpy()
        else:
            y = np.tanh(y)
    path = str(tmp_path / "m")
    paddleq.export.to_onnx(net, path, specs([x]), opset=21)
    for as_is in (True, False):
        assert relative_error(onnxruntime(path, [x.numpy()], as_is)[0], y) < 2e-6
    if "power" not in name:  # OpenVINO requires groups that divide the input
        assert relative_error(openvino(path, [x.numpy()], ending="onnx")[0], y) < 2e-6


def test_grouped_weights_for_other_compilers(tmp_path):
    """Without MatMulNBits the file says which option ONNX Runtime needs; Predictor sets it."""
    net, x = with_outliers(GROUPS["4 bits, small groups"], [5])
    path = str(tmp_path / "m")
    paddleq.export.to_onnx(net, path, specs([x]), target="plain")
    model = onnx.load(path + ".onnx")
    assert not any(node.domain for node in model.graph.node)
    assert {each.key: each.value for each in model.metadata_props} == {
        "onnxruntime.session_config": "session.qdq_matmulnbits_accuracy_level=1"}
    expected = net(x).numpy()
    assert relative_error(onnxruntime(path, [x.numpy()], as_is=False)[0], expected) > 1e-3
    with paddleq.deploy.Predictor(path, runtime="onnxruntime") as runs:
        assert relative_error(runs.run([x.numpy()])[0], expected) < 2e-6
    paddleq.export.to_onnx(net, path, specs([x]))
    assert not onnx.load(path + ".onnx").metadata_props


@pytest.mark.parametrize("gain", [1.0, 30.0, 300.0])
def test_rounding_that_large_channels_amplify_is_no_difference(gain, tmp_path):
    """As in language models, where a few channels of the residual stream are large."""
    paddle.seed(0)
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(
        256, 4, 512, dropout=0.0, normalize_before=True), 2)
    net.eval()
    for layer in net.layers:
        for norm in (layer.norm1, layer.norm2):
            weight = norm.weight.numpy()
            weight[[3, 77]] = gain
            norm.weight.set_value(weight)
    x = paddle.randn([2, 16, 256])
    net = deploy(net, QuantSpec(4, granularity=PerGroup(64)), inputs=[(x,)])
    # Which sums a library rounds otherwise depends on the processor; the network amplifies it as
    # it does a change of the input by one unit in the last place.
    amplified = relative_error(*(simulated(net, [each])[0] for each in (x * (1 + 2.0 ** -23), x)))
    written_equals_simulated(net, [x], tmp_path / "m", tolerance=max(1e-5, 10 * amplified))
