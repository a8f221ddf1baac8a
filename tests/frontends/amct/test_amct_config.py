"""The config of quantize(model, config): a row for each row and error of docs/amct.md's tables."""

import contextlib
import copy

import pytest
from rules import model_of

from paddleq import PerChannel, PerGroup, PerTensor, PerToken, QuantSpec
from paddleq.algorithms import AWQ, GPTQ, SmoothQuant
from paddleq.config import LayerConfig
from paddleq.errors import ConfigError, ConfigTypeError, PaddleqError
from paddleq.frontends.amct_config import AmctConfig

WEIGHTS = "config['quant_cfg']['weights']"
INPUTS = "config['quant_cfg']['inputs']"


def weights(kind="int8", symmetric=True, strategy="channel", **more):
    return {"type": kind, "symmetric": symmetric, "strategy": strategy, **more}


def config(algorithm="minmax", batch_num=1, weight=None, inputs=None, **more):
    quant = {"weights": weights() if weight is None else weight}
    if inputs is not None:
        quant["inputs"] = inputs
    return {"batch_num": batch_num, "quant_cfg": quant, "algorithm": algorithm, **more}


TENSOR, TOKEN = weights(strategy="tensor"), weights(strategy="token")
GROUP = weights(strategy="group", group_size=64)


@contextlib.contextmanager
def raises(error, *parts):
    """Expect an error of the library that is also the built-in one and names ``parts``."""
    builtin = TypeError if error is ConfigTypeError else ValueError
    assert issubclass(error, PaddleqError) and issubclass(error, builtin)
    with pytest.raises(error) as found:
        yield
    message = str(found.value)
    assert [part for part in parts if part not in message] == [], message


def changed(path, value, base=None):
    """Return a valid config with the value at ``path`` replaced."""
    result = copy.deepcopy(base or config(weight=weights(), inputs=TENSOR))
    *way, last = path
    at = result
    for key in way:
        at = at[key]
    at[last] = value
    return result


def without(*path):
    result = changed(path, None)
    at = result
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    return result


# Values


def test_example_of_the_specification():
    parsed = AmctConfig.parse({
        "batch_num": 1,
        "quant_cfg": {"weights": {"type": "int8", "symmetric": True, "strategy": "tensor"}},
        "algorithm": {"minmax"},
    })
    assert parsed == AmctConfig(1, QuantSpec(8), None, "minmax", {}, ())


@pytest.mark.parametrize("value", [1, 2, 2**32 - 1])
def test_batch_num(value):
    assert AmctConfig.parse(config(batch_num=value)).batch_num == value


@pytest.mark.parametrize("given, spec", [
    (weights("int8", True, "tensor"), QuantSpec(8, granularity=PerTensor())),
    (weights("int8", True, "channel"), QuantSpec(8, granularity=PerChannel(1))),
    (weights("int8", True, "group", group_size=32), QuantSpec(8, granularity=PerGroup(32))),
    (weights("int4", True, "tensor"), QuantSpec(4)),
    (weights("int4", True, "channel"), QuantSpec(4, granularity=PerChannel(1))),
    (weights("int4", True, "group", group_size=96), QuantSpec(4, granularity=PerGroup(96))),
    (weights("int8", False, "tensor"), QuantSpec(8, signed=False, symmetric=False)),
    (weights("int4", False, "channel"),
     QuantSpec(4, signed=False, symmetric=False, granularity=PerChannel(1))),
    (weights("int4", False, "group", group_size=128),
     QuantSpec(4, signed=False, symmetric=False, granularity=PerGroup(128))),
])
def test_weights_type_symmetric_strategy_group_size(given, spec):
    assert AmctConfig.parse(config(weight=given)).weight == spec


@pytest.mark.parametrize("given, spec", [
    (weights("int8", True, "tensor"), QuantSpec(8)),
    (weights("int8", False, "tensor"), QuantSpec(8, signed=False, symmetric=False)),
    (weights("int8", True, "token"), QuantSpec(8, granularity=PerToken())),
])
def test_inputs_type_symmetric_strategy(given, spec):
    assert AmctConfig.parse(config(inputs=given)).activation == spec


@pytest.mark.parametrize("given, algorithm, options", [
    ("minmax", "minmax", {}),
    ({"minmax"}, "minmax", {}),
    (frozenset({"gptq"}), "gptq", {}),
    ({"gptq": {}}, "gptq", {}),
    ({"awq"}, "awq", {}),
    ({"awq": {}}, "awq", {}),
    ({"awq": None}, "awq", {}),
    ({"awq": {"grids_num": 1}}, "awq", {"grids_num": 1}),
    ({"awq": {"grids_num": 2**32 - 1}}, "awq", {"grids_num": 2**32 - 1}),
])
def test_algorithm_of_weights(given, algorithm, options):
    parsed = AmctConfig.parse(config(given))
    assert (parsed.algorithm, parsed.options) == (algorithm, options)


@pytest.mark.parametrize("given, options", [
    ("smoothquant", {}),
    ({"smoothquant"}, {}),
    ({"smoothquant": {"smooth_strength": 0.77}}, {"smooth_strength": 0.77}),
    ({"smoothquant": {"smooth_strength": 1e-6}}, {"smooth_strength": 1e-6}),
])
def test_algorithm_smoothquant(given, options):
    parsed = AmctConfig.parse(config(given, inputs=TOKEN))
    assert (parsed.algorithm, parsed.options) == ("smoothquant", options)


@pytest.mark.parametrize("given, inputs, policy", [
    ("minmax", None, {}),
    ("awq", None, {"smoother": AWQ(grids_num=20)}),
    ({"awq": {"grids_num": 7}}, None, {"smoother": AWQ(grids_num=7)}),
    ("gptq", None, {"rounder": GPTQ()}),
    ("smoothquant", TOKEN, {"smoother": SmoothQuant(0.5)}),
    ({"smoothquant": {"smooth_strength": 0.77}}, TOKEN, {"smoother": SmoothQuant(0.77)}),
])
def test_options_and_their_defaults_reach_the_algorithms(given, inputs, policy):
    parsed = AmctConfig.parse(config(given, inputs=inputs))
    assert parsed.layer_config() == LayerConfig(parsed.weight, parsed.activation, **policy)


@pytest.mark.parametrize("given, skipped", [
    ("lm_head", {"lm_head": "lm_head", "model.lm_head.proj": "lm_head", "head": None, "l": None}),
    (["lm_head", "down"], {"layers.0.down_proj": "down", "lm_head": "lm_head", "up": None}),
    (("q",), {"layers.0.q": "q", "k": None}),
    ({"lm_head"}, {"lm_head": "lm_head", "up": None}),
    ([], {"lm_head": None, "": None}),
])
def test_skip_layers_accepts_a_str(given, skipped):
    model = model_of(skipped)
    rules = AmctConfig.parse(config(skip_layers=given)).rules(model).resolve(model)
    assert {name: rules[name].entry for name in skipped if name} == {
        name: f"skip_layers {part!r}" if part else "type Linear"
        for name, part in skipped.items() if name}


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("strategy", ["tensor", "channel", "group"])
@pytest.mark.parametrize("inputs", [None, TENSOR, weights(symmetric=False, strategy="tensor"),
                                    TOKEN], ids=["none", "tensor", "asymmetric", "token"])
@pytest.mark.parametrize("algorithm", ["minmax", "smoothquant", "awq", "gptq"])
def test_combination(kind, symmetric, strategy, inputs, algorithm):
    """The table of docs/amct.md."""
    given = config(algorithm, inputs=inputs, weight=weights(
        kind, symmetric, strategy, **({"group_size": 64} if strategy == "group" else {})))
    if inputs is None:
        valid = algorithm != "smoothquant"
    else:
        valid = kind == "int8" and strategy != "group" and algorithm in ("minmax", "smoothquant")
    if valid:
        assert AmctConfig.parse(given).algorithm == algorithm
    else:
        with raises(ConfigError, "must be", "but is"):
            AmctConfig.parse(given)


# Errors


@pytest.mark.parametrize("path, value, parts", [
    (("batch_num",), True, ["config['batch_num'] must be an int"]),
    (("quant_cfg",), "int8", ["config['quant_cfg'] must be a dict"]),
    (("quant_cfg", "weights"), None, [f"{WEIGHTS} must be a dict"]),
    (("quant_cfg", "inputs"), None, [f"{INPUTS} must be a dict"]),
    (("quant_cfg", "weights", "type"), 8, [f"{WEIGHTS}['type'] must be a str", "'int4'"]),
    (("quant_cfg", "weights", "symmetric"), 1, [f"{WEIGHTS}['symmetric'] must be a bool"]),
    (("quant_cfg", "weights", "strategy"), None, [f"{WEIGHTS}['strategy'] must be a str"]),
    (("quant_cfg", "inputs", "type"), 8, [f"{INPUTS}['type'] must be a str"]),
    (("quant_cfg", "inputs", "symmetric"), None, [f"{INPUTS}['symmetric'] must be a bool"]),
    (("quant_cfg", "inputs", "strategy"), 3, [f"{INPUTS}['strategy'] must be a str"]),
    (("algorithm",), None, ["config['algorithm'] must be a str, a set of one"]),
    (("algorithm",), ["minmax"], ["config['algorithm'] must be a str, a set of one"]),
    (("algorithm",), {3}, ["config['algorithm'] must be a str, one of", "'minmax'"]),
    (("algorithm",), {"minmax": 3}, ["config['algorithm']['minmax'] must be a dict"]),
    (("algorithm",), {"smoothquant": 0.5}, ["config['algorithm']['smoothquant'] must be a dict"]),
    (("algorithm",), {"smoothquant": {"smooth_strength": "0.5"}},
     ["config['algorithm']['smoothquant']['smooth_strength'] must be a float"]),
    (("algorithm",), {"awq": {"grids_num": 20.0}},
     ["config['algorithm']['awq']['grids_num'] must be an int"]),
    (("skip_layers",), ["head", 3], ["config['skip_layers'] must be a str or a list of str"]),
    (("skip_layers",), {"head": 1}, ["config['skip_layers'] must be a str or a list of str"]),
])
def test_type_error(path, value, parts):
    with raises(ConfigTypeError, *parts, "of type"):
        AmctConfig.parse(changed(path, value))


@pytest.mark.parametrize("value", [None, 3, "cfg", [("batch_num", 1)]])
def test_type_error_config(value):
    with raises(ConfigTypeError, "config must be a dict"):
        AmctConfig.parse(value)


@pytest.mark.parametrize("path, value, parts", [
    (("batch_num",), 0, ["config['batch_num'] must be an int in [1, 4294967295]", "0"]),
    (("batch_num",), 2**32, ["config['batch_num'] must be an int in"]),
    (("quant_cfg", "weights", "type"), "int16",
     [f"{WEIGHTS}['type'] must be one of 'int8', 'int4'", "'int16'"]),
    (("quant_cfg", "weights", "strategy"), "chanel",
     [f"{WEIGHTS}['strategy'] must be one of 'tensor', 'channel', 'group'",
      "did you mean 'channel'"]),
    (("quant_cfg", "weights", "strategy"), "token", [f"{WEIGHTS}['strategy'] must be one of"]),
    (("quant_cfg", "inputs", "type"), "int4", [f"{INPUTS}['type'] must be one of 'int8'"]),
    (("quant_cfg", "inputs", "strategy"), "channel",
     [f"{INPUTS}['strategy'] must be one of 'tensor', 'token'"]),
    (("quant_cfg", "inputs"), weights(symmetric=False, strategy="token"),
     [f"{INPUTS}['symmetric'] must be True with strategy 'token'"]),
    (("algorithm",), "minmac", ["config['algorithm'] must be one of", "did you mean 'minmax'"]),
    (("algorithm",), {"awqq"}, ["config['algorithm'] must be one of", "did you mean 'awq'"]),
    (("algorithm",), set(), ["config['algorithm'] must be one algorithm"]),
    (("algorithm",), {}, ["config['algorithm'] must be one algorithm"]),
    (("algorithm",), {"minmax", "gptq"}, ["config['algorithm'] must be one algorithm"]),
    (("algorithm",), {"minmax": {}, "awq": {}}, ["config['algorithm'] must be one algorithm"]),
    (("algorithm",), {"smoothquant": {"strength": 0.5}},
     ["does not know 'strength'", "did you mean 'smooth_strength'"]),
    (("algorithm",), {"minmax": {"grids_num": 20}},
     ["config['algorithm']['minmax'] does not know 'grids_num'", "valid: observer"]),
    *((("algorithm",), {"smoothquant": {"smooth_strength": value}},
       ["['smooth_strength'] must be in (0, 1)"])
      for value in (0, 1, 0.0, 1.0, -0.5, 1.5, float("nan"))),
    *((("algorithm",), {"awq": {"grids_num": value}}, ["['grids_num'] must be an int in [1, "])
      for value in (0, -1, 2**32)),
    (("skip_layers",), "", ["config['skip_layers'] must be a part of a name"]),
    (("skip_layers",), ["head", ""], ["config['skip_layers'] must be a part of a name"]),
])
def test_value_error(path, value, parts):
    with raises(ConfigError, *parts):
        AmctConfig.parse(changed(path, value))


@pytest.mark.parametrize("given, parts", [
    (weights(group_size=64), ["must not have the key 'group_size' with strategy 'channel'"]),
    (weights(strategy="tensor", group_size=64),
     ["must not have the key 'group_size' with strategy 'tensor'"]),
    (weights(strategy="group"), ["must have the key 'group_size' with strategy 'group'"]),
    *((weights(strategy="group", group_size=size),
       [f"{WEIGHTS}['group_size'] must be a multiple of 32 of at least 32", str(size)])
      for size in (0, -32, 16, 33, 100)),
])
def test_value_error_group_size(given, parts):
    with raises(ConfigError, *parts):
        AmctConfig.parse(config(weight=given))


@pytest.mark.parametrize("size", [64.0, "64", True, None])
def test_type_error_group_size(size):
    with raises(ConfigTypeError, f"{WEIGHTS}['group_size'] must be an int"):
        AmctConfig.parse(config(weight=weights(strategy="group", group_size=size)))


@pytest.mark.parametrize("size, in_features, parts", [
    (32, 33, None),
    (64, 100, None),
    (96, 97, None),
    (64, 64, ["less than K = 64 of layer 'fc'", "a multiple of 32 in [32, 32]", "but is 64"]),
    (128, 100, ["less than K = 100 of layer 'fc'", "a multiple of 32 in [32, 96]"]),
    (32, 32, ["less than K = 32 of layer 'fc'", "too small for groups", "skip_layers"]),
    (32, 8, ["less than K = 8 of layer 'fc'", "too small for groups"]),
])
def test_value_error_group_size_of_a_layer(size, in_features, parts):
    parsed = AmctConfig.parse(config(weight=weights(strategy="group", group_size=size)))
    if parts is None:
        parsed.check_group_size("fc", in_features)
    else:
        with raises(ConfigError, "['group_size']", *parts):
            parsed.check_group_size("fc", in_features)


@pytest.mark.parametrize("path, key, near", [
    ((), "batchnum", "batch_num"),
    ((), "quant_config", "quant_cfg"),
    ((), "skip_layer", "skip_layers"),
    ((), "algorithms", "algorithm"),
    (("quant_cfg",), "weight", "weights"),
    (("quant_cfg",), "input", "inputs"),
    (("quant_cfg", "weights"), "symetric", "symmetric"),
    (("quant_cfg", "weights"), "groupsize", "group_size"),
    (("quant_cfg", "inputs"), "stratgy", "strategy"),
])
def test_value_error_unknown_key_names_the_nearest(path, key, near):
    with raises(ConfigError, f"does not know '{key}'", f"did you mean '{near}'"):
        AmctConfig.parse(changed((*path, key), 1))


@pytest.mark.parametrize("path", [
    ("batch_num",), ("quant_cfg",), ("algorithm",), ("quant_cfg", "weights"),
    ("quant_cfg", "weights", "type"), ("quant_cfg", "weights", "symmetric"),
    ("quant_cfg", "weights", "strategy"), ("quant_cfg", "inputs", "type"),
    ("quant_cfg", "inputs", "symmetric"), ("quant_cfg", "inputs", "strategy"),
])
def test_value_error_missing_key(path):
    with raises(ConfigError, f"must have the key '{path[-1]}'", "but has"):
        AmctConfig.parse(without(*path))


@pytest.mark.parametrize("given, parts", [
    (config("smoothquant"), ["config['algorithm'] must be one of 'minmax', 'awq', 'gptq'",
                             "weights alone", "needs config['quant_cfg']['inputs']"]),
    (config("awq", inputs=TENSOR), ["config['algorithm'] must be one of 'minmax', 'smoothquant'",
                                    "'awq', which is for weights alone"]),
    (config("gptq", inputs=TOKEN), ["must be one of 'minmax', 'smoothquant'", "'gptq'"]),
    (config(weight=weights("int4"), inputs=TOKEN),
     [f"{WEIGHTS}['type'] must be 'int8' where inputs are quantized"]),
    (config(weight=GROUP, inputs=TENSOR),
     [f"{WEIGHTS}['strategy'] must be 'tensor' or 'channel' where inputs are quantized"]),
])
def test_value_error_of_contradictions(given, parts):
    with raises(ConfigError, *parts):
        AmctConfig.parse(given)
