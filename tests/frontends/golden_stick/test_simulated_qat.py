"""SimulatedQuantizationAwareTraining: a row for each sentence of its specification, and further
behaviour. test_folding, test_blocks, test_delayed and test_checkpoint test its parts."""

import copy
import os

import numpy as np
import paddle
import pytest
from paddle import nn
from runtimes import openvino, paddle_inference, relative_error

import paddleq
from paddleq.engine import blocks_of, fake_quantizers, quantized_layers
from paddleq.errors import (
    CalibrationError,
    ConfigError,
    ConfigTypeError,
    ExportError,
    FormatError,
    ModelError,
    PaddleqError,
)
from paddleq.export import save
from paddleq.frontends.golden_stick import QuantDtype
from paddleq.frontends.golden_stick import SimulatedQuantizationAwareTraining as SimQAT
from paddleq.frontends.golden_stick.simulated_qat import DelayedFakeQuantize
from paddleq.graph import FoldedNorm
from paddleq.nn import is_quantized

INT8 = QuantDtype.INT8

SYMMETRIC = {"symmetric": True}
MODES = {
    "no fusion": {},
    "fusion": {"enable_fusion": True},
    "one conv": {"enable_fusion": True, "bn_fold": True},
    "two conv": {"enable_fusion": True, "bn_fold": True, "one_conv_fold": False},
}


class Net(nn.Layer):
    """Every fusion pattern except Dense + BN."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2D(1, 8, 3, padding=1, bias_attr=False),
                                  nn.BatchNorm2D(8), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2D(8, 8, 3, stride=2, padding=1), nn.BatchNorm2D(8))
        self.mix = nn.Sequential(nn.Conv2D(8, 8, 1), nn.ReLU())
        self.flatten = nn.Flatten()
        self.hidden = nn.Sequential(nn.Linear(128, 16, bias_attr=False), nn.BatchNorm1D(16),
                                    nn.ReLU())
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.hidden(self.flatten(self.mix(self.down(self.stem(x))))))


def images(count=4):
    return paddle.rand([count, 1, 8, 8])


def applied(net=None, x=None, **config):
    return SimQAT(config).apply(Net() if net is None else net, images() if x is None else x)


def trained(steps=3, net=None, **config):
    net = applied(net, **config)
    optimizer = paddle.optimizer.Momentum(0.01, parameters=net.parameters())
    for _ in range(steps):
        net(images()).square().mean().backward()
        optimizer.step()
        optimizer.clear_grad()
    return net


def raises(error, *parts):
    """Expect an error of the library that derives from the built-in one and names ``parts``."""
    builtin = TypeError if error is ConfigTypeError else ValueError
    assert issubclass(error, (PaddleqError,)) and issubclass(error, builtin)
    return pytest.raises(error, match="(?s)" + ".*".join(parts))


# The nine keys


@pytest.mark.parametrize("key, default", [
    ("quant_delay", (0, 0)),
    ("quant_dtype", (INT8, INT8)),
    ("per_channel", (False, False)),
    ("symmetric", (False, False)),
    ("narrow_range", (False, False)),
    ("enable_fusion", False),
    ("freeze_bn", 10000000),
    ("bn_fold", False),
    ("one_conv_fold", True),
])
def test_default(key, default):
    for config in (None, {}):
        assert SimQAT(config).config[key] == default
        assert type(SimQAT(config).config[key]) is type(default)
    assert len(SimQAT().config) == 9


@pytest.mark.parametrize("given, parsed", [
    ({"quant_delay": 5}, (5, 5)),
    ({"quant_delay": [5]}, (5, 5)),
    ({"quant_delay": (5,)}, (5, 5)),
    ({"quant_delay": [5, 7]}, (5, 7)),
    ({"quant_delay": (0, 900)}, (0, 900)),
    ({"quant_dtype": INT8}, (INT8, INT8)),
    ({"quant_dtype": [INT8, INT8]}, (INT8, INT8)),
    ({"per_channel": False}, (False, False)),
    ({"per_channel": (False, True)}, (False, True)),
    ({"per_channel": [False, True]}, (False, True)),
    ({"symmetric": True}, (True, True)),
    ({"symmetric": [True]}, (True, True)),
    ({"symmetric": (True, False)}, (True, False)),
    ({"narrow_range": True}, (True, True)),
    ({"narrow_range": [False, True]}, (False, True)),
    ({"enable_fusion": True}, True),
    ({"freeze_bn": 0}, 0),
    ({"bn_fold": True, "enable_fusion": True}, True),
    ({"one_conv_fold": False}, False),
])
def test_pairs_are_activations_then_weights(given, parsed):
    assert SimQAT(given).config[next(iter(given))] == parsed


def parts_of(net):
    layer = dict(quantized_layers(net))["stem.0"]
    return layer.activation_quantizer, layer.weight_quantizer, layer.output_quantizer


@pytest.mark.parametrize("config, activation, weight", [
    ({}, (False, False, False), (False, False, False)),
    ({"symmetric": (True, False)}, (True, False, False), (False, False, False)),
    ({"symmetric": (False, True)}, (False, False, False), (True, False, False)),
    ({"narrow_range": (True, False)}, (False, True, False), (False, False, False)),
    ({"narrow_range": (False, True)}, (False, False, False), (False, True, False)),
    ({"per_channel": (False, True)}, (False, False, False), (False, False, True)),
])
def test_quantizers_of_each_key(config, activation, weight):
    """symmetric, narrow_range, per_channel, of the activations and of the weights."""
    of_input, of_weight, of_output = parts_of(applied(**config))
    for quantizer, (symmetric, narrow, per_channel) in (
            (of_input, activation), (of_weight, weight), (of_output, activation)):
        spec = quantizer.spec
        assert (spec.bits, spec.symmetric, spec.narrow_range) == (8, symmetric, narrow)
        assert (spec.channel_axis is not None) == per_channel
        low, high = (-128, 127) if symmetric else (0, 255)
        assert (spec.quant_min, spec.quant_max) == (low + narrow, high)


def test_quant_delay_of_activations_and_weights():
    of_input, of_weight, of_output = parts_of(applied(quant_delay=(5, 7)))
    assert (of_input.delay, of_weight.delay, of_output.delay) == (5, 7, 5)


def test_quant_delay_in_training_and_evaluation():
    x = images()
    plain = Net()
    net = applied(copy.deepcopy(plain), x, quant_delay=2)
    same = []
    for _ in range(3):
        same.append(np.array_equal(net(x).numpy(), plain(x).numpy()))
    assert same == [True, True, False]
    other = applied(copy.deepcopy(plain), x, quant_delay=100)
    other(x)
    for each in (other, plain):
        each.eval()
    assert not np.allclose(other(x).numpy(), plain(x).numpy(), atol=1e-6)
    steps = {q.step.item() for _, q in fake_quantizers(other)}
    assert steps == {1}


@pytest.mark.parametrize("mode", MODES)
def test_enable_fusion_bn_fold_one_conv_fold(mode):
    net = applied(**MODES[mode])
    assert len(blocks_of(net)) == (0 if mode == "no fusion" else 4)
    foldings = [layer.norm_folding for _, layer in quantized_layers(net)
                if getattr(layer, "norm_folding", None) is not None]
    folded = mode in ("one conv", "two conv")
    assert len(foldings) == (3 if folded else 0)
    assert {folding.one_conv for folding in foldings} == (
        {mode == "one conv"} if folded else set())


def test_freeze_bn_reaches_the_folding():
    net = applied(**MODES["one conv"], freeze_bn=123)
    assert dict(quantized_layers(net))["stem.0"].norm_folding.freeze_at == 123


def fake_quantized(x, symmetric, narrow):
    """Return (fake-quantized x, lowest, highest value) in float64 from the formulas."""
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    if symmetric:
        high = max(-low, high)
        low = -high
    qmin, qmax = int(narrow), 255
    if low == high:
        return np.zeros_like(x), (0.0, 255.0 - qmin)
    step = (high - low) / (qmax - qmin)
    # For a symmetric range the middle, 127.5 or 128, up to float64 rounding.
    zero = (qmin + qmax) / 2 if symmetric else np.clip(qmin - low / step, qmin, qmax)
    zero = np.round(zero)
    nudged = (qmin - zero) * step, (qmax - zero) * step
    return np.round(np.clip(x, *nudged) / step) * step, nudged


TENSORS = {
    "both signs": np.random.RandomState(0).randn(8, 1, 3, 3),
    "skewed": np.random.RandomState(1).rand(8, 1, 3, 3) * 5 - 1.3,
    "positive": np.random.RandomState(2).rand(8, 1, 3, 3) + 2.0,
    "negative": -np.random.RandomState(3).rand(8, 1, 3, 3) - 0.5,
    "tiny": np.random.RandomState(4).randn(8, 1, 3, 3) * 1e-4,
    "huge": np.random.RandomState(5).randn(8, 1, 3, 3) * 1e6,
    "zero": np.zeros([8, 1, 3, 3]),
    "constant": np.full([8, 1, 3, 3], 0.7),
}


def range_rows():
    for part in "activation", "weight", "weight per channel":
        for tensor in TENSORS:
            for symmetric in False, True:
                for narrow in False, True:
                    name = (f"{part}, {tensor}, {'' if symmetric else 'a'}symmetric"
                            f"{', narrow' * narrow}")
                    yield pytest.param(part, tensor, symmetric, narrow, id=name)


@pytest.mark.parametrize("part, tensor, symmetric, narrow", list(range_rows()))
def test_range_formulas(part, tensor, symmetric, narrow):
    per_channel = part == "weight per channel"
    of_input, of_weight, _ = parts_of(applied(
        symmetric=symmetric, narrow_range=narrow, per_channel=(False, per_channel)))
    quantizer = of_input if part == "activation" else of_weight
    values = TENSORS[tensor].astype("float32")
    x = paddle.to_tensor(values, stop_gradient=False)
    y = quantizer(x)
    y.sum().backward()
    for channel in (range(8) if per_channel else [slice(None)]):
        exact = values[channel].astype("float64")
        expected, (low, high) = fake_quantized(exact, symmetric, narrow)
        found, step = y.numpy()[channel], (high - low) / (255 - narrow)
        # At half a step float32 may round differently from float64, by one step.
        error = np.abs(found - expected)
        assert ((error <= 1e-5 * step * 255) | (np.abs(error - step) <= 1e-3 * step)).all()
        assert (error > 0.5 * step).mean() <= 0.12
        ties = np.abs(np.abs(exact / step) % 1.0 - 0.5) < 1e-4
        assert (error[~ties] <= 1e-5 * step * 255).all()
        # No gradient outside of the nudged range (values on its border aside).
        gradient, clear = x.grad.numpy()[channel], 1e-5 * step * 255
        assert (gradient[(exact > low + clear) & (exact < high - clear)] == 1.0).all()
        assert (gradient[(exact < low - clear) | (exact > high + clear)] == 0.0).all()
        assert (np.abs(found) <= clear)[exact == 0.0].all()


def test_gradient_is_zero_outside_of_the_range():
    quantizer, _, _ = parts_of(applied())
    quantizer(paddle.to_tensor([-1.0, 3.0]))
    quantizer.eval()
    low, high = (limit.item() for limit in quantizer.range())
    assert low < 0.0 < high
    x = paddle.to_tensor([2 * low, low / 2, 0.0, high / 2, 2 * high], stop_gradient=False)
    y = quantizer(x)
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    np.testing.assert_allclose([y[0].item(), y[-1].item()], [low, high], rtol=1e-5)


def test_activation_range_is_a_moving_average_initialized_by_the_first_batch():
    quantizer, _, _ = parts_of(applied())
    quantizer(paddle.to_tensor([-1.0, 3.0]))
    assert [round(limit.item(), 5) for limit in quantizer.observer.range()] == [-1.0, 3.0]
    quantizer(paddle.to_tensor([-2.0, 8.0]))
    assert [round(limit.item(), 5) for limit in quantizer.observer.range()] == [-1.01, 3.05]


# Errors


@pytest.mark.parametrize("key", ["bn_fold", "one_conv_fold", "enable_fusion"])
@pytest.mark.parametrize("value", [1, 0, "True", None, (True,), 1.0])
def test_type_error_bn_fold_one_conv_fold_enable_fusion_no_bool(key, value):
    with raises(ConfigTypeError, key, "must be a bool", type(value).__name__):
        SimQAT({key: value})


@pytest.mark.parametrize("value", [1.0, "1", True, None, [1]])
def test_type_error_freeze_bn_no_int(value):
    with raises(ConfigTypeError, "freeze_bn", "must be an int"):
        SimQAT({"freeze_bn": value})


WRONG_TYPES = {
    "quant_delay": ("an int", [1.5, "1", True, None, {1: 2}]),
    "quant_dtype": ("a QuantDtype", ["INT8", 8, "int8", None, True]),
    "per_channel": ("a bool", [1, "False", None, 0]),
    "symmetric": ("a bool", [1, 0, "True", None]),
    "narrow_range": ("a bool", [1, 0, "True", None]),
}
RIGHT = {"quant_delay": 0, "quant_dtype": INT8, "per_channel": False, "symmetric": False,
         "narrow_range": False}


@pytest.mark.parametrize("key, expected, value", [
    (key, expected, value) for key, (expected, values) in WRONG_TYPES.items() for value in values])
def test_type_error_of_a_pair_or_of_an_element_of_it(key, expected, value):
    for given in (value, [value], (RIGHT[key], value), [value, RIGHT[key]]):
        with raises(ConfigTypeError, key, f"must be {expected}"):
            SimQAT({key: given})


@pytest.mark.parametrize("value", [-1, -10000000])
def test_value_error_freeze_bn_below_0(value):
    with raises(ConfigError, "freeze_bn", "an int of at least 0", str(value)):
        SimQAT({"freeze_bn": value})


@pytest.mark.parametrize("key", RIGHT)
@pytest.mark.parametrize("length", [0, 3, 4])
def test_value_error_length_above_2(key, length):
    for kind in (list, tuple):
        with raises(ConfigError, key, "one for activations and one for weights"):
            SimQAT({key: kind([RIGHT[key]] * length)})


@pytest.mark.parametrize("value", [-1, [-1], (-1, 0), [0, -1]])
def test_value_error_quant_delay_below_0(value):
    with raises(ConfigError, "quant_delay", "an int of at least 0", "-1"):
        SimQAT({"quant_delay": value})


@pytest.mark.parametrize("dtype", [each for each in QuantDtype if each is not INT8])
def test_value_error_quant_dtype_not_int8(dtype):
    for value in (dtype, [dtype], (INT8, dtype), (dtype, INT8)):
        with raises(ConfigError, "quant_dtype", "QuantDtype.INT8", dtype.name):
            SimQAT({"quant_dtype": value})


@pytest.mark.parametrize("value", [True, [True], (True,), (True, False), [True, True]])
def test_value_error_per_channel_of_activations(value):
    with raises(ConfigError, "per_channel", "False for activations", "set_weight_per_channel"):
        SimQAT({"per_channel": value})


@pytest.mark.parametrize("config", [[], "config", 3, ("quant_delay", 3)])
def test_type_error_config_no_dict(config):
    with raises(ConfigTypeError, "config must be a dict or None"):
        SimQAT(config)


def test_value_error_unknown_key_names_the_nearest():
    with raises(ConfigError, "config does not know 'bn_folding'", "did you mean 'bn_fold'"):
        SimQAT({"bn_folding": True})


def test_value_error_bn_fold_without_enable_fusion():
    with raises(ConfigError, "bn_fold must be False while enable_fusion is False",
                "set enable_fusion to True"):
        SimQAT({"bn_fold": True})
    algorithm = SimQAT()
    algorithm.set_bn_fold(True)  # the other setter may come after this one
    with raises(ConfigError, "bn_fold must be False"):
        algorithm.apply(Net())
    algorithm.set_enable_fusion(True)
    assert len(blocks_of(algorithm.apply(Net(), images()))) == 4


# The setters

NO_BOOL, NO_INT = [1], [1.0, True]
NO_DTYPE, NEGATIVE = ["INT8"], [-1]

SETTERS = {
    "act_narrow_range": ("narrow_range", 0, True, NO_BOOL, []),
    "act_per_channel": ("per_channel", 0, False, NO_BOOL, [True]),
    "act_quant_delay": ("quant_delay", 0, 900, NO_INT, NEGATIVE),
    "act_quant_dtype": ("quant_dtype", 0, INT8, NO_DTYPE, [QuantDtype.INT4, QuantDtype.UINT8]),
    "act_symmetric": ("symmetric", 0, True, NO_BOOL, []),
    "bn_fold": ("bn_fold", None, True, NO_BOOL, []),
    "enable_fusion": ("enable_fusion", None, True, NO_BOOL, []),
    "freeze_bn": ("freeze_bn", None, 100, NO_INT, NEGATIVE),
    "one_conv_fold": ("one_conv_fold", None, False, NO_BOOL, []),
    "weight_narrow_range": ("narrow_range", 1, True, NO_BOOL, []),
    "weight_quant_delay": ("quant_delay", 1, 900, NO_INT, NEGATIVE),
    "weight_quant_dtype": ("quant_dtype", 1, INT8, NO_DTYPE, [QuantDtype.INT4, QuantDtype.INT16]),
    "weight_symmetric": ("symmetric", 1, True, NO_BOOL, []),
    "weight_per_channel": ("per_channel", 1, True, NO_BOOL, []),
}


@pytest.mark.parametrize("name", SETTERS)
def test_setters_are_independent(name):
    key, at, value, _, _ = SETTERS[name]
    algorithm = SimQAT()
    expected = algorithm.config
    expected[key] = value if at is None else tuple(
        value if i == at else old for i, old in enumerate(expected[key]))
    assert getattr(algorithm, f"set_{name}")(value) is None
    assert algorithm.config == expected


@pytest.mark.parametrize("name, value", [
    (name, value) for name, (_, _, _, wrong, _) in SETTERS.items() for value in wrong])
def test_setter_type_error(name, value):
    algorithm = SimQAT()
    with raises(ConfigTypeError, f"^{name} must be", type(value).__name__):
        getattr(algorithm, f"set_{name}")(value)
    assert algorithm.config == SimQAT().config


@pytest.mark.parametrize("name, value", [
    (name, value) for name, (_, _, _, _, wrong) in SETTERS.items() for value in wrong])
def test_setter_value_error(name, value):
    algorithm = SimQAT()
    with raises(ConfigError, f"^{name} must be", "but is"):
        getattr(algorithm, f"set_{name}")(value)
    assert algorithm.config == SimQAT().config


def test_there_are_thirteen_setters_and_set_weight_per_channel():
    found = [name for name in dir(SimQAT) if name.startswith("set_")]
    assert sorted(found) == sorted(f"set_{name}" for name in SETTERS) and len(found) == 14


# apply


def test_apply_1_fuses_by_patterns():
    net = applied(enable_fusion=True)
    names = {id(layer): name for name, layer in net.named_sublayers()}
    found = [[names.get(id(layer)) for layer in (block.producer, block.norm, block.relu)]
             for block in blocks_of(net)]
    assert sorted(tuple(filter(None, block)) for block in found) == [
        ("down.0", "down.1"), ("hidden.0", "hidden.1", "hidden.2"), ("mix.0", "mix.1"),
        ("stem.0", "stem.1", "stem.2")]


def test_apply_2_gives_convolutions_and_dense_layers_policies():
    net = nn.LayerList([nn.Conv1D(2, 2, 1), nn.Conv2D(2, 2, 1), nn.Conv3D(2, 2, 1),
                        nn.Linear(2, 2), nn.Embedding(2, 2), nn.ReLU(), nn.LayerNorm(2)])
    net = SimQAT().apply(net)
    assert [is_quantized(layer) for layer in net] == [True] * 4 + [False] * 3


def test_apply_3_no_tensor_is_quantized_twice():
    net = applied(enable_fusion=True)
    inputs = [name for name, layer in quantized_layers(net)
              if getattr(layer, "activation_quantizer", None) is not None]
    # The input of hidden.0 went through flatten, so it is another tensor.
    assert inputs == ["stem.0", "hidden.0"]


def test_apply_4_inserts_fake_quantizers():
    net = applied()
    found = {name for name, quantizer in fake_quantizers(net)
             if isinstance(quantizer, DelayedFakeQuantize)}
    for layer in ("stem.0", "down.0", "mix.0", "hidden.0", "head"):
        assert {f"{layer}.weight_quantizer", f"{layer}.output_quantizer"} <= found
    assert len(found) == 15  # every BN or ReLU between two layers makes another tensor


def test_apply_returns_the_network_itself_with_its_parameters():
    net = Net()
    before = dict(net.state_dict())
    assert SimQAT(MODES["one conv"]).apply(net) is net
    after = net.state_dict()
    assert [key for key in after if key in before] == list(before)
    assert all(after[key] is value for key, value in before.items())
    extra = paddleq.extra_state_keys(net)
    assert sorted([*extra, *before]) == sorted(after)


@pytest.mark.parametrize("mode", MODES)
def test_float_checkpoint_loads_into_the_quantized_network(mode, tmp_path):
    plain = Net()
    for _ in range(2):
        plain(images())
    path = str(tmp_path / "float.pdparams")
    paddle.save(plain.state_dict(), path)
    net = applied(**MODES[mode])
    missing, unexpected = net.set_state_dict(paddle.load(path))
    assert unexpected == [] and sorted(missing) == sorted(paddleq.extra_state_keys(net))
    x = images()
    for each in (plain, net):
        each.eval()
    expected = plain(x).numpy()
    with paddleq.engine.quantization_off(net):
        np.testing.assert_allclose(net(x).numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", [None, 3, "net", nn.Linear, [nn.Linear(2, 2)]])
def test_apply_type_error_network(network):
    with raises(ConfigTypeError, "model must be a paddle.nn.Layer"):
        SimQAT().apply(network)


def test_apply_twice_or_without_layers_is_an_error():
    net = applied()
    with pytest.raises(ModelError, match="already quantized"):
        SimQAT().apply(net)
    with pytest.raises(ModelError, match="no layer to quantize"):
        SimQAT().apply(nn.Sequential(nn.ReLU()))


def test_setters_after_apply_do_not_change_the_network():
    algorithm = SimQAT()
    net = algorithm.apply(Net(), images())
    algorithm.set_act_quant_delay(7)
    assert {q.delay for _, q in fake_quantizers(net)} == {0}
    assert {q.delay for _, q in fake_quantizers(algorithm.apply(Net(), images()))} == {0, 7}


# convert


@pytest.mark.parametrize("net_opt", [None, 3, "net", nn.Linear])
def test_convert_type_error_net_opt(net_opt):
    with raises(ConfigTypeError, "net_opt must be a paddle.nn.Layer"):
        SimQAT().convert(net_opt)


@pytest.mark.parametrize("ckpt_path", [None, 3, b"path", ["path"]])
def test_convert_type_error_ckpt_path(ckpt_path):
    with raises(ConfigTypeError, "ckpt_path must be a str"):
        SimQAT().convert(trained(), ckpt_path)


def test_convert_value_error_ckpt_path(tmp_path):
    net = trained()
    for path in (str(tmp_path / "nothing.ckpt"), str(tmp_path)):
        with raises(FormatError, "ckpt_path must be the path of an existing file", "but is"):
            SimQAT().convert(net, path)


def test_convert_default_ckpt_path_loads_nothing():
    net, x = trained(), images()
    net.eval()
    np.testing.assert_array_equal(SimQAT().convert(net)(x).numpy(), net(x).numpy())


@pytest.mark.parametrize("mode", MODES)
def test_convert_loads_the_checkpoint(mode, tmp_path):
    net, x, path = trained(**MODES[mode]), images(), str(tmp_path / "net.pdparams")
    paddle.save(net.state_dict(), path)
    fresh = applied(**MODES[mode])
    expected = SimQAT().convert(net)
    found = SimQAT().convert(fresh, path)
    for name, value in expected.state_dict().items():
        assert np.array_equal(found.state_dict()[name].numpy(), value.numpy()), name
    assert np.array_equal(found(x).numpy(), expected(x).numpy())


def test_convert_checkpoint_of_another_network_is_an_error(tmp_path):
    path = str(tmp_path / "net.pdparams")
    net = trained(**MODES["one conv"])
    state = dict(net.state_dict())
    paddle.save({k: v for k, v in state.items() if k != "head.bias"}, path)
    with raises(ModelError, "head.bias is missing in it"):
        SimQAT().convert(net, path)
    paddle.save({**state, "tail.bias": paddle.ones([1])}, path)
    with raises(ModelError, "tail.bias is left over"):
        SimQAT().convert(net, path)
    paddle.save(Net().state_dict(), path)
    with raises(ModelError, "are missing in it"):
        SimQAT().convert(net, path)
    with open(path, "wb") as file:
        file.write(b"no checkpoint")
    with pytest.raises(FormatError, match="no checkpoint of arrays only"):
        SimQAT().convert(net, path)


@pytest.mark.parametrize("mode", MODES)
def test_convert_returns_a_copy_with_standard_layers(mode):
    net = trained(**MODES[mode])
    before = {name: value.numpy().copy() for name, value in net.state_dict().items()}
    converted = SimQAT().convert(net)
    norms = [layer for layer in converted.sublayers()
             if isinstance(layer, (nn.BatchNorm1D, nn.BatchNorm2D))]
    folded = [layer for layer in converted.sublayers() if isinstance(layer, FoldedNorm)]
    assert (len(norms), len(folded)) == ((3, 0) if mode == "no fusion" else (0, 3))
    assert not any("norm_folding" in name for name in converted.state_dict())
    assert not converted.training
    for name, value in net.state_dict().items():
        assert np.array_equal(value.numpy(), before[name]), name
    net(images()).sum().backward()  # it can still be trained


def test_converted_statistics_are_not_updated():
    converted = SimQAT().convert(trained(**MODES["one conv"]))
    before = {name: value.numpy().copy() for name, value in converted.state_dict().items()}
    converted.train()
    converted(10.0 * images())
    for name, value in converted.state_dict().items():
        assert np.array_equal(value.numpy(), before[name]), name


def test_convert_of_unprepared_networks():
    with pytest.raises(ModelError, match="no quantized layer"):
        SimQAT().convert(Net())
    with pytest.raises(ModelError, match="has not run a batch yet.*inputs=..."):
        SimQAT().convert(SimQAT().apply(Net()))
    with pytest.raises(CalibrationError, match="stem.0.activation_quantizer"):
        SimQAT().convert(applied())


# Behaviour beyond the specification


def run(net, optimizer, batches):
    losses = []
    for x, labels in batches:
        loss = nn.functional.cross_entropy(net(x), labels)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(loss.numpy().tobytes())
    return losses


@pytest.mark.parametrize("inputs", [True, False], ids=["inputs", "first batch"])
@pytest.mark.parametrize("mode", MODES)
def test_resumed_training_is_identical(mode, inputs, digits, tmp_path):
    """The delay ends and the freeze begins after the resume."""
    x, y = digits.train
    batches = [(paddle.to_tensor(x[i:i + 16]), paddle.to_tensor(y[i:i + 16]))
               for i in range(0, 12 * 16, 16)]
    config = {**MODES[mode], "quant_delay": (7, 5), "freeze_bn": 8}

    def start():
        paddle.seed(1)
        net = SimQAT(config).apply(Net(), batches[0][0] if inputs else None)
        return net, paddle.optimizer.Adam(1e-2, parameters=net.parameters())

    # Each guard restarts parameter names, which optimizers save, as in a new process.
    with paddle.utils.unique_name.guard():
        net, optimizer = start()
        run(net, optimizer, batches[:4])
        paddle.save(net.state_dict(), str(tmp_path / "net.pdparams"))
        paddle.save(optimizer.state_dict(), str(tmp_path / "net.pdopt"))
        expected = run(net, optimizer, batches[4:])
    with paddle.utils.unique_name.guard():
        resumed, optimizer = start()
        resumed.set_state_dict(paddle.load(str(tmp_path / "net.pdparams")))
        optimizer.set_state_dict(paddle.load(str(tmp_path / "net.pdopt")))
        assert run(resumed, optimizer, batches[4:]) == expected
    final = resumed.state_dict()
    for name, value in net.state_dict().items():
        assert np.array_equal(final[name].numpy(), value.numpy()), name


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_symmetric_network_export_equals_simulation(mode, per_channel, tmp_path):
    net = trained(**MODES[mode], **SYMMETRIC, per_channel=(False, per_channel))
    converted, x = SimQAT().convert(net), images(8)
    path = str(tmp_path / "net")
    save(converted, path)
    expected = converted(x).numpy()
    for runtime in (paddle_inference, openvino):
        assert relative_error(runtime(path, [x.numpy()])[0], expected) < 1e-6


@pytest.mark.parametrize("key", ["symmetric", "narrow_range"])
def test_unsupported_target_settings_are_named(key, tmp_path):
    config = {"symmetric": (True, True), key: (key == "narrow_range", True)}
    converted = SimQAT().convert(trained(**MODES["one conv"], **config))
    with pytest.raises(ExportError, match="symmetric|range"):
        save(converted, str(tmp_path / "net"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mode", MODES)
def test_paddle_tools_accept_the_network(mode):
    plain = Net()
    flops = paddle.flops(copy.deepcopy(plain), [1, 1, 8, 8])
    net = trained(net=plain, **MODES[mode])
    assert paddle.flops(net, [1, 1, 8, 8]) == flops
    assert paddle.summary(net, (1, 1, 8, 8))["total_params"] == sum(
        p.size for p in Net().parameters())
    model = paddle.Model(net)
    model.prepare(paddle.optimizer.SGD(0.01, parameters=net.parameters()), nn.CrossEntropyLoss())
    before = net.head.weight.numpy().copy()
    model.train_batch([images()], [paddle.to_tensor([[1], [2], [3], [4]])])
    assert np.abs(net.head.weight.numpy() - before).max() > 0.0


def test_export_during_training_with_folded_norms_is_an_error(tmp_path):
    net = trained(**MODES["one conv"], **SYMMETRIC)
    with pytest.raises(ExportError, match="stem.0.*export what convert"):
        save(net, str(tmp_path / "net"))
    assert os.listdir(tmp_path) == []
