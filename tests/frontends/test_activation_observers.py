"""Observers of static activations in Golden Stick's PTQ and AMCT's quantize."""

import numpy as np
import paddle
import pytest
from paddle import nn

import paddleq
from paddleq.errors import ConfigError
from paddleq.frontends.golden_stick import (
    PTQ,
    ActivationObserverConfig,
    OutliersSuppressionType,
    PTQConfig,
    QuantGranularity,
)
from paddleq.functional import histogram, kl

BINS = {"KL": 1024, "hist": 1024, "mse": 2048}


def heavy_tailed(batches=3):
    random = np.random.RandomState(0)
    return [paddle.to_tensor(random.standard_t(3, [64, 32]).astype("float32"))
            for _ in range(batches)]


def model():
    paddle.seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(32, 8)))


def abs_max(name, batches):
    """Compute abs_max from a histogram of the batches, with the range widened as needed."""
    bins, top, hist = BINS[name], None, None
    for x in batches:
        x = np.abs(x.numpy())
        if top is None:
            top, hist = float(x.max()), np.zeros(bins)
        elif x.max() > top:
            hist, top = histogram.respread(paddle.to_tensor(hist), top, float(x.max()), 64)
            hist = hist.numpy()
        hist += np.histogram(x, bins, (0, top))[0]
    if name == "KL":
        return kl.kl_threshold(hist, top, 127)
    if name == "mse":
        return histogram.mse_threshold(hist, top, 127)
    return histogram.percentile_threshold(hist, top, 0.99999)


def golden_stick(batches, algo_args, **options):
    net = model()
    ptq = PTQ(PTQConfig(weight_quant_dtype="int8", act_quant_dtype="int8", algo_args=algo_args,
                        **options))
    return ptq.convert(ptq.apply(net, datasets=batches))[0][0]


def amct(batches, algorithm, strategy="tensor", with_inputs=True):
    net = model()
    quant = {"weights": {"type": "int8", "symmetric": True, "strategy": "channel"}}
    if with_inputs:
        quant["inputs"] = {"type": "int8", "symmetric": True, "strategy": strategy}
    paddleq.amct.quantize(net, {"batch_num": len(batches), "quant_cfg": quant,
                                "algorithm": algorithm})
    for batch in batches:
        net(batch)
    paddleq.amct.convert(net)
    return net[0][0]


@pytest.mark.parametrize("name", BINS)
@pytest.mark.parametrize("quantize", [
    lambda batches, name: golden_stick(batches, {"observer": name}),
    lambda batches, name: golden_stick(batches, ActivationObserverConfig(name)),
    lambda batches, name: amct(batches, {"minmax": {"observer": name}}),
], ids=["golden_stick dict", "golden_stick", "amct"])
def test_the_observer_computes_the_scale(quantize, name):
    batches = heavy_tailed()
    scale = quantize(batches, name).activation_scale.item()
    np.testing.assert_allclose(scale, abs_max(name, batches) / 127, rtol=1e-3)
    largest = max(float(np.abs(x.numpy()).max()) for x in batches)
    assert name == "hist" or scale < 0.99 * largest / 127  # outliers are clipped


def test_the_observer_sees_smoothed_activations():
    batches = heavy_tailed()
    layer = golden_stick(batches, {"observer": "KL", "alpha": 0.7},
                         outliers_suppression=OutliersSuppressionType.SMOOTH)
    factor = layer.input_scale.numpy()
    assert factor.max() > 1.5 * factor.min()
    smoothed = [paddle.to_tensor(x.numpy() / factor) for x in batches]
    np.testing.assert_allclose(layer.activation_scale.item(), abs_max("KL", smoothed) / 127,
                               rtol=1e-3)


def test_min_max_is_the_default():
    batches = heavy_tailed()
    largest = np.float32(max(np.abs(x.numpy()).max() for x in batches))
    for layer in (golden_stick(batches, {}), golden_stick(batches, {"observer": "min_max"}),
                  amct(batches, "minmax"), amct(batches, {"minmax": {"observer": "min_max"}})):
        assert layer.activation_scale.item() == largest / np.float32(127)


@pytest.mark.parametrize("make, message", [
    (lambda: golden_stick(heavy_tailed(1), {"observer": "kl"}), "observer.*'KL'"),
    (lambda: golden_stick(heavy_tailed(1), {"observer": "current_abs_max"}), "observer"),
    (lambda: golden_stick(heavy_tailed(1), {"observer": "KL"},
                          act_quant_granularity=QuantGranularity.PER_TOKEN), "observer"),
    (lambda: amct(heavy_tailed(1), {"minmax": {"observer": "kl"}}), "observer.*'KL'"),
    (lambda: amct(heavy_tailed(1), {"minmax": {"observer": "KL"}}, "token"), "strategy 'tensor'"),
    (lambda: amct(heavy_tailed(1), {"minmax": {"observer": "KL"}}, with_inputs=False),
     "strategy 'tensor'"),
    (lambda: amct(heavy_tailed(1), {"smoothquant": {"observer": "KL"}}), "observer"),
])
def test_invalid_observers_are_rejected(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
