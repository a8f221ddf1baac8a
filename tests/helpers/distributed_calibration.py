"""Scenarios of ``distributed_worker.py``: calibration and algorithms on shares of the batches."""

import os
import tempfile

import numpy as np
import paddle
import paddle.distributed as dist
from distributed_nets import (
    Twice,
    arrays,
    batches_of,
    kill,
    message,
    quantized,
    train,
    with_observer,
)
from paddle import nn
from small_transformer import Decoder

import paddleq
from paddleq import LayerConfig, PerChannel, PerGroup, QuantConfig, QuantSpec
from paddleq.algorithms import correct_biases, quantize_layer_by_layer, reconstruct
from paddleq.config import QuantizerConfig
from paddleq.nn import KVCache
from paddleq.observers import OBSERVERS, ChannelStats

FOLDER = tempfile.gettempdir()  # of the files of a run


def calibrated(rank, size, name):
    """Calibrate on batches of which one process has more than the other."""
    net = with_observer(name)
    paddleq.calibrate(net, batches_of(rank, size))
    return arrays(net)


def frozen(rank, size):
    """Integer weights and scales after calibration with the maximum."""
    net = with_observer("abs_max")
    paddleq.calibrate(net, batches_of(rank, size))
    return arrays(paddleq.freeze(net))


def corrected(rank, size, method):
    """Biases corrected on batches of which one process has more than the other."""
    net = with_observer("abs_max")
    data = batches_of(rank, size)
    paddleq.calibrate(net, data)
    names = correct_biases(net, data, method)
    return {**arrays(net), "names": np.array(names)}


def learned_rounding(rank, size):
    net = with_observer("abs_max")
    paddleq.calibrate(net, batches_of(rank, size))
    return {"error": message(reconstruct, net, batches_of(rank, size))}


LAYERWISE = {
    "smoothquant": LayerConfig(QuantSpec(granularity=PerChannel(1)), QuantSpec(), "smoothquant"),
    "histogram": LayerConfig(QuantSpec(granularity=PerChannel(1)),
                             QuantizerConfig(OBSERVERS["hist"], QuantSpec())),
    "awq": LayerConfig(QuantSpec(4, granularity=PerGroup(32)), smoother="awq"),
    "gptq": LayerConfig(QuantSpec(4, granularity=PerGroup(32)), QuantSpec(), rounder="gptq"),
}


def layerwise(rank, size, name, folder=None):
    """Quantize a decoder and its KV caches on batches of which one process has more."""
    paddle.seed(3)
    net = Decoder(layers=2)
    config = QuantConfig()
    config.add_type(nn.Linear, LAYERWISE[name])
    config.add_type(KVCache, LayerConfig(kv_cache="per_channel"))
    data = [paddle.to_tensor(np.random.RandomState(i).randn(24, 8, 8).astype("float32"))
            for i in range(3)][rank::size]
    result = quantize_layer_by_layer(net, None, config, data, resume_dir=folder)
    return {**arrays(net), "folded": np.array(sorted(result.folded))}


def statistics(rank, size):
    """Statistics of inputs, of which the last process has none."""
    random = np.random.RandomState(0)
    stats = ChannelStats({"abs_max", "mean_abs", "hessian", "range"})
    for number in range(3):
        x = paddle.to_tensor(random.randn(5 + number, 4).astype("float32"))
        if rank == 0:
            stats.update(x)
    stats.merge_processes(4)
    low, high = stats.range
    return {"tokens": np.array(stats.tokens), "abs_max": stats.abs_max.numpy(),
            "mean_abs": stats.mean_abs.numpy(), "hessian": stats.hessian.numpy(),
            "low": low.numpy(), "high": high.numpy()}


def saved_by_all(rank, size):
    """All processes export the trained model under one name."""
    net = quantized()
    train(net, rank, size, steps=5)
    prefix = os.path.join(FOLDER, f"of_{size}")
    paddleq.save_quantized_model(
        net, prefix, [paddle.static.InputSpec([None, 2, 6, 6], "float32", "x")])
    if size > 1:
        dist.barrier()
    return arrays(paddleq.SavedModel(prefix))


def layerwise_resumed(rank, size):
    """The second run loads the layers that the first one stored."""
    folder = os.path.join(FOLDER, "resume")
    layerwise(rank, size, "gptq", folder)
    dist.barrier()
    stored = sorted(os.listdir(folder))
    return {**layerwise(rank, size, "gptq", folder), "stored": np.array(stored)}


def layerwise_without_a_share(rank, size):
    net = Decoder(layers=1)
    config = QuantConfig()
    config.add_type(nn.Linear, LAYERWISE["awq"])
    data = [paddle.ones([1, 8, 8])] if rank == 0 else []
    return {"error": message(quantize_layer_by_layer, net, None, config, data)}


def calibrated_twice(rank, size):
    net = with_observer("hist")
    for part in (slice(0, 2), slice(2, 5)):
        paddleq.calibrate(net, batches_of(0, 1)[part][rank::size])
    return arrays(net)


def all_data_in_one_process(rank, size, has_data):
    """Only the process ``has_data`` has batches, also of layers that are called twice."""
    net = with_observer("KL", Twice)
    paddleq.calibrate(net, batches_of(0, 1) if rank == int(has_data) or size == 1 else [])
    return arrays(net)


def calibrated_alone(rank, size):
    net = with_observer("abs_max")
    with paddleq.local_statistics():
        paddleq.calibrate(net, [paddle.full([1, 2, 6, 6], rank + 1.0)])
    return arrays(net)


def no_data(rank, size):
    return {"error": message(paddleq.calibrate, with_observer("abs_max"), [])}


def nan_in_calibration(rank, size):
    """Rank 1 has NaN in its second batch; then all calibrate again without it."""
    net, data = with_observer("min_max"), batches_of(rank, size, 6)
    paddleq.calibrate(net, data[:1])
    before, bad = arrays(net), data[1].clone()
    if rank == 1:
        bad[0, 0, 0, 0] = float("nan")
    found = {"error": message(paddleq.calibrate, net, [data[1], bad])}
    after = arrays(net)
    found["changed"] = np.array([name for name in before if (before[name] != after[name]).any()])
    paddleq.calibrate(net, data[1:])
    return {**found, **arrays(net)}


def other_weights(rank, size):
    net = with_observer("abs_max")
    if rank == 1:
        net.fc.weight.set_value(net.fc.weight + 1)
    return {"error": message(paddleq.calibrate, net, batches_of(rank, size))}


def other_layers(rank, size):
    net = with_observer("abs_max" if rank else "min_max")
    return {"error": message(paddleq.calibrate, net, batches_of(rank, size))}


def killed_in_calibration(rank, size):
    net, data = with_observer("abs_max"), batches_of(rank, size, 6)

    def batches_until_the_end():
        yield data[0]
        kill(rank)
        yield data[1]

    paddleq.calibrate(net, batches_until_the_end())
    return {}
