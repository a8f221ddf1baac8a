"""Weighted layers and small blocks, with the shape of their input, for the page of runtimes.

A name is the layer and the arguments that are not the defaults, or the kind of the block.
"""

import paddle
import paddle.nn.functional as F
from paddle import nn

LAST = {"data_format": "NHWC"}


class Block(nn.Layer):
    """A function of itself and a tensor, with sublayers."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


def conv(inputs, outputs, size=3, *args, **kwargs):
    """A convolution that keeps the size of its input."""
    return nn.Conv2D(inputs, outputs, size, *args, padding=size // 2, **kwargs)


def _of_layer(make, *shape):
    return (lambda: nn.Sequential(make()), [2, *shape])


def _between(make, *shape):
    """A layer between two convolutions."""
    return (lambda: nn.Sequential(conv(3, 8), make(), conv(8, 6)), [2, *shape])


def _block(function, layers, *shape):
    return (lambda: Block(function, **layers()), [2, *shape])


LINE, IMAGE, LAST_IMAGE, VOLUME = [4, 11], [3, 9, 8], [9, 8, 3], [2, 5, 6, 4]
CONVOLUTIONS = {
    "Conv1D": _of_layer(lambda: nn.Conv1D(4, 6, 3, padding=1), *LINE),
    "Conv1D groups, dilation": _of_layer(lambda: nn.Conv1D(4, 8, 3, groups=2, dilation=2), *LINE),
    "Conv1D NLC": _of_layer(lambda: nn.Conv1D(4, 6, 3, 2, data_format="NLC"), 11, 4),
    "Conv2D": _of_layer(lambda: nn.Conv2D(3, 5, 3), *IMAGE),
    "Conv2D without bias": _of_layer(lambda: nn.Conv2D(3, 5, 3, bias_attr=False), *IMAGE),
    "Conv2D 1x1": _of_layer(lambda: nn.Conv2D(3, 5, 1), *IMAGE),
    "Conv2D stride": _of_layer(lambda: nn.Conv2D(3, 5, 5, 3, 2), *IMAGE),
    "Conv2D SAME": _of_layer(lambda: nn.Conv2D(3, 5, 4, 2, "SAME"), *IMAGE),
    "Conv2D asymmetric": _of_layer(lambda: nn.Conv2D(3, 5, 3, 1, [0, 2, 1, 0]), *IMAGE),
    "Conv2D dilation": _of_layer(lambda: nn.Conv2D(3, 5, 3, dilation=2), *IMAGE),
    "Conv2D groups": _of_layer(lambda: nn.Conv2D(6, 8, 3, groups=2), 6, 9, 8),
    "Conv2D depthwise": _of_layer(lambda: nn.Conv2D(6, 6, 3, groups=6), 6, 9, 8),
    "Conv2D multiplier": _of_layer(lambda: nn.Conv2D(6, 12, 3, groups=6), 6, 9, 8),
    "Conv2D reflect": _of_layer(lambda: nn.Conv2D(3, 5, 3, padding=1, padding_mode="reflect"),
                                *IMAGE),
    "Conv2D NHWC": _of_layer(lambda: nn.Conv2D(3, 5, 3, 2, 1, **LAST), *LAST_IMAGE),
    "Conv3D": _of_layer(lambda: nn.Conv3D(2, 4, 3, padding=1), *VOLUME),
    "Conv3D NDHWC": _of_layer(lambda: nn.Conv3D(2, 4, 3, data_format="NDHWC"), 5, 6, 4, 2),
    "Conv1DTranspose": _of_layer(lambda: nn.Conv1DTranspose(4, 6, 3, 2), *LINE),
    "Conv1DTranspose output_padding": _of_layer(
        lambda: nn.Conv1DTranspose(4, 6, 3, 2, 1, output_padding=1), *LINE),
    "Conv2DTranspose": _of_layer(lambda: nn.Conv2DTranspose(3, 6, 3, 2, 1), *IMAGE),
    "Conv2DTranspose output_padding": _of_layer(
        lambda: nn.Conv2DTranspose(3, 6, 3, 2, 1, output_padding=1), *IMAGE),
    "Conv2DTranspose groups": _of_layer(
        lambda: nn.Conv2DTranspose(6, 8, 2, 2, groups=2), 6, 5, 4),
    "Conv2DTranspose SAME": _of_layer(lambda: nn.Conv2DTranspose(3, 6, 3, 2, "SAME"), *IMAGE),
    "Conv2DTranspose NHWC": _of_layer(
        lambda: nn.Conv2DTranspose(3, 6, 3, 2, 1, output_padding=1, **LAST), *LAST_IMAGE),
}

PRODUCTS = {
    "Linear": _of_layer(lambda: nn.Linear(8, 5), 8),
    "Linear square": _of_layer(lambda: nn.Linear(8, 8), 8),
    "Linear 3-D without bias": _of_layer(lambda: nn.Linear(8, 5, bias_attr=False), 3, 8),
    "Linear, tanh, Linear": (lambda: nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 5)),
                             [6, 8]),
    "Embedding": _block(lambda net, x: net.linear(net.words(x)), lambda: {
        "words": nn.Embedding(20, 8), "linear": nn.Linear(8, 5)}, 6),
    "SimpleRNN": _block(lambda net, x: net.linear(net.cells(x)[0]), lambda: {
        "cells": nn.SimpleRNN(8, 6), "linear": nn.Linear(6, 5)}, 7, 8),
    "GRU": _block(lambda net, x: net.linear(net.cells(x)[0]), lambda: {
        "cells": nn.GRU(8, 6), "linear": nn.Linear(6, 5)}, 7, 8),
    "LSTM": _block(lambda net, x: net.linear(net.cells(x)[0]), lambda: {
        "cells": nn.LSTM(8, 6), "linear": nn.Linear(6, 5)}, 7, 8),
    "LSTM bidirectional, 2 layers": _block(lambda net, x: net.linear(net.cells(x)[0]), lambda: {
        "cells": nn.LSTM(8, 6, 2, "bidirect"), "linear": nn.Linear(12, 5)}, 7, 8),
    "attention": _of_layer(lambda: nn.MultiHeadAttention(8, 2), 7, 8),
    "transformer layer": _of_layer(
        lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, normalize_before=True), 7, 8),
    "token mixer": _block(
        lambda net, x: x + net.mix(net.norm(x).transpose([0, 2, 1])).transpose([0, 2, 1]),
        lambda: {"norm": nn.LayerNorm(8),
                 "mix": nn.Sequential(nn.Linear(7, 14), nn.GELU(), nn.Linear(14, 7))}, 7, 8),
}

BETWEEN = {f"{name} between": _between(make, *IMAGE) for name, make in {
    "BatchNorm2D": lambda: nn.BatchNorm2D(8), "BatchNorm2D, ReLU": lambda: nn.Sequential(
        nn.BatchNorm2D(8), nn.ReLU()),
    "LayerNorm": lambda: nn.LayerNorm([8, 9, 8]), "GroupNorm": lambda: nn.GroupNorm(2, 8),
    "InstanceNorm2D": lambda: nn.InstanceNorm2D(8), "PReLU": lambda: nn.PReLU(8),
    "Hardswish": nn.Hardswish, "GELU": nn.GELU, "Mish": nn.Mish, "Dropout": nn.Dropout,
    "MaxPool2D": lambda: nn.MaxPool2D(3, 2, 1), "AvgPool2D": lambda: nn.AvgPool2D(2),
    "Upsample": lambda: nn.Upsample(scale_factor=2, mode="nearest"),
    "PixelShuffle": lambda: nn.Sequential(conv(8, 32), nn.PixelShuffle(2)),
}.items()}

BLOCKS = {
    "residual": _block(lambda net, x: F.relu(net.skip(x) + net.last(F.relu(net.first(x)))),
                       lambda: {"first": conv(3, 8), "last": conv(8, 8), "skip": conv(3, 8, 1)},
                       *IMAGE),
    "residual of the input": _block(lambda net, x: net.head(x + net.last(F.relu(net.first(x)))),
                                    lambda: {"first": conv(3, 8), "last": conv(8, 3),
                                             "head": conv(3, 5, 1)}, *IMAGE),
    "inverted residual": _block(
        lambda net, x: x + net.last(F.relu6(net.depthwise(F.relu6(net.first(x))))), lambda: {
            "first": conv(8, 16, 1), "depthwise": conv(16, 16, 3, groups=16),
            "last": conv(16, 8, 1)}, 8, 7, 6),
    "squeeze and excitation": _block(
        lambda net, x: net.last((lambda y: y * F.hardsigmoid(net.expand(F.relu(net.reduce(
            F.adaptive_avg_pool2d(y, 1))))))(F.relu(net.first(x)))), lambda: {
            "first": conv(3, 8), "reduce": conv(8, 4, 1), "expand": conv(4, 8, 1),
            "last": conv(8, 6)}, *IMAGE),
    "dense": _block(lambda net, x: net.last(paddle.concat([x, F.relu(net.first(x))], 1)),
                    lambda: {"first": conv(3, 8), "last": conv(11, 6)}, *IMAGE),
    "inception": _block(
        lambda net, x: net.last(paddle.concat([F.relu(net.a(x)), net.b(x), F.max_pool2d(
            x, 3, 1, 1)], 1)), lambda: {"a": conv(3, 4, 1), "b": conv(3, 4), "last": conv(11, 6)},
        *IMAGE),
    "shuffle unit": _block(
        lambda net, x: net.last(F.channel_shuffle(paddle.concat([
            x[:, :4], F.relu(net.first(x[:, 4:]))], 1), 2)),
        lambda: {"first": conv(4, 4), "last": conv(8, 6)}, 8, 7, 6),
    "ghost": _block(
        lambda net, x: net.last((lambda y: paddle.concat([y, F.relu(net.cheap(y))], 1))(
            F.relu(net.first(x)))), lambda: {
            "first": conv(3, 4, 1), "cheap": conv(4, 4, 3, groups=4), "last": conv(8, 6)}, *IMAGE),
    "pyramid": _block(
        lambda net, x: net.last(net.side(x) + F.interpolate(net.top(F.relu(net.down(x))), [9, 8])),
        lambda: {"side": conv(3, 8, 1), "down": nn.Conv2D(3, 8, 3, 2, 1), "top": conv(8, 8, 1),
                 "last": conv(8, 6)}, *IMAGE),
    "U-Net": _block(
        lambda net, x: net.last(paddle.concat([x, F.relu(net.up(F.relu(net.down(x))))], 1)),
        lambda: {"down": nn.Conv2D(3, 8, 3, 2, 1), "up": nn.Conv2DTranspose(8, 4, 2, 2),
                 "last": conv(7, 6)}, 3, 8, 6),
    "atrous pyramid": _block(
        lambda net, x: net.last(paddle.concat([F.relu(net.a(x)), F.relu(net.b(x)), F.interpolate(
            F.relu(net.c(F.adaptive_avg_pool2d(x, 1))), [9, 8], mode="bilinear")], 1)),
        lambda: {"a": conv(3, 4, 1), "b": nn.Conv2D(3, 4, 3, 1, 2, 2), "c": conv(3, 4, 1),
                 "last": conv(12, 6)}, *IMAGE),
    "gate": _block(lambda net, x: net.last(net.value(x) * F.sigmoid(net.gate(x))), lambda: {
        "value": conv(3, 8), "gate": conv(3, 8), "last": conv(8, 6)}, *IMAGE),
    "spatial attention": _block(
        lambda net, x: net.last(x * F.sigmoid(net.map(paddle.concat(
            [x.mean(1, keepdim=True), x.max(1, keepdim=True)], 1)))),
        lambda: {"map": conv(2, 1), "last": conv(3, 6)}, *IMAGE),
    "ConvNeXt": _block(
        lambda net, x: x + net.last(F.gelu(net.first(net.norm(
            net.depthwise(x).transpose([0, 2, 3, 1]))))).transpose([0, 3, 1, 2]),
        lambda: {"depthwise": conv(8, 8, 3, groups=8), "norm": nn.LayerNorm(8),
                 "first": nn.Linear(8, 16), "last": nn.Linear(16, 8)}, 8, 7, 6),
    "convolution and classifier": _block(
        lambda net, x: net.head(F.adaptive_avg_pool2d(F.relu(net.first(x)), 1).flatten(1)),
        lambda: {"first": conv(3, 8), "head": nn.Linear(8, 5)}, *IMAGE),
    "shared convolution": _block(
        lambda net, x: net.last(F.relu(net.first(F.relu(net.first(x))))),
        lambda: {"first": conv(3, 3), "last": conv(3, 6)}, *IMAGE),
    "residual NHWC": _block(
        lambda net, x: net.last(F.relu(x + net.norm(net.first(x)))), lambda: {
            "first": nn.Conv2D(3, 3, 3, 1, 1, **LAST), "norm": nn.BatchNorm2D(3, **LAST),
            "last": nn.Conv2D(3, 6, 1, **LAST)}, *LAST_IMAGE),
    "depthwise NHWC": _block(
        lambda net, x: net.last(F.avg_pool2d(F.relu(net.depthwise(F.hardswish(net.first(x)))), 2,
                                             data_format="NHWC")), lambda: {
            "first": nn.Conv2D(3, 8, 1, **LAST), "last": nn.Conv2D(8, 6, 1, **LAST),
            "depthwise": nn.Conv2D(8, 8, 3, 1, 1, groups=8, **LAST)}, *LAST_IMAGE),
}

LAYERS = {**CONVOLUTIONS, **PRODUCTS, **BETWEEN, **BLOCKS}
