"""Operators that Paddle Inference computes with integers of wrong types, scales or layouts."""

from functools import partial

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn
from runtimes import INT8_WEIGHT_BITS, paddle_inference, relative_error

import paddleq
from paddleq.deploy import has_vnni
from paddleq.export.pir_to_program import load_program
from paddleq.paddleslim import PerChannelAbsmaxQuantizer

# Relative errors: where few values are rounded otherwise, and where further tensors are rounded.
EXACT, ROUNDING = 2e-3, 0.03
SIZE, CHANNELS = 8, 8


def conv(channels=CHANNELS, out=CHANNELS):
    return nn.Conv2D(channels, out, 3, padding=1)


class Branches(nn.Layer):
    """Outputs of functions of the input and convolutions, ``last_inputs`` channels in the last."""

    def __init__(self, functions, last_inputs=CHANNELS):
        super().__init__()
        self.functions = functions
        self.convs = nn.LayerList([nn.LayerList(
            [*(conv() for _ in range(each.__code__.co_argcount - 2)), conv(last_inputs, 4)])
            for each in functions])

    def forward(self, x):
        return [function(x, *convs) for function, convs in zip(self.functions, self.convs)]


def exported(net, path, shape, kinds=("Conv2D",), bits=INT8_WEIGHT_BITS):
    """Save the quantized ``net``; return (input, outputs of the simulation)."""
    net.eval()
    x = np.random.RandomState(0).rand(*shape).astype("float32")
    ptq = paddleq.PTQ("AbsmaxQuantizer", PerChannelAbsmaxQuantizer(bits))
    net = ptq.quantize(net, fuse=True, quantizable_layer_type=list(kinds))
    ptq.calibrate(net, [x])
    ptq.save_quantized_model(net, path, [paddle.static.InputSpec([None, *shape[1:]], "float32")])
    with paddle.no_grad():
        found = net(paddle.to_tensor(x))
    return x, [each.numpy() for each in (found if isinstance(found, (list, tuple)) else [found])]


def errors(functions, tmp_path, last_inputs=CHANNELS, **options):
    """Relative errors of the branches in Paddle Inference in int8."""
    paddle.seed(3)
    path = str(tmp_path / "m")
    x, expected = exported(Branches(functions, last_inputs), path, [2, CHANNELS, SIZE, SIZE],
                           **options)
    for found, wanted in zip(paddle_inference(path, [x]), expected):
        np.testing.assert_array_equal(found, wanted)
    found = paddle_inference(path, [x], ir_optim=True, int8=True)
    return list(map(relative_error, found, expected))


def resized(x):
    return F.interpolate(x[:, :, :4, :4], size=[SIZE, SIZE], mode="bilinear")


PARTNERS = {
    "signed": lambda x, b: b(x),
    "hardswish": lambda x, b: F.hardswish(b(x)),
    "pooled relu": lambda x, b: F.max_pool2d(F.relu(b(x)), 3, 1, 1),
    "mean of relu": lambda x, b: F.avg_pool2d(F.relu(b(x)), 3, 1, 1),
    "resized": lambda x, b: resized(F.relu(b(x))),
    "gate": lambda x, b: F.relu(b(x)) * F.sigmoid(x),
    "relu of a sum": lambda x, b: F.relu(b(x) + F.sigmoid(x)),
    "concat": lambda x, b: paddle.concat([F.relu(b(x))[:, :4], F.relu6(x)[:, :4]], 1),
    "expanded": lambda x, b: F.adaptive_avg_pool2d(F.relu(b(x)), 1).expand_as(x),
    "constant": lambda x, b: paddle.full([2, CHANNELS, SIZE, SIZE], 0.5) + 0.0 * b(x),
    "relu": lambda x, b: F.relu(b(x)),
}


def joined(first, partner):
    return lambda x, a, b, last: last(paddle.concat([first(a(x)), partner(x, b)], 1))


@pytest.mark.parametrize("first", [F.relu, F.leaky_relu])
def test_concat_of_signed_and_unsigned_tensors(first, tmp_path):
    found = errors([joined(first, each) for each in PARTNERS.values()], tmp_path, 2 * CHANNELS)
    assert max(found) < EXACT, dict(zip(PARTNERS, found))


def stem(pool):
    """Join a pooled relu with a convolution that reads the relu too (PP-HGNetV2, BiSeNetV2)."""
    def block(x, a, b, last):
        x = F.relu(a(x))
        return last(paddle.concat([pool(x), F.relu(b(x))], 1))
    return block


def test_concat_of_a_pooled_tensor_that_another_quantizer_reads(tmp_path):
    pools = [partial(F.max_pool2d, kernel_size=3, stride=1, padding=1),
             lambda x: F.max_pool2d(F.max_pool2d(x, 3, 1, 1), 3, 1, 1),
             lambda x: F.max_pool2d(x, 3, 1, 1).transpose([0, 1, 3, 2])]
    assert max(errors([stem(pool) for pool in pools], tmp_path, 2 * CHANNELS)) < ROUNDING


def test_concat_through_a_channel_shuffle(tmp_path):
    def shuffled(x, a, last):
        both = paddle.concat([F.relu(a(x)), x], 1).reshape([-1, 2, CHANNELS, SIZE, SIZE])
        return last(both.transpose([0, 2, 1, 3, 4]).reshape([-1, 2 * CHANNELS, SIZE, SIZE]))

    assert max(errors([shuffled], tmp_path, 2 * CHANNELS)) < EXACT


def shortcut(first, result):
    """A residual block: shortcut behind ``first``, sum before ``result``."""
    def block(x, a, b, c, last):
        x = first(a(x))
        return last(result(c(F.relu(b(x))) + x))
    return block


def of_two(operator, first=F.relu):
    """Combine two tensors that convolutions read too."""
    def block(x, a, b, c, last):
        x, y = first(a(x)), b(x)
        return last(operator(x, y)) + c(x).mean() + c(y).mean()
    return block


def identity(x):
    return x


def transposed_relu(x):
    return F.relu(x).transpose([0, 1, 3, 2])


SUMS = {
    "unsigned to signed": shortcut(F.relu, identity),
    "signed to unsigned": shortcut(identity, F.relu),
    "hardswish to unsigned": shortcut(F.hardswish, F.relu),
    "resized to unsigned": shortcut(resized, F.relu6),
    "pooled to signed": shortcut(lambda x: F.max_pool2d(F.relu(x), 3, 1, 1), identity),
    "unsigned to unsigned": shortcut(F.relu, F.relu),
    "signed to signed": shortcut(identity, identity),
    "difference": of_two(paddle.subtract),
    "difference of signed tensors": of_two(paddle.subtract, F.hardswish),
    "sum of a transposed tensor": of_two(paddle.add, transposed_relu),
    "product of a transposed tensor": of_two(paddle.multiply, transposed_relu),
}


def test_sums_and_differences_of_signed_and_unsigned_tensors(tmp_path):
    found = errors(list(SUMS.values()), tmp_path)
    assert max(found) < ROUNDING, dict(zip(SUMS, found))


PRODUCTS = {
    "4-D": lambda x, a, b, product: product(a(x), b(x)),
    "second from tanh": lambda x, a, b, product: product(a(x), F.tanh(b(x))),
    "unsigned": lambda x, a, b, product: product(F.relu(a(x)), b(x)),
    "transposed": lambda x, a, b, product: product(a(x), b(x).transpose([0, 1, 3, 2])),
    "reshaped": lambda x, a, b, product: product(
        a(x).reshape([0, CHANNELS, -1]), F.relu(b(x)).reshape([0, CHANNELS, -1]).transpose(
            [0, 2, 1])),
    "pooled": lambda x, a, b, product: product(
        F.max_pool2d(a(x), 2), F.avg_pool2d(b(x), 2).reshape([0, CHANNELS, 4, 4])),
    "heads": lambda x, a, b, product: product(*(
        each(x).reshape([0, 2, 4, SIZE * SIZE]).transpose(axes)
        for each, axes in ((a, [0, 1, 3, 2]), (b, [0, 1, 2, 3])))),
}


class Products(nn.Layer):
    def __init__(self, quantized):
        super().__init__()
        self.convs = nn.LayerList([nn.LayerList([conv(), conv()]) for _ in PRODUCTS])
        self.products = nn.LayerList(
            [paddleq.QuantizableFunction(paddle.matmul) for _ in PRODUCTS] if quantized else [])

    def forward(self, x):
        products = self.products or [paddle.matmul] * len(PRODUCTS)
        return [function(x, *convs, product) for function, convs, product in zip(
            PRODUCTS.values(), self.convs, products)]


@pytest.mark.parametrize("quantized", [False, True])
def test_products_of_outputs_of_convolutions(quantized, tmp_path):
    """Their layout in memory is not contiguous, for float products too."""
    path = str(tmp_path / "m")
    x, expected = exported(Products(quantized), path, [2, CHANNELS, SIZE, SIZE],
                           ["Conv2D", "QuantizableFunction"])
    for found, wanted in zip(paddle_inference(path, [x]), expected):
        np.testing.assert_array_equal(found, wanted)
    # Products of two activations of 8 bits saturate in int8 without VNNI.
    found = paddle_inference(path, [x], ir_optim=True, int8=has_vnni() or not quantized,
                             onednn=True)
    found = {name: relative_error(*pair) for name, *pair in zip(PRODUCTS, found, expected)}
    assert max(found.values()) < EXACT, found


class BehindLayers(nn.Layer):
    """Functions of the outputs of layers, one layer for each."""

    def __init__(self, functions, make_layer):
        super().__init__()
        self.functions = functions
        self.layers = nn.LayerList([make_layer() for _ in functions])

    def forward(self, x):
        return [function(layer(x)) for function, layer in zip(self.functions, self.layers)]


LAYERS = {
    "conv": conv, "linear": lambda: nn.Linear(SIZE, SIZE),
    "linear without bias": lambda: nn.Linear(SIZE, SIZE, bias_attr=False)}
MULTIPLICATIONS = [
    paddle.rad2deg, paddle.deg2rad, lambda x: x * 3.0, lambda x: x * 3.0 + 0.5, lambda x: x / 3.0,
    lambda x: -x, lambda x: F.relu(x) * 3.0, lambda x: F.gelu(x) * 3.0, lambda x: x * 3.0 * 5.0,
    lambda x: x * 3.0 + F.tanh(x), lambda x: paddle.scale(x, 3.0, 0.5, bias_after_scale=False),
    lambda x: paddle.scale(x, paddle.to_tensor([3.0]))]
ACTIVATIONS_OF_ACTIVATIONS = [
    lambda x, first=first, second=second: second(first(x))
    for first, second in ((F.relu, F.tanh), (F.relu6, F.sigmoid), (F.hardswish, F.relu),
                          (F.gelu, F.leaky_relu), (paddle.abs, F.gelu), (F.leaky_relu, F.silu))]


@pytest.mark.parametrize("layer", LAYERS)
def test_operators_behind_a_layer_are_not_lost_in_a_fusion(layer, tmp_path):
    paddle.seed(3)
    path = str(tmp_path / "m")
    x, expected = exported(BehindLayers([*MULTIPLICATIONS, *ACTIVATIONS_OF_ACTIVATIONS],
                                        LAYERS[layer]), path,
                           [2, CHANNELS, SIZE, SIZE], ["Conv2D", "Linear"])
    for int8 in (False, True):
        found = paddle_inference(path, [x], ir_optim=True, int8=int8, onednn=True)
        assert len(found) == len(expected)
        assert [i for i, pair in enumerate(zip(found, expected))
                if relative_error(*pair) > EXACT] == []


def assigns(path):
    ops = load_program(f"{path}.pdmodel", f"{path}.pdiparams").desc.blocks[0].ops
    return sum(op.type == "assign" for op in ops)


def test_tensors_of_one_type_stay_integers(tmp_path):
    """An assign costs time: blocks of ResNet, MobileNetV2 and Inception have none."""
    functions = [SUMS["unsigned to unsigned"], SUMS["signed to signed"],
                 lambda x, a, last: last(F.max_pool2d(F.relu(a(x)), 2))]
    exported(Branches(functions), str(tmp_path / "m"), [2, CHANNELS, SIZE, SIZE], bits=8)
    assert assigns(str(tmp_path / "m")) == 0
    concats = [joined(F.relu, PARTNERS["relu"]), joined(F.relu6, PARTNERS["pooled relu"]),
               joined(F.leaky_relu, PARTNERS["hardswish"]), joined(identity, PARTNERS["signed"])]
    exported(Branches(concats, 2 * CHANNELS), str(tmp_path / "c"), [2, CHANNELS, SIZE, SIZE],
             bits=8)
    assert assigns(str(tmp_path / "c")) == 0


@pytest.mark.nightly
@pytest.mark.parametrize("name, limit", [("shufflenet_v2_x0_25", 0.05), ("densenet121", 0.05),
                                         ("mobilenet_v3_small", 0.1), ("resnet18", 0.05)])
def test_models_run_in_int8(name, limit, tmp_path):
    paddle.seed(0)
    path = str(tmp_path / "m")
    net = getattr(paddle.vision.models, name)(num_classes=10)
    x, (expected,) = exported(net, path, [1, 3, 64, 64])
    found = paddle_inference(path, [x], ir_optim=True, int8=True)[0]
    assert relative_error(found, expected) < limit
