"""The layer-by-layer driver: statistics, shared inputs, layers that stay float, and errors.

The reference is slow and simple. For each decoder layer it builds a network with quantized layers
before it and float layers elsewhere, runs all batches through it, and computes the expected scales
and integers in numpy from the inputs of the layer's Linears.
"""

import copy
import json
import logging
import os
import subprocess
import sys

import numpy as np
import paddle
import pytest
from paddle import nn
from paths import ROOT
from rules import rules
from transformers import (
    NETWORKS,
    WIDTH,
    WORDS,
    Block,
    LlamaLayer,
    OnePlusNorm,
    Recurring,
    RMSNorm,
    build,
    sentences,
)

from paddleq import PerChannel, PerGroup, PerToken, QuantSpec
from paddleq.algorithms import (
    AWQ,
    GPTQ,
    NetworkHelper,
    RoundToNearest,
    SmoothQuant,
    StackHelper,
    quantize_layer_by_layer,
    quantize_linears,
)
from paddleq.algorithms.layerwise.fold_smoothing import divide_output, find_norm
from paddleq.config import LayerConfig, QuantConfig
from paddleq.errors import CalibrationError, ConfigError, ModelError, NonFiniteError
from paddleq.nn import Int8KVCache, IntegerLinear, KVCache
from paddleq.observers import ChannelStats

W8 = QuantSpec(8, granularity=PerChannel(1))
W4 = QuantSpec(4, granularity=PerGroup(16))
STATIC = LayerConfig(W8, QuantSpec(8), SmoothQuant(0.5))
PLAIN = LayerConfig(W8)

# In which order the decoder layers run.
ORDER = {
    "llama": ["layers.0", "layers.1", "layers.2"],
    "bert": ["encoder.layers.0", "encoder.layers.1", "encoder.layers.2"],
    "pre-norm": ["encoder.layers.0", "encoder.layers.1", "encoder.layers.2"],
    "translator": ["transformer.encoder.layers.0", "transformer.encoder.layers.1",
                   "transformer.decoder.layers.0", "transformer.decoder.layers.1"],
    "skipping": ["blocks.0", "blocks.1", "blocks.2", "blocks.3"],
    "recurring": ["blocks.1", "blocks.0"],
    "mixture": ["layers.0", "layers.1"],
}
# Linears of a decoder layer that share an input, and the norm whose output only they use.
SHARED = {
    "llama": [("input_layernorm", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
              ("post_attention_layernorm", ["mlp.gate_proj", "mlp.up_proj"])],
    "bert": [(None, ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"])],
    "pre-norm": [("norm1", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
                 ("norm2", ["linear1"])],
    "translator": [(None, ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
                   (None, ["cross_attn.k_proj", "cross_attn.v_proj"])],
    "skipping": [("norm", ["up"])],
    "recurring": [],
    "mixture": [(None, [f"experts.{i}.{name}" for name in ("gate", "up")]) for i in range(3)],
}


def part(network, path):
    for name in path.split("."):
        network = network._sub_layers[name]
    return network


def linears_of(layer):
    return {name: each for name, each in layer.named_sublayers()
            if isinstance(each, (nn.Linear, IntegerLinear))}


def logits(output):
    if isinstance(output, dict):
        return output["logits"].numpy()
    return (output[0] if isinstance(output, tuple) else output).numpy()


def quantized(name, linear, kv_cache=None, **arguments):
    network = build(name)
    done = quantize_layer_by_layer(network, None, rules(network, linear, kv_cache),
                                   arguments.pop("batches", sentences()), **arguments)
    return network, done


def put_together(name, final, count):
    """The float network with its first ``count`` decoder layers taken from ``final``."""
    network = build(name)
    for path in ORDER[name][:count]:
        parent, _, key = path.rpartition(".")
        part(network, parent)._sub_layers[key] = copy.deepcopy(part(final, path))
    return network


def inputs_of(network, layers, batches):
    """Map Linear names to their inputs of every call, as arrays [tokens, K]."""
    read = {name: [] for name in layers}
    for name, layer in layers.items():
        def forward(*args, name=name, original=layer.forward, **kwargs):
            x = args[0] if args else kwargs["input"]
            read[name].append(x.numpy().reshape(-1, x.shape[-1]).astype("float64"))
            return original(*args, **kwargs)
        layer.forward = forward
    with paddle.no_grad():
        for batch in batches:
            network(batch)
    return read


def groups_of(name, layer):
    """(norm or None, names) of all Linears of a decoder layer, single ones too."""
    groups = [each for each in SHARED[name] if each[1][0] in linears_of(layer)]
    known = [n for _, names in groups for n in names]
    return groups + [(None, [n]) for n in linears_of(layer) if n not in known]


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_are_calibrated_on_outputs_of_quantized_layers(name):
    final, done = quantized(name, STATIC)
    for count, path in enumerate(ORDER[name]):
        network = put_together(name, final, count)
        layer, became = part(network, path), part(final, path)
        read = inputs_of(network, linears_of(layer), sentences())
        for norm, names in groups_of(name, layer):
            x = np.concatenate(read[names[0]])
            weights = [linears_of(layer)[n].weight.numpy().astype("float64") for n in names]
            w_max = np.abs(np.concatenate(weights, 1)).max(1)
            s = np.sqrt(np.abs(x).max(0) / w_max)
            for n, weight in zip(names, weights):
                found = linears_of(became)[n]
                assert isinstance(found, IntegerLinear) and f"{path}.{n}" in done.linears
                step = np.abs(x / s).max() / 127
                np.testing.assert_allclose(found.activation_scale.numpy(), [step], rtol=1e-4)
                weight_step = np.abs(weight * s[:, None]).max(0) / 127
                off = np.abs(found.dequantized_weight().numpy() - weight * s[:, None])
                assert np.all(off <= 0.501 * weight_step)
                if norm is None:
                    assert f"{path}.{n}" not in done.folded
                    np.testing.assert_allclose(found.input_scale.numpy(), s, rtol=1e-4)
                else:
                    assert done.folded[f"{path}.{n}"] == f"{path}.{norm}"
                    assert not found.smoothed
                    np.testing.assert_allclose(
                        part(became, norm).weight.numpy(),
                        part(layer, norm).weight.numpy() / s, rtol=1e-4)
    assert {n.rpartition(".")[0] for n in done.folded.values()} <= {*ORDER[name], "",
                                                                     "transformer.decoder"}
    # The output is still close to the float output.
    for batch in sentences(1):
        exact = logits(build(name)(batch))
        error = np.abs(logits(final(batch)) - exact).max() / np.abs(exact).max()
        assert 0 < error < 0.15, error


@pytest.mark.parametrize("policy", [
    LayerConfig(W4, rounder=GPTQ()), LayerConfig(W4, smoother=AWQ(), rounder=GPTQ()),
    LayerConfig(QuantSpec(4, signed=False, symmetric=False, granularity=PerGroup(16)),
                 smoother=AWQ())],
    ids=["gptq", "awq-gptq", "awq"])
@pytest.mark.parametrize("name", ["llama", "bert", "recurring"])
def test_algorithms_use_statistics_of_quantized_inputs(name, policy):
    final, _ = quantized(name, policy)
    for count, path in enumerate(ORDER[name]):
        network = put_together(name, final, count)
        layer, became = part(network, path), part(final, path)
        read = inputs_of(network, linears_of(layer), sentences())
        for norm, names in groups_of(name, layer):
            statistics = ChannelStats(policy.needs)
            for x in read[names[0]]:
                statistics.update(paddle.to_tensor(x.astype("float32")))
            outcome = quantize_linears([linears_of(layer)[n].weight for n in names], policy,
                                       statistics)
            for n, weight in zip(names, outcome.weights):
                found = linears_of(became)[n]
                same = (found.integers().numpy() == weight.integers.astype("float32").numpy())
                assert same.mean() > 0.995  # but for ties
                if outcome.input_scale is not None and norm is None:
                    np.testing.assert_allclose(found.input_scale.numpy(),
                                               outcome.input_scale.numpy(), rtol=1e-3)


@pytest.mark.parametrize("kind", ["per_channel", "per_token"])
@pytest.mark.parametrize("name", ["llama", "bert", "translator"])
def test_caches_are_calibrated_on_the_quantized_layer(name, kind):
    final, done = quantized(name, PLAIN, lambda _: kind)
    caches = [n for n, layer in final.named_sublayers() if isinstance(layer, Int8KVCache)]
    assert caches == [n if n.endswith("kv_cache") else f"{n}.kv_cache" for n in done.kv_caches]
    assert len(caches) == {"llama": 3, "bert": 3, "translator": 6}[name]
    for count, path in enumerate(ORDER[name]):
        for cache in [n[len(path) + 1:] for n in caches if n.startswith(path)]:
            found = part(final, f"{path}.{cache}")
            assert found.granularity == kind and found.quant_type == f"C8-{kind}"
            if kind == "per_token":
                continue
            network = put_together(name, final, count + 1)
            for each in [n[len(path) + 1:] for n in caches if n.startswith(path)]:
                parent, _, key = f"{path}.{each}".rpartition(".")
                part(network, parent)._sub_layers[key] = KVCache(found.token_axis)
            seen = []
            held = part(network, f"{path}.{cache}")
            held.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[:2]))
            for batch in sentences():
                network(batch)
            axes = (0, found.token_axis)
            for scale, values in zip((found.k_scale, found.v_scale), zip(*seen)):
                most = np.max([np.abs(x.numpy()).max(axes) for x in values], 0)
                np.testing.assert_allclose(scale.numpy(), most / 127, rtol=1e-5)


def test_caches_only():
    final, done = quantized("llama", None, lambda name: "per_token" if "1" in name else None)
    assert done.linears == {} and done.kv_caches == {"layers.1.self_attn.kv_cache": "per_token"}
    kinds = [type(layer.self_attn.kv_cache) for layer in final.layers]
    assert kinds == [KVCache, Int8KVCache, KVCache]
    assert len(linears_of(final)) == 22
    assert all(isinstance(layer, nn.Linear) for layer in linears_of(final).values())


@pytest.mark.parametrize("kind", ["per_channel", "per_token"])
def test_quantized_llama_generates_equally_with_and_without_cache(kind):
    final, _ = quantized("llama", LayerConfig(W4), lambda _: kind)
    tokens = sentences(1)[0]
    output = final(tokens)
    assert output["past"][0][0].dtype == paddle.int8
    for _ in range(5):
        full = final(tokens)["logits"][:, -1].numpy()
        # A key on a rounding border may differ by a step if the summation order changes.
        np.testing.assert_allclose(output["logits"][:, -1].numpy(), full, atol=2e-2)
        word = paddle.to_tensor(full.argmax(-1)[:, None])
        tokens = paddle.concat([tokens, word], axis=1)
        output = final(word, output["past"])
    assert output["past"][2][0].shape[1] == tokens.shape[1]


def test_different_policies_on_one_input_are_smoothed_separately():
    """Layers of different bits share no factors, and the norm is unchanged."""
    smooth4 = LayerConfig(W4, smoother=SmoothQuant(0.5))
    final, done = quantized("llama", lambda n: smooth4 if "k_proj" in n or "up" in n else STATIC)
    float_one = build("llama")
    for before, after in zip(float_one.layers, final.layers):
        q, k, v = (after.self_attn._sub_layers[f"{n}_proj"] for n in "qkv")
        np.testing.assert_array_equal(q.input_scale.numpy(), v.input_scale.numpy())
        assert np.abs(q.input_scale.numpy() / k.input_scale.numpy() - 1).max() > 0.01
        assert (q.quant_type, k.quant_type) == (
            "SmoothQuant-W8-per_channel-A8-per_tensor", "SmoothQuant-W4-per_group")
        np.testing.assert_array_equal(before.input_layernorm.weight.numpy(),
                                      after.input_layernorm.weight.numpy())
    assert set(done.folded) == {"lm_head"}


def test_norm_is_unchanged_if_a_consumer_stays_float():
    final, done = quantized("llama", lambda n: None if "v_proj" in n else STATIC)
    assert all(isinstance(layer.self_attn.v_proj, nn.Linear) for layer in final.layers)
    assert all(layer.self_attn.q_proj.smoothed for layer in final.layers)
    assert not any("q_proj" in name for name in done.folded)


# -- which norm may take a factor ----------------------------------------------------------------


class OneNorm(nn.Layer):
    """``way`` says who reads the norm's output besides ``up`` and ``gate``."""

    def __init__(self, norm, way=None):
        super().__init__()
        self.norm, self.way = norm, way
        self.up, self.gate = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 8)
        self.other = nn.Linear(WIDTH, 8)
        if way == "held twice":
            self.same_norm = norm
        if way == "weight shared":
            self.same_weight = nn.LayerNorm(WIDTH)
            self.same_weight.weight = norm.weight

    def forward(self, x):
        y = self.norm(x)
        if self.way == "called twice":
            x = self.norm(x)
        if self.way == "changed":
            y.scale_(0.5)
        if self.way == "a slice":
            y = y[:, :]
        z = self.up(y) * self.gate(y)
        if self.way == "read by a sum":
            z = z + y.sum(-1, keepdim=True)
        if self.way == "read in a comparison":
            z = z * (y.max() > 0.5).astype("float32")
        if self.way == "read by another Linear":
            z = z + self.other(y)
        return (z, y) if self.way == "returned" else z


class OtherName(nn.Layer):
    def __init__(self):
        super().__init__()
        self.gamma = self.create_parameter([WIDTH], default_initializer=nn.initializer.Normal())

    def forward(self, x):
        y = x.astype("float32")
        return (y / y.norm(axis=-1, keepdim=True)).astype(x.dtype) * self.gamma


def gamma(norm):
    norm.weight.set_value(paddle.rand([WIDTH]) + 0.5)
    if getattr(norm, "bias", None) is not None:
        norm.bias.set_value(paddle.randn([WIDTH]))
    return norm


@pytest.mark.parametrize("make", [lambda: gamma(nn.LayerNorm(WIDTH)), RMSNorm,
                                  lambda: OtherName(),
                                  lambda: nn.LayerNorm(WIDTH, bias_attr=False)])
def test_folding_smoothing_factors_into_a_norm_is_exact(make):
    layer = OneNorm(make())
    layer.eval()
    x = paddle.randn([6, WIDTH])
    exact, s = layer(x).numpy().astype("float64"), paddle.rand([WIDTH]) + 0.2
    norm = find_norm(layer, layer.sublayers(), [layer.up, layer.gate], lambda: layer(x))
    assert norm is layer.norm
    divide_output(norm, s)
    for linear in (layer.up, layer.gate):
        linear.weight.set_value(linear.weight * s.unsqueeze(1))
    np.testing.assert_allclose(layer(x).numpy(), exact, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize("way", [
    "called twice", "changed", "a slice", "read by a sum", "read in a comparison",
    "read by another Linear", "returned", "held twice", "weight shared"])
def test_norm_with_other_consumers_is_not_folded(way):
    layer = OneNorm(gamma(nn.LayerNorm(WIDTH)), way)
    x = paddle.randn([6, WIDTH])
    before = layer(x)
    assert find_norm(layer, layer.sublayers(), [layer.up, layer.gate],
                       lambda: layer(x)) is None
    for mine, theirs in zip(layer(x), before):  # the search leaves no trace
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


def test_norm_not_proportional_to_its_weight_is_not_folded():
    x = paddle.randn([6, WIDTH])
    for norm in (OnePlusNorm(), nn.LayerNorm(WIDTH, weight_attr=False),
                 nn.LayerNorm([6, WIDTH]), nn.PReLU(WIDTH)):
        layer = OneNorm(norm)
        assert find_norm(layer, layer.sublayers(), [layer.up, layer.gate],
                           lambda layer=layer: layer(x)) is None


# -- whose Linears are special -------------------------------------------------------------------


class Tied(nn.Layer):
    """A head that shares another layer's weight, and a tied embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.LayerList([Block(), Block()])
        self.head, self.second_head = nn.Linear(WIDTH, 7), nn.Linear(WIDTH, 7)
        self.second_head.weight = self.head.weight
        self.blocks[1].up = self.blocks[0].up  # one object in two decoder layers
        self.heads = {"first": self.head}

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        words = paddle.matmul(x, self.embedding.weight, transpose_y=True)
        return words, self.heads["first"](x), self.second_head(x * 0.5)


def test_shared_layers_and_weights():
    network = Tied()
    exact, embedding = network(sentences(1)[0]), network.embedding.weight.numpy()
    quantize_layer_by_layer(network, None, rules(network, STATIC), sentences())
    assert network.blocks[0].up is network.blocks[1].up
    assert network.heads["first"] is network.head  # whichever module holds it
    assert isinstance(network.head, IntegerLinear) and isinstance(network.second_head,
                                                                  IntegerLinear)
    np.testing.assert_array_equal(network.embedding.weight.numpy(), embedding)
    # Each by its own input.
    ratio = network.head.activation_scale / network.second_head.activation_scale
    assert abs(ratio.item() - 2 ** 0.5) < 1e-4
    for mine, theirs in zip(network(sentences(1)[0]), exact):
        assert np.abs(mine.numpy() - theirs.numpy()).max() < 0.1 * np.abs(theirs.numpy()).max()
    assert len(set(network.state_dict())) == len(network.state_dict())


class Mixed(nn.Layer):
    def __init__(self, mixer, norm):
        super().__init__()
        self.mixer, self.norm, self.up = mixer, norm, nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return x + self.mixer(x) + self.up(self.norm(x))


class SharedParts(nn.Layer):
    """Two decoder layers that hold one mixer, and one norm."""

    def __init__(self):
        super().__init__()
        mixer, norm = Block(), gamma(nn.LayerNorm(WIDTH))
        self.layers = nn.LayerList([Mixed(mixer, norm), Mixed(mixer, norm)])

    def forward(self, x):
        return self.layers[1](self.layers[0](x) * 4.0)


def test_modules_shared_by_decoder_layers():
    paddle.seed(0)
    network, x = SharedParts(), paddle.randn([5, WIDTH])
    exact, norm = network(x).numpy(), network.layers[0].norm.weight.numpy()
    done = quantize_layer_by_layer(network, None, rules(network, STATIC), [x])
    # Another decoder layer uses its norm too, which a run of this one does not show.
    assert done.folded == {} and all(layer.up.smoothed for layer in network.layers)
    np.testing.assert_array_equal(network.layers[0].norm.weight.numpy(), norm)
    mixer = network.layers[0].mixer
    assert mixer is network.layers[1].mixer and mixer.up.smoothed
    read = inputs_of(network, {"down": mixer.down}, [x])["down"]
    assert len(read) == 2
    most = np.abs(np.concatenate(read) / mixer.down.input_scale.numpy()).max()
    np.testing.assert_allclose(mixer.down.activation_scale.numpy(), [most / 127], rtol=0.02)
    assert np.abs(network(x).numpy() - exact).max() < 0.1 * np.abs(exact).max()


def test_to_static_network():
    """The layers are quantized, not the program that ``to_static`` compiled from them."""
    network = paddle.jit.to_static(build("pre-norm"))
    quantize_layer_by_layer(network, None, rules(network, STATIC), sentences())
    expected, _ = quantized("pre-norm", STATIC)
    for name, value in expected.state_dict().items():
        np.testing.assert_array_equal(network.state_dict()[name].numpy(), value.numpy())


def test_tied_embedding_stays_float():
    class TransposedTie(nn.Layer):
        def __init__(self):
            super().__init__()
            self.blocks = nn.LayerList([Block()])
            self.lm_head = nn.Linear(WIDTH, WIDTH, bias_attr=False)
            self.embedding = nn.Embedding(WIDTH, WIDTH)
            self.embedding.weight = self.lm_head.weight

        def forward(self, tokens):
            return self.lm_head(self.blocks[0](self.embedding(tokens)))

    network = TransposedTie()
    weight = network.embedding.weight.numpy()
    quantize_layer_by_layer(network, None, rules(network, STATIC), sentences())
    assert isinstance(network.lm_head, IntegerLinear)
    np.testing.assert_array_equal(network.embedding.weight.numpy(), weight)


def test_repeated_calls_accumulate_statistics():
    final, _ = quantized("recurring", STATIC)
    network = build("recurring")
    read = inputs_of(network, {"up": network.blocks[1].up}, sentences())["up"]
    assert len(read) == 2 * len(sentences())
    s, x = final.blocks[1].up.input_scale.numpy(), np.concatenate(read)
    np.testing.assert_allclose(final.blocks[1].up.activation_scale.numpy(),
                               [np.abs(x / s).max() / 127], rtol=1e-4)


class Choosing(nn.Layer):
    """Depending on the data, ``second`` reads the input of ``first`` or another tensor."""

    def __init__(self):
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        y = self.norm(x)
        return self.first(y) + self.second(y if x.sum() > 0 else y * 10.0)


def test_layers_sharing_an_input_in_some_batches():
    network = nn.Sequential(nn.LayerList([Choosing()]))
    network.forward = lambda x: network[0][0](x)
    batches = [paddle.ones([3, 4]) * paddle.to_tensor([1.0, 2.0, 3.0, 5.0]),
               -paddle.ones([3, 4]) * paddle.to_tensor([1.0, 2.0, 3.0, 5.0])]
    done = quantize_layer_by_layer(network, None, rules(network, STATIC), batches)
    first, second = network[0][0].first, network[0][0].second
    assert done.folded == {}
    assert second.input_scale.numpy().max() > 2 * first.input_scale.numpy().max()


def test_unused_experts_are_named():
    batches = [batch % 20 for batch in sentences()]  # no token for the last expert
    with pytest.raises(CalibrationError) as error:
        quantized("mixture", STATIC, batches=batches, uncalibrated="error")
    for name in ("gate", "up", "down"):
        assert f"layers.0.experts.2.{name}" in str(error.value)
    assert "experts.1" not in str(error.value) and "3 batches" in str(error.value)
    batches[2][0, 0] = 21
    final, done = quantized("mixture", STATIC, batches=batches)
    gate, up = (final.layers[0].experts[2]._sub_layers[n] for n in ("gate", "up"))
    np.testing.assert_array_equal(gate.input_scale.numpy(), up.input_scale.numpy())
    assert len(done.linears) == 18
    # Configurations that need no data are still applied.
    assert len(quantized("mixture", PLAIN, batches=batches[:1])[1].linears) == 18


# -- the network around it -----------------------------------------------------------------------


def test_calibration_disables_dropout_and_restores_modes():
    """Calibration runs in evaluation mode and restores the mode of the network."""
    expected, _ = quantized("pre-norm", STATIC)
    network = build("pre-norm")
    network.train()
    network.pooler.eval()
    quantize_layer_by_layer(network, None, rules(network, STATIC), sentences())
    assert network.training and network.encoder.layers[1].dropout.training
    assert not network.pooler.training
    for name, value in expected.state_dict().items():
        np.testing.assert_array_equal(network.state_dict()[name].numpy(), value.numpy())
    assert not any("forward" in layer.__dict__ for layer in network.sublayers(include_self=True))


def test_disabled_replay_is_logged(caplog):
    with caplog.at_level(logging.INFO, "paddleq"):
        quantized("skipping", STATIC)
        assert "blocks.3 reads outputs of other decoder layers" in caplog.text
        quantized("recurring", STATIC)
        assert "is called several times" in caplog.text
        caplog.clear()
        for name in ("llama", "bert", "translator", "mixture"):
            quantized(name, STATIC)
        assert "run again" not in caplog.text


def test_finished_layers_are_not_run_again():
    """The number of runs of a decoder layer depends on batches, not on layers."""
    network, calls = build("llama"), []
    for number, layer in enumerate(network.layers):
        layer.self_attn.register_forward_pre_hook(lambda *_, n=number: calls.append(n))
    quantize_layer_by_layer(
        network, None, rules(network, lambda _: PLAIN if _ == "lm_head" else STATIC), sentences())
    counts = [calls.count(number) for number in range(3)]
    # Once for the order, one batch to find shared inputs, all batches for statistics and for the
    # outputs, and some runs of one batch to find other consumers of the two norms.
    assert max(counts) <= 1 + 1 + 2 * 3 + 2 * 5 and counts[0] == counts[1]


def test_rounding_to_nearest_needs_no_data():
    network = build("llama")
    done = quantize_layer_by_layer(network, None, rules(network, LayerConfig(W4), "per_token"))
    assert len(done.linears) == 22 and len(done.kv_caches) == 3
    weight = build("llama").lm_head.weight
    expected = RoundToNearest().quantize(weight, W4)
    np.testing.assert_array_equal(network.lm_head.integers().numpy(),
                                  expected.integers.astype("float32").numpy())


def test_float_weights_are_freed():
    import weakref
    network = build("llama")
    held = weakref.ref(network.layers[0].mlp["up_proj"].weight)
    kept = network.layers[0].self_attn.q_proj.weight
    quantize_layer_by_layer(network, None, rules(network, STATIC), sentences())
    assert held() is None and list(kept.shape) == [WIDTH, WIDTH]


def test_batch_types():
    class Two(nn.Layer):
        def __init__(self):
            super().__init__()
            self.blocks = nn.LayerList([Block()])

        def forward(self, x, scale=1.0):
            return self.blocks[0](x * scale)

    expected = None
    x = paddle.randn([2, 3, WIDTH])
    for batch in (x, x.numpy(), [x], (x, "a label"), {"x": x, "scale": 1.0}):
        paddle.seed(0)
        network = Two()
        quantize_layer_by_layer(network, None, rules(network, STATIC), iter([batch]))
        found = network.blocks[0].up.activation_scale.item()
        expected = found if expected is None else expected
        assert found == expected


def test_other_dtypes():
    """Paddle has no bfloat16 matrix product on a CPU: that part runs without data."""
    paddle.seed(0)
    network = nn.Sequential(nn.LayerList([Block()]))
    network[0][0].norm = OtherName()
    network.forward = lambda x: network[0][0](x)
    x, weight = paddle.randn([4, WIDTH]), network[0][0].up.weight.numpy()
    exact = network(x).numpy()
    network.to(dtype="float64")
    wide = copy.deepcopy(network)
    wide.forward = lambda x: wide[0][0](x)
    done = quantize_layer_by_layer(wide, None, rules(wide, STATIC), [x.astype("float64")])
    assert done.folded and wide[0][0].norm.gamma.dtype == paddle.float64
    y = wide(x.astype("float64"))
    assert y.dtype == paddle.float64
    assert np.abs(y.numpy() - exact).max() < 0.1 * np.abs(exact).max()

    network.to(dtype="bfloat16")
    quantize_layer_by_layer(network, None, rules(network, PLAIN))
    assert network[0][0].up(x.astype("bfloat16")).dtype == paddle.bfloat16
    off = network[0][0].up.dequantized_weight().numpy() - weight
    assert np.abs(off).max() < 0.01 * np.abs(weight).max()
    norm, s = network[0][0].norm, paddle.rand([WIDTH]) + 0.5
    before = norm.gamma.astype("float32").numpy()
    divide_output(norm, s)
    assert norm.gamma.dtype == paddle.bfloat16
    np.testing.assert_allclose(norm.gamma.astype("float32").numpy(), before / s.numpy(), rtol=0.01)


# -- helpers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_decoder_layers_are_found(name):
    found = [n for n, _ in StackHelper().decoder_layers(build(name))]
    assert sorted(found) == sorted(ORDER[name])


def test_decoder_layers_in_stages_and_wrappers_are_found():
    staged = nn.Sequential(nn.Sequential(Block(), Block()), nn.Sequential(Block(), Block()))
    assert [n for n, _ in StackHelper().decoder_layers(staged)] == ["0.0", "0.1", "1.0", "1.1"]
    wrapped = nn.Sequential(Recurring())
    assert [n for n, _ in StackHelper().decoder_layers(wrapped)] == ["0.blocks.0", "0.blocks.1"]
    assert len(StackHelper().decoder_layers(nn.LayerList([Block()]))) == 1


def test_user_defined_network_helper():
    class Named(nn.Layer):
        def __init__(self):
            super().__init__()
            self.one, self.two = Block(), LlamaLayer()

        def forward(self, x):
            return self.one(x)

    class Helper(NetworkHelper):
        def decoder_layers(self, network):
            return [("one", network.one)]

    network = Named()
    with pytest.raises(ModelError, match="no decoder layers found in Named.*NetworkHelper"):
        quantize_layer_by_layer(network, None, rules(network, STATIC), [paddle.ones([1, WIDTH])])
    done = quantize_layer_by_layer(
        network, Helper(), rules(network, lambda n: STATIC if "one" in n else None),
        [paddle.ones([1, WIDTH])])
    assert done.folded == {"one.up": "one.norm"}
    with pytest.raises(CalibrationError, match="no calibration data reached two.self_attn.q_proj"):
        quantize_layer_by_layer(
            network, Helper(), rules(network, STATIC), [paddle.ones([1, WIDTH])])


class Wrong(NetworkHelper):
    def __init__(self, layers):
        self.layers = layers

    def decoder_layers(self, network):
        return self.layers(network)


@pytest.mark.parametrize("layers, error, words", [
    (lambda _: [], ModelError, r"decoder_layers\(\) .* returned no layers"),
    (lambda _: [("mine", Block())], ConfigError,
     r"decoder_layers\(\) must be sublayers of the network, but is 'mine'"),
    (lambda n: [("blocks.0", n.blocks[0]), ("blocks.0.up", n.blocks[0].up)], ConfigError,
     "must be no part of blocks.0, but is 'blocks.0.up'"),
])
def test_invalid_helpers(layers, error, words):
    with pytest.raises(error, match=words):
        network = build("recurring")
        quantize_layer_by_layer(
            network, Wrong(layers), rules(network, STATIC), sentences())


def test_helper_with_invalid_cache_names():
    class Caches(StackHelper):
        def kv_caches(self, network):
            return [("encoder", network.encoder)]

    with pytest.raises(ConfigError, match=r"kv_caches\(\) must be layers of .*, but is 'encoder'"):
        network = build("bert")
        quantize_layer_by_layer(network, Caches(), rules(network, None, "per_token"))


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments, error, words", [
    ({"data": []}, CalibrationError,
     "data must hold at least one batch, for layers.0.self_attn.q_proj, .*holds none"),
    ({"data": None}, CalibrationError, "but is none"),
    ({"data": 3}, TypeError, "data must be an iterable of batches, but is 3"),
    ({"config": QuantConfig()}, ModelError, "no layer to quantize"),
    ({"config": rules(build("llama"), LayerConfig(None))}, ModelError, "weight is None"),
    ({"config": W8}, TypeError, "config must be a QuantConfig"),
    ({"helper": StackHelper}, TypeError, "helper must be a NetworkHelper or None"),
    ({"model": 3}, TypeError, "model must be a paddle.nn.Layer"),
    ({"resume_dir": 3}, TypeError, "resume_dir must be a path or None"),
])
def test_invalid_arguments(arguments, error, words):
    network = build("llama")
    given = {"model": network, "helper": None, "config": rules(network, STATIC),
             "data": sentences(), **arguments}
    with pytest.raises(error, match=words):
        quantize_layer_by_layer(**given)
    assert len(linears_of(network)) == 22 and all(
        isinstance(layer, nn.Linear) for layer in linears_of(network).values())


def test_quantizing_a_cache_twice_is_an_error():
    final, _ = quantized("bert", None, lambda _: "per_token")
    with pytest.raises(ModelError, match="encoder.layers.0.self_attn is already quantized"):
        quantize_layer_by_layer(final, None, rules(final, None, "per_token"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_error_names_layer_and_batch(bad):
    class Fed(nn.Layer):
        def __init__(self):
            super().__init__()
            self.blocks = nn.LayerList([Block(), Block()])

        def forward(self, x, extra):
            return self.blocks[1](self.blocks[0](x) + extra)

    x = paddle.randn([2, WIDTH])
    batches = [[x, paddle.zeros([1])], [x, paddle.full([1], bad)]]
    with pytest.raises(NonFiniteError, match=r"NaN or infinity; layer: blocks.1.up \(batch 1"):
        network = Fed()
        quantize_layer_by_layer(network, None, rules(network, STATIC), batches)


def test_nan_error_names_the_cache():
    network = build("llama")
    weight = network.layers[1].self_attn.v_proj.weight
    weight.set_value(paddle.full(weight.shape, float("nan")))
    with pytest.raises(NonFiniteError,
                       match=r"layers.1.self_attn.kv_cache \(batch 0 of the calibration data"):
        quantize_layer_by_layer(network, None, rules(network, None, "per_channel"), sentences())
    with pytest.raises(ModelError, match="layers.1.self_attn.v_proj: the weight holds NaN"):
        quantize_layer_by_layer(network, None, rules(network, PLAIN), sentences())


def test_per_token_policies():
    final, _ = quantized("llama", LayerConfig(W8, QuantSpec(8, granularity=PerToken()),
                                               SmoothQuant(0.5)))
    assert {layer.quant_type for layer in linears_of(final).values()} == {
        "SmoothQuant-W8-per_channel-A8-per_token"}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["W4 g64, round to nearest", "W4 g64, GPTQ",
                                    "W8A8 per token, SmoothQuant"])
def test_peak_memory(scheme):
    """Float model, one decoder layer and its activations, plus 15 %, in a new process."""
    root = ROOT
    done = subprocess.run(
        [sys.executable, str(root / "benchmarks" / "bench_memory_llm.py"), "--scheme", scheme,
         "--layers", "8"], env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True,
        text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["float model"] > 90 and found["peak"] > found["float model"]
    assert found["peak"] <= found["allowed"], found
    assert found["afterwards"] < found["float model"], found  # the float weights are gone
