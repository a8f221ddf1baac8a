"""Scenarios of ``distributed_worker.py``: quantizers in training processes."""

from contextlib import nullcontext

import numpy as np
import paddle
import paddle.distributed as dist
from distributed_nets import (
    STEPS,
    Net,
    arrays,
    batches,
    kill,
    loss,
    message,
    quantized,
    shard,
    train,
    train_steps,
    with_observer,
)
from paddle import nn

import paddleq
from paddleq import FakeQuantize
from paddleq.engine import fake_quantizers
from paddleq.observers import OBSERVERS, Observer


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
    train_steps(model, optimizer, rank, size)
    return arrays(net)


def half_precision(rank, size):
    """float16 inputs, of which each process has half."""
    quantizer = FakeQuantize()
    for x, _ in batches(3):
        quantizer(shard(x, rank, size).astype("float16"))
    return arrays(quantizer)


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


def killed_in_training(rank, size):
    net = quantized()
    net.norm.register_forward_post_hook(lambda *_: kill(rank))
    train_steps(net, paddle.optimizer.SGD(parameters=net.parameters()), rank, size)
    return {}
