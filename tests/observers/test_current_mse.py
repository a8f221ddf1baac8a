"""Ranges of weights with the least squared error, per tensor, per channel and per group."""

import copy
import pickle

import numpy as np
import paddle
import pytest
from low_bits import smooth
from nets import save_float
from paddle import nn
from runtimes import paddle_inference

import paddleq
from paddleq import PerChannel, PerGroup, QuantSpec
from paddleq.algorithms import RoundToNearest
from paddleq.errors import ConfigError
from paddleq.functional import compute_weight_qparams
from paddleq.functional.range_search import least_error_shares
from paddleq.observers import CurrentMSEObserver
from paddleq.observers import abs_max as abs_max_module
from paddleq.paddleslim import (
    AbsmaxQuantizer,
    MSEQuantizer,
    PerChannelAbsmaxQuantizer,
    PerChannelMSEQuantizer,
)


def squared_error(x, limit, bits):
    """Return the squared error of quantization to [-limit, limit], in float64."""
    levels = 2 ** (bits - 1) - 1
    step = limit / levels
    return np.sum((np.clip(np.round(x / step), -levels - 1, levels) * step - x) ** 2)


def least_error(x, bits):
    """Return the least squared error of 2,000 limits."""
    largest = np.abs(x).max()
    return min(squared_error(x, share * largest, bits) for share in np.linspace(0.04, 1.0, 2000))


def weight_of(shape, seed):
    """Heavy tails, so that clipping helps, and channels of different ranges."""
    generator = np.random.default_rng(seed)
    x = generator.standard_t(3, size=shape) * np.exp(generator.normal(size=[shape[0], 1]))
    return x.astype("float32")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_error_is_near_the_least_of_all_ranges(bits):
    x = weight_of([6, 200], bits)
    tensor = paddle.to_tensor(x)
    limit, zero_point = CurrentMSEObserver(QuantSpec(bits)).update_qparams(tensor)
    assert zero_point is None and list(limit.shape) == [1]
    x = np.float64(x)
    assert squared_error(x, limit.item(), bits) <= 1.02 * least_error(x, bits)
    observer = CurrentMSEObserver(QuantSpec(bits, granularity=PerChannel(0)), 6)
    limits = np.float64(observer.update_qparams(tensor)[0].numpy())
    for row, limit in zip(x, limits):
        assert squared_error(row, limit, bits) <= 1.02 * least_error(row, bits)
        assert squared_error(row, limit, bits) <= squared_error(row, np.abs(row).max(), bits)


def test_range_follows_the_weight_and_survives_copies():
    weight = paddle.to_tensor(weight_of([4, 50], 0))
    observer = CurrentMSEObserver(QuantSpec(3))
    first = observer.update_qparams(weight)[0].item()
    assert observer.update_qparams(weight)[0].item() == first
    weight.set_value(weight * 2.0)
    doubled = observer.update_qparams(weight)[0].item()
    assert doubled == pytest.approx(2.0 * first, rel=1e-6)
    for other in (copy.deepcopy(observer), pickle.loads(pickle.dumps(observer))):
        assert other.update_qparams(weight)[0].item() == doubled
    zeros, _ = observer.update_qparams(paddle.zeros([3, 3]))
    assert 0.0 < zeros.item() < 1e-6


def test_a_weight_is_searched_once_for_each_value_and_spec(monkeypatch):
    """The copy of the weight that tells so is in no copy or pickle of the observer."""
    searches = []

    def counted(*args):
        searches.append(args)
        return least_error_shares(*args)

    monkeypatch.setattr(abs_max_module, "least_error_shares", counted)
    weight = paddle.to_tensor(weight_of([40, 500], 0))
    observer = CurrentMSEObserver(QuantSpec(3))
    limits = [observer.update_qparams(weight)[0].item() for _ in range(3)]
    assert len(searches) == 1 and len(set(limits)) == 1
    assert len(pickle.dumps(observer)) < weight.numpy().nbytes / 4
    other = copy.deepcopy(observer)
    other.update_qparams(weight)
    assert len(searches) == 2
    observer.spec = QuantSpec(6)
    assert observer.update_qparams(weight)[0].item() > limits[0] and len(searches) == 3
    weight.set_value(weight.numpy()[::-1].copy())
    observer.update_qparams(weight)
    assert len(searches) == 4


def test_asymmetric_and_one_bit_specs_are_refused():
    for spec in (QuantSpec(signed=False, symmetric=False), QuantSpec(1)):
        with pytest.raises(ConfigError, match="spec"):
            CurrentMSEObserver(spec)


@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_of_rows_have_less_error_than_their_whole_ranges(symmetric):
    x = weight_of([40, 5], 3)
    spec = QuantSpec(3, signed=symmetric, symmetric=symmetric, granularity=PerGroup(16))
    weight = paddle.to_tensor(x)

    def errors(rounder):
        quantized = rounder.quantize(weight, spec)
        found = quantized.qparams.dequantize(quantized.integers).numpy()
        differences = (np.float64(found) - x) ** 2
        return np.stack([differences[start:start + 16].sum(0) for start in (0, 16, 32)])

    whole, searched = errors(RoundToNearest()), errors(RoundToNearest(clip="mse"))
    assert (searched <= whole * (1 + 1e-6)).all() and searched.sum() < 0.95 * whole.sum()
    if symmetric:
        limits = compute_weight_qparams(weight, spec, "mse").scale.numpy() * 3.0
        for number, start in enumerate((0, 16, 32)):
            for column in range(5):
                group = np.float64(x[start:start + 16, column])
                assert squared_error(group, np.float64(limits[number, column]), 3) <= (
                    1.02 * least_error(group, 3))


def test_unknown_clip_is_refused():
    with pytest.raises(ConfigError, match="clip"):
        RoundToNearest(clip="max")
    with pytest.raises(ConfigError, match="clip"):
        compute_weight_qparams(paddle.ones([2, 2]), QuantSpec(), "max")


def net_with_outliers():
    paddle.seed(0)
    net = nn.Sequential(nn.Conv2D(1, 6, 3), nn.ReLU(), nn.Conv2D(6, 4, 3), nn.Flatten(),
                        nn.Linear(64, 3))
    for layer in (net[0], net[2], net[4]):
        weight = layer.weight.numpy()
        weight.reshape(-1)[::17] *= 4.0
        layer.weight.set_value(weight)
    net.eval()
    return net


DATA = [smooth([4, 1, 8, 8], seed) for seed in range(3)]


@pytest.mark.parametrize("onnx_format", [True, False])
@pytest.mark.parametrize("searched, whole", [
    (PerChannelMSEQuantizer(3), PerChannelAbsmaxQuantizer(3)),
    (MSEQuantizer(3), AbsmaxQuantizer(3))])
def test_quantized_model_is_closer_to_float_and_exported_as_simulated(
        searched, whole, onnx_format, tmp_path):
    net, x = net_with_outliers(), paddle.to_tensor(smooth([8, 1, 8, 8], 9))
    expected = net(x).numpy()

    def output(quantizer):
        ptq = paddleq.PTQ("abs_max", quantizer)
        model = ptq.quantize(net)
        ptq.calibrate(model, DATA)
        return ptq, model, model(x).numpy()

    distances = [np.linalg.norm(output(each)[2] - expected) for each in (searched, whole)]
    assert distances[0] < 0.9 * distances[1]
    ptq, model, found = output(searched)
    ptq.save_quantized_model(model, str(tmp_path / "net"), onnx_format=onnx_format)
    (exported,) = paddle_inference(str(tmp_path / "net"), [x.numpy()])
    np.testing.assert_allclose(exported, found, rtol=1e-5, atol=1e-5)
    frozen = paddleq.freeze(copy.deepcopy(model))(x).numpy()
    np.testing.assert_allclose(frozen, found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("searched, whole", [("channel_wise_mse", "channel_wise_abs_max"),
                                             ("mse", "abs_max")])
def test_saved_model_is_closer_to_float(searched, whole, tmp_path):
    net, x = net_with_outliers(), smooth([8, 1, 8, 8], 9)
    save_float(net, str(tmp_path / "float" / "net"), [1, 8, 8])
    expected = net(paddle.to_tensor(x)).numpy()

    def error(kind):
        paddleq.quant_post_static(tmp_path / "float", tmp_path / "out", DATA, algo="abs_max",
                                  weight_bits=3, weight_quantize_type=kind)
        (found,) = paddle_inference(str(tmp_path / "out" / "model"), [x])
        return np.linalg.norm(found - expected)

    assert error(searched) < 0.9 * error(whole)


@pytest.mark.parametrize("kind", ["mse", "channel_wise_mse"])
def test_training_searches_the_range_of_the_current_weight(kind):
    net = paddleq.QAT({"weight_quantize_type": kind, "weight_bits": 3}).quantize(
        net_with_outliers())
    optimizer = paddle.optimizer.SGD(0.1, parameters=net.parameters())
    net.train()
    net(paddle.to_tensor(DATA[0])).square().mean().backward()
    optimizer.step()
    weight, quantizer = net[4].weight, net[4].weight_quantizer
    (axis,) = net[4]._paddleq.kind.weights.values()
    columns = np.moveaxis(np.float64(weight.numpy()), axis, 0)
    rows = columns if kind.startswith("channel") else [columns]
    for row, limit in zip(rows, quantizer.qparams_of(weight)[0].tolist()):
        assert squared_error(row, limit, 3) <= 1.02 * least_error(row, 3)
