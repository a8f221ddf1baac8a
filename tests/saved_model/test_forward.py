"""Saved models as layers: outputs are those of Paddle Inference without IR optimization."""

import copy
import multiprocessing
import pickle

import numpy as np
import paddle
import pir_harness
import pytest
import zoo
from paddle import nn
from paddle.static import InputSpec
from pir_cases import CASES
from process_worker import run_pickled
from runtimes import paddle_inference
from saved_models import PPOCR, assert_equal_to_inference, ppocr, run, save

import paddleq
from paddleq.errors import ConfigError, ConfigTypeError, FormatError, ModelError
from paddleq.export.save import save as save_export

FAST = ("CRNN", "SSD", "SSD, multiclass NMS", "LeNet")
SMALL = ("add", "batch_norm_", "conv2d", "conv2d_transpose", "depthwise_conv2d", "embedding",
         "if", "interp", "matmul", "pool2d", "reshape", "rnn", "set_value", "slice", "while")


@pytest.mark.parametrize("name", PPOCR)
def test_ppocr_models(name):
    prefix = ppocr(name)
    model = paddleq.SavedModel(prefix)
    for shape in PPOCR[name]:
        x = np.random.randn(*shape).astype("float32")
        (found,), (expected,) = run(model, [x]), paddle_inference(prefix, [x])
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.slow, pytest.mark.one_version] * (name not in FAST)
                 # written with operations of PIR
                 + [pytest.mark.needs_pir] * name.startswith("SSD, ")) for name in zoo.ZOO])
def test_float_models_of_the_zoo(name, prefix):
    model = zoo.ZOO[name]
    save(model.make(), prefix, model.spec())
    saved = paddleq.SavedModel(prefix)  # PIR where Paddle writes it
    for other in (False, True) if model.open_sizes() else (False,):
        inputs = [each.numpy() for each in model.tensors(zoo.unseen(3), other)]
        assert_equal_to_inference(f"{prefix}.old", inputs, saved)


def _chosen(case):
    return any(part in op for op in case.ops for part in SMALL)


@pytest.mark.needs_pir
@pytest.mark.parametrize("number", [
    number if _chosen(case) and number % 4 == 0 else pytest.param(number, marks=pytest.mark.slow)
    for number, case in enumerate(CASES) if "array_to_tensor" not in case.ops])
def test_operators(number, prefix):
    """Each operator that the converter from PIR writes, compared with its dygraph function."""
    case = CASES[number]
    expected = pir_harness.save(case, prefix)
    pir_harness.compare(case, run(paddleq.SavedModel(prefix), case.inputs), expected)


class Recurrent(nn.Layer):
    def __init__(self, cls):
        super().__init__()
        self.cells = cls(5, 7, num_layers=2, direction="bidirect")

    def forward(self, x):
        return self.cells(x)[0]


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.SimpleRNN])
def test_recurrent_layers(cls, prefix):
    net = Recurrent(cls)
    save(net, prefix, [InputSpec([None, None, 5], "float32", "x")])
    x = np.random.randn(2, 6, 5).astype("float32")
    assert_equal_to_inference(f"{prefix}.old", [x])
    model = paddleq.SavedModel(prefix)
    assert any(type(layer) is cls for layer in model.sublayers())


@pytest.mark.parametrize("size", [1, 4])
def test_reshaped_addend_that_is_not_a_bias_stays_an_operator(size, prefix):
    """One number for all channels is no bias of the layer; one for each is."""
    class Net(nn.Layer):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2D(3, 4, 3, bias_attr=False)
            self.addend = self.create_parameter([size])

        def forward(self, x):
            return self.conv(x) + self.addend.reshape([1, -1, 1, 1])

    net = Net()
    net.addend.set_value(paddle.arange(1.0, size + 1.0))
    save(net, prefix, [InputSpec([None, 3, 8, 8], "float32", "x")])
    model = paddleq.SavedModel(f"{prefix}.old")
    (conv,) = model.sublayers()
    assert (conv.bias is None) == (size == 1)
    assert_equal_to_inference(f"{prefix}.old", [np.random.rand(2, 3, 8, 8).astype("float32")])


class Loop(nn.Layer):
    """A while loop with a weighted operator, and a branch."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    @paddle.jit.to_static(full_graph=True)
    def forward(self, x, count):
        i = paddle.zeros([1], "int64")
        while i < count:
            x = paddle.tanh(self.fc(x))
            i = i + 1
        if x.mean() > 0.0:
            y = x * 2.0
            x = y + 1.0
        else:
            x = x - 1.0
        return x


def test_control_flow(prefix):
    net = Loop()
    save(net, prefix, [InputSpec([None, 4], "float32", "x"), InputSpec([1], "int64", "count")])
    model = paddleq.SavedModel(f"{prefix}.old")
    assert [type(layer) for layer in model.sublayers()] == [nn.Linear]
    for count in (0, 1, 5):
        for seed in range(3):
            x = np.random.RandomState(seed).randn(3, 4).astype("float32")
            assert_equal_to_inference(f"{prefix}.old", [x, np.array([count])], model)


class Pictures(nn.Layer):
    """uint8 in, two outputs."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(3, 4, 3)

    def forward(self, image, shift):
        x = image.astype("float32") / 255.0
        y = self.conv(x + shift.astype("float32").reshape([-1, 1, 1, 1]))
        return y, y.argmax(1)


@pytest.fixture
def pictures(prefix):
    net = Pictures()
    save(net, prefix, [InputSpec([None, 3, None, None], "uint8", "image"),
                       InputSpec([None], "int32", "shift")])
    return prefix, [np.random.randint(0, 256, [2, 3, 7, 6]).astype("uint8"),
                    np.arange(2, dtype="int32")]


def test_integer_inputs_and_several_outputs(pictures):
    prefix, inputs = pictures
    model = paddleq.SavedModel(f"{prefix}.old")
    assert_equal_to_inference(f"{prefix}.old", inputs, model)
    assert model.input_names == ["image", "shift"] and len(model.output_names) == 2
    by_name = model({"shift": inputs[1], "image": paddle.to_tensor(inputs[0])})
    for got, want in zip(by_name, run(model, inputs)):
        np.testing.assert_array_equal(got.numpy(), want)


def test_quantized_programs(prefix, digits):
    net = nn.Sequential(nn.Conv2D(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    images = digits.test[0]
    for form in (True, False):
        ptq = paddleq.PTQ("AbsmaxQuantizer")
        model = ptq.quantize(net)
        ptq.calibrate(model, digits.batches(64, 1))
        save_export(model, prefix, [InputSpec([None, 1, 8, 8])], onnx_format=form)
        assert_equal_to_inference(prefix, [images[:16]])


def test_a_copy_computes_the_same(pictures):
    prefix, inputs = pictures
    model = paddleq.SavedModel(prefix)
    expected = run(model, inputs)
    for got, want in zip(run(copy.deepcopy(model), inputs), expected):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", ["float", "kthvalue", "ptq", "fused", "qat", "dynamic"])
def test_a_pickle_computes_the_same(kind, prefix, tmp_path):
    net = nn.Sequential(nn.Conv2D(1, 4, 3), nn.BatchNorm2D(4), nn.ReLU(), nn.Flatten(),
                        nn.Linear(144, 10))
    if kind == "kthvalue":  # runs in Paddle Inference, whose predictor stays in its process
        net.add_sublayer("least", Least())
    save(net, prefix, [InputSpec([4, 1, 8, 8])])
    x, model = paddle.randn([4, 1, 8, 8]), paddleq.SavedModel(prefix)
    if kind in ("ptq", "fused"):
        ptq = paddleq.PTQ("AbsmaxQuantizer")
        model = ptq.quantize(model, fuse=kind == "fused")
        ptq.calibrate(model, [x])
    elif kind == "qat":
        model = paddleq.QAT({"activation_preprocess_type": "PACT"}).quantize(model)
        model(x)
        model.eval()
    elif kind == "dynamic":
        model = paddleq.quant_post_dynamic(model)
    expected = run(model, [x])[0]
    content = pickle.dumps(model)
    copied = pickle.loads(content)
    np.testing.assert_array_equal(run(copied, [x])[0], expected)
    assert copied.weight_names == model.weight_names
    for mine, theirs in zip(copied.parameters(), model.parameters()):
        assert mine.name == theirs.name and mine.stop_gradient == theirs.stop_gradient
    if kind == "kthvalue":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            np.testing.assert_array_equal(pool.apply(run_pickled, (content, x.numpy())), expected)
    paddle.save(model.state_dict(), str(tmp_path / "state"))
    copied = paddleq.SavedModel(prefix) if kind == "float" else copied
    assert copied.set_state_dict(paddle.load(str(tmp_path / "state"))) == ([], [])
    np.testing.assert_array_equal(run(copied, [x])[0], expected)


class Least(nn.Layer):
    def forward(self, x):
        return paddle.kthvalue(x, 2)[0]


def test_paths_of_a_saved_model(pictures, tmp_path_factory):
    prefix, inputs = pictures
    folder = tmp_path_factory.mktemp("older")
    for ending, name in ((".pdmodel", "__model__"), (".pdiparams", "__params__")):
        with open(f"{prefix}.old{ending}", "rb") as file:
            (folder / name).write_bytes(file.read())
    expected = run(paddleq.SavedModel(f"{prefix}.old"), inputs)
    for path in (f"{prefix}.old.pdmodel", folder, folder / "__model__"):
        np.testing.assert_array_equal(run(paddleq.SavedModel(path), inputs)[0], expected[0])


def test_missing_and_damaged_files_raise_format_errors(pictures, tmp_path):
    prefix, _ = pictures
    with pytest.raises(FormatError, match="nowhere"):
        paddleq.SavedModel(tmp_path / "nowhere")
    with pytest.raises(ConfigTypeError, match="path"):
        paddleq.SavedModel(3)
    with open(f"{prefix}.old.pdmodel", "r+b") as file:
        file.write(b"damaged")
    with pytest.raises(FormatError):
        paddleq.SavedModel(f"{prefix}.old")


def test_wrong_inputs_raise_config_errors(pictures):
    prefix, (image, shift) = pictures
    model = paddleq.SavedModel(prefix)
    for inputs, error, words in [
            ([image], ConfigError, "takes 2 inputs"),
            ([{"image": image}], ConfigError, "shift"),
            ([{"image": image, "shift": shift, "shifd": shift}], ConfigError, "'shifd'.*shift"),
            ([image.astype("float32"), shift], ConfigTypeError, "'image' must be uint8"),
            ([image[:, :2], shift], ConfigError, "'image' must have the shape"),
            ([image[0], shift], ConfigError, "'image' must have the shape")]:
        with pytest.raises(error, match=words):
            model(*inputs)


def test_an_unknown_operator_is_named(pictures):
    prefix, _ = pictures
    program = paddleq.SavedModel(prefix).to_program()
    program.desc.blocks[0].ops[-2].type = "no_such_operator"
    with pytest.raises(ModelError, match="no_such_operator"):
        paddleq.SavedModel.from_program(program)


def test_layers_are_named_after_their_weights(prefix):
    net = nn.Sequential(nn.Conv2D(1, 4, 3), nn.BatchNorm2D(4), nn.ReLU(), nn.Flatten(),
                        nn.Linear(144, 10))
    save(net, prefix, [InputSpec([None, 1, 8, 8])])
    model = paddleq.SavedModel(prefix)
    layers = dict(model.named_sublayers())
    for source in (net[0], net[1], net[4]):
        name = source.weight.name.rpartition(".")[0]
        assert type(layers[name]) is type(source)
        assert model.weight_names[name] == source.weight.name
        for key, value in source.state_dict().items():
            np.testing.assert_array_equal(layers[name].state_dict()[key].numpy(), value.numpy())
    assert len(layers) == 3


@pytest.mark.parametrize("layer", [
    lambda: nn.GroupNorm(2, 6), lambda: nn.GroupNorm(3, 6, epsilon=1e-2),
    lambda: nn.GroupNorm(6, 6, weight_attr=False, bias_attr=False),
    lambda: nn.GroupNorm(1, 6, bias_attr=False)], ids=["two", "epsilon", "plain", "no bias"])
def test_group_norms_and_their_gradients(layer, tmp_path):
    net, x = nn.Sequential(nn.Conv2D(3, 6, 3), layer()), paddle.randn([2, 3, 8, 8])
    net.eval()
    paddle.jit.save(net, str(tmp_path / "m"), [paddle.static.InputSpec([None, 3, 8, 8], "float32")])
    model = paddleq.SavedModel(tmp_path / "m")
    found, expected = [], []
    for each, values in ((model, found), (net, expected)):
        own = x.clone()
        own.stop_gradient = False
        y = each(own)
        (y * y * y).sum().backward()
        values += [y.numpy(), own.grad.numpy()]
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
