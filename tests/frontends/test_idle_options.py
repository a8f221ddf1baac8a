"""An option that meets nothing in the model is a warning that names it, in every front end.

Each case has a twin whose option has an effect, which is silent.
"""

import logging
import re
from collections import OrderedDict

import numpy as np
import paddle
import pytest
from paddle import nn

import paddleq
from paddleq import PTQ, QAT, LayerConfig, QuantConfig, QuantSpec, golden_stick
from paddleq.algorithms import StackHelper, quantize_layer_by_layer
from paddleq.errors import ConfigError, ModelError
from paddleq.golden_stick import SimulatedQuantizationAwareTraining
from paddleq.nn import KVCache


def convolutions(norm=True):
    layers = [nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.ReLU()]
    net = nn.Sequential(*(layers if norm else [layers[0], nn.Sigmoid()]), nn.Conv2D(4, 2, 3))
    net.eval()
    return net


def images():
    return paddle.rand([2, 3, 8, 8])


class Attention(nn.Layer):
    """Joins the past itself, or with a KVCache."""

    def __init__(self, cached):
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.cache = KVCache() if cached else None

    def forward(self, x):
        q, k, v = self.qkv(x).reshape([0, 0, 4, 24]).split(3, -1)
        if self.cache is not None:
            k, v, _ = self.cache(k, v)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.flatten(2))


def decoder(cached):
    net = nn.Sequential(Attention(cached), Attention(cached))
    net.eval()
    return net


def data():
    return [paddle.randn([2, 4, 32])]


def qat(config=None, norm=True, **options):
    QAT(config).quantize(convolutions(norm), **options)


def ptq(norm=True, **options):
    net = PTQ("AbsmaxQuantizer").quantize(convolutions(norm), **options)
    net(images())


def by_rules(*rules):
    config = QuantConfig()
    config.add_type(nn.Conv2D, LayerConfig(QuantSpec(), QuantSpec()))
    for add, *arguments in rules:
        getattr(config, add)(*arguments)
    paddleq.quantize(convolutions(), config)


def simulated(config, norm=True, inputs=True):
    net = SimulatedQuantizationAwareTraining(config).apply(
        convolutions(norm), images() if inputs else None)
    net(images())


def amct(skip):
    paddleq.amct.quantize(decoder(False), {
        "batch_num": 1, "skip_layers": skip, "algorithm": "minmax", "quant_cfg": {
            "weights": {"type": "int8", "symmetric": True, "strategy": "channel"}}})


INT8 = golden_stick.QuantDtype.INT8


def gs(cached, policies=None, **options):
    config = golden_stick.PTQConfig(**options)
    golden_stick.PTQ(config, policies).apply(decoder(cached), datasets=data())


def gs_deploy(cached):
    config = golden_stick.PTQConfig(mode=golden_stick.PTQMode.DEPLOY, kvcache_quant_dtype=INT8)
    golden_stick.PTQ(config).apply(decoder(cached), StackHelper())


def layerwise(cls, cached):
    config = QuantConfig()
    config.add_type(nn.Linear, LayerConfig(QuantSpec()))
    config.add_type(cls, LayerConfig(kv_cache="per_token"))
    quantize_layer_by_layer(decoder(cached), None, config, data())


def saved(folder):
    net = convolutions()
    paddle.jit.save(net, f"{folder}/float/net",
                    [paddle.static.InputSpec([None, 3, 8, 8], "float32", "x")])
    return f"{folder}/float", f"{folder}/int8"


def post_static(folder, **options):
    paddleq.quant_post_static(*saved(folder), [np.random.rand(2, 3, 8, 8).astype("float32")],
                              **options)


def post_dynamic(folder, **options):
    paddleq.quant_post_dynamic(*saved(folder), **options)


# (warning, with the option that meets nothing, with an option that meets something)
CASES = {
    "type": ("quantizable_layer_type has Conv2DTranspose",
             lambda _: qat({"quantizable_layer_type": ["Conv2D", "Conv2DTranspose"]}),
             lambda _: qat({"quantizable_layer_type": ["Conv2D"]})),
    "ptq-type": ("quantizable_layer_type has Linear",
                 lambda _: ptq(quantizable_layer_type=["Conv2D", nn.Linear]),
                 lambda _: ptq(quantizable_layer_type=["Conv2D"])),
    "window": ("window_size.* no effect", lambda _: qat({"window_size": 100}),
               lambda _: qat({"window_size": 100, "activation_quantize_type": "range_abs_max"})),
    "rate": ("moving_rate.* no effect",
             lambda _: qat({"moving_rate": 0.5, "activation_quantize_type": "abs_max"}),
             lambda _: qat({"moving_rate": 0.5})),
    "qat-inputs": ("inputs has no effect.*fuse_conv_bn", lambda _: qat(inputs=images()),
                   lambda _: qat({"fuse_conv_bn": True}, inputs=images())),
    "ptq-inputs": ("inputs has no effect", lambda _: ptq(inputs=images()),
                   lambda _: ptq(inputs=images(), fuse=True)),
    "qat-fuse": ("no batch norm was folded",
                 lambda _: qat({"fuse_conv_bn": True}, norm=False, inputs=images()),
                 lambda _: qat({"fuse_conv_bn": True}, inputs=images())),
    "ptq-fuse": ("no batch norm was folded", lambda _: ptq(False, fuse=True),
                 lambda _: ptq(fuse=True)),
    "skip-name": ("name '2' has no effect", lambda _: ptq(skip="2"), lambda _: ptq(skip="0")),
    "skip-type": ("type ReLU has no effect", lambda _: qat(skip=[nn.ReLU, "0"]),
                  lambda _: qat(skip=["0"])),
    "skip-pattern": (r"pattern '\^1' has no effect",
                     lambda _: by_rules(("add_pattern", "^1", None)),
                     lambda _: by_rules(("add_pattern", "^0", None))),
    "rule-type": ("the configuration has Linear",
                  lambda _: by_rules(("add_type", nn.Linear, LayerConfig(QuantSpec(4)))),
                  lambda _: by_rules(("add_type", nn.Conv2D, LayerConfig(QuantSpec(4))))),
    "rule-name": ("name '2' has no effect.*can be quantized",
                  lambda _: by_rules(("add_name", "2", LayerConfig(QuantSpec(4)))),
                  lambda _: by_rules(("add_name", "3", LayerConfig(QuantSpec(4))))),
    "fusion": ("enable_fusion has no effect",
               lambda _: simulated({"enable_fusion": True}, norm=False),
               lambda _: simulated({"enable_fusion": True})),
    "fusion-first-batch": ("enable_fusion has no effect",
                           lambda _: simulated({"enable_fusion": True}, False, inputs=False),
                           lambda _: simulated({"enable_fusion": True}, inputs=False)),
    "freeze_bn": ("freeze_bn=5 has no effect",
                  lambda _: simulated({"enable_fusion": True, "freeze_bn": 5}),
                  lambda _: simulated({"enable_fusion": True, "bn_fold": True, "freeze_bn": 5})),
    "amct-skip": ("skip_layers 'cache' has no effect|'cache', which no layer's name contains",
                  lambda _: amct(["cache", "out"]), lambda _: amct("out")),
    "kv": ("int8 KV cache is configured", lambda _: gs(False, kvcache_quant_dtype=INT8),
           lambda _: gs(True, kvcache_quant_dtype=INT8)),
    "kv-deploy": ("int8 KV cache is configured", lambda _: gs_deploy(False),
                  lambda _: gs_deploy(True)),
    "kv-policy": (r"int8 KV cache is configured \(layer_policies",
                  lambda _: gs(True, OrderedDict({
                      ".*out": golden_stick.PTQConfig(kvcache_quant_dtype=INT8)})),
                  lambda _: gs(True, OrderedDict({
                      ".*cache": golden_stick.PTQConfig(kvcache_quant_dtype=INT8)}))),
    "policy": ("layer_policies.* matches no layer",
               lambda _: gs(False, OrderedDict({"head": None})),
               lambda _: gs(False, OrderedDict({".*out": None}))),
    "layerwise-kv": ("int8 KV cache is configured",
                     lambda _: layerwise(nn.MultiHeadAttention, True),
                     lambda _: layerwise(KVCache, True)),
    "static-ops": ("quantizable_op_type has 'conv3d'",
                   lambda folder: post_static(folder, quantizable_op_type=["conv2d", "conv3d"]),
                   lambda folder: post_static(folder, quantizable_op_type=["conv2d"])),
    "static-percent": ("hist_percent=0.9 has no effect",
                       lambda folder: post_static(folder, algo="abs_max", hist_percent=0.9),
                       lambda folder: post_static(folder, algo="hist", hist_percent=0.9)),
    "dynamic-ops": ("quantizable_op_type has 'lookup_table_v2'",
                    lambda folder: post_dynamic(
                        folder, quantizable_op_type=["conv2d", "lookup_table_v2"]),
                    lambda folder: post_dynamic(folder, quantizable_op_type=["conv2d"])),
    "dynamic-test-model": ("generate_test_model has no effect",
                           lambda _: paddleq.quant_post_dynamic(
                               convolutions(), generate_test_model=True),
                           lambda folder: post_dynamic(folder, generate_test_model=True)),
}


@pytest.mark.parametrize("name", CASES)
def test_an_option_that_meets_nothing_is_a_warning(name, caplog, tmp_path):
    expected, idle, effective = CASES[name]
    pattern = re.compile(expected)
    idle(str(tmp_path / "idle"))
    found = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len([message for message in found if pattern.search(message)]) == 1, found
    caplog.clear()
    effective(str(tmp_path / "effective"))
    assert not [r.message for r in caplog.records if r.levelno == logging.WARNING]


def test_a_kv_cache_alone_that_is_not_found_is_named_before_the_error(caplog):
    with pytest.raises(ModelError, match="no layer to quantize"):
        gs(False, weight_quant_dtype=None, kvcache_quant_dtype=INT8)
    assert "int8 KV cache is configured" in caplog.text


def test_configurations_that_nothing_would_apply_are_refused():
    config = QuantConfig()
    config.add_type(nn.Conv2D, LayerConfig(QuantSpec(), kv_cache="per_token"))
    with pytest.raises(ConfigError, match="kv_cache"):
        paddleq.quantize(convolutions(), config)
    for side in ("weight", "activation"):
        for part in ("preprocess", "quantize"):
            with pytest.raises(ConfigError, match=f"{side}_{part} needs {side}"):
                LayerConfig(**{f"{side}_{part}": nn.ReLU})


def test_skip_entries_that_skip_quant_covers_are_silent(caplog):
    net = convolutions()
    net[0].skip_quant = True
    PTQ().quantize(net, skip=["0"])
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]
