"""Frozen (integer) form of every layer type, created by every front end."""

import copy
import inspect
import pickle

import numpy as np
import paddle
import pytest
from layer_cases import LAYER_TYPES, LAYERS
from paddle import nn
from runtimes import paddle_inference, relative_error

import paddleq
from paddleq import LayerConfig, QuantConfig, QuantSpec
from paddleq.engine import calibrating, freeze, set_state, summary_rows
from paddleq.errors import ConfigError, ModelError
from paddleq.nn import IntegerLinear
from paddleq.nn.integer_layer import IntegerLayer

paddle.seed(11)
X = paddle.randn([4, 3, 8, 8])


def net():
    model = nn.Sequential(nn.Conv2D(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    model.eval()
    return model


def ptq(model=None, x=X, **options):
    quantized = paddleq.PTQ("AbsmaxQuantizer").quantize(model or net(), **options)
    paddleq.calibrate(quantized, [x])
    return quantized


def qat():
    model = paddleq.QAT({"activation_preprocess_type": "PACT"}).quantize(net())
    model.train()
    model(X).square().mean().backward()
    model.eval()
    return model


def simulated_qat(symmetric=True):
    algorithm = paddleq.golden_stick.SimulatedQuantizationAwareTraining(
        {"symmetric": symmetric})
    model = algorithm.apply(net(), X)
    model.train()
    model(X)
    return algorithm.convert(model)


def dynamic(**options):
    return paddleq.quant_post_dynamic(net(), **options)


SOURCES = {"ptq": lambda: freeze(ptq()), "qat": lambda: freeze(qat()),
           "simulated qat": lambda: freeze(simulated_qat()), "dynamic": dynamic,
           "dynamic 16 bits": lambda: dynamic(weight_bits=16),
           "dynamic per tensor": lambda: dynamic(weight_quantize_type="abs_max")}


@pytest.fixture(params=list(SOURCES))
def frozen(request):
    return SOURCES[request.param]()


def assert_close_up_to_rounding(found, expected):
    """Equal except for inputs on a rounding border."""
    different = np.abs(found - expected) > 1e-5 * np.abs(expected).max()
    assert different.mean() < 0.02


@pytest.mark.parametrize("name", list(LAYERS))
def test_frozen_layer_of_every_type_equals_the_simulation(name, tmp_path):
    make, shape = LAYERS[name]
    x = paddle.randn(shape)
    model = nn.Sequential(make())
    model.eval()
    model = ptq(model, x, quantizable_layer_type=LAYER_TYPES)
    expected = model(x).numpy()
    freeze(model)
    assert isinstance(model[0], (IntegerLayer, IntegerLinear))
    assert_close_up_to_rounding(model(x).numpy(), expected)
    spec = [paddle.static.InputSpec([None, *x.shape[1:]], str(x.dtype).replace("paddle.", ""))]
    paddleq.save_quantized_model(model, str(tmp_path / "m"), spec)
    (found,) = paddle_inference(str(tmp_path / "m"), [x.numpy()])
    assert relative_error(found, model(x).numpy()) < 1e-5


class Bilinear(nn.Layer):
    """Layer with two quantized inputs."""

    def __init__(self):
        super().__init__()
        self.weight = self.create_parameter([4, 4])

    def forward(self, x, other):
        return paddle.matmul(x, self.weight) * other


paddleq.register_layer(Bilinear, weights={"weight": 1}, inputs=(0, 1))
TWO_INPUTS = {
    "bilinear": (Bilinear, [([3, 4], "float32"), ([3, 4], "float32")]),
    "matmul": (lambda: paddleq.QuantizableFunction(paddle.matmul),
               [([3, 4], "float32"), ([4, 5], "float32")]),
    "optional input": (lambda: paddleq.QuantizableFunction(
        lambda x, y, bias=None: x + y if bias is None else x + y + bias, inputs=3),
                       [([3, 4], "float32")] * 3),
}
CALL_LAYERS = {
    **{name: (make, [(shape, "float32")]) for name, (make, shape) in LAYERS.items()},
    "embedding": (lambda: nn.Embedding(7, 4), [([3, 5], "int64")]),
    **TWO_INPUTS,
}


@pytest.mark.parametrize("name", list(CALL_LAYERS))
def test_frozen_layer_quantizes_positional_and_keyword_inputs(name):
    make, inputs = CALL_LAYERS[name]
    inputs = [paddle.randint(0, 7, shape) if dtype == "int64" else paddle.randn(shape)
              for shape, dtype in inputs]
    layer = make()
    config = QuantConfig()
    config.add_type(type(layer), LayerConfig(QuantSpec(4), QuantSpec(4)))
    simulated = paddleq.quantize(nn.Sequential(layer), config)
    simulated.eval()
    with calibrating(simulated):
        simulated[0](*inputs)
    set_state(simulated, "validation")
    frozen = freeze(copy.deepcopy(simulated))
    assert isinstance(frozen[0], IntegerLayer)
    names = list(inspect.signature(type(layer).forward).parameters)[1:len(inputs) + 1]
    calls = [(inputs, {})]
    if names[0] != "args":
        calls += [(inputs[:count], dict(zip(names[count:], inputs[count:])))
                  for count in range(len(inputs))]
    if name == "optional input":
        assert_close_up_to_rounding(frozen[0](*inputs[:2]).numpy(),
                                    simulated[0](*inputs[:2]).numpy())
    if "transpose" in name:
        size = simulated[0](*inputs).shape[2:]
        calls.append((inputs, {"output_size": size}))
        calls.append(([], {names[0]: inputs[0], "output_size": size}))
    for args, kwargs in calls:
        assert_close_up_to_rounding(frozen[0](*args, **kwargs).numpy(),
                                    simulated[0](*args, **kwargs).numpy())
        assert np.array_equal(frozen[0](*args, **kwargs).numpy(), frozen[0](*inputs).numpy())


def test_frozen_embedding_stores_integer_rows():
    model = nn.Sequential(nn.Embedding(7, 4))
    ids = paddle.randint(0, 7, [3, 5])
    simulated = ptq(model, ids, quantizable_layer_type=["Embedding"])
    frozen = freeze(copy.deepcopy(simulated))
    weight = simulated[0].weight.numpy()
    scale = np.abs(weight).max(1, keepdims=True) / 127
    integers = np.clip(np.round(weight / scale), -128, 127)
    assert np.array_equal(frozen[0].weight.numpy(), integers)
    assert np.allclose(frozen(ids).numpy(), (integers * scale)[ids.numpy()], rtol=1e-5)
    assert frozen[0].input_specs == ()


def test_frozen_function_quantizes_each_input_with_a_separate_scale():
    config = QuantConfig()
    config.add_type(paddleq.QuantizableFunction, LayerConfig(None, QuantSpec(8)))
    model = paddleq.quantize(nn.Sequential(paddleq.QuantizableFunction(paddle.matmul)), config)
    x, y = paddle.randn([3, 4]), 10 * paddle.randn([4, 5])
    with calibrating(model):
        model[0](x, y)
    set_state(model, "validation")
    frozen = freeze(model)[0]

    def quantized(value, scale):
        return np.clip(np.round(value / scale), -128, 127) * scale

    expected = quantized(x.numpy(), frozen.activation_scale.numpy()) @ quantized(
        y.numpy(), frozen.activation_1_scale.numpy())
    assert np.allclose(frozen(x, y).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert "weight" not in frozen.state_dict()


def test_frozen_linear_and_integer_linear_have_different_names():
    frozen = freeze(ptq())
    assert type(frozen[3]).__name__ == "FrozenLinear"
    assert "FrozenLinear(" in repr(frozen)
    assert {row.type for row in summary_rows(frozen) if row.done == "deployed"} == {
        "FrozenConv2D", "FrozenLinear"}


def test_frozen_affine_quantization_equals_the_simulation():
    model = simulated_qat(symmetric=False)
    model.eval()
    x = paddle.randn([64, 3, 8, 8])
    expected = model(x).numpy()
    assert_close_up_to_rounding(freeze(model)(x).numpy(), expected)
    assert list(model[0].weight_zero_point.shape) == list(model[0].weight_scale.shape)


def test_frozen_weights_equal_exported_integers(tmp_path):
    simulated = ptq()
    paddleq.export.save(simulated, str(tmp_path / "simulated"), [X])
    frozen = freeze(copy.deepcopy(simulated))
    paddleq.export.save(frozen, str(tmp_path / "frozen"), [X])
    results = [paddle_inference(str(tmp_path / name), [X.numpy()])[0]
               for name in ("simulated", "frozen")]
    assert_close_up_to_rounding(*results)
    weight, scale = simulated[0].weight.numpy(), frozen[0].weight_scale.numpy()
    integers = np.clip(np.round(weight / scale.reshape([-1, 1, 1, 1])), -128, 127)
    assert np.array_equal(frozen[0].weight.numpy(), integers)


def test_summary_lists_frozen_layers(frozen):
    rows = {row.name: row for row in summary_rows(frozen)}
    for name in ("0", "3"):
        assert rows[name].done == "deployed" and rows[name].weight.startswith("int")


def test_weight_scale_is_the_step(frozen):
    for layer in (frozen[0], frozen[3]):
        step, weight = layer.weight_scale.numpy(), layer.dequantized_weight().numpy()
        assert np.allclose(np.abs(weight).max(), np.abs(layer.weight.numpy().astype("float32")
                           * step.reshape([-1, 1, 1, 1] if weight.ndim == 4 and step.size > 1
                                          else [1] * (weight.ndim - 1) + [-1])).max(), rtol=1e-5)
        assert np.abs(weight).max() / step.max() <= 2 ** (layer.weight_spec.bits - 1)


def test_checkpoint_of_a_frozen_model_loads_into_a_float_one(frozen, tmp_path):
    paddleq.save_checkpoint(frozen, str(tmp_path / "m"))
    loaded = paddleq.load_checkpoint(net(), str(tmp_path / "m"))
    assert np.array_equal(loaded(X).numpy(), frozen(X).numpy())
    again = paddleq.load_checkpoint(loaded, str(tmp_path / "m"))
    assert np.array_equal(again(X).numpy(), frozen(X).numpy())


def net_with_norms():
    model = nn.Sequential(nn.Conv2D(3, 4, 3, bias_attr=False), nn.BatchNorm2D(4), nn.ReLU(),
                          nn.Conv2D(4, 4, 3), nn.BatchNorm2D(4))
    model.eval()
    return model


def test_checkpoint_with_folded_norms_loads_into_a_frozen_model(tmp_path):
    frozen = freeze(ptq(net_with_norms(), fuse=True))
    paddleq.save_checkpoint(frozen, str(tmp_path / "m"))
    other = freeze(ptq(net_with_norms(), 2 * X, fuse=True))
    assert np.array_equal(paddleq.load_checkpoint(other, str(tmp_path / "m"))(X).numpy(),
                          frozen(X).numpy())


def test_checkpoint_with_folded_norms_error_names_the_remedy(tmp_path):
    paddleq.save_checkpoint(freeze(ptq(net_with_norms(), fuse=True)), str(tmp_path / "m"))
    model = net_with_norms()
    expected = model(X).numpy()
    with pytest.raises(ModelError, match="if 1, 4 were folded before .* call freeze"):
        paddleq.load_checkpoint(model, str(tmp_path / "m"))
    assert np.array_equal(model(X).numpy(), expected)


def test_checkpoint_of_frozen_fused_blocks_is_rejected(tmp_path):
    algorithm = paddleq.golden_stick.SimulatedQuantizationAwareTraining({"enable_fusion": True})
    model = algorithm.apply(net_with_norms(), X)
    model.train()
    model(X)
    frozen = freeze(algorithm.convert(model))
    with pytest.raises(ModelError, match="'0' is fused .* export the model instead"):
        paddleq.save_checkpoint(frozen, str(tmp_path / "m"))


def test_checkpoint_of_a_frozen_model_is_rejected_by_another_model(tmp_path):
    paddleq.save_checkpoint(dynamic(), str(tmp_path / "m"))
    other = nn.Sequential(nn.Conv2D(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Embedding(144, 5))
    with pytest.raises(ModelError, match="Linear"):
        paddleq.load_checkpoint(other, str(tmp_path / "m"))
    assert type(other[0]) is nn.Conv2D


@pytest.mark.parametrize("format", [
    "pdmodel", pytest.param("pir", marks=pytest.mark.needs_pir), "onnx"])
def test_frozen_model_is_exported(frozen, format, tmp_path):
    paddleq.export.save(frozen, str(tmp_path / "m"), [X], format=format)
    if format == "pdmodel":
        (found,) = paddle_inference(str(tmp_path / "m"), [X.numpy()])
        assert_close_up_to_rounding(found, frozen(X).numpy())


@pytest.mark.parametrize("format", [pytest.param("pir", marks=pytest.mark.needs_pir), "onnx"])
def test_fake_operators_in_another_format_are_an_error(frozen, format, tmp_path):
    with pytest.raises(ConfigError, match=f"onnx_format=False is for .* not for '{format}'"):
        paddleq.export.save(frozen, str(tmp_path / "m"), [X], onnx_format=False, format=format)
    assert not any(tmp_path.iterdir())


def test_frozen_model_is_exported_with_fake_operators(frozen, tmp_path):
    paddleq.export.save(frozen, str(tmp_path / "m"), [X], onnx_format=False)
    (found,) = paddle_inference(str(tmp_path / "m"), [X.numpy()])
    assert_close_up_to_rounding(found, frozen(X).numpy())


@pytest.mark.parametrize("quantize", [
    lambda model: paddleq.QAT().quantize(model), paddleq.quant_post_dynamic,
    lambda model: paddleq.PTQ().quantize(model)])
def test_quantizing_a_frozen_model_is_an_error(frozen, quantize):
    with pytest.raises(ModelError, match="already quantized"):
        quantize(frozen)


def test_frozen_model_pickles(frozen):
    copied = pickle.loads(pickle.dumps(frozen))
    assert np.array_equal(copied(X).numpy(), frozen(X).numpy())


def test_shared_weights_share_their_integers():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    frozen = paddleq.quant_post_dynamic(nn.Sequential(first, second))
    assert frozen[0].weight is frozen[1].weight


def test_freeze_removes_the_hook_that_records_the_inputs_after_a_call():
    """Without a call the hook stays: an export needs the inputs of one."""
    assert not freeze(ptq())._forward_pre_hooks
    config = QuantConfig()
    config.add_type(nn.Linear, LayerConfig(QuantSpec()))
    weights_only = paddleq.quantize(net(), config)
    freeze(weights_only)(X)
    assert weights_only._forward_pre_hooks


def test_freezing_a_float_model_is_an_error():
    with pytest.raises(ModelError, match="no quantized layer"):
        freeze(net())
