"""PTQConfig, its options and layer policies: a row for each value and each error that
Golden Stick's documents and docs/golden_stick_ptq.md name."""

import dataclasses
import logging
from collections import OrderedDict

import paddle
import pytest
from rules import model_of

from paddleq import (
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    QuantSpec,
    algorithms,
)
from paddleq.algorithms import SmoothQuant
from paddleq.errors import ConfigError, ConfigTypeError, PaddleqError
from paddleq.frontends.golden_stick import (
    AWQConfig,
    BackendTarget,
    GPTQQuantConfig,
    OutliersSuppressionType,
    PrecisionRecovery,
    PTQConfig,
    PTQMode,
    QuantDtype,
    QuantGranularity,
    SmoothQuantConfig,
)
from paddleq.frontends.golden_stick.ptq import LayerPolicies

INT4, INT8 = QuantDtype.INT4, QuantDtype.INT8
AWQ, SMOOTH = OutliersSuppressionType.AWQ, OutliersSuppressionType.SMOOTH
GPTQ = PrecisionRecovery.GPTQ
PER_TENSOR, PER_CHANNEL = QuantGranularity.PER_TENSOR, QuantGranularity.PER_CHANNEL
PER_TOKEN, PER_GROUP = QuantGranularity.PER_TOKEN, QuantGranularity.PER_GROUP


def raises(error, *parts):
    """Expect an error of the library that is also the built-in one and names ``parts``."""
    builtin = TypeError if error is ConfigTypeError else ValueError
    assert issubclass(error, PaddleqError) and issubclass(error, builtin)
    return pytest.raises(error, match="(?s)" + ".*".join(parts))


# The fields


@pytest.mark.parametrize("field, default", [
    ("mode", PTQMode.QUANTIZE),
    ("backend", BackendTarget.NONE),
    ("opname_blacklist", ()),
    ("algo_args", {}),
    ("weight_quant_dtype", INT8),
    ("kvcache_quant_dtype", None),
    ("act_quant_dtype", None),
    ("outliers_suppression", OutliersSuppressionType.NONE),
    ("precision_recovery", PrecisionRecovery.NONE),
    ("weight_quant_granularity", PER_CHANNEL),
    ("act_quant_granularity", PER_TENSOR),
    ("kvcache_quant_granularity", PER_CHANNEL),
    ("group_size", 0),
])
def test_default(field, default):
    assert getattr(PTQConfig(), field) == default
    assert len(dataclasses.fields(PTQConfig)) == 13


GROUPS = {"weight_quant_granularity": PER_GROUP, "group_size": 64}
W8A8 = {"act_quant_dtype": INT8}
W4A8 = {"weight_quant_dtype": INT4, "act_quant_dtype": INT8, "act_quant_granularity": PER_TOKEN,
        "precision_recovery": GPTQ}
KV = {"kvcache_quant_dtype": INT8}


@pytest.mark.parametrize("field, given, parsed, others", [
    ("mode", PTQMode.DEPLOY, PTQMode.DEPLOY, {}),
    ("mode", "deploy", PTQMode.DEPLOY, {}),
    ("backend", BackendTarget.ASCEND, BackendTarget.ASCEND, {}),
    ("backend", "none", BackendTarget.NONE, {}),
    ("opname_blacklist", ["lm_head", "mlp.down"], ("lm_head", "mlp.down"), {}),
    ("opname_blacklist", ("lm_head",), ("lm_head",), {}),
    ("weight_quant_dtype", INT4, INT4, {}),
    ("weight_quant_dtype", "int4", INT4, {}),
    ("weight_quant_dtype", "int8", INT8, {}),
    ("weight_quant_dtype", paddle.int8, INT8, {}),
    ("weight_quant_dtype", None, None, {}),
    ("act_quant_dtype", INT8, INT8, {}),
    ("act_quant_dtype", paddle.int8, INT8, {}),
    ("kvcache_quant_dtype", INT8, INT8, {}),
    ("kvcache_quant_dtype", "int8", INT8, {}),
    ("outliers_suppression", SMOOTH, SMOOTH, {}),
    ("outliers_suppression", SMOOTH, SMOOTH, W8A8),
    ("outliers_suppression", "awq", AWQ, {}),
    ("outliers_suppression", AWQ, AWQ, {"weight_quant_dtype": INT4}),
    ("precision_recovery", GPTQ, GPTQ, {}),
    ("precision_recovery", "gptq", GPTQ, {"weight_quant_dtype": INT4}),
    ("weight_quant_granularity", PER_GROUP, PER_GROUP, {"group_size": 128}),
    ("weight_quant_granularity", "per_channel", PER_CHANNEL, {}),
    ("act_quant_granularity", PER_TOKEN, PER_TOKEN, W8A8),
    ("kvcache_quant_granularity", PER_TOKEN, PER_TOKEN, KV),
    ("group_size", 64, 64, {"weight_quant_granularity": PER_GROUP}),
    ("group_size", 128, 128, {"weight_quant_granularity": PER_GROUP}),
])
def test_value(field, given, parsed, others):
    assert getattr(PTQConfig(**{**others, field: given}), field) == parsed
    assert getattr(PTQConfig.parse({**others, field: given}), field) == parsed


ENUMS = ["mode", "backend", "outliers_suppression", "precision_recovery",
         "weight_quant_granularity", "act_quant_granularity", "kvcache_quant_granularity"]
DTYPES = ["weight_quant_dtype", "act_quant_dtype", "kvcache_quant_dtype"]


@pytest.mark.parametrize("field, value, expected", [
    *((field, 1, "its value as a str") for field in ENUMS),
    *((field, 8, "a QuantDtype") for field in DTYPES),
    ("opname_blacklist", "lm_head", "a list of str"),
    ("opname_blacklist", ["lm_head", 3], "a list of str"),
    ("algo_args", "alpha", "a dict"),
    ("algo_args", SmoothQuantConfig, "a dict"),
    ("group_size", True, "an int"),
])
def test_type_error_of_a_field(field, value, expected):
    with raises(ConfigTypeError, field, f"must be .*{expected}", type(value).__name__):
        PTQConfig(**{field: value})


@pytest.mark.parametrize("field, value, expected", [
    ("mode", "deploi", "PTQMode.QUANTIZE, PTQMode.DEPLOY.*did you mean 'deploy'"),
    ("backend", "ascent", "BackendTarget.NONE, BackendTarget.ASCEND.*did you mean 'ascend'"),
    ("outliers_suppression", "smoothe", "did you mean 'smooth'"),
    ("precision_recovery", "gptqq", "did you mean 'gptq'"),
    ("weight_quant_dtype", "int16", "QuantDtype.INT8, QuantDtype.INT4, None"),
    ("weight_quant_dtype", QuantDtype.UINT8, "QuantDtype.INT8, QuantDtype.INT4, None"),
    ("weight_quant_dtype", paddle.float32, "QuantDtype.INT8, QuantDtype.INT4, None.*'float32'"),
    ("act_quant_dtype", INT4, "QuantDtype.INT8, None"),
    ("kvcache_quant_dtype", INT4, "QuantDtype.INT8, None"),
    ("weight_quant_granularity", PER_TENSOR, "PER_CHANNEL, QuantGranularity.PER_GROUP"),
    ("weight_quant_granularity", PER_TOKEN, "PER_CHANNEL, QuantGranularity.PER_GROUP"),
    ("act_quant_granularity", PER_CHANNEL, "PER_TENSOR, QuantGranularity.PER_TOKEN"),
    ("act_quant_granularity", PER_GROUP, "PER_TENSOR, QuantGranularity.PER_TOKEN"),
    ("kvcache_quant_granularity", PER_TENSOR, "PER_CHANNEL, QuantGranularity.PER_TOKEN"),
    ("kvcache_quant_granularity", "per_group", "PER_CHANNEL, QuantGranularity.PER_TOKEN"),
    ("opname_blacklist", [""], "every name contains the empty one"),
])
def test_value_error_of_a_field(field, value, expected):
    with raises(ConfigError, f"^{field} must be", expected):
        PTQConfig(**{field: value})


def test_value_error_unknown_field_names_the_nearest():
    with raises(ConfigError, "config does not know 'weight_quant_type'",
                "did you mean 'weight_quant_dtype'"):
        PTQConfig.parse({"weight_quant_type": INT8})


@pytest.mark.parametrize("config", ["int8", W8A8.items()])
def test_type_error_config(config):
    with raises(ConfigTypeError, "config must be a PTQConfig, a dict"):
        PTQConfig.parse(config)


def test_config_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PTQConfig().mode = PTQMode.DEPLOY


# Combinations

COMBINATIONS = [
    # (weights, activations, granularity of weights, of activations, suppression, recovery)
    (weight, act, grain, act_grain, suppression, recovery)
    for weight in (INT8, INT4, None) for act in (INT8, None)
    for grain in (PER_CHANNEL, PER_GROUP) for act_grain in (PER_TENSOR, PER_TOKEN)
    for suppression in OutliersSuppressionType for recovery in PrecisionRecovery
]


def is_valid(weight, act, grain, act_grain, suppression, recovery):
    """Return True if docs/golden_stick_ptq.md lists the combination."""
    nothing = (grain, act_grain, suppression, recovery) == (
        PER_CHANNEL, PER_TENSOR, OutliersSuppressionType.NONE, PrecisionRecovery.NONE)
    return {
        (INT8, INT8): (grain is PER_CHANNEL and suppression is not AWQ and recovery is not GPTQ),
        (INT4, INT8): act_grain is PER_TOKEN and recovery is GPTQ,
        (INT8, None): act_grain is PER_TENSOR,
        (INT4, None): act_grain is PER_TENSOR,
        (None, INT8): False,
        (None, None): nothing,
    }[weight, act]


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda each: "-".join(
    str(getattr(part, "name", part)) for part in each))
def test_combination(combination):
    weight, act, grain, act_grain, suppression, recovery = combination
    config = {"weight_quant_dtype": weight, "act_quant_dtype": act,
              "weight_quant_granularity": grain, "act_quant_granularity": act_grain,
              "outliers_suppression": suppression, "precision_recovery": recovery,
              "group_size": 64 if grain is PER_GROUP else 0}
    if is_valid(*combination):
        policy = PTQConfig(**config).layer_config()
        assert (policy.weight is None) == (weight is None)
        if policy.weight is not None:
            assert policy.weight == QuantSpec(
                4 if weight is INT4 else 8,
                granularity=PerGroup(64) if grain is PER_GROUP else PerChannel(1))
            assert policy.activation == (None if act is None else QuantSpec(
                8, granularity=PerToken() if act_grain is PER_TOKEN else PerTensor()))
            assert policy.algorithm == "-".join(filter(None, (
                {SMOOTH: "SmoothQuant", AWQ: "AWQ"}.get(suppression),
                "GPTQ" if recovery is GPTQ else "")))
    else:
        with raises(ConfigError, "must be .*but is"):
            PTQConfig(**config)


def test_there_are_valid_and_invalid_combinations():
    assert sum(is_valid(*each) for each in COMBINATIONS) == 35
    assert len(COMBINATIONS) == 144


@pytest.mark.parametrize("config, parts", [
    ({"act_quant_dtype": INT8, "weight_quant_dtype": None},
     ["act_quant_dtype must be None while weight_quant_dtype is None"]),
    ({**W8A8, "outliers_suppression": AWQ},
     ["outliers_suppression must be .*NONE or SMOOTH for INT8 weights and activations", "AWQ"]),
    ({**W8A8, "precision_recovery": GPTQ},
     ["precision_recovery must be .*NONE for INT8 weights and activations", "GPTQ"]),
    ({**W8A8, **GROUPS},
     ["weight_quant_granularity must be .*PER_CHANNEL for INT8 weights and activations"]),
    ({**W4A8, "act_quant_granularity": PER_TENSOR},
     ["act_quant_granularity must be .*PER_TOKEN for INT4 weights and INT8 activations"]),
    ({**W4A8, "precision_recovery": PrecisionRecovery.NONE},
     ["precision_recovery must be .*GPTQ for INT4 weights and INT8 activations"]),
    ({"act_quant_granularity": PER_TOKEN},
     ["act_quant_granularity must be .*PER_TENSOR while act_quant_dtype is None"]),
    ({"kvcache_quant_granularity": PER_TOKEN},
     ["kvcache_quant_granularity must be .*PER_CHANNEL while kvcache_quant_dtype is None"]),
    ({"group_size": 64}, ["group_size must be 0 without .*PER_GROUP", "64"]),
    *(({"weight_quant_granularity": PER_GROUP, "group_size": size},
       ["group_size must be 64 or 128", str(size)]) for size in (0, 32, 63, 256, -64)),
    ({"weight_quant_dtype": None, "outliers_suppression": SMOOTH},
     ["outliers_suppression must be .*NONE while weight_quant_dtype is None"]),
    ({"weight_quant_dtype": None, "precision_recovery": GPTQ},
     ["precision_recovery must be .*NONE while weight_quant_dtype is None"]),
    ({"weight_quant_dtype": None, **GROUPS},
     ["weight_quant_granularity must be .*PER_CHANNEL while weight_quant_dtype is None"]),
])
def test_value_error_of_a_contradiction(config, parts):
    with raises(ConfigError, *parts):
        PTQConfig(**config)


@pytest.mark.parametrize("granularity", [PER_CHANNEL, PER_TOKEN])
def test_kv_cache_only_is_valid(granularity):
    config = PTQConfig(weight_quant_dtype=None, kvcache_quant_dtype="int8",
                       kvcache_quant_granularity=granularity)
    assert config.weight_quant_dtype is None and config.kvcache_quant_dtype is INT8


# The options of the algorithms


@pytest.mark.parametrize("cls, defaults", [
    (SmoothQuantConfig, {"alpha": 0.5}),
    (AWQConfig, {"duo_scaling": True, "smooth_alpha": tuple(i / 20 for i in range(20)),
                 "weight_clip_ratio": tuple(1 - i / 20 for i in range(10))}),
    (GPTQQuantConfig, {"block_size": 128, "desc_act": False, "damp_percent": 0.01,
                       "static_groups": False}),
])
def test_default_options(cls, defaults):
    assert dataclasses.asdict(cls()) == defaults


@pytest.mark.parametrize("cls, option, value", [
    (SmoothQuantConfig, "alpha", True),
    (AWQConfig, "duo_scaling", 1),
    (AWQConfig, "smooth_alpha", "0.5"),
    (AWQConfig, "smooth_alpha", [0.5, None]),
    (AWQConfig, "weight_clip_ratio", ["1"]),
    (GPTQQuantConfig, "block_size", True),
    (GPTQQuantConfig, "desc_act", 1),
    (GPTQQuantConfig, "damp_percent", "0.01"),
    (GPTQQuantConfig, "static_groups", 0),
])
def test_type_error_of_an_option(cls, option, value):
    with raises(ConfigTypeError, f"^{option} must be"):
        cls(**{option: value})


@pytest.mark.parametrize("cls, option, value", [
    (SmoothQuantConfig, "alpha", -0.1),
    (SmoothQuantConfig, "alpha", 1.1),
    (AWQConfig, "smooth_alpha", -0.1),
    (AWQConfig, "smooth_alpha", [0.5, 1.1]),
    (AWQConfig, "smooth_alpha", []),
    (AWQConfig, "weight_clip_ratio", 1.1),
    (AWQConfig, "weight_clip_ratio", 0.0),
    (AWQConfig, "weight_clip_ratio", [1.0, -0.5]),
    (GPTQQuantConfig, "block_size", 0),
    (GPTQQuantConfig, "damp_percent", 0.0),
    (GPTQQuantConfig, "damp_percent", 1.01),
])
def test_value_error_of_an_option(cls, option, value):
    with raises(ConfigError, f"^{option} must"):
        cls(**{option: value})


@pytest.mark.parametrize("given, config, options", [
    ({}, {}, {}),
    ({}, {"precision_recovery": GPTQ}, {GPTQQuantConfig: GPTQQuantConfig()}),
    ({"desc_act": True}, {"precision_recovery": GPTQ},
     {GPTQQuantConfig: GPTQQuantConfig(desc_act=True)}),
    (GPTQQuantConfig(block_size=64), {"precision_recovery": GPTQ},
     {GPTQQuantConfig: GPTQQuantConfig(block_size=64)}),
    ({"alpha": 0.7}, {"outliers_suppression": SMOOTH},
     {SmoothQuantConfig: SmoothQuantConfig(0.7)}),
    (AWQConfig(smooth_alpha=0.5), {"outliers_suppression": AWQ},
     {AWQConfig: AWQConfig(smooth_alpha=[0.5])}),
    ({"duo_scaling": False, "static_groups": True},
     {"outliers_suppression": AWQ, "precision_recovery": GPTQ},
     {AWQConfig: AWQConfig(duo_scaling=False), GPTQQuantConfig: GPTQQuantConfig(
         static_groups=True)}),
    ([SmoothQuantConfig(0.6), GPTQQuantConfig(desc_act=True)],
     {"outliers_suppression": SMOOTH, **W4A8},
     {SmoothQuantConfig: SmoothQuantConfig(0.6), GPTQQuantConfig: GPTQQuantConfig(
         desc_act=True)}),
])
def test_algo_args(given, config, options):
    assert PTQConfig(algo_args=given, **config).options() == options


@pytest.mark.parametrize("given, config, parts", [
    ({"desc_acts": True}, {"precision_recovery": GPTQ},
     ["algo_args does not know 'desc_acts'", "did you mean 'desc_act'"]),
    ({"alpha": 0.5}, {"precision_recovery": GPTQ}, ["algo_args does not know 'alpha'"]),
    ({"alpha": 0.5}, {}, ["algo_args does not know 'alpha'", "valid: none"]),
    (GPTQQuantConfig(), {}, ["algo_args is GPTQQuantConfig", "take no options",
                             "precision_recovery"]),
    (SmoothQuantConfig(), {"outliers_suppression": AWQ},
     ["algo_args is SmoothQuantConfig", "take AWQConfig"]),
    ({"alpha": 2.0}, {"outliers_suppression": SMOOTH}, ["alpha must be in"]),
])
def test_value_error_algo_args(given, config, parts):
    with raises(ConfigError, *parts):
        PTQConfig(algo_args=given, **config)


@pytest.mark.parametrize("change, valid", [
    ({}, False),
    ({"desc_act": False}, True),
    ({"static_groups": True}, True),
    ({"weight_clip_ratio": 1.0}, True),
])
def test_value_error_awq_clips_groups_that_desc_act_rearranges(change, valid):
    config = {"outliers_suppression": AWQ, "precision_recovery": GPTQ, "weight_quant_dtype": INT4,
              **GROUPS, "algo_args": {"desc_act": True, **change}}
    if valid:
        assert PTQConfig(**config).group_size == 64
    else:
        with raises(ConfigError, "static_groups must be True with desc_act, PER_GROUP and AWQ"):
            PTQConfig(**config)
        assert PTQConfig(**{**config, "weight_quant_granularity": PER_CHANNEL, "group_size": 0})


@pytest.mark.parametrize("config, part, expected", [
    ({"outliers_suppression": SMOOTH, "algo_args": {"alpha": 0.8}}, "smoother", SmoothQuant(0.8)),
    ({"outliers_suppression": AWQ}, "smoother",
     algorithms.AWQ(ratios=tuple(i / 20 for i in range(20)), duo_scaling=True,
                    clip_factors=tuple(1 - i / 20 for i in range(10)))),
    ({"outliers_suppression": AWQ, "algo_args": AWQConfig(False, 0.5, 1.0)}, "smoother",
     algorithms.AWQ(ratios=(0.5,), clip_factors=(1.0,), clip=False)),
    ({"precision_recovery": GPTQ}, "rounder", algorithms.GPTQ(128, 0.01)),
    ({"precision_recovery": GPTQ, "algo_args": GPTQQuantConfig(32, True, 0.1, True)}, "rounder",
     algorithms.GPTQ(32, 0.1, act_order=True, static_groups=True)),
    ({}, "rounder", None),
    ({}, "smoother", None),
])
def test_options_reach_the_algorithms(config, part, expected):
    assert getattr(PTQConfig(**config).layer_config(), part) == expected


# Policies for layers

W4 = PTQConfig(weight_quant_dtype=INT4)


def policies(**patterns):
    return OrderedDict(patterns)


def decided(found, names):
    """Name -> (LayerConfig or None, the entry of the rule that decided)."""
    names = list(names)
    resolved = found.rules_of(names, names).resolve(model_of(names))
    return {name: tuple(resolved[name]) for name in names}


@pytest.mark.parametrize("name, config, entry", [
    ("layers.0.attention.q", PTQConfig(), "config"),
    ("layers.0.mlp.up", W4, r"layer_policies['layers\\.\\d+\\.mlp\\.up']"),
    ("layers.1.mlp.up", W4, r"layer_policies['layers\\.\\d+\\.mlp\\.up']"),
    ("net.layers.1.mlp.up", PTQConfig(), "config"),  # from the start of the name
    ("layers.1.mlp.down", None, r"layer_policies['layers\\.\\d+\\..*down']"),
])
def test_policy_of_a_layer(name, config, entry):
    found = LayerPolicies(PTQConfig(), OrderedDict([
        (r"layers\.\d+\.mlp\.up", W4), (r"layers\.\d+\..*down", None)]))
    expected = None if config is None else config.layer_config()
    assert decided(found, [name])[name] == (expected, entry)


def test_blacklist_matches_parts_of_names():
    found = LayerPolicies(
        PTQConfig(opname_blacklist=["head", "mlp.do"]),
        OrderedDict({r"layers\.0\.": PTQConfig(weight_quant_dtype=INT4, opname_blacklist=["q"])}))
    rules = decided(found, [
        "lm_head", "layers.0.mlp.down", "layers.0.mlp.up", "layers.0.attn.q", "layers.1.attn.q"])
    assert {name: config is None for name, (config, _) in rules.items()} == {
        "lm_head": True, "layers.0.mlp.down": True, "layers.0.mlp.up": False,
        "layers.0.attn.q": True, "layers.1.attn.q": False}
    assert rules["layers.0.mlp.down"][1] == "opname_blacklist 'mlp.do'"


def test_value_error_two_policies_on_one_layer_names_both():
    found = LayerPolicies(PTQConfig(), OrderedDict([
        (r".*mlp.*", W4), (r"layers\.0", None), (r"tail", None)]))
    with raises(ConfigError, "layer_policies must have one pattern for a layer",
                r"'\.\*mlp\.\*' and 'layers", "match 'layers.0.mlp.up'"):
        decided(found, ["layers.0.mlp.up"])
    assert decided(found, ["layers.0.attention.q"])["layers.0.attention.q"][0] is None


@pytest.mark.parametrize("given", [{}, [(".*", None)]])
def test_type_error_layer_policies_no_ordered_dict(given):
    with raises(ConfigTypeError, "layer_policies must be an OrderedDict"):
        LayerPolicies(PTQConfig(), given)


@pytest.mark.parametrize("value", [{"weight_quant_dtype": INT4}, PTQConfig])
def test_type_error_layer_policies_value_no_ptq_config(value):
    with raises(ConfigTypeError, r"layer_policies\['mlp'\] must be a PTQConfig or None"):
        LayerPolicies(PTQConfig(), policies(attention=None, mlp=value))


@pytest.mark.parametrize("key", [3, b"mlp"])
def test_type_error_layer_policies_key_no_str(key):
    with raises(ConfigTypeError, "layer_policies must be an OrderedDict whose keys are str"):
        LayerPolicies(PTQConfig(), OrderedDict([(key, None)]))


def test_value_error_layer_policies_key_no_regular_expression():
    with raises(ConfigError, "layer_policies must have regular expressions as keys", r"'\*mlp'"):
        LayerPolicies(PTQConfig(), OrderedDict([("*mlp", None)]))


def test_value_error_layer_policies_of_another_mode():
    with raises(ConfigError, r"layer_policies\['mlp'\].mode must be that of config", "DEPLOY"):
        LayerPolicies(PTQConfig(), policies(mlp=PTQConfig(mode="deploy")))


def test_unmatched_pattern_is_named_in_a_warning(caplog):
    found = LayerPolicies(PTQConfig(), policies(mlp=W4, attn=None, lm=None))
    with caplog.at_level(logging.WARNING, "paddleq"):
        decided(found, ["attn.q", "lm_head", "layers.mlp"])
    assert [record.getMessage() for record in caplog.records] == [
        "layer_policies['mlp'] matches no layer that can be quantized"]


def test_unmatched_blacklist_entry_is_named_in_a_warning(caplog):
    found = LayerPolicies(PTQConfig(opname_blacklist=["head", "heads"]), OrderedDict(
        {"attn": PTQConfig(weight_quant_dtype=INT4, opname_blacklist=["heads", "k", "q"])}))
    with caplog.at_level(logging.WARNING, "paddleq"):
        decided(found, ["attn.q", "lm_head"])
    # Of the policy, which has attn.q alone, and of the configuration; each from its end.
    assert [record.getMessage() for record in caplog.records] == [
        f"opname_blacklist has {part!r}, which no layer's name contains"
        for part in ("k", "heads", "heads")]
