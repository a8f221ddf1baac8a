"""Bits of each layer under a budget, against all combinations in float64 numpy."""

import itertools

import numpy as np
import paddle
import pytest
from nets import Chain, save_float
from paddle import nn
from runtimes import onnxruntime, openvino, paddle_inference, relative_error

import paddleq
from paddleq.engine import fake_quantizers, quantized_layers
from paddleq.errors import AccuracyError, ConfigError, ConfigTypeError

CHOICES = ((8, 8), (4, 8), None)
WIDTHS = (16, 64, 48, 4, 32, 8)


def rounded(x, bits, axis=None):
    """``x`` on the symmetric grid of its largest magnitude."""
    step = np.abs(x).max(axis, keepdims=axis is not None) / (2 ** (bits - 1) - 1)
    return np.round(x / step) * step


class Reference:
    """The chain in float64, whose inputs are quantized with the ranges of the float model."""

    def __init__(self, net, batches):
        self.parts = [(layer.weight.numpy().astype(np.float64),
                       layer.bias.numpy().astype(np.float64)) for layer in net.layers]
        self.x = np.concatenate([batch.numpy() for batch in batches]).astype(np.float64)
        self.ranges = []
        self.float = self.run([None] * len(self.parts))

    def run(self, choices):
        x = self.x
        for number, ((weight, bias), choice) in enumerate(zip(self.parts, choices)):
            if len(self.ranges) == number:
                self.ranges.append(np.abs(x).max())
            if choice is not None:
                step = self.ranges[number] / (2 ** (choice[1] - 1) - 1)
                limit = 2 ** (choice[1] - 1) - 1
                x = np.clip(np.round(x / step), -limit, limit) * step
                weight = rounded(weight, choice[0], 0)
            x = np.maximum(x @ weight + bias, 0.0)
        return x

    def error(self, choices):
        return np.linalg.norm(self.run(choices) - self.float) / np.linalg.norm(self.float)

    def cost(self, choices, cost):
        rows = 1 if cost == "bytes" else len(self.x)
        bits = {"bytes": lambda choice: (choice or (32, 32))[0],
                "bit_operations": lambda choice: np.prod(choice or (32, 32))}[cost]
        return rows * sum(weight.size * bits(choice)
                          for (weight, _), choice in zip(self.parts, choices))

    def all(self):
        return itertools.product(CHOICES, repeat=len(self.parts))


def chain(seed=0):
    paddle.seed(seed)
    net, batches = Chain(WIDTHS), [paddle.randn([32, 16]) for _ in range(2)]
    return net, batches, Reference(net, batches)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("cost", ["bytes", "bit_operations"])
def test_the_drop_is_met_at_nearly_the_least_cost(cost, seed):
    net, batches, reference = chain(seed)
    allowed = 0.4 * reference.error([(4, 8)] * 5)
    best = min(reference.cost(choices, cost) for choices in reference.all()
               if reference.error(choices) <= allowed)
    quantized, report = paddleq.PTQ("AbsmaxQuantizer").quantize_with_bits(
        net, batches, CHOICES, "error", allowed, cost=cost)
    found = list(report.layers.values())
    assert report.drop == pytest.approx(reference.error(found), rel=0.01)
    assert report.drop <= allowed
    assert report.cost_share == pytest.approx(
        reference.cost(found, cost) / reference.cost([None] * 5, cost))
    assert len(set(found)) > 1
    assert reference.cost(found, cost) <= 1.1 * best  # the noise is not quite additive
    bits = {name: q.spec.bits for name, q in fake_quantizers(quantized)}
    assert bits == {f"{name}.{side}_quantizer": choice[number]
                    for name, choice in report.layers.items() if choice is not None
                    for number, side in enumerate(("weight", "activation"))}
    x = paddle.concat(batches)
    with paddle.no_grad():
        assert relative_error(quantized(x).numpy(), reference.run(found)) < 1e-3


@pytest.mark.parametrize("share", [0.15, 0.22, 0.5])
def test_the_error_is_nearly_the_least_that_a_cost_allows(share):
    net, batches, reference = chain()
    most = share * reference.cost([None] * 5, "bytes")
    best = min(reference.error(choices) for choices in reference.all()
               if reference.cost(choices, "bytes") <= most)
    _, report = paddleq.PTQ("AbsmaxQuantizer").quantize_with_bits(
        net, batches, CHOICES, max_cost=share)
    assert report.cost_share <= share
    assert best * 0.99 <= report.drop <= 1.25 * best


def test_activations_of_16_bits_of_a_saved_model(tmp_path):
    """All runtimes compute the simulation."""
    net, batches, reference = chain()
    allowed = np.mean([reference.error([(8, bits)] * 5) for bits in (8, 16)])
    save_float(net, str(tmp_path / "float" / "net"), [16])
    model, report = paddleq.PTQ("AbsmaxQuantizer").quantize_with_bits(
        paddleq.SavedModel(str(tmp_path / "float")), batches, [(8, 8), (8, 16)],
        max_drop=allowed, cost="bit_operations")
    wide = [name for name, choice in report.layers.items() if choice == (8, 16)]
    assert wide and len(wide) < 5 and report.drop <= allowed
    paddleq.save_quantized_model(model, str(tmp_path / "int" / "model"))
    x = paddle.concat(batches)
    with paddle.no_grad():
        expected = model(x).numpy()
    path = str(tmp_path / "int" / "model")
    for format in ("onnx", "openvino"):
        paddleq.save_quantized_model(model, path, format=format)
    for run, options in ((paddle_inference, {}), (paddle_inference, {"int8": True}),
                         (onnxruntime, {}), (openvino, {"ending": "xml"})):
        (found,) = run(path, [x.numpy()], **options)
        assert relative_error(found, expected) < 1e-3, (run, options)


@pytest.mark.parametrize("options, error, match", [
    ({}, ConfigError, "either max_drop or max_cost"),
    ({"max_drop": 0.1, "max_cost": 0.5}, ConfigError, "has both"),
    ({"max_cost": 0.01}, ConfigError, "max_cost must be at least 0.125"),
    ({"max_drop": 1e-9, "choices": [(8, 8)]}, AccuracyError, "most precise choices"),
    ({"max_drop": 0.1, "choices": [(8,)]}, ConfigTypeError, r"choices\[0\]"),
    ({"max_drop": 0.1, "choices": [(8, 32)]}, ConfigError, r"choices\[0\]"),
    ({"max_drop": 0.1, "choices": [None]}, ConfigError, "choices"),
    ({"max_drop": 0.0}, AccuracyError, "float, which all layers but one may be"),
    ({"max_drop": 0.1, "inplace": True}, ConfigError, "inplace must be False"),
    ({"max_drop": 0.1, "cost": "layers"}, ConfigError, "cost"),
    ({"max_drop": 0.1, "metric": lambda model, data: 0.0}, ConfigTypeError,
     r"metric must be a function .* but <lambda>\(model, data\) cannot be called with the model"),
    ({"max_drop": 0.1, "metric": "top5"}, ConfigError, "metric")])
def test_invalid_arguments(options, error, match):
    net, batches, _ = chain()
    with pytest.raises(error, match=match):
        paddleq.PTQ("AbsmaxQuantizer").quantize_with_bits(net, batches, **options)
    assert not quantized_layers(net)


def test_one_layer_stays_quantized():
    """Also with a cost that the float model has."""
    net, batches, _ = chain()
    quantized, report = paddleq.PTQ("AbsmaxQuantizer").quantize_with_bits(
        net, batches, CHOICES, max_cost=1.0)
    assert sum(choice is not None for choice in report.layers.values()) == 1
    assert len(quantized_layers(quantized)) == 1


def test_costs_of_layers_without_weights():
    """Both factors of a product of activations have their bits."""
    class Product(nn.Layer):
        def __init__(self):
            super().__init__()
            self.matmul = paddleq.QuantizableFunction(paddle.matmul)

        def forward(self, x):
            return self.matmul(x, x)

    ptq, data = paddleq.PTQ("AbsmaxQuantizer"), [paddle.rand([4, 4])]
    with pytest.raises(ConfigError, match="cost must be 'bit_operations'"):
        ptq.quantize_with_bits(Product(), data, max_cost=0.5)
    _, report = ptq.quantize_with_bits(Product(), data, max_cost=0.1, cost="bit_operations")
    assert report.layers == {"matmul": (8, 8)} and report.cost_share == 64 / 1024
