"""Scenarios of a process that ``paddle.distributed`` connects with others.

    python distributed_worker.py FOLDER SCENARIO...

Each scenario is a function (rank, size) of this module that returns name -> array, written to
FOLDER/SCENARIO.RANK.npz. Tests call the same functions with (0, 1) in their own process.
"""

import os
import signal
import sys
import tempfile
import zlib  # noqa: F401  (before paddle: Paddle 2.6 brings zlib symbols that break a later import)
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import nn
from small_transformer import Decoder

import paddleq
from paddleq import FakeQuantize, LayerConfig, PerChannel, PerGroup, QuantConfig, QuantSpec
from paddleq.algorithms import correct_biases, quantize_layer_by_layer, reconstruct
from paddleq.config import QuantizerConfig
from paddleq.engine import fake_quantizers
from paddleq.nn import KVCache
from paddleq.observers import OBSERVERS, ChannelStats, Observer

STEPS, BATCH = 20, 8
FOLDER = tempfile.gettempdir()  # of the files of a run


class Net(nn.Layer):
    """Convolution and Linear layers, without batch norms, whose statistics are local."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2D(2, 6, 3, padding=1)
        self.depthwise = nn.Conv2D(6, 6, 3, padding=1, groups=6)
        self.norm = nn.LayerNorm(6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        x = nn.functional.relu(self.conv(x))
        x = nn.functional.relu6(x + self.depthwise(x)).mean([2, 3])
        return self.fc(self.norm(x))


class Twice(Net):
    """A layer without weights that is called twice in a forward pass."""

    def __init__(self):
        super().__init__()
        self.add = paddleq.QuantizableFunction(paddle.add)

    def forward(self, x):
        return super().forward(self.add(self.add(x, x), 3.0 * x))


def batches(count=STEPS, size=BATCH):
    """Global batches, of which each sample has another range."""
    random = np.random.RandomState(5)
    for _ in range(count):
        scale = np.exp(random.randn(size, 1, 1, 1))
        yield (random.randn(size, 2, 6, 6) * scale).astype("float32"), random.randint(0, 3, size)


def shard(array, rank, size):
    each = len(array) // size
    return paddle.to_tensor(array[rank * each:(rank + 1) * each])


def loss(model, x, y, rank, size):
    """The loss on this process' share of a batch."""
    return nn.functional.cross_entropy(model(shard(x, rank, size)), shard(y, rank, size))


def step(model, optimizer, rank, size, steps=5):
    """Train on this process' share of the batches."""
    for x, y in batches(steps):
        loss(model, x, y, rank, size).backward()
        optimizer.step()
        optimizer.clear_grad()


def train(net, rank, size, steps=STEPS):
    model = paddle.DataParallel(net) if size > 1 else net
    step(model, paddle.optimizer.SGD(0.02, parameters=net.parameters()), rank, size, steps)


def arrays(net):
    return {name: value.numpy() for name, value in net.state_dict().items()}


def quantized(**config):
    paddle.seed(3)
    return paddleq.QAT(config).quantize(Net())


def qat(rank, size, steps=STEPS, **config):
    net = quantized(**config)
    train(net, rank, size, steps)
    return arrays(net)


def moving_average(rank, size):
    return qat(rank, size)


def moving_average_mean(rank, size):
    return qat(rank, size, reduce_type="mean")


def batch_abs_max(rank, size):
    return qat(rank, size, activation_quantize_type="abs_max")


def window(rank, size):
    return qat(rank, size, activation_quantize_type="range_abs_max", window_size=3)


def pact(rank, size):
    return qat(rank, size, activation_preprocess_type="PACT")


def one_bit(rank, size):
    """The scale is a mean, whose last bit may differ, so that later steps may clip other values."""
    return qat(rank, size, steps=1, activation_bits=1)


def learned(rank, size, name):
    """First steps of a learned quantizer, and its gradients with given steps.

    With given steps, the forward passes are equal to the last bit, so no value is rounded to
    another side.
    """
    found = {}
    for given in (False, True):
        paddle.seed(3)
        net = paddleq.QAT({"activation_quantize_type": name,
                           "weight_quantize_type": "channel_wise_lsq"}).quantize(Net())
        if given:
            for _, quantizer in fake_quantizers(net):
                quantizer.set_qparams(2.0 ** -5)
        model = paddle.DataParallel(net) if size > 1 else net
        for x, y in batches(1):
            loss(model, x, y, rank, size).backward()
        for key, value in net.named_parameters():
            found[f"{key} {given}"] = (value.grad if given else value).numpy()
    return found


def accumulate(rank, size):
    """Two backward passes in each step, the first one without synchronization."""
    net = quantized()
    model = paddle.DataParallel(net) if size > 1 else net
    optimizer = paddle.optimizer.SGD(0.02, parameters=net.parameters())
    for number, (x, y) in enumerate(batches(8)):
        with model.no_sync() if size > 1 and number % 2 == 0 else nullcontext():
            loss(model, x, y, rank, size).backward()
        if number % 2:
            optimizer.step()
            optimizer.clear_grad()
    return arrays(net)


def recomputed(rank, size):
    """Recompute, without a wrapper: gradients are averaged by fleet's function."""
    from paddle.distributed.fleet.utils import recompute
    from paddle.distributed.fleet.utils.hybrid_parallel_util import fused_allreduce_gradients

    net = quantized()
    optimizer = paddle.optimizer.SGD(0.02, parameters=net.parameters())
    for x, y in batches(5):
        x = shard(x, rank, size)
        x.stop_gradient = False
        nn.functional.cross_entropy(recompute(net, x), shard(y, rank, size)).backward()
        if size > 1:
            fused_allreduce_gradients(list(net.parameters()), None)
        optimizer.step()
        optimizer.clear_grad()
    return arrays(net)


def by_fleet(rank, size, degrees="dp"):
    """``fleet.distributed_model`` with data parallelism, or with sharding of stage 1."""
    net = quantized()
    model, optimizer = net, paddle.optimizer.Momentum(0.02, parameters=net.parameters())
    if size > 1:
        from google.protobuf.descriptor import FieldDescriptor
        from paddle.distributed import fleet

        if not hasattr(FieldDescriptor, "label"):
            # fleet of Paddle 2.6 and 3.1 reads it, which protobuf 7 removed.
            FieldDescriptor.label = property(lambda field: 3 if field.is_repeated else 1)
        strategy = fleet.DistributedStrategy()
        strategy.hybrid_configs = {"dp_degree": 1, f"{degrees}_degree": size}
        fleet.init(is_collective=True, strategy=strategy)
        model = fleet.distributed_model(net)
        optimizer = fleet.distributed_optimizer(optimizer)
    step(model, optimizer, rank, size)
    return arrays(net)


def half_precision(rank, size):
    """float16 inputs, of which each process has half."""
    quantizer = FakeQuantize()
    for x, _ in batches(3):
        quantizer(shard(x, rank, size).astype("float16"))
    return arrays(quantizer)


def with_observer(name, net=Net):
    """A quantized net; affine if the observer is one of minimum and maximum."""
    paddle.seed(3)
    spec = QuantSpec(signed=False, symmetric=False) if "min_max" in name else QuantSpec()
    config, observed = QuantConfig(), QuantizerConfig(OBSERVERS[name], spec)
    for kind in (nn.Conv2D, nn.Linear):
        config.add_type(kind, LayerConfig(QuantSpec(), observed))
    if net is Twice:
        config.add_type(paddleq.QuantizableFunction, LayerConfig(None, observed))
    return paddleq.quantize(net(), config)


def observed_by(rank, size, name):
    """Train with the named observer of activations."""
    net = with_observer(name)
    train(net, rank, size)
    if not OBSERVERS[name].online:
        paddleq.convert(net)
    return arrays(net)


def local(rank, size):
    return qat(rank, size, reduce_type=None)


def nan_in_one_process(rank, size):
    """A batch of rank 1 holds NaN in step 2 of 3."""
    quantizer = FakeQuantize()
    for step in range(3):
        x = np.full([size * 2], float(step + 1), "float32")
        x[-1] = np.nan if step == 1 else 5.0
        quantizer(shard(x, rank, size))
    return arrays(quantizer) | {"skipped": quantizer.skipped_batches.numpy()}


def empty_in_one_process(rank, size):
    """Rank 1 has no sample in steps 0 and 2, no rank has one in step 3."""
    found = {}
    for name in ("min_max", "abs_max", "moving_average_abs_max", "mean_magnitude", "hist"):
        quantizer = FakeQuantize(OBSERVERS[name])
        for step, count in enumerate((3, 4, 2, 0)):
            x = np.arange(1, count + 1, dtype="float32") * (step + 1)
            quantizer(paddle.to_tensor(x if step != 1 or size == 1 else x[2 * rank:2 * rank + 2])
                      if rank == 0 or step == 1 else paddle.zeros([0]))
        quantizer.finalize()
        found[name] = quantizer.abs_max.numpy()
    return found


def message(function, *args):
    """The error that a call raises, as an array."""
    try:
        function(*args)
    except paddleq.errors.PaddleqError as error:
        return np.array(f"{type(error).__name__}: {error}")
    return np.array("")


def other_order(rank, size, reduce):
    """The processes run their quantizers in different orders."""
    quantizer = FakeQuantize(label="second" if rank else "first", reduce=reduce)
    return {"error": message(quantizer, paddle.ones([2]))}


def nan_in_first_batch_of_lsq(rank, size):
    quantizer = paddleq.LSQ(label="fc.activation_quantizer")
    x = paddle.to_tensor([1.0, float("nan") if rank == 1 else 2.0])
    return {"error": message(quantizer, x)}


def observer_of_one_process(rank, size):
    """An observer that does not say how its statistics are combined."""
    class Unknown(Observer):
        def _update(self, x):
            pass

        def _merge(self, other):
            pass

        def abs_max(self):
            return paddle.ones([1])

    return {"error": message(FakeQuantize(Unknown), paddle.ones([2]))}


def evaluation_of_one_process(rank, size):
    """Rank 0 evaluates alone, and observes alone in ``local_statistics``."""
    quantizer = FakeQuantize()
    if rank == 0:
        with paddleq.local_statistics():
            quantizer(paddle.to_tensor([2.0]))
        quantizer.eval()
        quantizer(paddle.to_tensor([7.0]))
    return {"abs_max": quantizer.abs_max.numpy()}


def cost(rank, size):
    """Count the collective operations and bytes of a training step."""
    calls, original = [], dist.all_reduce

    def counted(x, *args, **kwargs):
        calls.append(x.numel().item() * x.element_size())
        return original(x, *args, **kwargs)

    net = paddleq.QAT().quantize(Net())
    dist.all_reduce = counted
    try:
        net(shard(next(batches(1))[0], rank, size))
    finally:
        dist.all_reduce = original
    return {"calls": np.array(calls), "quantizers": np.array(len(
        [q for _, q in fake_quantizers(net) if not q.observer.dynamic]))}


def batches_of(rank, size, count=5):
    """Each ``size``-th batch, as ``DistributedBatchSampler`` divides them."""
    return [paddle.to_tensor(x) for x, _ in batches(count)][rank::size]


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


def _kill(rank):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def killed_in_calibration(rank, size):
    net, data = with_observer("abs_max"), batches_of(rank, size, 6)

    def batches_until_the_end():
        yield data[0]
        _kill(rank)
        yield data[1]

    paddleq.calibrate(net, batches_until_the_end())
    return {}


def killed_in_training(rank, size):
    net = quantized()
    net.norm.register_forward_post_hook(lambda *_: _kill(rank))
    step(net, paddle.optimizer.SGD(parameters=net.parameters()), rank, size)
    return {}


def run(name, rank, size):
    function, _, argument = name.partition(":")
    return globals()[function](rank, size, *([argument] if argument else []))


def main(folder, *scenarios):
    global FOLDER
    FOLDER = folder
    dist.init_parallel_env()
    rank, size = dist.get_rank(), dist.get_world_size()
    for name in scenarios:
        print(name, flush=True)
        np.savez(Path(folder) / f"{name}.{rank}.npz", **run(name, rank, size))


if __name__ == "__main__":
    main(*sys.argv[1:])
