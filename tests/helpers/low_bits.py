"""Models quantized to few bits, data with correlations, and distances from the float output."""

import numpy as np

import paddleq
from paddleq.algorithms import AdaRound
from paddleq.paddleslim import PerChannelAbsmaxQuantizer

QUICK = AdaRound(iterations=300, seed=3)


def correlated(rows, features, seed=0, rank=2):
    """Rows with few independent directions, on which the nearest rounding is not the best."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=[rows, rank]) @ generator.normal(size=[rank, features])
    return (x + 0.2 * generator.normal(size=x.shape)).astype("float32")


def smooth(shape, seed):
    """Images whose neighbouring elements are correlated."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=shape)
    for axis in range(1, len(shape)):
        x = np.cumsum(x, axis=axis) / np.sqrt(shape[axis])
    return x.astype("float32")


def low_bits(net, data, bits=3, round_type=QUICK, activation="abs_max", **options):
    ptq = paddleq.PTQ(activation, PerChannelAbsmaxQuantizer(bits), round_type=round_type)
    model = ptq.quantize(net, **options)
    ptq.calibrate(model, data)
    return ptq, model


def distance(model, net, x):
    found, expected = model(x).numpy(), net(x).numpy()
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)
