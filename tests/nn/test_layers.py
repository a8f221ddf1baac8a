"""Exported models equal the simulation for every layer type, configuration and hook."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from layer_cases import LAYER_TYPES, LAYERS
from nets import OcrPACT, SmallNet, calibrated, train_steps, warmed
from paddle import nn
from runtimes import openvino, paddle_inference, relative_error

import paddleq
from paddleq.errors import ConfigError
from paddleq.nn import layer_types

SPEC = paddle.static.InputSpec


def exported_equals_simulated(quanter, net, inputs, path, tolerance=1e-6, **save):
    """Export, compare with the simulation and return the exported outputs."""
    net.eval()
    with paddle.no_grad():
        output = net(*inputs)
    expected = output if isinstance(output, (list, tuple)) else [output]
    expected = [value.numpy() for value in expected]
    spec = [SPEC([None, *x.shape[1:]], str(x.dtype).replace("paddle.", "")) for x in inputs]
    quanter.save_quantized_model(net, path, spec, **save)
    found = paddle_inference(path, [x.numpy() for x in inputs])
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert np.abs(b).max() > 0
        assert relative_error(a, b) <= tolerance
    return found


@pytest.mark.parametrize("onnx_format", [True, False])
@pytest.mark.parametrize("name", list(LAYERS))
def test_qat_export_of_every_layer_type(name, onnx_format, tmp_path):
    make, shape = LAYERS[name]
    net, x = nn.Sequential(make()), paddle.randn(shape)
    float_output = net(x).numpy()
    quanter = paddleq.QAT({"quantizable_layer_type": LAYER_TYPES, "onnx_format": onnx_format})
    quanter.quantize(net)
    train_steps(net, x, steps=8, lr=1e-6)
    exported_equals_simulated(quanter, net, [x], str(tmp_path / "m"))
    # The output is quantized and close to the float output.
    error = relative_error(net(x).numpy(), float_output)
    assert 1e-5 < error < 0.2


# OpenVINO's Paddle frontend has no converter for it, float or quantized.
NOT_IN_OPENVINO = {"conv3d"}


@pytest.mark.parametrize("name", sorted(set(LAYERS) - NOT_IN_OPENVINO))
def test_ptq_in_openvino(name, tmp_path):
    make, shape = LAYERS[name]
    x = paddle.randn(shape)
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    net = ptq.quantize(nn.Sequential(make()))
    ptq.calibrate(net, [x])
    path = str(tmp_path / "m")
    exported_equals_simulated(ptq, net, [x], path)
    assert relative_error(openvino(path, [x.numpy()])[0], net(x).numpy()) <= 1e-5


@pytest.mark.parametrize("weight_type", ["abs_max", "channel_wise_abs_max", "range_abs_max",
                                         "moving_average_abs_max"])
@pytest.mark.parametrize("activation_type", ["abs_max", "range_abs_max",
                                             "moving_average_abs_max"])
@pytest.mark.parametrize("onnx_format", [True, False])
def test_quantize_types(weight_type, activation_type, onnx_format, tmp_path):
    net, x = SmallNet(), paddle.rand([4, 1, 8, 8])
    quanter = paddleq.QAT({"weight_quantize_type": weight_type, "onnx_format": onnx_format,
                           "activation_quantize_type": activation_type, "window_size": 3})
    quanter.quantize(net)
    train_steps(net, x)
    exported_equals_simulated(quanter, net, [x], str(tmp_path / "m"))


@pytest.mark.parametrize("bits", range(1, 17))
def test_bits(bits, tmp_path):
    net, x = SmallNet(), paddle.rand([4, 1, 8, 8])
    quanter = paddleq.QAT({"weight_bits": bits, "activation_bits": bits})
    quanter.quantize(net)
    train_steps(net, x, steps=8)
    path = str(tmp_path / "m")
    exported_equals_simulated(quanter, net, [x], path)
    from paddleq.export.program.program import Program
    stored = Program.load(path + ".pdmodel", path + ".pdiparams").arrays
    weight = stored[net.conv1.weight.name]
    assert weight.dtype == ("int8" if bits <= 8 else "int16")
    limit = max(2 ** (bits - 1) - 1, 1)
    assert abs(weight.astype(int)).max() == limit


@pytest.mark.parametrize("preprocess", ["PACT", None])
@pytest.mark.parametrize("onnx_format", [True, False])
def test_pact(preprocess, onnx_format, tmp_path):
    net, x = SmallNet(), paddle.rand([4, 1, 8, 8])
    quanter = paddleq.QAT({"activation_preprocess_type": "PACT", "onnx_format": onnx_format,
                           "weight_preprocess_type": preprocess})
    quanter.quantize(net)
    with paddle.no_grad():
        net.conv2.activation_preprocess.alpha.set_value(paddle.to_tensor([0.3]))
    train_steps(net, x, lr=1e-5)
    exported_equals_simulated(quanter, net, [x], str(tmp_path / "m"))


def test_pact_alpha_gradient():
    net = nn.Sequential(nn.Linear(4, 3, bias_attr=False))
    paddleq.QAT({"activation_preprocess_type": "PACT"}).quantize(net)
    pact = net[0].activation_preprocess
    x = paddle.to_tensor([[0.1, 2.0, -3.0, 0.5]], stop_gradient=False)
    for alpha, clipped in ((1.0, [0, 1, -1, 0]), (5.0, [0, 0, 0, 0])):
        pact.alpha.set_value(paddle.to_tensor([alpha]))
        net.clear_gradients()
        x.clear_gradient()
        net.train()
        net(x).sum().backward()
        weight = net[0].quantized_weight("weight").numpy().astype(np.float64)
        through = weight.sum(axis=1)  # d out / d input
        np.testing.assert_allclose(pact.alpha.grad.numpy(), [(through * clipped).sum()],
                                   rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(x.grad.numpy()[0], through * (np.array(clipped) == 0),
                                   rtol=1e-5, atol=1e-6)


def test_idle_pact_alpha_decays():
    # The first layer's input needs no gradient; alpha must still get a gradient of zero.
    net, x = SmallNet(), paddle.rand([4, 1, 8, 8])
    paddleq.QAT({"activation_preprocess_type": "PACT"}).quantize(net)
    net(x).mean().backward()
    for _, layer in net.named_sublayers():
        if isinstance(layer, paddleq.PACT):
            assert layer.alpha.grad is not None and layer.alpha.grad.item() == 0.0


def test_paddleocr_pact_trains_saves_reloads_and_exports(tmp_path):
    """PaddleOCR's subclass of PACT."""
    net, x = SmallNet(), paddle.rand([4, 1, 8, 8])
    quanter = paddleq.QAT(act_preprocess=OcrPACT)
    quanter.quantize(net)
    alpha = net.conv2.activation_preprocess.alpha
    assert alpha.regularizer is not None and alpha.optimize_attr["learning_rate"] == 1.0
    assert alpha.name in {p.name for p in net.parameters()}
    optimizer = paddle.optimizer.Momentum(0.1, parameters=net.parameters())
    before = alpha.item()
    train_steps(net, x, optimizer=optimizer)
    assert alpha.item() < before  # nothing clipped: weight decay only
    with paddle.no_grad():
        alpha.set_value(paddle.to_tensor([0.2]))
    train_steps(net, x, optimizer=optimizer, steps=1)
    state = net.state_dict()
    assert "conv2.activation_preprocess.alpha" in state
    path = str(tmp_path / "state.pdparams")
    paddle.save(state, path)
    other = SmallNet()
    paddleq.QAT(act_preprocess=OcrPACT).quantize(other)
    missing, unexpected = other.set_state_dict(paddle.load(path))
    assert not missing and not unexpected
    other.eval()
    np.testing.assert_array_equal(other(x).numpy(), net(x).numpy())
    exported_equals_simulated(quanter, net, [x], str(tmp_path / "m"))
    from paddleq.export.program.program import Program
    program = Program.load(str(tmp_path / "m.pdmodel"), str(tmp_path / "m.pdiparams"))
    # conv2's alpha clips, so the export contains it; an idle one is omitted.
    alphas = [name for name in program.arrays if name.endswith(".pact")]
    assert alphas == [alpha.name]


class _Doubled:
    """A preprocess that is not a Layer."""

    def __call__(self, x):
        return x * 2


class _OwnGrid(nn.Layer):
    """A straight-through quantizer with 7 levels per sign."""

    def forward(self, x):
        scale = x.abs().max().detach()
        return x + (paddle.round(x / scale * 7) * scale / 7 - x).detach()


class _OffGrid(nn.Layer):
    """Levels at powers of two: not a uniform grid."""

    def forward(self, x):
        levels = 2.0 ** paddle.round(paddle.log2(x.abs() + 1e-9))
        return x + (paddle.sign(x) * levels - x).detach()


@pytest.mark.parametrize("hooks", [
    {"weight_preprocess": _Doubled}, {"act_preprocess": _Doubled},
    {"weight_quantize": _OwnGrid}, {"weight_quantize": _OffGrid},
    {"act_quantize": _OwnGrid}, {"act_preprocess": paddleq.PACT, "act_quantize": _OwnGrid},
    {"weight_preprocess": _Doubled, "act_preprocess": OcrPACT, "act_quantize": _OwnGrid},
])
@pytest.mark.parametrize("onnx_format", [True, False])
def test_user_defined_hooks(hooks, onnx_format, tmp_path):
    net, x = SmallNet(), paddle.rand([4, 1, 8, 8])
    quanter = paddleq.QAT({"onnx_format": onnx_format}, **hooks)
    quanter.quantize(net)
    train_steps(net, x)
    assert type(net.conv1.weight_quantizer) is hooks.get("weight_quantize", paddleq.FakeQuantize)
    exported_equals_simulated(quanter, net, [x], str(tmp_path / "m"))


def test_embedding_weight_only(tmp_path):
    class Words(nn.Layer):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(11, 6)
            self.fc = nn.Linear(6, 3)

        def forward(self, ids):
            return self.fc(self.table(ids))

    net = Words()
    ids = paddle.to_tensor([[1, 2, 3], [4, 10, 0]])
    quanter = paddleq.QAT({"quantizable_layer_type": ["Embedding", "Linear"]})
    quanter.quantize(net)
    assert not hasattr(net.table, "activation_quantizer")
    train_steps(net, ids)
    exported_equals_simulated(quanter, net, [ids], str(tmp_path / "m"))


def test_wrapped_functions(tmp_path):
    class Mixed(nn.Layer):
        def __init__(self):
            super().__init__()
            self.q, self.k = nn.Linear(8, 6), nn.Linear(8, 6)
            self.matmul = paddleq.QuantizableFunction(paddle.matmul)
            self.add = paddleq.QuantizableFunction(paddle.add)
            self.concat = paddleq.QuantizableFunction(paddle.concat, inputs=1)

        def forward(self, x):
            q, k = self.q(x), self.k(x)
            scores = self.matmul(q, k, transpose_y=True)
            return self.concat([self.add(scores, scores * 2), q], axis=-1)

    net, x = Mixed(), paddle.randn([2, 5, 8])
    ptq = paddleq.PTQ("AbsmaxQuantizer")
    quantized = ptq.quantize(net)
    ptq.calibrate(quantized, [x])
    quantizers = [n for n, _ in quantized.named_sublayers() if n.endswith("quantizer")
                  or n.endswith("quantizer_1")]
    assert "matmul.activation_quantizer" in quantizers
    assert "matmul.activation_quantizer_1" in quantizers
    assert "concat.activation_quantizer" in quantizers
    exported_equals_simulated(ptq, quantized, [x], str(tmp_path / "m"))


def test_registered_layer(tmp_path):
    class Twin(nn.Layer):
        def __init__(self):
            super().__init__()
            self.left = self.create_parameter([8, 4])
            self.right = self.create_parameter([8, 4])

        def forward(self, x, scale=1.0):
            return paddle.matmul(x, self.left) * scale + paddle.matmul(x, self.right)

    paddleq.register_layer(Twin, weights={"left": 1, "right": 1})
    net, x = nn.Sequential(Twin(), nn.ReLU()), paddle.randn([3, 8])
    quanter = paddleq.QAT({"quantizable_layer_type": ["Twin"]})
    quanter.quantize(net)
    assert isinstance(net[0].left_quantizer, paddleq.FakeQuantize)
    train_steps(net, x)
    exported_equals_simulated(quanter, net, [x], str(tmp_path / "m"))


def test_layer_types_are_registered_once():
    def define():
        class Own(nn.Linear):
            pass

        return Own

    first, again = define(), define()
    try:
        for cls in (first, first, again):  # re-executing the definition replaces it
            paddleq.register_layer(cls, {"weight": 1})
            assert layer_types.known_classes()["Own"] is cls
        with pytest.raises(ConfigError, match="'Own' is already registered with weights={'weig"):
            paddleq.register_layer(again, {"weight": 0})
        with pytest.raises(ConfigError, match="'Linear' is already registered with .*inputs=\\(0,"):
            paddleq.register_layer(nn.Linear, {"weight": 1}, inputs=())
        with pytest.raises(ConfigError, match="'Own' is already registered as"):
            paddleq.register_layer(type("Own", (nn.Linear,), {}))
        assert layer_types.kind_of(again(2, 2)).weights == {"weight": 1}
    finally:
        layer_types.LAYER_TYPES.unregister("Own")
    assert "Own" not in layer_types.known_classes()


def test_layer_used_twice_and_weight_shared_by_two_layers(tmp_path):
    class Shared(nn.Layer):
        def __init__(self):
            super().__init__()
            self.twice = nn.Linear(6, 6)
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight
            self.alias = self.twice
            self.listed = [self.twice]

        def forward(self, x):
            x = self.alias(F.relu(self.listed[0](x)))
            return self.a(x) + self.b(F.relu(x))

    net, x = Shared(), paddle.randn([4, 6])
    quanter = paddleq.QAT()
    quanter.quantize(net)
    assert net.twice is net.alias is net.listed[0]
    assert net.a.weight is net.b.weight
    assert net.a.weight_quantizer is net.b.weight_quantizer
    assert net.a.activation_quantizer is not net.b.activation_quantizer
    train_steps(net, x)
    path = str(tmp_path / "m")
    exported_equals_simulated(quanter, net, [x], path)
    from paddleq.export.program.program import Program
    arrays = Program.load(path + ".pdmodel", path + ".pdiparams").arrays
    stored = [value for value in arrays.values() if value.dtype == np.int8]
    # Each reader has a copy of the same integers: runtimes dequantize weights in place.
    assert len(stored) == 4 and len({value.tobytes() for value in stored}) == 2
    with paddle.no_grad():
        ptq = paddleq.PTQ()
        copied = ptq.quantize(warmed(Shared(), x))
    assert copied.twice is copied.alias and copied.a.weight is copied.b.weight


def test_layer_used_twice_in_int8_inference(tmp_path):
    class Twice(nn.Layer):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = nn.Conv2D(1, 8, 1), nn.Conv2D(8, 8, 3, padding=1)

        def forward(self, x):
            x = F.relu(self.conv(F.relu(self.stem(x))))
            return F.relu(self.conv(x))

    x = paddle.rand([4, 1, 8, 8])
    ptq, net = calibrated(Twice(), x)
    path = str(tmp_path / "m")
    ptq.save_quantized_model(net, path)
    found = paddle_inference(path, [x.numpy()], ir_optim=True, int8=True)[0]
    assert relative_error(found, net(x).numpy()) < 0.05


def test_weight_that_the_forward_also_reads_as_float(tmp_path):
    class Tied(nn.Layer):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            return paddle.matmul(self.fc(x), self.fc.weight)

    net, x = Tied(), paddle.randn([4, 6])
    quanter = paddleq.QAT()
    quanter.quantize(net)
    train_steps(net, x)
    exported_equals_simulated(quanter, net, [x], str(tmp_path / "m"))


def test_float_weights_of_whole_numbers_in_int8_inference(tmp_path):
    """Paddle Inference reads them as integers without a scale and rejects the file."""

    class Whole(nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2D(1, 8, 3)
            self.pruned = nn.Conv2D(8, 8, 3, groups=8)
            self.linear, self.pruned_linear = nn.Linear(8, 6), nn.Linear(6, 6)
            self.register_buffer("turn", paddle.to_tensor(np.eye(6, dtype="float32")[::-1].copy()))
            for layer in (self.pruned, self.pruned_linear):
                layer.weight.set_value(paddle.round(layer.weight * 4))
                layer.skip_quant = True

        def forward(self, x):
            x = self.linear(F.relu(self.pruned(F.relu(self.conv(x)))).mean([2, 3]))
            return x + self.pruned_linear(paddle.matmul(x, self.turn))

    x = paddle.rand([4, 1, 8, 8])
    ptq, net = calibrated(Whole(), x)
    path = str(tmp_path / "m")
    ptq.save_quantized_model(net, path)
    expected = net(x).numpy()
    assert relative_error(paddle_inference(path, [x.numpy()])[0], expected) < 1e-6
    found = paddle_inference(path, [x.numpy()], ir_optim=True, int8=True)[0]
    assert relative_error(found, expected) < 0.05


def test_layer_type_that_is_registered_again_keeps_its_integer_forms():
    class Pair(nn.Layer):
        def forward(self, x):
            return x

    @layer_types.frozen_form(Pair)
    class IntegerPair(nn.Layer):
        pass

    try:
        paddleq.register_layer(Pair, {}, (0,))
        assert layer_types.LAYER_TYPES["Pair"].frozen == [IntegerPair]
        assert layer_types.LAYER_TYPES["Pair"].simulated
    finally:
        del layer_types.LAYER_TYPES["Pair"]
