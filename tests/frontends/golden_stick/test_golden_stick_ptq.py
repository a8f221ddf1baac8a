"""PTQ: every valid combination against float64 formulas, policies, deployment in another process,
and each error of its specification. test_golden_stick_ptq_config tests configurations."""

import itertools
import json
import logging
import os
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import paddle
import pytest
from golden_stick_worker import (
    GROUP,
    KV,
    ONLY_KV,
    POLICIES,
    RUNS,
    W4,
    W4A8,
    W8A8,
    Layers,
)
from paddle import nn
from paths import HELPERS, ROOT
from runtimes import openvino, paddle_inference, relative_error
from scheme_reference import Scheme
from small_transformer import (
    WIDTH,
    arrays,
    batches,
    block_in_numpy,
    decoder,
    in_numpy,
    plain,
)
from transformers import NETWORKS, build, sentences

import paddleq
from paddleq import PerChannel, PerGroup, QuantSpec
from paddleq.algorithms import AWQ, StackHelper
from paddleq.config import LayerConfig
from paddleq.errors import (
    CalibrationError,
    ConfigError,
    ConfigTypeError,
    FormatError,
    ModelError,
    PaddleqError,
    StateError,
)
from paddleq.frontends.golden_stick import (
    PTQ,
    PTQConfig,
    PTQMode,
)
from paddleq.observers import ChannelStats

IN_A_LAYER = ["attention.q", "attention.k", "attention.v", "attention.out", "up", "down"]


def raises(error, *parts):
    """Expect an error of the library that derives from the built-in one and names ``parts``."""
    builtin = {ConfigTypeError: TypeError, StateError: RuntimeError,
               CalibrationError: RuntimeError}.get(error, ValueError)
    assert issubclass(error, PaddleqError) and issubclass(error, builtin)
    return pytest.raises(error, match="(?s)" + ".*".join(parts))


def applied(config=None, layer_policies=None, network=None, count=2, **how):
    ptq = PTQ(config, layer_policies)
    return ptq.apply(decoder() if network is None else network, datasets=batches(count), **how)


def table(network):
    """Map layer_name to quant_type, from summary()."""
    lines = PTQ().summary(network).splitlines()
    assert [cell.strip() for cell in lines[0].split("|")] == ["layer_name", "quant_type"]
    return dict([cell.strip() for cell in line.split("|")] for line in lines[2:])


def quantized(network):
    """Map layer_name to quant_type of the quantized layers."""
    return {name: kind for name, kind in table(network).items() if kind != "NA"}


# Outputs against the formulas


class Reference:
    """The quantized decoder in float64: each layer is calibrated on outputs of the preceding
    quantized layers."""

    def __init__(self, model, config, data):
        self.state, self.config = arrays(model), config
        self.schemes, self.caches = {}, {}
        policy = config.layer_config()
        xs = [plain("stem", batch.numpy().astype("float64"), *self.parameters("stem"))
              for batch in data]
        for i in range(len(model.layers)):
            name = f"layers.{i}"
            if policy.weight is not None:
                self.quantize(name, xs, policy)
            self.find_cache_scales(name, xs)
            xs = [self.block(name, x) for x in xs]

    def quantize(self, layer, xs, policy):
        seen = {}

        def observe(name, x, weight, bias):
            seen.setdefault(name, []).append(x.reshape(-1, x.shape[-1]))
            return plain(name, x, weight, bias)

        for x in xs:
            block_in_numpy(self.state, layer, x, observe)
        for group in [IN_A_LAYER[:3], *([each] for each in IN_A_LAYER[3:])]:
            names = [f"{layer}.{each}" for each in group]
            scheme = Scheme([self.parameters(name)[0] for name in names],
                            np.concatenate(seen[names[0]]), policy)
            self.schemes.update({name: (scheme, at) for at, name in enumerate(names)})

    def find_cache_scales(self, layer, xs):
        kept = []

        def observe(k, v):
            kept.append((k, v))
            return k, v

        for x in xs:
            block_in_numpy(self.state, layer, x, self.linear, observe)
        self.caches[layer] = [np.abs(np.concatenate(each)).max((0, 1)) / 127
                              for each in zip(*kept)]

    def parameters(self, name):
        return self.state[f"{name}.weight"], self.state[f"{name}.bias"]

    def linear(self, name, x, weight, bias):
        if name not in self.schemes:
            return plain(name, x, weight, bias)
        scheme, at = self.schemes[name]
        return scheme.linear(at, x, bias)

    def block(self, name, x):
        return block_in_numpy(self.state, name, x, self.linear,
                              lambda k, v: self.cached(self.caches[name], k, v))

    def cached(self, scales, *values):
        if self.config.kvcache_quant_dtype is None:
            return values
        if self.config.kvcache_quant_granularity.value == "per_token":
            scales = [np.abs(value).max(-1, keepdims=True) / 127 for value in values]
        return [np.clip(np.rint(value / scale), -128, 127) * scale
                for value, scale in zip(values, scales)]

    def __call__(self, x):
        x = plain("stem", x.numpy().astype("float64"), *self.parameters("stem"))
        for name in self.caches:
            x = self.block(name, x)
        return plain("head", x, *self.parameters("head"))


def combinations():
    """Every valid combination of weights, activations and algorithms, and of KV caches."""
    for weight, grouped, suppression, recovery in itertools.product(
            ("int8", "int4"), ({}, GROUP), ("none", "smooth", "awq"), ("none", "gptq")):
        config = {"weight_quant_dtype": weight, **grouped, "outliers_suppression": suppression,
                  "precision_recovery": recovery}
        yield config
        if weight == "int4" and recovery == "gptq":
            yield {**config, **W4A8}
        if weight == "int8" and not grouped and suppression != "awq" and recovery == "none":
            yield {**config, **W8A8}
            yield {**config, **W8A8, "act_quant_granularity": "per_token"}
    for granularity in ("per_channel", "per_token"):
        yield {**ONLY_KV, "kvcache_quant_granularity": granularity}
        yield {**W8A8, **KV, "kvcache_quant_granularity": granularity}


def name_of(config):
    config = PTQConfig(**config)
    policy = config.layer_config()
    parts = [] if policy.weight is None else [policy.algorithm, f"{policy.weight}"]
    parts += [] if policy.activation is None else [f"{policy.activation}"]
    if config.kvcache_quant_dtype is not None:
        parts.append(f"C8 {config.kvcache_quant_granularity}")
    return ", ".join(filter(None, parts))


@pytest.mark.parametrize("config", list(combinations()), ids=name_of)
def test_quantized_network_matches_float64_reference(config):
    model, data = decoder(layers=1), batches(2)
    config = PTQConfig(**config)
    reference = Reference(model, config, data)
    network = PTQ(config).apply(model, datasets=data)
    assert network is model
    x = batches(2, held_out=True)[1]
    exact = in_numpy(reference.state, x.numpy().astype("float64"), plain)
    found, expected = PTQ(config).convert(network)(x).numpy(), reference(x)
    error, right = (np.linalg.norm(each - exact) for each in (found, expected))
    assert right > 1e-4 * np.linalg.norm(exact)  # quantized at all
    # Values on rounding borders are rounded differently in float32 and float64, and so are
    # other values after it: the errors are as large, where they are not the same.
    assert abs(error - right) <= 0.25 * right
    policy = config.layer_config()
    rounded = policy.algorithm in ("", "SmoothQuant")
    if policy.weight is None or (policy.activation is None and rounded):
        assert np.linalg.norm(found - expected) <= 0.1 * right


def test_every_valid_combination_is_tested():
    """34 of weights and activations (test_golden_stick_ptq_config counts them), 4 of caches."""
    assert len(list(combinations())) == 34 + 4
    assert len({name_of(each) for each in combinations()}) == 34 + 4


def test_layers_are_calibrated_on_outputs_of_quantized_layers():
    config = PTQConfig(**W4, outliers_suppression="smooth", **KV)
    model, data = decoder(), batches(2)
    reference = Reference(model, config, data)
    network = PTQ(config).apply(model, datasets=data)
    x = batches(2, held_out=True)[1]
    exact, expected = in_numpy(reference.state, x.numpy().astype("float64"), plain), reference(x)
    assert np.linalg.norm(network(x).numpy() - expected) <= 0.1 * np.linalg.norm(expected - exact)


def mean_error(config, scale=30.0):
    """Output error on held-out images of a network with a function-preserving outlier."""
    model = decoder()
    exact = [model(x).numpy() for x in batches(4, held_out=True)]
    for layer in model.layers:
        for norm, readers in ((layer.norm1, [getattr(layer.attention, each) for each in "qkv"]),
                              (layer.norm2, [layer.up])):
            factor = np.ones(WIDTH, "float32")
            factor[5] = scale
            for parameter in (norm.weight, norm.bias):
                parameter.set_value(parameter * paddle.to_tensor(factor))
            for reader in readers:
                reader.weight.set_value(reader.weight / paddle.to_tensor(factor[:, None]))
    network = PTQ(config).apply(model, datasets=batches(4))
    found = [network(x).numpy() for x in batches(4, held_out=True)]
    return np.linalg.norm(np.subtract(found, exact)) / np.linalg.norm(exact)


def test_algorithms_reduce_the_error():
    """An outlier channel behind each norm. (GPTQ needs no outlier.)"""
    w8a8, w4 = PTQConfig(**W8A8), PTQConfig(weight_quant_dtype="int4")
    smooth = PTQConfig(**W8A8, outliers_suppression="smooth", algo_args={"alpha": 0.8})
    awq = PTQConfig(weight_quant_dtype="int4", outliers_suppression="awq")
    gptq = PTQConfig(weight_quant_dtype="int4", precision_recovery="gptq")
    assert mean_error(smooth) < 0.6 * mean_error(w8a8)
    assert mean_error(awq) < 0.9 * mean_error(w4)
    assert mean_error(gptq) < 0.8 * mean_error(w4)


@pytest.mark.parametrize("spec", [
    QuantSpec(4, granularity=PerChannel(1)), QuantSpec(4, granularity=PerGroup(32)), QuantSpec(4)],
    ids=str)
@pytest.mark.parametrize("ratios", [(0.0,), (0.6,), tuple(i / 20 for i in range(20))])
def test_awq_scales_with_duo_scaling(spec, ratios):
    random = np.random.RandomState(4)
    x = random.randn(300, 80) * np.exp(random.randn(80))
    weights = [random.randn(80, columns) * np.exp(random.randn(80, 1)) for columns in (16, 24)]
    policy = LayerConfig(spec, smoother=AWQ(ratios=ratios, duo_scaling=True, clip=False))
    statistics = ChannelStats(policy.needs)
    statistics.update(paddle.to_tensor(x.astype("float32")))
    found = policy.smoother.scales([paddle.to_tensor(weight.astype("float32"))
                                    for weight in weights], statistics, spec)
    np.testing.assert_allclose(found.numpy(), Scheme(weights, x, policy).s, rtol=1e-4)


# Which layers


def in_layers(names, kind, layers=(0, 1)):
    return {f"layers.{i}.{name}": kind for i in layers for name in names}


def test_config_none_is_the_default_and_a_dict_is_a_config():
    expected = in_layers(IN_A_LAYER, "W8-per_channel")
    for config in (None, {}, PTQConfig(), {"weight_quant_dtype": "int8"}):
        assert quantized(applied(config)) == expected
        assert PTQ(config).config == PTQConfig()


def test_policies_by_pattern():
    network = applied(PTQConfig(**W8A8, **KV), OrderedDict([
        (r".*attention\.(q|k|v)$", PTQConfig(**W4, outliers_suppression="awq")),
        (r"layers\.1\.(up|down)", PTQConfig(weight_quant_dtype="int4",
                                            precision_recovery="gptq")),
        (r"layers\.0\.attention\.kv_cache", PTQConfig(
            **ONLY_KV, kvcache_quant_granularity="per_token")),
        (r"layers\.1\.attention\.(out|kv)", None),
        (r"head", PTQConfig()),
    ]))
    a8 = "W8-per_channel-A8-per_tensor"
    assert quantized(network) == {
        **in_layers(["attention.q", "attention.k", "attention.v"], "AWQ-W4-per_group"),
        **in_layers(["up", "down"], "GPTQ-W4-per_channel", [1]),
        **in_layers(["attention.out", "up", "down"], a8, [0]),
        "layers.0.attention.kv_cache": "C8-per_token", "head": "W8-per_channel"}
    # Outside of the decoder layers by a pattern only.
    assert table(network)["stem"] == "NA"


def test_summary_shows_the_reasons_for_float_layers():
    network = applied(PTQConfig(opname_blacklist=["up"]),
                      OrderedDict({r"layers\.1": None, r"layers\.0\.down": PTQConfig(**ONLY_KV)}))
    why = {line.split("|")[0].strip(): line.split("|")[-1].strip()
           for line in paddleq.summary(network).splitlines()[2:]}
    assert why["layers.0.up"] == "excluded by opname_blacklist 'up'"
    assert why["layers.1.attention.q"] == r"excluded by layer_policies['layers\\.1']"
    assert why["layers.0.down"] == "weight is None"
    assert why["head"] == "outside of the decoder layers"
    assert why["layers.0.attention.kv_cache"] == "kv_cache is None"


def test_opname_blacklist_matches_parts_of_names():
    network = applied(PTQConfig(**KV, opname_blacklist=["attention.o", "ers.1"]))
    assert quantized(network) == {
        **in_layers(["attention.q", "attention.k", "attention.v", "up", "down"],
                    "W8-per_channel", [0]), "layers.0.attention.kv_cache": "C8-per_channel"}


def test_value_error_two_policies_on_one_layer():
    network = decoder()
    with raises(ConfigError, "one pattern for a layer", r"'layers.*' and '.*up'",
                "match 'layers.0.up'"):
        applied(None, OrderedDict([(r"layers\.0", PTQConfig()), (r".*up", None)]), network)
    assert quantized(network) == {}


def test_unmatched_pattern_is_named_in_a_warning(caplog):
    with caplog.at_level(logging.WARNING, "paddleq"):
        applied(None, OrderedDict([(r"layers\.0\.up", None), (r"layers\.7", None),
                                   (r"layers\.0\.norm1", None)]))
    assert [record.getMessage() for record in caplog.records] == [
        r"layer_policies['layers\\.7'] matches no layer that can be quantized",
        r"layer_policies['layers\\.0\\.norm1'] matches no layer that can be quantized"]


# summary


def test_summary_prints_the_table(capsys):
    network = applied(PTQConfig(**W8A8, outliers_suppression="smooth", **KV),
                      OrderedDict({r"layers\.1\.": None}))
    capsys.readouterr()
    printed = PTQ().summary(network)
    assert capsys.readouterr().out == printed + "\n"
    assert printed == """\
layer_name                  | quant_type
----------------------------+-----------------------------------------
stem                        | NA
layers.0.attention.q        | SmoothQuant-W8-per_channel-A8-per_tensor
layers.0.attention.k        | SmoothQuant-W8-per_channel-A8-per_tensor
layers.0.attention.v        | SmoothQuant-W8-per_channel-A8-per_tensor
layers.0.attention.out      | SmoothQuant-W8-per_channel-A8-per_tensor
layers.0.attention.kv_cache | C8-per_channel
layers.0.up                 | SmoothQuant-W8-per_channel-A8-per_tensor
layers.0.down               | SmoothQuant-W8-per_channel-A8-per_tensor
layers.1.attention.q        | NA
layers.1.attention.k        | NA
layers.1.attention.v        | NA
layers.1.attention.out      | NA
layers.1.attention.kv_cache | NA
layers.1.up                 | NA
layers.1.down               | NA
head                        | NA"""


@pytest.mark.parametrize("config, kind", [
    ({**W8A8, "outliers_suppression": "smooth"}, "SmoothQuant-W8-per_channel-A8-per_tensor"),
    ({**W8A8, "act_quant_granularity": "per_token"}, "W8-per_channel-A8-per_token"),
    ({**W4, "outliers_suppression": "awq"}, "AWQ-W4-per_group"),
    ({**W4, "precision_recovery": "gptq"}, "GPTQ-W4-per_group"),
    ({**W4A8, "outliers_suppression": "smooth"}, "SmoothQuant-GPTQ-W4-per_channel-A8-per_token"),
    ({}, "W8-per_channel"),
])
@pytest.mark.parametrize("mode", list(PTQMode), ids=lambda mode: mode.value)
def test_summary_types_of_linears(mode, config, kind):
    config = PTQConfig(mode, **config)
    network = PTQ(config).apply(decoder(layers=1), Layers(), batches(1))
    assert quantized(network) == in_layers(IN_A_LAYER, kind, [0])


def encoder():
    paddle.seed(3)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0)
    return nn.TransformerEncoder(layer, 2)


@pytest.mark.parametrize("granularity", ["per_channel", "per_token"])
@pytest.mark.parametrize("mode", list(PTQMode), ids=lambda mode: mode.value)
def test_summary_types_of_kv_caches_of_paddle_attention(mode, granularity):
    config = PTQConfig(mode, **ONLY_KV, kvcache_quant_granularity=granularity)
    network = PTQ(config).apply(encoder(), Layers(), [paddle.rand([2, 5, 16])])
    assert quantized(network) == {f"layers.{i}.self_attn": f"C8-{granularity}" for i in range(2)}
    assert len([name for name in table(network) if name.endswith("self_attn")]) == 2


@pytest.mark.parametrize("network", [None, 3, "net", nn.Linear])
def test_summary_type_error(network):
    with raises(ConfigTypeError, "network must be a paddle.nn.Layer"):
        PTQ().summary(network)


# DEPLOY

def test_deploy_in_another_process_gives_identical_logits(tmp_path, capsys):
    x = batches(1, held_out=True)[0]
    np.save(tmp_path / "x.npy", x.numpy())
    logits, tables = {}, ""
    for name, config in RUNS.items():
        ptq = PTQ(PTQConfig(**config), POLICIES)
        network = ptq.convert(ptq.apply(decoder(), datasets=batches(2)))
        logits[name] = network(x).numpy()
        tables += f"{name}\n{ptq.summary(network)}\n"
        paddleq.save_checkpoint(network, tmp_path / name)
    capsys.readouterr()
    run = subprocess.run(
        [sys.executable, str(HELPERS / "golden_stick_worker.py"), str(tmp_path)],
        capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    assert run.returncode == 0, run.stderr
    for name in RUNS:
        loaded = np.load(tmp_path / f"{name}.loaded.npy")
        assert np.array_equal(loaded, logits[name]), name
    assert run.stdout == tables


def saved(tmp_path, config=None):
    """Return (prefix, network) of a checkpoint of a quantized network."""
    network = applied(config)
    paddleq.save_checkpoint(network, tmp_path / "net")
    return str(tmp_path / "net"), network


def deployed(**config):
    ptq = PTQ(PTQConfig("deploy", **config))
    return ptq, ptq.apply(decoder(), Layers())


@pytest.mark.parametrize("config", RUNS.values(), ids=list(RUNS))
def test_deploy_without_a_checkpoint_is_uninitialized(config):
    _, network = deployed(**config)
    try:
        assert np.isnan(network(batches(1)[0]).numpy()).all()
    except CalibrationError as error:
        assert "KV cache has no scales yet" in str(error)


def test_deploy_loads_a_checkpoint_without_data(tmp_path):
    path, network = saved(tmp_path)
    x = batches(1, held_out=True)[0]
    for each in (path, f"{path}.json", f"{path}.safetensors"):
        ptq, empty = deployed()
        empty.train()
        loaded = ptq.convert(empty, each)
        assert loaded is empty and not loaded.training
        np.testing.assert_array_equal(loaded(x).numpy(), network(x).numpy())


@pytest.mark.parametrize("config, part", [
    ({"weight_quant_dtype": "int4"}, "weight of the layer 'layers.0.attention.q'"),
    (W8A8, "activation of the layer 'layers.0.attention.q'"),
    (KV, "integer layers layers.0.attention.kv_cache, layers.1.attention.kv_cache are not in"),
])
def test_model_error_checkpoint_of_another_configuration(tmp_path, config, part):
    path, _ = saved(tmp_path)
    ptq, network = deployed(**config)
    before = table(network)
    with raises(ModelError, part):
        ptq.convert(network, path)
    assert table(network) == before


def edited(path):
    with open(f"{path}.safetensors", "r+b") as file:
        file.seek(-5, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-5, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


def truncated(path):
    with open(f"{path}.safetensors", "r+b") as file:
        file.truncate(os.path.getsize(f"{path}.safetensors") - 100)


def described_otherwise(path):
    with open(f"{path}.json") as file:
        content = json.load(file)
    content["layers"].pop("layers.0.up")
    with open(f"{path}.json", "w") as file:
        json.dump(content, file, indent=1)


def pickled(path):
    paddle.save({"weight": paddle.ones([2])}, f"{path}.safetensors")


@pytest.mark.parametrize("damage", [edited, truncated, described_otherwise, pickled])
def test_format_error_damaged_checkpoint(tmp_path, damage):
    path, _ = saved(tmp_path)
    damage(path)
    ptq, network = deployed()
    with raises(FormatError):
        ptq.convert(network, path)
    assert np.isnan(network(batches(1)[0]).numpy()).all()


def test_deploy_of_paddle_encoder(tmp_path):
    config, x = {**W8A8, **KV}, paddle.rand([2, 5, 16])
    network = PTQ(PTQConfig(**config)).apply(encoder(), datasets=[x])
    paddleq.save_checkpoint(network, tmp_path / "net")
    ptq = PTQ(PTQConfig("deploy", **config))
    loaded = ptq.convert(ptq.apply(encoder(), Layers()), str(tmp_path / "net"))
    network.eval()
    np.testing.assert_array_equal(loaded(x).numpy(), network(x).numpy())
    assert quantized(loaded) == quantized(network)


def outputs(structure):
    """Return the tensors of a nested output."""
    if isinstance(structure, paddle.Tensor):
        return [structure.numpy()]
    parts = structure.values() if isinstance(structure, dict) else structure or ()
    return [each for part in parts for each in outputs(part)]


@pytest.mark.parametrize("name", NETWORKS)
def test_deploy_of_other_architectures(name, tmp_path):
    """Grouped-query attention, an encoder and a decoder, experts, a layer that is used twice."""
    config = {**W4A8, "outliers_suppression": "smooth", **KV}
    network = PTQ(PTQConfig(**config)).apply(build(name), datasets=sentences())
    paddleq.save_checkpoint(network, tmp_path / "net")
    ptq = PTQ(PTQConfig("deploy", **config))
    loaded = ptq.convert(ptq.apply(build(name, seed=1), StackHelper()), str(tmp_path / "net"))
    found, expected = (outputs(each(sentences()[0])) for each in (loaded, network))
    assert len(found) == len(expected) > 0
    for each, other in zip(found, expected):
        assert np.array_equal(each, other)


# Errors


def test_runtime_error_not_initialized():
    class Mine(PTQ):
        def __init__(self):
            pass

    for call in (lambda: Mine().apply(decoder(), datasets=batches(1)),
                 lambda: Mine().convert(decoder())):
        with raises(StateError, "Mine is not initialized", "PTQ.__init__"):
            call()


@pytest.mark.parametrize("config", [3, "int8", [], PTQConfig])
def test_type_error_config(config):
    with raises(ConfigTypeError, "config must be a PTQConfig"):
        PTQ(config)


@pytest.mark.parametrize("policies", [{}, {".*": None}, [], 3])
def test_type_error_layer_policies_no_ordered_dict(policies):
    with raises(ConfigTypeError, "layer_policies must be an OrderedDict"):
        PTQ(None, policies)


def test_type_error_layer_policies_element_no_ptq_config():
    with raises(ConfigTypeError, "layer_policies.*must be a PTQConfig or None"):
        PTQ(None, OrderedDict({".*": {"weight_quant_dtype": "int4"}}))


def test_value_error_quantize_in_static_graph_mode():
    paddle.enable_static()
    try:
        with raises(ConfigError, "config.mode must be PTQMode.DEPLOY in static graph mode"):
            PTQ()
        assert PTQ(PTQConfig("deploy")).config.mode is PTQMode.DEPLOY
    finally:
        paddle.disable_static()


def test_value_error_activations_without_weights():
    with raises(ConfigError, "act_quant_dtype must be None while weight_quant_dtype is None"):
        PTQ({"weight_quant_dtype": None, "act_quant_dtype": "int8"})


@pytest.mark.parametrize("network", [None, 3, "net", nn.Linear, [nn.Linear(2, 2)]])
def test_apply_type_error_network(network):
    for ptq in (PTQ(), PTQ(PTQConfig("deploy"))):
        with raises(ConfigTypeError, "must be a paddle.nn.Layer"):
            ptq.apply(network, Layers(), batches(1))


def test_apply_value_error_deploy_without_a_helper():
    with raises(ConfigError, "network_helper must be a NetworkHelper in PTQMode.DEPLOY", "None"):
        PTQ(PTQConfig("deploy")).apply(decoder())


@pytest.mark.parametrize("helper", [3, "layers", Layers, decoder])
def test_apply_type_error_helper(helper):
    with raises(ConfigTypeError, "network_helper must be a NetworkHelper or None"):
        PTQ().apply(decoder(), helper, batches(1))


@pytest.mark.parametrize("datasets", [None, [], (), iter([])])
@pytest.mark.parametrize("config", [{}, {"precision_recovery": "gptq"}])
def test_apply_value_error_datasets_empty(datasets, config):
    network = decoder()
    with raises(ConfigError, "datasets must be an iterable of at least one batch"):
        PTQ(config).apply(network, datasets=datasets)
    assert quantized(network) == {}


def test_apply_type_error_datasets():
    with raises(ConfigTypeError, "datasets must be an iterable of at least one batch"):
        PTQ().apply(decoder(), datasets=3)


def test_apply_accepts_a_generator():
    config = PTQConfig(**W8A8)
    network = PTQ(config).apply(decoder(), datasets=(each for each in batches(2)))
    x = batches(1)[0]
    np.testing.assert_array_equal(network(x).numpy(), applied(config)(x).numpy())


@pytest.mark.parametrize("config, part", [
    ({"weight_quant_dtype": None}, "weight is None"),
    ({"opname_blacklist": ["layers"]}, "excluded by opname_blacklist 'layers'"),
])
@pytest.mark.parametrize("mode", list(PTQMode), ids=lambda mode: mode.value)
def test_apply_model_error_nothing_to_quantize(mode, config, part):
    with raises(ModelError, "model has no layer to quantize", part):
        PTQ(PTQConfig(mode, **config)).apply(decoder(), Layers(), batches(1))


def test_apply_model_error_no_decoder_layers_or_quantized_already():
    with raises(ModelError, "no decoder layers found", "NetworkHelper"):
        PTQ().apply(nn.Linear(2, 2), datasets=batches(1))
    for network in (applied(), applied(ONLY_KV), deployed()[1]):
        with raises(ModelError, "already quantized"):
            PTQ().apply(network, datasets=batches(1))


def test_apply_calibration_error_names_a_layer_without_data():
    network = decoder()
    network.layers[0].spare = nn.Linear(WIDTH, WIDTH)
    with raises(CalibrationError, "layers.0.spare"):
        applied(W8A8, network=network, uncalibrated="error")


def test_apply_resumes_after_the_last_finished_layer(tmp_path):
    config, folder = PTQConfig(**W4, precision_recovery="gptq", **KV), str(tmp_path / "runs")

    def interrupt(layer, inputs):
        if os.path.isdir(folder) and any("safetensors" in name for name in os.listdir(folder)):
            raise KeyboardInterrupt  # the first layer is finished

    network = decoder()
    hook = network.layers[1].up.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        applied(config, network=network, resume_dir=folder)
    hook.remove()
    resumed, whole = applied(config, resume_dir=folder), applied(config)
    for name, value in whole.state_dict().items():
        assert np.array_equal(resumed.state_dict()[name].numpy(), value.numpy()), name


def test_convert_returns_the_quantized_network():
    network = applied()
    network.train()
    assert PTQ().convert(network) is network and not network.training


@pytest.mark.parametrize("net_opt", [None, 3, "net", nn.Linear])
def test_convert_type_error_net_opt(net_opt):
    with raises(ConfigTypeError, "net_opt must be a paddle.nn.Layer"):
        PTQ().convert(net_opt)


@pytest.mark.parametrize("ckpt_path", [None, 3, b"path", ["path"]])
def test_convert_type_error_ckpt_path(ckpt_path):
    with raises(ConfigTypeError, "ckpt_path must be a str"):
        PTQ().convert(applied(), ckpt_path)


def test_convert_value_error_ckpt_path(tmp_path):
    for path in (str(tmp_path / "nothing"), str(tmp_path), str(tmp_path / "nothing.json")):
        with raises(FormatError, "ckpt_path must be the prefix of a checkpoint", "there is no"):
            PTQ().convert(applied(), path)


def test_convert_model_error_not_applied():
    with raises(ModelError, "no quantized layer; call apply"):
        PTQ().convert(decoder())


# Values on rounding borders may differ by a step if the summation order changes.
@pytest.mark.parametrize("config, tolerance", [({}, 1e-5), (W8A8, 2e-3), (W4, 1e-5), (KV, 2e-3)],
                         ids=["W8", "W8A8", "W4", "C8"])
def test_converted_network_exports_identically(config, tolerance, tmp_path):
    network = PTQ(config).convert(applied(config))
    x, path = batches(1, held_out=True)[0], str(tmp_path / "net")
    paddleq.save_quantized_model(
        network, path, [paddle.static.InputSpec([None, 8, 8], "float32")])
    for runtime in (paddle_inference, openvino):
        assert relative_error(runtime(path, [x.numpy()])[0], network(x).numpy()) < tolerance


@pytest.mark.parametrize("config, name", [
    ({}, "layers.0.attention.q"), (ONLY_KV, "layers.0.attention.kv_cache")], ids=["W8", "C8"])
def test_export_of_an_uninitialized_network_is_an_error(config, name, tmp_path):
    _, network = deployed(**config)
    for write in (paddleq.save_checkpoint, lambda *args: paddleq.save_quantized_model(
            *args, [paddle.static.InputSpec([None, 8, 8], "float32")])):
        with raises(CalibrationError, f"have no numbers yet: {name}"):
            write(network, str(tmp_path / "net"))
    assert os.listdir(tmp_path) == []
